"""Entities: the same examples from words and from a text, first sub-tokens, strict spans, the export."""

import random
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import NAMES, WORDS, classification_config, tiny_bert, write_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from fedsb import RunConfig, run
from fedsb.config.sections.task import TokenClassificationConfig
from fedsb.errors import InputError
from fedsb.report.progress import Silent
from fedsb.runner.evaluate import evaluate_run
from fedsb.runner.export import export_merged
from fedsb.runner.predict import predict
from fedsb.runner.prepare_data import prepare_data
from fedsb.tasks import make_task
from fedsb.tasks.token_classification import IGNORED, NO_TOKEN, predicted_tags, spans_of

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "old",
    "mill",
    "##s",
    "##er",
    "in",
    "york",
    "new",
    ",",
    "tea",
]
PIECES += [f"w{i}" for i in range(len(WORDS) - len(PIECES))]
WORD_ROW = {
    "tokens": ["the", "old", "mills", ",", "new", "yorker"],
    "tags": ["O", "B-NAME", "I-NAME", "O", "B-CITY", "I-CITY"],
}
TEXT_ROW = {
    "text": "the old mills , new yorker",
    "spans": [{"start": 16, "end": 26, "label": "CITY"}, {"start": 4, "end": 13, "label": "NAME"}],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words: mills is mill ##s."""
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **NAMES)


def task_of(tokenizer: Any, rows: list[dict[str, Any]], max_length: int = 32, **keys: Any) -> Any:
    keys = {"text": "text"} | keys if "text" in rows[0] else {"tokens": "tokens"} | keys
    section = TokenClassificationConfig(kind="token-classification", **keys)
    return make_task(section, tokenizer, rows, source="train", max_length=max_length)


def test_words_and_spans_give_the_same_labels_at_first_sub_tokens(tokenizer) -> None:
    by_words, by_text = (task_of(tokenizer, [row]) for row in (WORD_ROW, TEXT_ROW))
    assert by_words.label_names == ("O", "B-CITY", "I-CITY", "B-NAME", "I-NAME") == by_text.label_names
    (one,), (other,) = by_words.encode([WORD_ROW], "x"), by_text.encode([TEXT_ROW], "x")
    pieces = tokenizer.convert_ids_to_tokens(one["input_ids"])
    assert pieces == ["[CLS]", "the", "old", "mill", "##s", ",", "new", "york", "##er", "[SEP]"]
    assert one["labels"] == [IGNORED, 0, 3, 4, IGNORED, 0, 1, 2, IGNORED, IGNORED]
    assert one == other


def test_what_does_not_fit_is_counted_and_said_to_be_outside(tokenizer) -> None:
    task = task_of(tokenizer, [WORD_ROW], max_length=7)
    (example,) = task.encode([WORD_ROW], "x")
    assert example["places"] == [1, 2, 3, 5, NO_TOKEN, NO_TOKEN]
    assert example["tokens"].cut_texts
    assert example["tokens"].cut_entities
    assert predicted_tags(example, [9] * 7)[-2:] == [0, 0]
    (short,) = task_of(tokenizer, [WORD_ROW], max_length=10).encode([WORD_ROW], "x")
    assert not short["tokens"].cut_entities


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5mg of B12, twice", ["5", "mg", "of", "B", "12", ",", "twice"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("", []),
    ],
)
def test_words_of_a_text(tokenizer, text: str, words: list[str]) -> None:
    row = {"text": text, "spans": []}
    (example,) = task_of(tokenizer, [row], labels=["X"]).encode([row], "x")
    assert [text[start:end] for start, end in example["words"]] == words


def entities_by_hand(tags: list[Any]) -> set[tuple[int, int, str]]:
    """Every span that no rule speaks against, tried one after the other."""

    def begins(i: int) -> bool:
        if tags[i] is None:
            return False
        alone = i == 0 or tags[i - 1] is None or tags[i - 1][1] != tags[i][1]
        return tags[i][0] == "B" or alone

    def goes_on(i: int) -> bool:
        return i < len(tags) and tags[i] is not None and not begins(i)

    spans = combinations_with_replacement(range(len(tags)), 2)
    inside = ((s, e) for s, e in spans if begins(s) and all(goes_on(i) for i in range(s + 1, e + 1)))
    return {(s, e + 1, tags[s][1]) for s, e in inside if not goes_on(e + 1)}


@pytest.mark.parametrize("seed", range(4))
def test_entities_of_tags_are_those_found_by_trying_all(seed: int) -> None:
    draw = random.Random(seed)
    choices = [None, ("B", "X"), ("I", "X"), ("B", "Y"), ("I", "Y")]
    for length in range(12):
        tags = draw.choices(choices, k=length)
        assert set(map(tuple, spans_of(tags, [(i, i + 1) for i in range(length)]))) == entities_by_hand(tags)


