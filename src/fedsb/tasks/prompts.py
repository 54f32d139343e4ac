"""Prompts: templates, and the one place where they are tokenized, for training, evaluation and generation."""

import string
from collections.abc import Sequence
from typing import Any

from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text
from fedsb.tasks.task import Row

Template = tuple[tuple[str, str | None], ...]  # pieces: text, then the column that follows it (or None)


def parse_template(prompt: str) -> Template:
    """The pieces of a prompt template. What stands in braces is a column's name and nothing else."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"task.prompt: {error} in {prompt!r}; {_TEMPLATE_CURE}") from error
    for _, column, form, conversion in pieces:
        if column == "" or form or conversion:
            got = (
                "{"
                + (column or "")
                + (f"!{conversion}" if conversion else "")
                + (f":{form}" if form else "")
                + "}"
            )
            raise InputError(f"task.prompt: expected a column name in braces, got {got}; {_TEMPLATE_CURE}")
    return tuple((text, column) for text, column, _, _ in pieces)


_TEMPLATE_CURE = "write {column}, and {{ or }} for a brace that is text"


def fill(template: Template, row: Row, source: str, number: int) -> str:
    return "".join(
        text + (cell_text(row, column, source=source, number=number) if column is not None else "")
        for text, column in template
    )


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
