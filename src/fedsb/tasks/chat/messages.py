"""Conversations of rows, in the shapes that people have, recognized by their columns and what is in them.

    messages                     a list of {role, content}, in this column or in one of any name
    conversations                a list of {from, value}, as ShareGPT has it
    instruction, input, output   Alpaca's, also with history: earlier pairs of texts
    prompt, completion           TRL's: two texts, or two lists of messages

A list may also stand there as JSON text, as CSV has it. A column `system` is the first message where a
conversation has none of its own. One value comes out: messages of the roles in ROLES. No error shows a text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedsb.common.strict_json import parse_json
from fedsb.errors import InputError
from fedsb.tasks.chat.refusal import form_of
from fedsb.tasks.rows import PlacedRow, is_missing, place
from fedsb.tasks.rows.cells import kind_of, listed, text_fault
from fedsb.tasks.task import Row

Messages = list[dict[str, str]]
"""Of {"role", "content"}, as transformers has them."""
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {
    **{name: SYSTEM for name in (SYSTEM, "developer")},
    **{name: USER for name in (USER, "human")},
    **{name: ASSISTANT for name in (ASSISTANT, "gpt", "model")},
}
OF_TOOLS = ("tool", "tools", "function", "function_call", "observation", "ipython")
"""Roles of messages that are no text for people."""
NOT_READ = {
    "tool_calls": "a tool call",
    "function_call": "a tool call",
    "tool_call_id": "a tool's answer",
    "reasoning_content": "reasoning apart from its text",
    "reasoning": "reasoning apart from its text",
    "thinking": "reasoning apart from its text",
    "images": "images",
    "audio": "audio",
}
"""Keys of a message, and of a row, that change what is learnt."""
COLUMNS = ("messages", "conversations", "instruction", "input", "output", "history", "prompt", "completion")
CHAT_COLUMNS = (*COLUMNS, "system", "tools")
"""All columns of the shapes, but for a list of messages under a name of its own."""


class Shape(NamedTuple):
    """How a row holds its conversation: the columns, and the keys of a message where there are lists."""

    columns: tuple[str, ...]
    form: tuple[str, str] | None

    def __str__(self) -> str:
        names = listed(self.columns)
        return names if self.form is None else f"{names}, messages of {' and '.join(self.form)}"


def read_conversations(rows: Sequence[Row], source: str, *, asks: bool = False) -> list[Messages]:
    """A conversation for each row, up to the assistant's last turn.

    Args:
        source: of rows that do not know theirs. A file has rows of one shape.
        asks: up to the last turn before that, where there is one; no turn of the assistant's is needed.

    Raises:
        InputError: names the row.
    """
    first: dict[str, Shape] = {}
    read = []
    for number, row in enumerate(rows, start=1):
        where = place(row, source, number)
        shape = _shape_of(row, where)
        expected = first.setdefault(row.source if isinstance(row, PlacedRow) else source, shape)
        if shape != expected:
            raise InputError(
                f"{where}: has a conversation in {shape}, and the first row in {expected}; put rows of one "
                "shape into a file"
            )
        messages = [*_system(row, where), *_read(row, shape, where)]
        if len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == SYSTEM:
            messages = messages[1:]
        read.append(_ending(messages, where, asks=asks))
    return read


def shapes_of(rows: Sequence[Row], source: str) -> dict[str, Shape]:
    """The shape of each file's rows, by its first row."""
    firsts: dict[str, Shape] = {}
    for number, row in enumerate(rows, start=1):
        name = row.source if isinstance(row, PlacedRow) else source
        if name not in firsts:
            firsts[name] = _shape_of(row, place(row, source, number))
    return firsts


def _ending(messages: Messages, where: str, *, asks: bool) -> Messages:
    """What stands after the last answer teaches nothing; a question is all before it."""
    ends = [n for n, message in enumerate(messages, start=1) if (message["role"] == ASSISTANT) != asks]
    if not messages:
        raise InputError(f"{where}: has an empty conversation; remove the row")
    if not ends:
        missing = "no turn to answer" if asks else "no assistant turn, so nothing to learn"
        raise InputError(f"{where}: has {missing}; complete the conversation or remove the row")
    return messages[: ends[-1]]


# Shapes


def _shape_of(row: Row, where: str) -> Shape:
    for key in ("tools", *NOT_READ):
        if key not in COLUMNS and _is_something(row.get(key)):
            raise InputError(
                f"{where}, column {key!r}: expected text alone, got {NOT_READ.get(key, 'tools')}, which is "
                "not read yet; take such rows out"
            )
    for column in ("messages", "conversations"):
        if not is_missing(row.get(column)):
            return Shape((column,), _form(row, column, where))
    if not is_missing(row.get("prompt")) and _is_list(row["prompt"]):
        return Shape(("prompt", "completion"), _form(row, "prompt", where))
    if not is_missing(row.get("prompt")):
        return Shape(("prompt", "completion"), None)
    if not is_missing(row.get("instruction")):
        return Shape(("instruction", "input", "output"), None)
    others = [column for column, value in row.items() if form_of(_listed_value(value))]
    if len(others) == 1:
        return Shape((others[0],), _form(row, others[0], where))
    raise InputError(_no_shape(list(row), others, where))


