"""Weights of classes multiply each example's training loss and nothing else."""

import pytest
import torch
from run_helpers import rows, tiny_bert
from torch import nn

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_tokenizer
from fedsb.runner.prepare_data import check_can_deploy, task_of
from fedsb.tasks.class_weights import balanced, uneven


class Fixed(nn.Module):
    """Logits that depend on nothing."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"type_vocab_size": 2, "model_type": "bert"})()

    def forward(self, input_ids, **others):
        logits = torch.tensor([0.0, 1.0, 2.0]).expand(len(input_ids), 3)
        return type("Output", (), {"logits": logits})()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("weights"))


def config(model, weights, **more) -> RunConfig:
    task = {"kind": "classification", "text": ["text"], "label": "label", **more.pop("task", {})}
    values = {"model": {"path": str(model)}, "task": task, "data": {"train": "a.jsonl", "test": "b.jsonl"}}
    return RunConfig.from_dict(values | {"training": {"class_weights": weights, "max_length": 16}, **more})


MADE = [*rows(12, seed=1), *[row for row in rows(12, seed=2) if row["label"] == "pos"]]
"""Four rows of each of two classes, eight of pos."""


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("balanced", {"pos": 2 / 3, "neg": 4 / 3, "flat": 4 / 3}),
        ({"pos": 1, "neg": 5, "flat": 2}, None),
    ],
)
def test_a_loss_is_its_own_times_the_weight_of_its_class(model, weights, expected):
    expected = expected or weights
    tokenizer = load_tokenizer(str(model))
    plain, weighted = (task_of(config(model, w), tokenizer, MADE) for w in (None, weights))
    batch = plain.collate(plain.encode(MADE, "a"))
    before, after = (task.losses(Fixed(), batch) for task in (plain, weighted))
    assert (after / before).tolist() == pytest.approx([expected[row["label"]] for row in MADE])
    examples = plain.encode(MADE, "a")
    assert weighted.evaluate(Fixed(), examples, batch_size=4) == plain.evaluate(
        Fixed(), examples, batch_size=4
    )


def test_balanced_weights_have_the_mean_one_over_the_rows():
    held = {"a": 90, "b": 10, "c": 0}
    weights = balanced(held, ["a", "b", "c"])
    assert sum(n * w for n, w in zip(held.values(), weights, strict=True)) == pytest.approx(100)
    assert weights == pytest.approx([100 / 180, 5.0, 1.0])


def test_uneven_classes_are_worth_a_word():
    assert not list(uneven({"a": 10, "b": 5}))
    (line,) = uneven({"a": 90, "b": 10})
    assert line.startswith("classes are uneven, from 10 to 90 training rows each")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pos": 1, "neg": 2}, r"a number for each of the 3 classes; 1 have none, and 0"),
        ({"pos": 1, "neg": 2, "falt": 1, "flat": 1}, r"0 have none, and 1 of the names given \(falt\)"),
    ],
)
def test_other_classes_than_the_rows_have_are_refused(model, weights, message):
    with pytest.raises(InputError, match=rf"training\.class_weights: .*{message}"):
        task_of(config(model, weights), load_tokenizer(str(model)), MADE)


@pytest.mark.parametrize("weights", [{"pos": 0}, {"pos": True}, {}, 3, "even", ["pos"]])
def test_what_are_no_weights_is_refused(model, weights):
    if weights == {}:
        weights = {"pos": -1}
    with pytest.raises(InputError, match=r"class_weights: expected balanced, or a number above 0 for each"):
        config(model, weights)


def test_a_task_without_classes_has_none(model):
    numbers = [{**row, "label": row["score"]} for row in MADE]
    with pytest.raises(InputError, match=r"training\.class_weights: this task has no classes"):
        task_of(config(model, "balanced"), load_tokenizer(str(model)), numbers)


def test_parties_agree_on_numbers(model):
    listed = {"task": {"labels": ["pos", "neg", "flat"]}}
    with pytest.raises(InputError, match=r"training\.class_weights: balanced would need each party's counts"):
        check_can_deploy(config(model, "balanced", **listed))
    check_can_deploy(config(model, {"pos": 1, "neg": 1, "flat": 2}, **listed))
