"""Examples packed into rows have the losses and gradients that they have apart, or the model is refused."""

import pytest
import torch
from run_helpers import causal_config, changed, metrics_of, save_tokenizer, write_data
from tiny_models import FAMILIES, POSITIONS
from transformers import AutoTokenizer

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import prepare_base
from fedsb.tasks import causal_lm
from fedsb.tasks.packing import packed, rows_of

ROWS = [
    {"q": "say good : w1 w2 w3 w4 w5 w6 w7 w8 w9", "a": "pos w1"},  # 14 of 24 positions, window 8
    {"q": "say", "a": "neg"},
    {"q": "bad : dull w10 w11 w12", "a": "flat flat neg"},
    {"q": "w1 w2 w3", "a": "pos"},
]

REFUSED = ("mamba", "bloom", "opt", "falcon")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, causal=True)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
def test_losses_and_gradients_are_those_of_rows_apart(name, tokenizer):
    task = causal_lm(tokenizer, prompt="{q} :", response="a", max_length=POSITIONS, max_new_tokens=2)
    together = packed(task, tokenizer, width=POSITIONS)
    model, examples = FAMILIES[name].build(), task.encode(ROWS, "x")
    results = []
    for one in (task, together):
        model.zero_grad()
        losses = one.losses(model, one.collate(examples))
        (losses * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        results.append((losses.detach(), model.get_input_embeddings().weight.grad.clone()))
    assert together.collate(examples)["input_ids"].shape[0] < len(ROWS)
    for apart, joined in zip(*results, strict=True):
        torch.testing.assert_close(joined, apart, rtol=1e-4, atol=1e-6)


def test_rows_are_filled_first_fit_and_hold_every_example_once():
    assert rows_of([3, 9, 4, 2, 6], 10) == [[1], [4, 2], [0, 3]]
    assert rows_of([], 10) == []
    assert rows_of([10, 10], 10) == [[0], [1]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing")
    write_data(folder / "data", train=24, test=6)
    for name in ("llama", *REFUSED):
        FAMILIES[name].save(folder / name)
    return folder


def config_of(world, name, **changes):
    config = causal_config(
        world / name,
        world / "data",
        federation__rounds=1,
        method__init={"kind": "orthonormal"},
        training__max_length=POSITIONS,
        **changes,
    )
    return changed(config, method__targets="all-linear", evaluation={"every": 1})


def test_a_run_that_packs_is_the_run_that_does_not(world, tmp_path):
    for packing in (False, True):
        config = config_of(world, "llama", training__packing=packing)
        run(RunConfig.from_dict(config), tmp_path / str(packing))
    plain, joined = (metrics_of(tmp_path / str(packing))[-1] for packing in (False, True))
    assert joined["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    assert joined["eval"] == pytest.approx(plain["eval"], rel=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_keep_examples_apart_is_refused(world, name):
    config = RunConfig.from_dict(config_of(world, name, training__packing=True))
    with pytest.raises(InputError, match=r"training.packing: .*leave it out"):
        prepare_base(config, prepare_data(config))


def test_packing_needs_answers_rows_that_are_examples_and_one_core(world):
    private = {"unit": "example", "epsilon": 3.0, "delta": 1e-3, "clip_norm": 0.5}
    for changes, reason in (
        ({"privacy": private, "method__init": {"kind": "weights"}}, "clips each row's gradient"),
        ({"task": {"kind": "classification", "text": ["text"]}}, "none that answers"),
    ):
        config = changed(config_of(world, "llama", training__packing=True), **changes)
        with pytest.raises(InputError, match=rf"training.packing: .*{reason}"):
            check_settings(RunConfig.from_dict(config))
