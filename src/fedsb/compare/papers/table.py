"""A table of a paper: its numbers, where they are from, and how each of its cells is run."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal

from pydantic import model_validator

from fedsb.common.strict_yaml import parse_yaml
from fedsb.compare.config import CompareConfig
from fedsb.config.base import Section, checked
from fedsb.errors import InputError

Made = Literal["pairs", "sentences", "choices", "sums", "restaurants", "images"]
"""Kinds of rows, with a model for them, that the command can make where the user names none."""
Dotted = dict[str, Any]
"""Dotted keys of a config and their values."""


class SourceOf(Section):
    """Where the numbers are printed."""

    authors: str
    year: int
    arxiv: str
    table: str
    """What it is about, or its number where that is known."""


class Column(Section):
    name: str
    part: str | None = None
    """The comparison that its cells come from; null: nobody knows how to run it."""
    metric: str | None = None
    """As scores of that comparison call it."""
    scale: float = 1.0
    """What ours is multiplied by, to be in the paper's unit."""


class RowOf(Section):
    arm: str
    method: str
    """As the paper calls it."""
    rank: int | None
    cells: list[float | None]
    """The paper's numbers, column by column; null: not known."""


class Form(Section):
    """How a table is run: parts are comparisons, each of the same arms."""

    config: dict[str, Any]
    parts: dict[str, Dotted]
    """Name -> what sets its config apart."""
    arms: dict[str, Dotted]
    learning_rates: Any = None
    """As `compare.learning_rates`; null: the config's rate."""


class SmallForm(Form):
    """Models and data are the user's, or made; paths are relative to the folder of the data."""

    made: Made
    note: str = ""
    """What else sets it apart from the paper's, in a sentence."""


class PaperTable(Section):
    """One table."""

    title: str
    source: SourceOf
    known: str
    """Of the settings."""
    unknown: str
    """Of the settings, or known and not offered here."""
    columns: list[Column]
    rows: list[RowOf]
    config: dict[str, Any]
    parts: dict[str, Dotted]
    arms: dict[str, Dotted]
    reduced: SmallForm

    @model_validator(mode="after")
    def _fits_together(self) -> PaperTable:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{row.arm} has {len(row.cells)} cells of {len(self.columns)} columns")
            if row.arm not in self.arms or row.arm not in self.reduced.arms:
                raise ValueError(f"{row.arm} is no arm")
        parts = {column.part for column in self.columns if column.part}
        if parts != set(self.parts) or not set(self.reduced.parts) <= parts:
            raise ValueError("parts are those of the columns")
        return self

    @property
    def whole(self) -> Form:
        """The paper's own settings, as far as they are known."""
        return Form(config=self.config, parts=self.parts, arms=self.arms)


TABLES = files("fedsb.compare.papers") / "tables"


def table_names() -> list[str]:
    """Names of all tables."""
    found = [file.name for file in TABLES.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def load_table(name: str) -> PaperTable:
    """The table of that name.

    Raises:
        InputError: there is none; lists those that there are.
    """
    names = table_names()
    if name not in names:
        raise InputError(f"TABLE: expected one of {', '.join(names)}; found {name[:80]!r}")
    text = (TABLES / f"{name}.yaml").read_text(encoding="utf-8")
    return checked(PaperTable, parse_yaml(text), f"the table {name}")


def settings_of(form: Form) -> CompareConfig:
    """The section `compare` of its comparisons: one rate an arm, as the papers give, and nothing tuned."""
    rates = form.learning_rates or [form.config["training"]["learning_rate"]]
    return checked(CompareConfig, {"arms": form.arms, "learning_rates": rates}, "the table", under="compare")


__all__ = ["Column", "Form", "PaperTable", "RowOf", "SmallForm", "load_table", "settings_of", "table_names"]
