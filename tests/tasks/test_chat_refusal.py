"""A column of messages is refused by its shape, with what works in its place."""

import json

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedsb.errors import InputError
from fedsb.tasks import causal_lm, classification
from fedsb.tasks.chat.refusal import chat_refusal
from fedsb.tasks.rows import read_rows

ASKED = [{"role": "user", "content": "secret one"}, {"role": "assistant", "content": "secret two"}]
SHARED = [{"from": "human", "value": "secret one"}, {"from": "gpt", "value": "secret two"}]


@pytest.fixture(scope="module")
def tokenizer():
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def write(folder, ending, rows):
    path = folder / f"chat{ending}"
    if ending == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if ending == ".jsonl" else json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("messages", "keys"), [(ASKED, "role, content"), (SHARED, "from, value")])
def test_messages_are_refused_by_name(tmp_path, tokenizer, ending, messages, keys):
    rows = read_rows(write(tmp_path, ending, [{"turns": messages, "label": "a"}] * 2))
    size = {"max_length": 16, "max_new_tokens": 2}
    tasks = [
        causal_lm(tokenizer, prompt="{turns}", response="label", **size),
        causal_lm(tokenizer, prompt="{label}", response="turns", **size),
        classification(
            tokenizer, text=["turns"], label="label", label_names=("a", "b"), regression=False, max_length=16
        ),
    ]
    for task in tasks:
        with pytest.raises(InputError) as raised:
            task.encode(rows, "chat")
        said = str(raised.value)
        assert f"column 'turns': expected text or a number, got a list of messages ({keys})" in said
        assert "row 1" in said or "line 1" in said
        assert "set task.kind: chat" in said
        assert "secret" not in said


@pytest.mark.parametrize(
    "value", [[], ["a"], [{"role": "user"}], [*ASKED, "x"], {"role": "user", "content": "x"}, "text", None, 3]
)
def test_other_values_are_no_messages(value):
    assert chat_refusal(value) is None