@pytest.fixture(scope="module")
def model() -> BertForTokenClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(PIECES), num_labels=5, initializer_range=0.7, **size)
    return BertForTokenClassification(config).eval()


def random_rows(number: int) -> list[dict[str, Any]]:
    draw = random.Random(3)
    tags = ["O", "B-CITY", "I-CITY", "B-NAME", "I-NAME"]
    lengths = [draw.randint(1, 7) for _ in range(number)]
    return [{"tokens": draw.choices(PIECES[4:7], k=n), "tags": draw.choices(tags, k=n)} for n in lengths]


def test_scores_are_those_counted_by_hand(tokenizer, model) -> None:
    rows = random_rows(40)
    task = task_of(tokenizer, rows)
    examples = task.encode(rows, "x")
    found = said = there = right = 0
    for row in rows:
        logits = model(**tokenizer(" ".join(row["tokens"]), return_tensors="pt")).logits[0]
        tags = [task.label_names[i] for i in logits.argmax(-1).tolist()[1:-1]]  # one token a word here
        ours, gold = (
            entities_by_hand([None if t == "O" else tuple(t.split("-")) for t in of])
            for of in (tags, row["tags"])
        )
        found, said, there = found + len(ours & gold), said + len(ours), there + len(gold)
        right += sum(a == b for a, b in zip(tags, _repaired(row["tags"]), strict=True))
    metrics = task.evaluate(model, examples, batch_size=7)
    assert found > 0
    assert metrics["entity_precision"] == pytest.approx(found / said)
    assert metrics["entity_recall"] == pytest.approx(found / there)
    assert metrics["entity_f1"] == pytest.approx(2 * found / (said + there))
    assert metrics["token_accuracy"] == pytest.approx(right / sum(len(row["tags"]) for row in rows))
    (measured,) = task.measure(model, examples, batch_size=3)
    some = [task.evaluate(model, examples[:9], batch_size=9)]
    assert measured.metrics(np.arange(9)) == pytest.approx(some[0])


def _repaired(tags: list[str]) -> list[str]:
    """An I that continues nothing as the B that it is."""
    before = ["O", *tags]
    return [f"B{t[1:]}" if t[0] == "I" and b[1:] != t[1:] else t for b, t in zip(before, tags, strict=False)]


def test_losses_do_not_depend_on_neighbours(tokenizer, model) -> None:
    rows = [WORD_ROW, {"tokens": ["tea"], "tags": ["B-NAME"]}, {"tokens": [], "tags": []}]
    task = task_of(tokenizer, rows)
    examples = task.encode(rows, "x")
    together = task.losses(model, task.collate(examples))
    alone = torch.cat([task.losses(model, task.collate([example])) for example in examples])
    torch.testing.assert_close(together, alone)
    assert alone[2] == 0
    assert len(task.collate([])["labels"]) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["secret", "b"], "tags": ["O"]}, "2 words .* and 1 tags"),
        ({"tokens": ["secret"], "tags": ["S-X"]}, "expected O, B-TYPE or I-TYPE"),
        ({"tokens": ["secret"], "tags": [3]}, "a number without a name"),
        ({"tokens": ["secret"], "tags": ["B-OTHER"]}, "none of the training rows' 1 classes"),
        ({"tokens": ["secret", ""], "tags": ["O", "O"]}, "words: text, not empty"),
        ({"tokens": "secret", "tags": ["O"]}, "expected a list in column 'tokens'"),
        ({"text": "secret", "spans": [(0, 6, "A")]}, "expected spans such as"),
        ({"text": "secret", "spans": [{"start": 0, "end": 7, "label": "A"}]}, "end <= 6"),
        ({"text": "secret", "spans": [{"start": 2, "end": 2, "label": "A"}]}, "start < end"),
        ({"text": "secret", "spans": [{"start": True, "end": 2, "label": "A"}]}, "whole numbers"),
        (
            {
                "text": "secret",
                "spans": [{"start": 0, "end": 3, "label": "A"}, {"start": 2, "end": 4, "label": "A"}],
            },
            "two spans overlap",
        ),
        ({"text": "secret", "spans": None}, "expected a list in column 'spans'"),
    ],
)
def test_wrong_rows_are_refused_by_number_without_a_cell(tokenizer, row, message) -> None:
    right = TEXT_ROW | {"spans": [{"start": 0, "end": 3, "label": "A"}]}
    right = right if "text" in row else {"tokens": ["a"], "tags": ["B-A"]}
    with pytest.raises(InputError, match=message) as fault:
        task_of(tokenizer, [right]).encode([right, row], "x.jsonl")
    assert "x.jsonl: row 2" in str(fault.value)
    assert "secret" not in str(fault.value)
    assert "OTHER" not in str(fault.value)


