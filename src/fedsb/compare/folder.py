"""The comparison's own folder: what it may begin in, and what must not have changed when it is resumed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedsb.common.files import write_text
from fedsb.common.strict_yaml import written_yaml
from fedsb.compare.config import CompareConfig, settings_from_dict
from fedsb.config.run_config import RunConfig, differences
from fedsb.config.yaml_file import read_yaml
from fedsb.errors import InputError
from fedsb.runner.folder import check_new, check_place


def check_folder(folder: Path, config: RunConfig, settings: CompareConfig) -> CompareConfig:
    """Refuse a folder of something else. The settings, with the arms of an earlier call kept.

    Raises:
        InputError: with the differences, or the cure.
    """
    check_place(folder)
    file = folder / "config.yaml"
    if not file.exists():
        check_new(folder)
        return settings
    values = read_yaml(file)
    if not isinstance(values.get("compare"), dict):
        raise InputError(f"--out: {folder} holds a run, not a comparison; name another folder")
    before = settings_from_dict(values["compare"], source=str(file))
    changed = [*differences(RunConfig.from_yaml(file), config), *_changed(before, settings, _tried(folder))]
    if changed:
        listed = "\n  ".join(changed)
        raise InputError(
            f"--out: {folder} was started with another config; name another folder, or undo:\n  {listed}"
        )
    grown = {key: getattr(before, key) | getattr(settings, key) for key in ("arms", "learning_rates")}
    return settings.model_copy(update=grown)


def is_comparison(folder: Path) -> bool:
    """Whether the folder holds a finished comparison."""
    return (folder / "comparison.json").is_file()


def write_config(folder: Path, config: RunConfig, settings: CompareConfig) -> None:
    """config.yaml: a whole config of `fedsb compare`, and of `fedsb run`."""
    folder.mkdir(parents=True, exist_ok=True)
    section = {"compare": settings.model_dump(mode="json")}
    text = written_yaml(section)
    write_text(folder / "config.yaml", config.to_yaml() + text)


def _tried(folder: Path) -> set[str]:
    """Arms that have a run here, also one that only looked for a rate."""
    return {run.name for part in ("tuning", "runs") for run in (folder / part).glob("*") if run.is_dir()}


def _changed(before: CompareConfig, now: CompareConfig, tried: Collection[str]) -> list[str]:
    """Settings that differ. More rates are no change, nor is anything about arms that were not tried yet."""
    changes = [
        f"compare.{key}: {getattr(before, key)!r} -> {getattr(now, key)!r}"
        for key in ("validation", "random_rates", "tuning_seeds", "tuning_rounds")
        if getattr(before, key) != getattr(now, key)
    ]
    kept = {"arms": lambda a, b: a == b, "learning_rates": lambda a, b: set(a) <= set(b)}
    for key, holds in kept.items():
        a, b = getattr(before, key), getattr(now, key)
        changes += [
            f"compare.{key}.{name}: {a[name]!r} -> {b[name]!r}"
            for name in a
            if name in b and name in {*tried, "default"} and not holds(a[name], b[name])
        ]
    return changes
