"""Several labels: three forms of rows, scores as in sklearn, a run whose export says what it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import classification_config, rows, save_tokenizer, tiny_bert, write_rows
from sklearn import metrics
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from fedsb import RunConfig, run
from fedsb.config.sections.task import MultiLabelConfig
from fedsb.errors import InputError
from fedsb.report.progress import Silent
from fedsb.runner.export import export_merged
from fedsb.runner.predict import predict
from fedsb.runner.prepare_data import prepare_data
from fedsb.tasks import make_task
from fedsb.tasks.multi_label import scores

LIST = {"text": "w1 good", "label": ["cough", "fever"]}
SEPARATED = {"text": "w1 good", "label": "fever; cough"}
COLUMNS = {"text": "w1 good", "cough": 1, "fever": "true", "rash": 0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def task_of(tokenizer: Any, made: list[dict[str, Any]], **keys: Any) -> Any:
    section = MultiLabelConfig(kind="multi-label", text=["text"], **keys)
    return make_task(section, tokenizer, made, source="train", max_length=16)


@pytest.mark.parametrize(
    ("row", "none", "keys"),
    [
        (LIST, {"label": []}, {"labels": ["cough", "fever", "rash"]}),
        (SEPARATED, {"label": ""}, {"labels": ["cough", "fever", "rash"], "label_separator": ";"}),
        (SEPARATED, {"label": None}, {"labels": ["cough", "fever", "rash"], "label_separator": ";"}),
        (COLUMNS, dict.fromkeys(["cough", "fever", "rash"], 0), {"label": ["cough", "fever", "rash"]}),
    ],
    ids=["list", "separated", "missing", "columns"],
)
def test_every_form_of_rows_gives_the_same_labels(tokenizer, row, none, keys) -> None:
    task = task_of(tokenizer, [row], **keys)
    examples = task.encode([row, row | none], "x")
    assert [example["labels"] for example in examples] == [[1, 1, 0], [0, 0, 0]]
    assert task.label_names == ("cough", "fever", "rash")
    assert task.collate([])["labels"].shape == (0, 3)


def test_classes_are_those_of_the_training_rows(tokenizer) -> None:
    task = task_of(tokenizer, [LIST, {"text": "b", "label": []}, {"text": "b", "label": ["ache"]}])
    assert task.label_names == ("ache", "cough", "fever")


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"label": "secret"}, {}, "expected a list of classes in column 'label'"),
        ({"label": None}, {}, "expected a list of classes"),
        ({"label": ["secret"]}, {}, "none of the training rows' 2 classes"),
        ({"label": [["secret"]]}, {}, "expected classes as text or numbers"),
        ({"label": ["secret"]}, {"labels": ["cough", "fever"]}, "task.labels does not have"),
        ({"cough": "secret"}, {"label": ["cough", "fever"]}, "expected 0 or 1"),
    ],
)
def test_wrong_rows_are_refused_by_number_without_a_cell(tokenizer, row, keys, message) -> None:
    right = COLUMNS if isinstance(keys.get("label"), list) else LIST
    task = task_of(tokenizer, [right], **keys)
    with pytest.raises(InputError, match=message) as fault:
        task.encode([right, right | row], "x.jsonl")
    assert "x.jsonl: row 2" in str(fault.value)
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize(
    "keys", [{"label": ["a", "a"]}, {"label": ["a", "b"], "labels": ["a", "b"]}, {"label": ["a"]}]
)
def test_columns_are_the_classes(keys) -> None:
    with pytest.raises(ValueError, match=r"every column once|leave labels|at least 2"):
        MultiLabelConfig(kind="multi-label", text=["text"], **keys)


def test_scores_equal_sklearn(rng) -> None:
    logits, labels = rng.normal(size=(60, 4)), (rng.random((60, 4)) < 0.3).astype(float)
    logits[:, 3], labels[:, 3] = -1, 0  # a class that occurs nowhere counts for nothing
    predicted, found = (logits > 0).astype(int), scores(logits, labels)
    kept = [0, 1, 2]
    macro = metrics.f1_score(labels[:, kept], predicted[:, kept], average="macro")
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert scores(np.full((2, 2), -1.0), np.zeros((2, 2)))["micro_f1"] == 0


def test_losses_are_the_models_own_and_do_not_depend_on_neighbours(tokenizer) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=40, num_labels=3, initializer_range=0.7, **size)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    made = [LIST, {"text": "w1 w2 w3 w4 bad", "label": ["rash"]}, {"text": "w2", "label": []}]
    task = task_of(tokenizer, made)
    examples = task.encode(made, "x")
    alone = torch.cat([task.losses(model, task.collate([example])) for example in examples])
    torch.testing.assert_close(task.losses(model, task.collate(examples)), alone)
    logits = model(**tokenizer("w1 good", return_tensors="pt")).logits
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(alone[0], expected)


def test_a_run_whose_export_says_that_labels_are_several(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "model")
    for name, number, seed in (("train", 90, 1), ("test", 30, 2)):
        made = [
            row | {"label": [row["label"], "also"] if row["key"] == "good" else [row["label"]]}
            for row in rows(number, seed=seed)
        ]
        write_rows(tmp_path / f"{name}.jsonl", made)
    values = classification_config(base, tmp_path, federation__rounds=4, training__learning_rate=0.05)
    values["task"] = {"kind": "multi-label", "text": "text"}
    values["federation"]["partition"] = {"kind": "by-column", "column": "site"}
    config = RunConfig.from_dict(values)
    summary = run(config, out=tmp_path / "run").summary
    assert summary["primary_metric"] == "micro_f1"
    assert summary["final"]["micro_f1"] > 0.7 > summary["base"]["micro_f1"]

    export_merged(tmp_path / "run", tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written["problem_type"] == "multi_label_classification"
    assert written["id2label"] == {"0": "also", "1": "flat", "2": "neg", "3": "pos"}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    (said,) = predict(
        tmp_path / "run", config, str(write_rows(tmp_path / "a.jsonl", [{"text": "w1 bad"}])), Silent()
    )
    assert said["labels"] == [name for name, share in said["probabilities"].items() if share > 0.5]
    data = prepare_data(config)
    assert data.task.evaluate(model, data.test, batch_size=8) == pytest.approx(summary["final"], rel=1e-4)
