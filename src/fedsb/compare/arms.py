"""What is compared: each arm as a run config of its own, and the rates to try for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedsb.compare.config import CompareConfig
from fedsb.compare.scored import is_scored
from fedsb.compare.split import TRAIN, VALIDATION
from fedsb.config.run_config import RunConfig, differences
from fedsb.config.sections.data import ColumnsConfig, LimitConfig, PrepareConfig
from fedsb.config.yaml_file import override
from fedsb.errors import InputError
from fedsb.methods import ALL, METHODS, by_name
from fedsb.runner.continued import as_chosen
from fedsb.runner.folder import finished_summary


@dataclass(frozen=True)
class Arm:
    """`config` has the base config's seed and the arm's first rate; `rates` is its grid, ascending."""

    name: str
    config: RunConfig
    rates: tuple[float, ...]


def make_arms(config: RunConfig, settings: CompareConfig, names: Sequence[str]) -> list[Arm]:
    """One arm per name, in order.

    Raises:
        InputError: no such arm or method, a name twice, a setting that does not fit a run config.
    """
    _check_once_each("--methods", names, f"{ALL[0].name},{ALL[1].name}")
    _check_rates(settings)
    return [_arm(config, settings, name) for name in names]


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse an empty list, or a seed twice."""
    _check_once_each("--seeds", seeds, "0,1,2")


def _check_once_each(option: str, items: Sequence[str | int], example: str) -> None:
    if not items:
        raise InputError(f"{option}: the list is empty; name at least one, e.g. {option} {example}")
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise InputError(f"{option}: {twice} is named twice; name each once")


def _check_rates(settings: CompareConfig) -> None:
    known = {*settings.arms, *METHODS.names(), "default"}
    unknown = [name for name in settings.learning_rates if name not in known]
    if unknown:
        raise InputError(
            f"compare.learning_rates.{unknown[0]}: no such arm or method; expected one of "
            f"{', '.join(sorted(known))}"
        )


def _arm(config: RunConfig, settings: CompareConfig, name: str) -> Arm:
    changes = {**_method_of(name, settings), **settings.arms.get(name, {})}
    values = override(config.model_dump(mode="json"), [f"{key}={_flow(v)}" for key, v in changes.items()])
    changed = RunConfig.from_dict(values, source=f"compare.arms.{name}")
    method = by_name(changed.method.name)
    if name != method.name and name in METHODS.names():
        raise InputError(
            f"compare.arms.{name}: named like a method, but its method.name is {method.name}; rename the arm"
        )
    return Arm(name, changed, settings.rates(name, changed.training.learning_rate))


def _method_of(name: str, settings: CompareConfig) -> dict[str, Any]:
    """method.name where the arm's name says it. A variant without one keeps the base config's method."""
    if name in settings.arms and name not in METHODS.names():
        return {}
    try:
        method = by_name(name)
        one_core = (
            dict.fromkeys(("method.experts", "federation.client_experts")) if not method.experts else {}
        )
        return {"method.name": method.name, **one_core}
    except InputError as error:
        arms = f" Arms of this config: {', '.join(settings.arms)}." if settings.arms else ""
        raise InputError(f"--methods: {str(error).removeprefix('method.name: ')}{arms}") from None


def _flow(value: Any) -> str:
    """A value as YAML on one line, for `override`."""
    return yaml.safe_dump(value, default_flow_style=True, width=1_000_000).removesuffix("\n...\n").strip()


# Which runs a comparison is made of, and where each of them lies.


@dataclass(frozen=True)
class Job:
    """One run of the comparison; `asks`: its benchmarks belong to it."""

    name: str
    config: RunConfig
    folder: Path
    asks: bool = False

    def finished(self) -> bool:
        """Whether the folder holds this run whole.

        Raises:
            InputError: it holds a run of another config.
        """
        file = self.folder / "config.yaml"
        if not file.is_file():
            return False
        before = RunConfig.from_yaml(file)
        if changed := differences(before, as_chosen(before, self.config)):
            raise InputError(
                f"--out: {self.folder} holds a run of another config; remove it to do it again, or name "
                "another folder for all:\n  " + "\n  ".join(changed)
            )
        return finished_summary(self.folder) is not None and (not self.asks or is_scored(self.folder))


def final_jobs(root: Path, arms: Sequence[Arm], rates: dict[str, float], seeds: Sequence[int]) -> list[Job]:
    """Every arm under every seed at its rate, seed by seed. Arms without a rate are left out."""
    return [
        Job(
            f"{arm.name} seed {seed}",
            _final_config(arm, rates[arm.name], seed),
            root / "runs" / arm.name / f"seed-{seed}",
            asks=bool(arm.config.evaluation.benchmarks),
        )
        for seed in seeds
        for arm in arms
        if arm.name in rates
    ]


class Trying(NamedTuple):
    """A rate and the runs that try it, one for each seed."""

    rate: float
    jobs: tuple[Job, ...]


def tuning_jobs(root: Path, arm: Arm, seeds: Sequence[int], rounds: int | None) -> list[Trying]:
    """Runs on the split's files, by rate. Benchmarks are test data: no rate is chosen by them."""
    return [Trying(rate, _tuning_runs(root, arm, rate, seeds, rounds)) for rate in arm.rates]


def _tuning_runs(
    root: Path, arm: Arm, rate: float, seeds: Sequence[int], rounds: int | None
) -> tuple[Job, ...]:
    """One for each seed; the first is called by the rate alone."""
    ends = ["", *(f" seed {seed}" for seed in seeds[1:])]
    return tuple(
        Job(
            f"{arm.name} rate {number(rate)}{end}",
            _tuning_config(arm, rate, root / "tuning", seed, rounds),
            root / "tuning" / arm.name / f"lr-{number(rate)}{end.replace(' ', '-')}",
        )
        for seed, end in zip(seeds, ends, strict=True)
    )


def selection_jobs(
    root: Path, arm: Arm, drawn: Sequence[float], seed: int, rounds: int | None
) -> list[Trying]:
    """As `tuning_jobs`, one run for each of the rates that were drawn."""
    folder = root / "tuning"
    return [
        Trying(
            rate,
            (
                Job(
                    f"{arm.name} draw {place} rate {number(rate)}",
                    _tuning_config(arm, rate, folder, seed, rounds),
                    folder / arm.name / f"draw-{place}-lr-{number(rate)}",
                ),
            ),
        )
        for place, rate in enumerate(drawn, start=1)
    ]


def _final_config(arm: Arm, rate: float, seed: int) -> RunConfig:
    training = arm.config.training.model_copy(update={"learning_rate": rate})
    return arm.config.model_copy(update={"seed": seed, "training": training})


def _tuning_config(arm: Arm, rate: float, folder: Path, seed: int, rounds: int | None) -> RunConfig:
    """As the run, on the split's files alone: the config names no test data."""
    config = _final_config(arm, rate, seed)
    files = {
        "train": str(folder / TRAIN),
        "test": str(folder / VALIDATION),
        "group": None,
        "encoding": None,
        "limit": LimitConfig(),
        "prepare": PrepareConfig(),
        "columns": ColumnsConfig(),
    }
    federation = config.federation.model_copy(update={"rounds": rounds or config.federation.rounds})
    return config.model_copy(update={"data": config.data.model_copy(update=files), "federation": federation})


def number(rate: float) -> str:
    """Short where that is exact.

    >>> number(0.003), number(1e-05), number(0.00123456789)
    ('0.003', '1e-05', '0.00123456789')
    """
    return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)