def _no_shape(columns: Sequence[str], several: Sequence[str], where: str) -> str:
    if several:
        return (
            f"{where}: has messages in the columns {listed(several)}, and one of them is to be learnt; name "
            f"it in data.columns, e.g. data.columns.train: {{messages: {several[0]}}}"
        )
    return (
        f"{where}: expected a conversation, in a column messages or conversations, or in instruction and "
        f"output, or in prompt and completion; the columns are {listed(columns)}; rename yours in "
        "data.columns, e.g. data.columns.train: {prompt: question, completion: answer}"
    )


def _form(row: Row, column: str, where: str) -> tuple[str, str] | None:
    """The keys of the first message that has any; those of others are looked at as they are read."""
    messages = _list(row, column, where)
    if not messages:
        raise InputError(f"{where}, column {column!r}: has an empty conversation; remove the row")
    form = form_of(messages[:1])
    if form is None:
        raise InputError(f"{where}, column {column!r}: message 1 {_KEYS}")
    return form


_KEYS = "has not the keys role and content (or from and value); write both"


def _list(row: Row, column: str, where: str) -> Sequence[Any]:
    value = row.get(column)
    messages = _listed_value(value)
    if isinstance(messages, list | tuple):
        return messages
    found = "text that is no JSON list" if isinstance(value, str) else kind_of(value)
    raise InputError(
        f"{where}, column {column!r}: expected a list of messages, or one as JSON text (json.dumps writes "
        f"it, str does not), got {found}"
    )


def _listed_value(value: object) -> object:
    """The value, and of JSON text what it stands for."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value, any_text=True)
    except ValueError:
        return value


def _is_list(value: object) -> bool:
    return form_of(_listed_value(value)) is not None or isinstance(value, list | tuple)


def _is_something(value: object) -> bool:
    return not is_missing(value) and value not in ("", "[]", "null", [], {}, ())


# Messages


def _read(row: Row, shape: Shape, where: str) -> Messages:
    if shape.columns[0] == "instruction":
        return _alpaca(row, where)
    if shape.form is None:
        pair = zip((USER, ASSISTANT), shape.columns, strict=True)
        return [_said(role, row, column, where) for role, column in pair if not is_missing(row.get(column))]
    columns = [column for column in shape.columns if not is_missing(row.get(column))]
    return [message for column in columns for message in _messages(row, column, where)]


def _alpaca(row: Row, where: str) -> Messages:
    earlier = row.get("history")
    pairs = [] if is_missing(earlier) else _list(row, "history", where)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{where}, column 'history': expected pairs of texts; fix the row")
    turns = [(role, text) for pair in pairs for role, text in zip((USER, ASSISTANT), pair, strict=True)]
    asked = [_text(row.get("instruction"), row, "instruction", where)]
    if _is_something(row.get("input")):
        asked.append(_text(row["input"], row, "input", where))
    messages = [{"role": role, "content": _text(text, row, "history", where)} for role, text in turns]
    messages.append({"role": USER, "content": "\n".join(asked)})
    answered = not is_missing(row.get("output"))
    return messages + ([_said(ASSISTANT, row, "output", where)] if answered else [])


def _system(row: Row, where: str) -> Messages:
    return [_said(SYSTEM, row, "system", where)] if _is_something(row.get("system")) else []


def _said(role: str, row: Row, column: str, where: str) -> dict[str, str]:
    return {"role": role, "content": _text(row.get(column), row, column, where)}


def _messages(row: Row, column: str, where: str) -> Iterable[dict[str, str]]:
    for number, message in enumerate(_list(row, column, where), start=1):
        at = f"{where}, column {column!r}: message {number}"
        form = form_of([message])
        if form is None:
            raise InputError(f"{at} {_KEYS}")
        who, what = form
        yield {"role": _role(message, who, at), "content": _content(message[what], row, column, at)}


def _role(message: Mapping[str, Any], who: str, at: str) -> str:
    name = str(message[who]).lower()
    unread = next((what for key, what in NOT_READ.items() if _is_something(message.get(key))), None)
    if unread or name in OF_TOOLS:
        raise InputError(f"{at} has {unread or 'a tool call'}, which is not read yet; take such rows out")
    if message.get("weight") == 0:
        raise InputError(f"{at} has weight 0, and weights are not read; task.train_on: last is the nearest")
    if name not in ROLES:
        raise InputError(f"{at}: expected a role among {', '.join(ROLES)}, got another; rename it")
    return ROLES[name]


def _content(value: object, row: Row, column: str, at: str) -> str:
    """A message's text; of a list of parts all of them together."""
    if not isinstance(value, list | tuple):
        return _text(value, row, column, at)
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
    kinds = {str(part.get("type") or "text") for part in value if isinstance(part, Mapping)}
    if kinds - {"text"} or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{at} has parts that are no text (images, audio), which is not read; take it out")
    return _text("".join(map(str, parts)), row, column, at)


def _text(value: object, row: Row, column: str, at: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{at}: expected text in column {column!r}, got {kind_of(value)}; fix the row")
    if fault := text_fault(value):
        raise InputError(f"{at}: {fault}; fix the row")
    return value
