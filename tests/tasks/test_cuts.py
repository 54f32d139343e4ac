"""What is cut from examples is counted to the token, and no begin or end token comes twice."""

import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fedsb.errors import InputError
from fedsb.tasks import causal_lm, classification
from fedsb.tasks.cuts import Tokens, cut_counts

WORDS = ["<unk>", "<s>", "</s>", "<pad>", *"abcdefghij", ":"]
BOS, EOS = 1, 2
NONE = dict.fromkeys(Tokens._fields[1:], 0)


def words(*, begins: bool, ends: bool = False) -> PreTrainedTokenizerFast:
    """One word, one token; `begins` and `ends`: special tokens that the tokenizer adds by itself."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin, end = "<s> " if begins else "", " </s>" if ends else ""
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A{end}", pair=f"{begin}$A{end} $B{end}", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def lm(tokenizer, *, prompt="{q} :", max_length=8, **more):
    return causal_lm(tokenizer, prompt=prompt, response="a", max_length=max_length, max_new_tokens=3, **more)


def counts(task, rows, max_length):
    return cut_counts(task.encode(rows, "x.csv"), max_length)


# A prompt and its response


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "a b c", "a": "d e"}, {}),  # bos 3 : 2 eos is 8
        ({"q": "a b c d", "a": "d e"}, {"cut_prompts"}),
        ({"q": "a b c d e f g", "a": "h"}, {"cut_prompts", "cut_questions"}),
        ({"q": "a", "a": "b c d e f g"}, {"cut_prompts", "lost_prompts"}),
        ({"q": "a", "a": "b c d e f g h"}, {"cut_prompts", "lost_prompts", "lost_end_tokens"}),
        (
            {"q": "a", "a": "b c d e f g h i j"},
            {"cut_prompts", "lost_prompts", "cut_responses", "lost_end_tokens"},
        ),
    ],
)
def test_each_kind_of_cut_is_told_apart(row, expected):
    (example,) = lm(words(begins=True)).encode([row], "x.csv")
    tokens = example["tokens"]
    assert {name for name in Tokens._fields[1:] if getattr(tokens, name)} == set(expected)
    assert tokens.length == len(row["q"].split()) + len(row["a"].split()) + 3
    assert len(example["input_ids"]) == min(tokens.length, 8)


def test_counts_are_those_of_rows_counted_by_hand():
    rng = random.Random(4)
    rows = [
        {"q": " ".join(rng.choices("abcdefghij", k=rng.randint(1, 9))), "a": " ".join("abcdefghij"[: i % 11])}
        for i in range(60)
    ]
    sizes = [(len(row["q"].split()) + 2, len(row["a"].split()) + 1) for row in rows]  # bos and ":"; eos
    for max_length in (3, 8, 12, 40):
        kept = [min(response, max_length - 1) for _, response in sizes]
        room = [max_length - response for response in kept]
        lengths = sorted(prompt + response for prompt, response in sizes)
        record = counts(lm(words(begins=True), max_length=max_length), rows, max_length)
        assert record == {
            "examples": 60,
            "max_length": max_length,
            "cut": sum(length > max_length for length in lengths),
            **NONE,
            "cut_prompts": sum(p > r for (p, _), r in zip(sizes, room, strict=True)),
            "lost_prompts": sum(r <= 1 for r in room),
            "cut_questions": sum(p > max_length for p, _ in sizes),
            "cut_responses": sum(k < r - 1 for (_, r), k in zip(sizes, kept, strict=True)),
            "lost_end_tokens": sum(k < r for (_, r), k in zip(sizes, kept, strict=True)),
            "length": {"p50": lengths[29], "p95": lengths[56], "p99": lengths[59], "max": lengths[59]},
        }


def test_a_prompt_that_begins_with_the_begin_token_gets_no_second_one():
    tokenizer = words(begins=True)
    rows = [{"q": "a b", "a": "c"}, {"q": "<s> d", "a": "e"}]
    plain = lm(tokenizer, prompt="{q} :").encode([{"q": "a b", "a": "c"}, {"q": "d", "a": "e"}], "x.csv")
    (written,) = lm(tokenizer, prompt="<s> {q} :").encode(rows[:1], "x.csv")
    assert written["input_ids"] == plain[0]["input_ids"] == ids("<s> a b : c </s>")
    assert written["prompt_ids"] == plain[0]["prompt_ids"] == ids("<s> a b :")
    mixed = lm(tokenizer).encode(rows, "x.csv")
    assert [example["input_ids"] for example in mixed] == [example["input_ids"] for example in plain]
    assert cut_counts(mixed, 8)["begin_in_text"] == 1
    assert cut_counts(plain, 8)["begin_in_text"] == 0


def test_a_begin_token_that_nobody_adds_stays():
    (example,) = lm(words(begins=False), prompt="<s> {q} :").encode([{"q": "a", "a": "b"}], "x.csv")
    assert example["input_ids"] == ids("<s> a : b </s>")
    assert not example["tokens"].begin_in_text


def test_a_begin_token_in_the_text_survives_a_cut_as_an_added_one_does():
    rows = [{"q": "a b c d e f g h", "a": "i"}]
    for max_length in (1, 2, 4, 8):
        made = [
            lm(words(begins=True), prompt=prompt, max_length=max_length, allow_cut_responses=True)
            for prompt in ("{q} :", "<s> {q} :")
        ]
        plain, written = (task.encode(rows, "x.csv")[0] for task in made)
        assert written["input_ids"] == plain["input_ids"]
        assert written["prompt_ids"] == plain["prompt_ids"]
        assert written["tokens"] == plain["tokens"]._replace(begin_in_text=True)


def test_a_response_that_ends_with_the_end_token_gets_no_second_one():
    task = lm(words(begins=True))
    written, plain = task.encode([{"q": "a", "a": "b c</s>"}, {"q": "a", "a": "b c"}], "x.csv")
    assert written["labels"] == plain["labels"]
    assert written["response"] == plain["response"] == "b c"  # what a generation is compared with
    assert [example["tokens"].end_in_text for example in (written, plain)] == [True, False]


def test_a_model_answers_the_same_whoever_wrote_the_begin_token():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), initializer_range=0.5, **size)).eval()
    rows = [{"q": "a b", "a": "c"}, {"q": "d e f", "a": "g h"}]
    scores = [
        task.evaluate(model, task.encode(rows, "x.csv"), batch_size=2, generate=2)
        for task in (lm(words(begins=True)), lm(words(begins=True), prompt="<s> {q} :"))
    ]
    assert scores[0] == scores[1]


def test_a_row_without_any_response_left_is_refused():
    task = lm(words(begins=True), max_length=1)
    message = (
        r"t\.csv: row 1 \(and 1 more\): training\.max_length 1 leaves nothing of the response, which has "
        r"2 tokens; raise training\.max_length, or set task\.allow_cut_responses: true"
    )
    with pytest.raises(InputError, match=message):
        task.encode([{"q": "a", "a": "b c"}, {"q": "d", "a": "e"}], "t.csv")
    task = lm(words(begins=True), max_length=1, allow_cut_responses=True)
    assert counts(task, [{"q": "a", "a": "b c"}], 1)["cut_responses"] == 1
    lm(words(begins=False), max_length=1).encode([{"q": "a", "a": "b c"}], "t.csv")  # one token is left


# Classification


def classes(tokenizer, *, text=("t",), max_length=6):
    names = ("yes", "no")
    return classification(
        tokenizer, text=text, label="l", label_names=names, regression=False, max_length=max_length
    )


@pytest.mark.parametrize("pair", [False, True])
def test_cut_texts_are_those_that_are_longer_uncut(pair):
    rng = random.Random(5)
    columns = ("t", "u") if pair else ("t",)
    rows = [
        {name: " ".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for name in ("t", "u")} | {"l": "no"}
        for _ in range(50)
    ]
    special = 3 if pair else 2
    lengths = [special + sum(len(row[name].split()) for name in columns) for row in rows]
    for max_length in (5, 9, 30):
        task = classes(words(begins=True, ends=True), text=columns, max_length=max_length)
        examples = task.encode(rows, "x.csv")
        assert [example["tokens"].length for example in examples] == lengths
        assert [len(example["input_ids"]) for example in examples] == [min(n, max_length) for n in lengths]
        record = cut_counts(examples, max_length)
        assert record["cut"] == record["cut_texts"] == sum(length > max_length for length in lengths)


def test_a_text_to_classify_gets_no_second_begin_token():
    task = classes(words(begins=True, ends=True))
    rows = [{"t": "<s> a b", "l": "no"}, {"t": "a b", "l": "no"}, {"t": "<s>", "l": "no"}]
    written, plain, empty = task.encode(rows, "x.csv")
    assert written["input_ids"] == plain["input_ids"] == ids("<s> a b </s>")
    assert empty["input_ids"] == ids("<s> </s>")
    assert [example["tokens"].begin_in_text for example in (written, plain, empty)] == [True, False, True]
    (alone,) = classes(words(begins=False)).encode([{"t": "<s> a b", "l": "no"}], "x.csv")
    assert alone["input_ids"] == ids("<s> a b")


def test_a_batch_holds_nothing_of_the_counts():
    for task, row in (
        (lm(words(begins=True)), {"q": "a", "a": "b"}),
        (classes(words(begins=True)), {"t": "a", "l": "no"}),
    ):
        assert "tokens" not in task.collate(task.encode([row], "x.csv"))


def test_examples_that_do_not_say_are_not_counted():
    assert cut_counts([], 8) is None
    assert cut_counts([{"input_ids": [1]}], 8) is None


def test_an_empty_text_without_any_token_has_a_loss_of_its_own():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), num_labels=2, pad_token_id=3, **size)
    model = LlamaForSequenceClassification(config).eval()
    task = classes(words(begins=False))
    examples = task.encode([{"t": text, "l": "no"} for text in ("", "a b c", "", "d")], "x.csv")
    assert [example["tokens"].length for example in examples] == [0, 3, 0, 1]
    together = task.losses(model, task.collate(examples))
    assert bool(together.isfinite().all())
    alone = torch.cat([task.losses(model, task.collate([example])) for example in examples])
    torch.testing.assert_close(together[[1, 3]], alone[[1, 3]])
