"""The config's section `compare`: which arms, which learning rates, what is held out to choose one."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from fedsb.config import RunConfig
from fedsb.config.base import Positive, Section, checked
from fedsb.config.yaml_file import override, read_yaml
from fedsb.errors import InputError

FACTORS = (1 / 3, 1.0, 3.0)
"""Multiples of training.learning_rate: the rates that are tried where none are given."""
USUAL_BUDGET = 6
"""Rates tried for an arm at most, where nothing is said."""
SHARED = ("seed", "data", "task", "model", "evaluation", "compare")
"""Sections that no arm may change: all arms answer the same question."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class CompareConfig(Section):
    """The section `compare`, every key optional."""

    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> dotted keys and values that set this arm apart. Named like a method: that method."""
    learning_rates: dict[str, Annotated[list[Positive], Field(min_length=1)]] = Field(default_factory=dict)
    """Rates to try, by arm or `default`; none: 1/3, 1 and 3 times training.learning_rate."""
    validation: Positive = 0.1
    """Share of the training rows, or from 1 on their number, held out to choose the rate."""
    tuning_budget: PositiveInt | None = None
    """Most rates tried for an arm: while its best one is the smallest or largest of its grid, the next beyond
    is tried too; a larger grid is tried whole. null: 6; a private arm, as each run costs, its grid."""
    selected_runs: Annotated[float, Field(gt=1)] | None = None
    """Private arms with several rates: try a random number of them, so many on average (at least one, by a
    geometric draw), each taken from the grid by chance. What is charged for the choice is then that of
    private selection (Papernot and Steinke 2022, arXiv 2110.03620), less than that of all runs, for whoever
    sees the chosen rate alone. null: every rate of the grid once, and all of them count."""
    random_rates: Annotated[int, Field(ge=2)] | None = None
    """Try so many rates, drawn log-uniformly between the smallest and the largest of an arm's grid, in place
    of the grid (Bergstra and Bengio 2012, JMLR 13). All arms draw the same places between their ends, from a
    fixed seed. null: the grid."""
    tuning_seeds: PositiveInt = 1
    """Seeds that each rate is tried under, counted up from the first of --seeds; the rate of the best mean is
    chosen. The rows held out are the same for all. Not with selected_runs."""
    tuning_rounds: PositiveInt | None = None
    """Rounds of a tuning run; null: as the run."""
    metric: str | None = None
    """The score that the comparison is about, as scores.json has it (accuracy, gsm8k_accuracy); null: the
    benchmarks' mean accuracy or their first metric, without benchmarks the task's own."""

    @field_validator("arms", mode="before")
    @classmethod
    def _null_changes_nothing(cls, value: Any) -> Any:
        return {str(k): v or {} for k, v in value.items()} if isinstance(value, dict) else value or {}

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _one_form(cls, value: Any) -> Any:
        """A number, a list, or either of them by arm."""
        by_arm = value if isinstance(value, dict) else {"default": value}
        return {
            str(k): v if isinstance(v, list) else [v] for k, v in by_arm.items() if v is not None and v != {}
        }

    @field_validator("arms")
    @classmethod
    def _arms_can_be_told_apart(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in arms.items():
            if not _NAME.fullmatch(name) or name == "default":
                raise ValueError(
                    f"an arm's name becomes a folder: use letters, digits and . _ + - (not {name!r})"
                )
            for key in changes:
                _check_key(name, str(key))
        return arms

    @field_validator("learning_rates")
    @classmethod
    def _each_once(cls, rates: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, grid in rates.items():
            if len(set(grid)) < len(grid):
                raise ValueError(f"{name} has a rate twice; name each once")
        return rates

    @model_validator(mode="after")
    def _one_seed_where_runs_are_selected(self) -> CompareConfig:
        if self.selected_runs is not None and self.tuning_seeds > 1:
            raise ValueError("selected_runs counts runs of one seed; leave tuning_seeds out")
        return self

    @field_validator("validation")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("expected a share below 1 or a whole number of rows")
        return value

    def may_grow(self, arm: RunConfig, tried: int) -> bool:
        """Whether one more rate than these may be tried."""
        if self.tuning_budget is None:
            return arm.privacy is None and tried < USUAL_BUDGET
        return tried < self.tuning_budget

    def selects(self, arm: RunConfig) -> bool:
        """Whether the arm's rate is chosen by private selection."""
        return self.selected_runs is not None and arm.privacy is not None

    def rates(self, arm: str, learning_rate: float) -> tuple[float, ...]:
        """The arm's grid, ascending, to four digits where it is derived; one rate: nothing is tuned."""
        given = self.learning_rates.get(arm) or self.learning_rates.get("default")
        grid = sorted(given or (float(f"{factor * learning_rate:.4g}") for factor in FACTORS))
        if self.random_rates is None or len(grid) == 1:
            return tuple(grid)
        return log_uniform(grid[0], grid[-1], self.random_rates)


def log_uniform(low: float, high: float, count: int) -> tuple[float, ...]:
    """So many rates between two, ascending, to four digits; the places between them are always the same."""
    chance = random.Random("learning rates")
    places = sorted(chance.random() for _ in range(count))
    return tuple(float(f"{low * (high / low) ** place:.4g}") for place in places)


def _check_key(arm: str, key: str) -> None:
    section, dot, _ = key.partition(".")
    if section in SHARED:
        raise ValueError(f"{arm} sets {key}, but {', '.join(SHARED)} are the same for every arm")
    if not dot:
        raise ValueError(f"{arm}: expected dotted keys such as method.rank, found {key!r}")


def settings_from_yaml(path: str | Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """The section of a file that `RunConfig.from_yaml` has read without a fault; defaults if absent."""
    values = override(read_yaml(Path(path)), overrides)
    return settings_from_dict(values.get("compare"), source=str(path))


def settings_from_dict(values: Mapping[str, Any] | None, *, source: str = "config") -> CompareConfig:
    """Check the section.

    Raises:
        InputError: one line per fault, each with its key.
    """
    if values is not None and not isinstance(values, Mapping):
        raise InputError(f"{source}: compare: expected keys such as arms:, found {type(values).__name__}")
    return checked(CompareConfig, values or {}, source, under="compare")
