"""HTML parts, the macros of parts.html. Text is escaped there; what comes back is HTML already."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsb.common.printable import printable


class Column(NamedTuple):
    title: str
    numeric: bool


def texts(*titles: str) -> list[Column]:
    return [Column(title, False) for title in titles]


def numbers(*titles: str) -> list[Column]:
    """Columns that are set flush right."""
    return [Column(title, True) for title in titles]


class Card(NamedTuple):
    title: str
    value: str
    note: str = ""


def joined(*parts: str) -> Markup:
    """HTML one after the other; plain text among it is escaped."""
    return Markup("").join(parts)


def _plain(value: object) -> object:
    """Nothing that turns the direction of writing or cannot be seen."""
    return value if isinstance(value, Markup) else printable(value, None, keep="\n\t")


@cache
def _parts() -> Any:
    environment = Environment(
        loader=PackageLoader("fedsb.report", ""),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("parts.html").module


def _part(name: str) -> Callable[..., Markup]:
    return lambda *arguments, **options: getattr(_parts(), name)(*arguments, **options)


paragraph, link, table, pairs, cards = map(_part, ("paragraph", "link", "table", "pairs", "cards"))
section, details, folded_run, yaml = map(_part, ("section", "details", "folded_run", "yaml"))
plots, wide, trial, header, document = map(_part, ("plots", "wide", "trial", "header", "document"))
