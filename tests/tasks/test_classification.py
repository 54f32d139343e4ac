"""Classification: labels from rows, a loss per example whatever its neighbours, metrics as in sklearn."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fedsb.errors import InputError
from fedsb.tasks import classification, label_set
from fedsb.tasks.logits import class_scores

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]
ROWS = [
    {"one": "a b c", "two": "d", "label": "yes", "score": 0.5},
    {"one": "h", "two": "g f e d c b a", "label": "no", "score": -1.0},
    {"one": "c c", "two": "e", "label": "maybe", "score": 2.0},
    {"one": "f a b d e g h a b", "two": "h h h", "label": "no", "score": 3.25},
    {"one": "g", "two": "a", "label": "yes", "score": 0.0},
]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **names)


def bert(num_labels: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=12, num_labels=num_labels, initializer_range=0.5, **size)
    return BertForSequenceClassification(config)


def llama(num_labels: int) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=12, num_labels=num_labels, initializer_range=0.5, pad_token_id=0, **size)
    return LlamaForSequenceClassification(config)


def build(tokenizer, *, text=("one", "two"), max_length=32):
    names, regression = label_set(ROWS, "label", "train.csv")
    return classification(
        tokenizer, text=text, label="label", label_names=names, regression=regression, max_length=max_length
    )


def build_regression(tokenizer):
    names, regression = label_set(ROWS, "score", "train.csv")
    return classification(
        tokenizer, text=["one"], label="score", label_names=names, regression=regression, max_length=32
    )


# Labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 9, -1, 9], ("-1", "9", "10")),
        (["10", "9", "2"], ("2", "9", "10")),  # what a csv gives after a late text cell
        (["b", "a", "10", "9"], ("10", "9", "a", "b")),
        ([True, False], ("false", "true")),
        (["true", "false"], ("false", "true")),
        ([1.0, 0.0, 1], ("0", "1")),
        ([" x", "y "], ("x", "y")),
    ],
)
def test_label_set_of_classes(values, expected):
    rows = [{"label": value} for value in values]
    assert label_set(rows, "label", "train.csv") == (expected, False)


@pytest.mark.parametrize(
    ("values", "regression"),
    [
        ([0.5, 1.0], True),
        ([1, 2.5], True),
        ([1.0, 2.0], False),
        (["0.5", "1.5"], True),
        (["0.5", 1, "2"], True),
        (["1.0", "2.0"], False),
        (["00.5", "01.5"], False),
        (["1_0.5", "2"], False),
        ([0.5, True], False),
    ],
)
def test_label_set_tells_regression(values, regression):
    rows = [{"label": value} for value in values]
    assert label_set(rows, "label", "train.csv")[1] is regression


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 1], "expected two or more labels in column 'label', found one in all rows"),
        ([f"n{i}" for i in range(1001)], "1001 distinct labels, but at most 1000"),
        (["a", None], "row 2 has no label"),
        (["a", float("nan")], "row 2 has no label"),
        (["a", "b", " "], "row 3 has no label"),
        (["a", ["b"]], "row 2: expected a label that is a string or a number.*got list"),
    ],
)
def test_label_set_errors(values, message):
    with pytest.raises(InputError, match=f"train.csv: .*{message}"):
        label_set([{"label": value} for value in values], "label", "train.csv")
    with pytest.raises(InputError, match=r"task\.label names the column 'labell'.*did you mean 'label'"):
        label_set([{"label": value} for value in values], "labell", "train.csv")


def test_labels_of_another_file_are_compared_as_text(tokenizer):
    task = classification(
        tokenizer, text=["one"], label="y", label_names=("0", "1"), regression=False, max_length=8
    )
    rows = [{"one": "a", "y": value} for value in ("1", 1, 1.0, "0", 0)]
    assert [example["labels"] for example in task.encode(rows, "test.csv")] == [1, 1, 1, 0, 0]
    assert task.partition_label is not None
    assert [task.partition_label(row) for row in rows] == ["1", "1", "1", "0", "0"]


def test_unknown_label(tokenizer):
    rows = [*ROWS, {"one": "a", "two": "b", "label": "perhaps"}]
    with pytest.raises(
        InputError, match=r"test\.csv: row 6 has a label in .*'label' that is none of"
    ) as caught:
        build(tokenizer).encode(rows, "test.csv")
    assert "perhaps" not in str(caught.value)


def test_wrong_rows(tokenizer):
    task = build(tokenizer)
    with pytest.raises(InputError, match="row 2 has no value in column 'two'"):
        task.encode([ROWS[0], {**ROWS[1], "two": None}], "test.csv")
    with pytest.raises(InputError, match="row 2 has no label in column 'label'"):
        task.encode([ROWS[0], {**ROWS[1], "label": None}], "test.csv")
    with pytest.raises(InputError, match=r"task\.text names the column 'two', which is not there"):
        task.encode([{"one": "a", "label": "yes"}], "test.csv")
    with pytest.raises(InputError, match=r"row 1: expected a finite number such as 2.5 in column 'score'"):
        build_regression(tokenizer).encode([{"one": "a", "score": "high"}], "test.csv")
    for text in ([], ["one", "two", "three"], "one"):
        with pytest.raises(InputError, match=r"task\.text: expected a list of one or two columns"):
            build(tokenizer, text=text)


def test_what_the_task_says_of_itself(tokenizer):
    task, regression = build(tokenizer), build_regression(tokenizer)
    assert (task.primary_metric, task.higher_is_better) == ("accuracy", True)
    assert (task.num_labels, task.label_names) == (3, ("maybe", "no", "yes"))
    assert (regression.num_labels, regression.label_names, regression.partition_label) == (1, None, None)
    assert regression.primary_metric == "pearson"
    with pytest.raises(ValueError, match="label_names for classes, or regression=True"):
        classification(tokenizer, text=["one"], label="y", label_names=None, regression=False, max_length=8)


# Examples and batches


def test_encode_is_the_tokenizers_own_encoding_of_the_pair(tokenizer):
    examples = build(tokenizer, max_length=9).encode(ROWS, "train.csv")
    for row, example in zip(ROWS, examples, strict=True):
        own = tokenizer(row["one"], row["two"], truncation=True, max_length=9)
        assert example["input_ids"] == own["input_ids"]
        assert example["token_type_ids"] == own["token_type_ids"]
        assert len(example["input_ids"]) <= 9


def test_collate_pads_on_the_right(tokenizer):
    task = build(tokenizer)
    batch = task.collate(task.encode(ROWS, "train.csv"))
    own = tokenizer(
        [row["one"] for row in ROWS], [row["two"] for row in ROWS], padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], own[name])
    assert batch["labels"].tolist() == [2, 1, 0, 1, 2]


def test_no_examples_make_a_batch_of_none(tokenizer):
    task = build(tokenizer)
    batch = task.collate([])
    assert batch["input_ids"].shape[0] == batch["labels"].shape[0] == 0


# Losses


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("which", [build, build_regression])
def test_losses_equal_one_example_at_a_time(make, which, tokenizer):
    task = which(tokenizer)
    model = make(task.num_labels).eval()
    examples = task.encode(ROWS, "train.csv")
    if make is llama:
        for example in examples:
            del example["token_type_ids"]
    losses = task.losses(model, task.collate(examples))
    alone = [task.losses(model, task.collate([example])).item() for example in examples]
    assert losses.shape == (len(ROWS),)
    assert losses.tolist() == pytest.approx(alone, abs=1e-5)


def test_losses_equal_the_models_own_mean(tokenizer):
    """The mean over a batch is what the library computes, so only the per-example form is ours."""
    for task, labels in ((build(tokenizer), 3), (build_regression(tokenizer), 1)):
        model = bert(labels).eval()
        batch = task.collate(task.encode(ROWS, "train.csv"))
        assert task.losses(model, batch).mean().item() == pytest.approx(model(**batch).loss.item(), abs=1e-6)


def test_gradient_of_the_sum_is_the_sum_of_gradients(tokenizer):
    task, model = build(tokenizer), bert(3).eval()
    examples = task.encode(ROWS, "train.csv")
    weight = model.classifier.weight
    together = torch.autograd.grad(task.losses(model, task.collate(examples)).sum(), weight)[0]
    alone = [torch.autograd.grad(task.losses(model, task.collate([e])).sum(), weight)[0] for e in examples]
    torch.testing.assert_close(together, torch.stack(alone).sum(0))


def test_losses_are_fp32_for_a_bf16_model(tokenizer):
    task, model = build(tokenizer), bert(3).eval().to(torch.bfloat16)
    batch = task.collate(task.encode(ROWS, "train.csv"))
    losses = task.losses(model, batch)
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, F.cross_entropy(logits.float(), batch["labels"], reduction="none"))


# Metrics


def predictions_by_hand(model, task, examples) -> np.ndarray:
    with torch.no_grad():
        batches = [task.collate([example]) for example in examples]
        rows = [model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0] for batch in batches]
    return torch.stack(rows).numpy()


def test_class_metrics_equal_sklearn(tokenizer):
    task, model = build(tokenizer), bert(3).eval()
    examples = task.encode(ROWS, "train.csv")
    logits = predictions_by_hand(model, task, examples)
    labels, predicted = [2, 1, 0, 1, 2], logits.argmax(1)
    found = task.evaluate(model, examples, batch_size=2)
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
            "matthews": metrics.matthews_corrcoef(labels, predicted),
            "loss": metrics.log_loss(
                labels, F.softmax(torch.tensor(logits), dim=1).numpy(), labels=[0, 1, 2]
            ),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_scores_of_the_confusion_matrix_equal_sklearn(size):
    draw = np.random.default_rng(size)
    for examples in (1, 2, 40):
        labels, logits = draw.integers(size, size=examples), draw.normal(size=(examples, size))
        found, predicted = class_scores(logits, labels), logits.argmax(1)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
        f1 = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(f1)
        if examples > 1:
            assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
        if size == 2:
            assert found["f1"] == pytest.approx(metrics.f1_score(labels, predicted, zero_division=0))
        else:
            assert "f1" not in found


def test_the_metric_to_lead_with(tokenizer):
    def made(metric, names=("no", "yes"), regression=False):
        return classification(
            tokenizer,
            text=["one"],
            label="label",
            label_names=names,
            regression=regression,
            max_length=8,
            metric=metric,
        ).primary_metric

    assert [made(name) for name in (None, "f1", "matthews")] == ["accuracy", "f1", "matthews"]
    assert made("spearman", None, True) == "spearman"
    with pytest.raises(InputError, match=r"task\.metric: expected one of pearson, spearman"):
        made("f1", None, True)
    with pytest.raises(InputError, match=r"task\.metric: expected one of accuracy, macro_f1, matthews for"):
        made("f1", ("a", "b", "c"))


def test_regression_metrics_equal_scipy(tokenizer):
    task, model = build_regression(tokenizer), bert(1).eval()
    examples = task.encode(ROWS, "train.csv")
    predicted, targets = predictions_by_hand(model, task, examples)[:, 0], [0.5, -1.0, 2.0, 3.25, 0.0]
    found = task.evaluate(model, examples, batch_size=3)
    mse = metrics.mean_squared_error(targets, predicted)
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(predicted, targets).statistic,
            "spearman": stats.spearmanr(predicted, targets).statistic,
            "mse": mse,
            "loss": mse,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_metrics_do_not_depend_on_batch_size(batch_size, tokenizer):
    task, model = build(tokenizer), bert(3)
    examples = task.encode(ROWS * 3, "train.csv")
    reference = task.evaluate(model, examples, batch_size=4)
    assert task.evaluate(model, examples, batch_size=batch_size) == pytest.approx(reference, abs=1e-6)


def test_undefined_correlations_are_zero_and_broken_ones_are_not(tokenizer):
    task, model = build_regression(tokenizer), bert(1)
    found = task.evaluate(model, task.encode(ROWS[:1], "train.csv"), batch_size=1)
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    torch.nn.init.constant_(model.classifier.bias, math.nan)
    found = task.evaluate(model, task.encode(ROWS, "train.csv"), batch_size=2)
    assert math.isnan(found["pearson"])
    assert math.isnan(found["loss"])


def test_evaluate_leaves_modes_as_they_were_and_tells_progress(tokenizer):
    task, model = build(tokenizer), bert(3).train()
    model.bert.encoder.eval()  # a mixed state must survive too
    before = [module.training for module in model.modules()]
    told = []
    examples = task.encode(ROWS, "train.csv")
    first = task.evaluate(
        model, examples, batch_size=2, progress=lambda done, total: told.append((done, total))
    )
    assert [module.training for module in model.modules()] == before
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert first == task.evaluate(model, examples, batch_size=2)  # dropout is off
    with pytest.raises(ValueError, match="at least one example"):
        task.evaluate(model, [], batch_size=2)