@pytest.mark.parametrize("keys", [{}, {"tokens": "a", "text": "b"}, {"tokens": "a", "spans": "c"}])
def test_one_form_of_rows_is_named(keys) -> None:
    with pytest.raises(ValueError, match=r"expected tokens|spans goes with text"):
        TokenClassificationConfig(kind="token-classification", **keys)


# A whole run


def made_rows(number: int, seed: int) -> list[dict[str, Any]]:
    """`york` is a city, alone or after `new`; `mills` a name."""
    draw, rows = random.Random(seed), []
    parts = [(["new", "york"], "CITY"), (["york"], "CITY"), (["mills"], "NAME"), (["old", "mills"], "NAME")]
    for i in range(number):
        words, tags = [], []
        for part, kind in draw.choices(parts, k=2):
            words += ["the", "tea", *part]
            tags += ["O", "O", f"B-{kind}", *[f"I-{kind}"] * (len(part) - 1)]
        rows.append({"tokens": words, "tags": tags, "site": f"s{i % 2}"})
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Tags as the library `datasets` writes them: numbers, with names in the file."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["O", "B-CITY", "I-CITY", "B-NAME", "I-NAME"]
    features = {
        "tokens": List(Value("string")),
        "tags": List(ClassLabel(names=names)),
        "site": Value("string"),
    }
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)


def test_a_run_and_what_a_pipeline_makes_of_its_export(tokenizer, tmp_path: Path) -> None:
    from transformers import pipeline

    base = tiny_bert(tmp_path / "model")
    tokenizer.save_pretrained(base)
    write_parquet(tmp_path / "train.parquet", made_rows(60, 0))
    write_rows(tmp_path / "test.jsonl", made_rows(12, 1))
    values = classification_config(base, tmp_path, federation__rounds=2)
    values["task"] = {"kind": "token-classification", "tokens": "tokens"}
    values["data"] = {"train": str(tmp_path / "train.parquet"), "test": str(tmp_path / "test.jsonl")}
    values["federation"]["partition"] = {"kind": "dirichlet", "alpha": 5, "column": "site", "min_size": 2}
    config = RunConfig.from_dict(values)
    summary = run(config, out=tmp_path / "run").summary
    assert summary["primary_metric"] == "entity_f1"
    assert summary["final"]["entity_f1"] > summary["base"]["entity_f1"] + 0.3
    assert evaluate_run(tmp_path / "run")["scores"]["entity_f1"]["interval"] == "bootstrap"

    export_merged(tmp_path / "run", tmp_path / "merged")
    model = BertForTokenClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == dict(enumerate(summary["label_names"]))
    assert model.config.problem_type == "single_label_classification"
    tagger = pipeline("token-classification", model=str(tmp_path / "merged"), ignore_labels=[])
    data = prepare_data(config)
    examples, right, there = data.test, 0, 0
    for row, example in zip(made_rows(12, 1), examples, strict=True):
        said = [model.config.label2id[token["entity"]] for token in tagger(" ".join(row["tokens"]))]
        tags = predicted_tags(example, [0, *said, 0])  # the pipeline leaves special tokens out
        right += sum(tag == gold for tag, gold in zip(tags, example["tags"], strict=True))
        there += len(tags)
    assert right / there == summary["final"]["token_accuracy"]

    write_rows(tmp_path / "asked.jsonl", [{"tokens": row["tokens"]} for row in made_rows(12, 1)])
    records = predict(tmp_path / "run", config, str(tmp_path / "asked.jsonl"), Silent())
    pairs = zip(made_rows(12, 1), records, strict=True)
    hits = [ours == gold for row, said in pairs for ours, gold in zip(said["tags"], row["tags"], strict=True)]
    assert sum(hits) == right


def test_spans_are_said_of_a_text(tokenizer) -> None:
    task = task_of(tokenizer, [TEXT_ROW])
    (asked,) = task.questions([{"text": TEXT_ROW["text"]}], "asked")
    (labelled,) = task.encode([TEXT_ROW], "x")
    assert asked["input_ids"] == labelled["input_ids"]
    logits = F.one_hot(torch.tensor(labelled["labels"]).clamp(min=0), 5)
    spans = task.said(logits, asked)["spans"]
    assert spans == sorted(TEXT_ROW["spans"], key=lambda span: span["start"])
