"""The section `data`: where rows come from, and which of them are scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from fedsb.config.base import Section


class LimitConfig(Section):
    train: PositiveInt | None = None
    """Use the first so many training rows, of each source where there are several."""
    test: PositiveInt | None = None
    """Use the first so many test rows."""


Preparation = Literal["llm-adapters", "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc", "openbookqa"]
"""See tasks/commonsense.py."""


class PrepareConfig(Section):
    train: Preparation | None = None
    test: Preparation | None = None


class ColumnsConfig(Section):
    train: dict[str, str] = Field(default_factory=dict)
    """What the task calls a column -> what it is called in the data."""
    test: dict[str, str] = Field(default_factory=dict)


def _names_sources(value: Any) -> Any:
    """One message for what is neither a source, nor several, nor named ones."""
    many = list(value.values()) if isinstance(value, dict) else [value]
    several = [source for one in many for source in (one if isinstance(one, list) else [one])]
    if not several or not all(isinstance(source, str) and source for source in several):
        raise ValueError(
            f"expected a file or hub id, a list of such, or names with one each, found {value!r:.200}"
        )
    return value


Source = str | list[str]
Sources = Annotated[Source | dict[str, Source], BeforeValidator(_names_sources)]


Encoding = Literal[
    "utf-8", "utf-16", "windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254",
    "windows-1257", "iso-8859-1", "iso-8859-2", "iso-8859-15", "koi8-r", "mac-roman", "cp437", "cp850",
    "shift_jis", "euc-jp", "gb18030", "big5", "euc-kr",
]  # fmt: skip
DEFAULT_SHARE = 0.1
"""Of the training rows, held out as test rows where the config names none."""


class DataConfig(Section):
    train: Sources
    """Hub id, file (.jsonl, .json, .csv, .tsv, .parquet, .arrow), folder or pattern such as `site-*/*.csv`; a
    list of such; or several with a name each, which their rows then have in the column `source`."""
    test: (
        Annotated[float, Field(gt=0, le=0.5)] | Annotated[Source, BeforeValidator(_names_sources)] | None
    ) = DEFAULT_SHARE
    """As `train`, without names; or the share of the training rows to hold out, of each class alike. Never
    used to choose anything. null: 0.1; with evaluation.at_clients: true none, and the scores are those at the
    clients."""
    client_test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of its own rows that each client never trains on and is scored on; null: 0.1 where
    evaluation.at_clients is true. A client for whom it is under 5 rows trains on all and has no score."""
    group: str | None = None
    """Column whose rows stay together on one side of the share, such as a patient's id."""
    split_seed: int = 0
    """Draws the rows held out: the same for all seeds, methods and commands."""
    encoding: Encoding | None = None
    """Of CSV and TSV files without a byte order mark; null: UTF-8, or Windows-1252 where that is certain."""
    limit: LimitConfig = LimitConfig()
    prepare: PrepareConfig = PrepareConfig()
    """Bring the rows of known data sets into the form that a recipe's prompt is made for."""
    columns: ColumnsConfig = ColumnsConfig()
    drop_unlabelled: bool = False
    """Leave out rows without a label (SNLI and GLUE have some) instead of refusing them."""

    @field_validator("test", mode="before")
    @classmethod
    def _share_or_files(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, int | float) and not 0 < value <= 0.5):
            raise ValueError(f"expected a file, or a share above 0 and at most 0.5, found {value!r}")
        return value if isinstance(value, float) else _names_sources(value)

    @model_validator(mode="after")
    def _keys_of_a_share(self) -> DataConfig:
        if isinstance(self.test, float):
            if self.prepare.test or self.columns.test:
                raise ValueError(
                    f"test is the share {self.test:g} of the training rows, which prepare.train and "
                    "columns.train are for; leave prepare.test and columns.test out, or name a test file"
                )
        elif self.group is not None:
            raise ValueError(
                "group keeps rows together where test is a share, e.g. test: 0.1; leave group out, or take a "
                "share"
            )
        return self
