"""Which runs a comparison is made of, and where each of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsb.compare.arms import Arm
from fedsb.compare.scored import is_scored
from fedsb.compare.split import TRAIN, VALIDATION
from fedsb.config.run_config import RunConfig, differences
from fedsb.config.sections import ColumnsConfig, LimitConfig, PrepareConfig
from fedsb.errors import InputError
from fedsb.runner.folder import finished_summary


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
        if not (self.folder / "config.yaml").is_file():
            return False
        changed = differences(RunConfig.from_yaml(self.folder / "config.yaml"), self.config)
        if changed:
            listed = "\n  ".join(changed)
            raise InputError(
                f"--out: {self.folder} holds a run of another config; remove it to do it anew, or name "
                f"another folder for all:\n  {listed}"
            )
        return finished_summary(self.folder) is not None and (not self.asks or is_scored(self.folder))


def final_jobs(root: Path, arms: Sequence[Arm], rates: dict[str, float], seeds: Sequence[int]) -> list[Job]:
    """Every arm under every seed at its rate, seed by seed. Arms without a rate are left out."""
    return [
        Job(
            f"{arm.name} seed {seed}",
            final_config(arm, rates[arm.name], seed),
            root / "runs" / arm.name / f"seed-{seed}",
            asks=bool(arm.config.evaluation.benchmarks),
        )
        for seed in seeds
        for arm in arms
        if arm.name in rates
    ]


def tuning_jobs(root: Path, arm: Arm, seed: int, rounds: int | None) -> dict[float, Job]:
    """One run per rate on the split's files. Benchmarks are test data: no rate is chosen by them."""
    return {
        rate: Job(
            f"{arm.name} rate {number(rate)}",
            tuning_config(arm, rate, root / "tuning", seed, rounds),
            root / "tuning" / arm.name / f"lr-{number(rate)}",
        )
        for rate in arm.rates
    }


def final_config(arm: Arm, rate: float, seed: int) -> RunConfig:
    training = arm.config.training.model_copy(update={"learning_rate": rate})
    return arm.config.model_copy(update={"seed": seed, "training": training})


def tuning_config(arm: Arm, rate: float, folder: Path, seed: int, rounds: int | None) -> RunConfig:
    """As the run, on the split's files alone: the config names no test data."""
    config = final_config(arm, rate, seed)
    files = {
        "train": str(folder / TRAIN),
        "test": str(folder / VALIDATION),
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
