"""Prompts: templates, and the one place where they are tokenized, for training, evaluation and generation."""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text, is_missing
from fedsb.tasks.task import Row

OPTIONAL = "optional"


class Piece(NamedTuple):
    """Some text of a template, and the column that follows it (or None)."""

    text: str
    column: str | None
    optional: bool
    """Whether a row without a value there has the empty text."""


Template = tuple[Piece, ...]


def parse_template(prompt: str) -> Template:
    """The pieces of a prompt template. What stands in braces is a column's name, marked or not."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"task.prompt: {error} in {prompt!r}; {_TEMPLATE_CURE}") from error
    for _, column, form, conversion in pieces:
        if column == "" or form not in ("", None, OPTIONAL) or conversion:
            form, conversion = f":{form}" if form else "", f"!{conversion}" if conversion else ""
            raise InputError(
                f"task.prompt: expected a column name in braces, got {{{column or ''}{conversion}{form}}}; "
                f"{_TEMPLATE_CURE}"
            )
    return tuple(Piece(text, column, form == OPTIONAL) for text, column, form, _ in pieces)


_TEMPLATE_CURE = "write {column} or {column:optional}, and {{ or }} for a brace that is text"


def columns_of(template: Template) -> list[str]:
    """The columns that every row must have, in the order of their places."""
    return [piece.column for piece in template if piece.column is not None and not piece.optional]


def fill(template: Template, row: Row, source: str, number: int) -> str:
    """The prompt of a row."""
    return "".join(piece.text + _cell(piece, row, source, number) for piece in template)


def _cell(piece: Piece, row: Row, source: str, number: int) -> str:
    if piece.column is None or (piece.optional and is_missing(row.get(piece.column))):
        return ""
    cure = f"fill it, or write {{{piece.column}:{OPTIONAL}}} in task.prompt for an empty text there"
    return cell_text(row, piece.column, source=source, number=number, cure=cure)


def cut_left(ids: list[int], keep: int, most: int) -> list[int]:
    """At most `most` ids: the first `keep` and as much of the end as fits."""
    tail = max(most - keep, 0)
    return ids if len(ids) <= most else ids[: min(keep, most)] + ids[len(ids) - tail :]


def added_bos(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer puts it before a text by itself, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if adds_at_start(tokenizer, bos) else []


def adds_at_start(tokenizer: Any, token_id: int | None) -> bool:
    """Whether the tokenizer puts this token before a text by itself."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return token_id is not None and with_special[:1] == [token_id] and plain[:1] != [token_id]


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids
