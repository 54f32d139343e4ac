"""Rows in the shapes that people have give one conversation; what cannot be read is refused by its row."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from fedsb.errors import InputError
from fedsb.tasks.chat.messages import read_conversations, shapes_of
from fedsb.tasks.rows import read_rows

TALK = [
    ("system", "be kind"),
    ("user", "secret one"),
    ("assistant", "secret two"),
    ("user", "and"),
    ("assistant", "yes"),
]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
SHARED = [
    {"from": {"system": "system", "user": "human", "assistant": "gpt"}[role], "value": text}
    for role, text in TALK
]
HISTORY = [["secret one", "secret two"]]
SHAPES = {
    "messages": {"messages": MESSAGES, "id": "x", "tools": []},
    "another name": {"dialog": MESSAGES, "topic": "x"},
    "developer": {"messages": [{"role": "developer", "content": "be kind"}, *MESSAGES[1:]]},
    "parts": {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]},
    "a system column": {"messages": MESSAGES[1:], "system": "be kind"},
    "a system column besides": {"messages": MESSAGES, "system": "be kind"},
    "sharegpt": {"conversations": SHARED},
    "sharegpt with roles": {"conversations": MESSAGES},
    "json text": {"messages": json.dumps(MESSAGES)},
    "alpaca": {"instruction": "and", "input": None, "output": "yes", "system": "be kind", "history": HISTORY},
    "trl texts": {"prompt": "and", "completion": "yes"},
    "trl messages": {"prompt": MESSAGES[:-1], "completion": MESSAGES[-1:]},
    "trailing question": {"messages": [*MESSAGES, {"role": "user", "content": "thanks"}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_conversation(shape):
    expected = MESSAGES[-2:] if shape == "trl texts" else MESSAGES
    assert read_conversations([SHAPES[shape]], "x.jsonl") == [expected]
    assert read_conversations([SHAPES[shape]], "x.jsonl", asks=True) == [
        SHAPES[shape]["messages"] if shape == "trailing question" else expected[:-1]
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "one"}, "'prompt', 'completion'"),
        ({"instruction": "one", "input": "two"}, "'instruction', 'input', 'output'"),
        ({"messages": MESSAGES[:2]}, "'messages', messages of role and content"),
        ({"conversations": SHARED[:2]}, "'conversations', messages of from and value"),
    ],
)
def test_a_question_needs_no_answer_and_a_shape_has_a_name(row, said):
    (messages,) = read_conversations([row], "x.jsonl", asks=True)
    assert messages[-1]["role"] == "user"
    assert str(shapes_of([row], "x.jsonl")["x.jsonl"]) == said
    with pytest.raises(InputError, match="row 1: has no assistant turn, so nothing to learn"):
        read_conversations([row], "x.jsonl")


def test_alpaca_s_input_is_under_its_instruction():
    row = {"instruction": "add", "input": "1 and 2", "output": "3"}
    assert read_conversations([row], "x")[0][0] == {"role": "user", "content": "add\n1 and 2"}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_every_kind_of_file_gives_them(tmp_path, ending):
    path = tmp_path / f"chat{ending}"
    if ending == ".parquet":  # a struct has every key in every message
        parquet.write_table(
            pyarrow.Table.from_pylist([{"messages": [{**m, "tool_calls": None} for m in MESSAGES]}]), path
        )
    elif ending == ".csv":
        quoted = json.dumps(MESSAGES).replace('"', '""')
        path.write_text(f'id,messages\n7,"{quoted}"\n')
    else:
        path.write_text(json.dumps({"messages": MESSAGES}))
    assert read_conversations(read_rows(str(path)), "x") == [MESSAGES]


def changed(number, **keys):
    return {"messages": [{**m, **(keys if at == number else {})} for at, m in enumerate(MESSAGES, start=1)]}


TOOL = {"role": "tool", "content": "secret"}
WRONG = {
    "empty": ({"messages": []}, "column 'messages': has an empty conversation"),
    "no answer": ({"messages": MESSAGES[:2]}, "has no assistant turn"),
    "unknown role": (changed(2, role="secret"), "message 2: expected a role among system, developer, user"),
    "tool role": ({"messages": [*MESSAGES, TOOL]}, "message 6 has a tool call, which is not read yet"),
    "tool call": (
        changed(3, tool_calls=[{"name": "secret"}]),
        "message 3 has a tool call, which is not read yet",
    ),
    "tools": (
        {"messages": MESSAGES, "tools": '[{"name": "secret"}]'},
        "column 'tools': expected text alone, got tools",
    ),
    "images": (
        {"messages": MESSAGES, "images": ["secret.png"]},
        "column 'images': expected text alone, got images",
    ),
    "image part": (changed(2, content=[{"type": "image_url"}]), "message 2 has parts that are no text"),
    "reasoning": (changed(3, reasoning_content="secret"), "message 3 has reasoning apart from its text"),
    "weight": (changed(3, weight=0), "message 3 has weight 0"),
    "no content": (changed(2, content=None), "message 2: expected text in column 'messages', got null"),
    "no keys": ({"messages": [*MESSAGES, {"text": "secret"}]}, "message 6 has not the keys role and content"),
    "no list": (
        {"messages": "secret"},
        "expected a list of messages, or one as JSON text .* got text that is no JSON",
    ),
    "python text": ({"messages": str(MESSAGES)}, "json.dumps writes it, str does not"),
    "two lists": ({"chosen": MESSAGES, "rejected": MESSAGES}, "messages in the columns 'chosen', 'rejected'"),
    "no shape": (
        {"question": "secret", "answer": "secret"},
        "the columns are 'question', 'answer'; rename yours in data",
    ),
    "NUL": (changed(2, content="secret\0"), "message 2: a NUL character"),
    "history": (
        {"instruction": "a", "output": "b", "history": ["secret"]},
        "column 'history': expected pairs of texts",
    ),
    "mixed": (
        {"conversations": SHARED},
        "has a conversation in 'conversations'.*the first row in 'messages'",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_be_read_is_refused_by_its_row_and_shows_no_text(fault):
    row, reason = WRONG[fault]
    with pytest.raises(InputError, match=rf"x.jsonl: row 2.*{reason}") as raised:
        read_conversations([SHAPES["alpaca" if fault == "history" else "messages"], row], "x.jsonl")
    assert "secret" not in str(raised.value).replace("secret.png", "secret")
