"""What a run was started on, and whether it is resumed on the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedsb.config.run_config import RunConfig, differences
from fedsb.errors import InputError
from fedsb.models.digest import examples_digest
from fedsb.runner.prepare_data import Data

NAMES = {
    "train": "the training rows (data.train), or how the tokenizer in model.path reads them",
    "test": "the test rows (data.test), or how the tokenizer in model.path reads them",
    "public": "the public rows (method.init.public), or how the tokenizer in model.path reads them",
    "parts": "which client has which training rows, or how many",
    "base": "the weights of the base model (model.path)",
}


@dataclass(frozen=True)
class StartedOn:
    """Digests of a run's inputs. None: no such input here."""

    config: dict[str, Any]
    versions: dict[str, str]
    train: str
    test: str
    parts: str
    public: str | None
    base: str | None


def started_on(
    config: RunConfig, data: Data, base: str | None, versions: Mapping[str, str]
) -> dict[str, Any]:
    """As it is kept in the checkpoint.

    Args:
        base: digest of the base's weights; None where they are elsewhere.
    """
    return asdict(
        StartedOn(
            config=config.model_dump(mode="json", exclude={"tracking"}),
            versions=dict(versions),
            train=examples_digest(data.train),
            test=examples_digest(data.test),
            parts=_parts_digest(data.parts),
            public=None if data.public is None else examples_digest(data.public),
            base=base,
        )
    )


def _parts_digest(parts: Sequence[Sequence[int]]) -> str:
    return examples_digest({"indices": list(part)} for part in parts)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig) -> str | None:
    """Refuse to resume on other inputs. A line about other versions, None where they are the same.

    Raises:
        InputError: names what differs, and shows nothing of it.
    """
    first = RunConfig.from_dict(before["config"], source="the config in the checkpoint")
    if changed := differences(first, config.model_copy(update={"tracking": first.tracking})):
        raise InputError(
            "--resume: config.yaml is not the one that the run was started with:\n  " + "\n  ".join(changed)
        )
    other = [name for key, name in NAMES.items() if before[key] != now[key]]
    if other:
        raise InputError(
            "--resume: the run was started on others than are here now:\n  "
            + "\n  ".join(other)
            + "\nBring back what was there, or start again with another --out"
        )
    return _other_versions(before["versions"], now["versions"])


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    changed = [
        f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now[name]
    ]
    return f"resumed with other versions than at the start: {', '.join(changed)}" if changed else None
