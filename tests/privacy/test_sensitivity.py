"""What one example can do to a step's sum: at most one clip norm, whatever the model's config asks for.

At full batch, with dropout configured, in 32 and in 16 bits, with a very long row put in and another taken
out. Against the definition, through the training of a client, for every method.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from private_world import PrivateWorld
from run_helpers import (
    causal_config,
    classification_config,
    save_tokenizer,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    write_data,
)
from torch import nn
from torch.nn import functional as F

from fedsb.errors import RunFailed
from fedsb.federation import fixed_shape, private_training
from fedsb.federation.dropout import check_repeatable, without_dropout
from fedsb.methods import ALL

CLIP_NORM = 0.05
"""Less than any example's gradient here: every one is clipped."""
ROUNDING = 1e-3
DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "llama": {"attention_dropout": 0.3},
}
MAKE = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}
LONG = {"text": " ".join(["w3", "good", "w7"] * 40), "label": "pos", "key": " ".join(["w3"] * 80)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    write_data(folder / "data", train=24, test=3)
    for name, make in MAKE.items():
        with_dropout(make(folder / name), DROPOUT[name])
    return folder


def with_dropout(model: Path, settings):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def world_of(folder, model, **changes):
    make = classification_config if model == "bert" else causal_config
    fixed = {
        "federation__clients": 1,
        "method__init": {"kind": "orthonormal"},
        "training__max_length": 32,
        "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5},
    }
    return PrivateWorld(make(folder / model, folder / "data", **fixed | changes))


def moved(world, *, number=1, batch_size=30):
    """How far a very long row, and the first row, move the sum, in clip norms."""
    examples = world.data.train
    long = world.encode(LONG)

    def released(these):
        return world.clipped_sum(these, CLIP_NORM, number=number, batch_size=batch_size)

    whole = released(examples)
    assert torch.isfinite(whole).all()
    assert whole.norm() > 3 * CLIP_NORM, "a sum that nothing can move"
    return [
        float((released(these) - whole).norm() / CLIP_NORM) for these in ([long, *examples], examples[1:])
    ]


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("name", [m.name for m in ALL if m.experts is None and not m.stays])
def test_with_dropout_configured_an_example_moves_the_sum_by_one_clip_norm(folder, model, name):
    world = world_of(folder, model, method__name=name)
    for number in (1, 2):  # some methods alternate
        assert max(moved(world, number=number)) <= 1 + ROUNDING


IN_16_BITS = {
    "bfloat16 base": {"model__dtype": "bfloat16"},
    "bfloat16 autocast": {"training__autocast": "bfloat16"},
    "float16 base": {"model__dtype": "float16"},
}


@pytest.mark.parametrize("batch_size", [30, 7], ids=["one batch", "physical batches"])
@pytest.mark.parametrize("bits", IN_16_BITS)
@pytest.mark.parametrize(("model", "name"), [("bert", "fed-sb"), ("llama", "fed-sb"), ("gpt2", "fedit")])
def test_in_16_bits_a_very_long_row_moves_no_other(folder, model, name, bits, batch_size):
    world = world_of(folder, model, method__name=name, **IN_16_BITS[bits])
    assert max(moved(world, batch_size=batch_size)) <= 1 + ROUNDING


@pytest.mark.parametrize("bits", [{}, IN_16_BITS["bfloat16 base"]], ids=["32 bits", "16 bits"])
@pytest.mark.parametrize("model", list(MAKE))
def test_with_gradient_checkpointing(folder, model, bits):
    """Its blocks must think that they train, so that they could drop."""
    world = world_of(folder, model, training__gradient_checkpointing=True, **bits)
    assert max(moved(world)) <= 1 + ROUNDING


@pytest.mark.parametrize("model", list(MAKE))
def test_this_test_sees_dropout(folder, model, monkeypatch):
    def in_training(trained):
        trained.train()
        return nullcontext()

    world = world_of(folder, model)
    monkeypatch.setattr(private_training, "without_dropout", in_training)
    monkeypatch.setattr(private_training, "check_repeatable", lambda *_: None)
    assert max(moved(world)) > 1 + 10 * ROUNDING


def test_this_test_sees_batches_of_other_shapes(folder, monkeypatch):
    world = world_of(folder, "llama", model__dtype="bfloat16")
    monkeypatch.setattr(private_training, "computes_in_16_bits", lambda *_: False)
    assert max(moved(world)) > 1 + ROUNDING


def test_a_layer_that_is_used_several_times_is_clipped_as_one(tmp_path):
    """ALBERT's blocks share their weights: an example's gradient is the sum over all uses."""
    from transformers import AlbertConfig, AlbertModel

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        size |= {"embedding_size": 32, "max_position_embeddings": 64, "initializer_range": 0.2}
        config = AlbertConfig(vocab_size=30, **size)
        AlbertModel(config).save_pretrained(tmp_path / "bert")
    with_dropout(tmp_path / "bert", DROPOUT["bert"] | {"classifier_dropout_prob": 0.3})
    save_tokenizer(tmp_path / "bert")
    write_data(tmp_path / "data", train=24, test=3)
    world = world_of(tmp_path, "bert", method__targets=["query", "value"])
    assert max(moved(world)) <= 1 + ROUNDING
    singles = [world.clipped_sum([example], 1e9) for example in world.data.train]
    by_hand = sum(g * min(1.0, CLIP_NORM / g.norm().item()) for g in singles)
    torch.testing.assert_close(world.clipped_sum(world.data.train, CLIP_NORM), by_hand, rtol=1e-3, atol=1e-5)


# Dropout of every kind is off


class Careless(nn.Module):
    """Drops by a function of its own, whether it trains or not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(F.dropout(self.first(x), 0.5))


class Functional(nn.Module):
    """A block with gradient checkpointing that drops by its own number, its class's and its config's."""

    drop_path_rate = 0.5
    gradient_checkpointing = True

    def __init__(self):
        super().__init__()
        self.dropout = 0.5
        self.config = type("Config", (), {})()
        self.config.hidden_dropout = 0.5
        self.inner = nn.Dropout(0.5)

    def forward(self, x):
        for rate in (self.dropout, self.drop_path_rate, self.config.hidden_dropout):
            x = F.dropout(x, rate, training=self.training)
        return self.inner(x)


def test_every_probability_is_zero_inside_and_back_afterwards():
    model = nn.Sequential(nn.Linear(4, 4), Functional(), nn.Dropout(0.5)).train()
    x = torch.randn(8, 4)
    with without_dropout(model):
        assert model[1].training
        assert model[0].training, "Opacus looks at the mode of what it hooks"
        assert torch.equal(model(x), model[0](x))
    assert (model[1].dropout, model[1].drop_path_rate, model[1].config.hidden_dropout) == (0.5, 0.5, 0.5)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(x), model[0](x))


def test_a_probability_that_cannot_be_set_is_named():
    class Fixed(Functional):
        @property
        def drop_rate(self):
            return 0.25

    model = nn.Sequential(nn.Linear(4, 4), Fixed())
    with (
        pytest.raises(RunFailed, match=r"1: its drop_rate of 0.25 cannot be switched off"),
        without_dropout(model),
    ):
        pass
    assert model[1].dropout == 0.5


def test_chance_that_no_mode_switches_off_is_found_and_its_layer_named():
    model = nn.Sequential(nn.Linear(4, 4), Careless())
    x = torch.randn(8, 4)
    with without_dropout(model), pytest.raises(RunFailed, match=r"1\.second gives one batch two results"):
        check_repeatable(model, lambda: model(x).sum(1))


def test_a_row_that_is_not_finite_is_no_reason_to_fail():
    """A failure would tell of it."""
    check_repeatable(nn.Linear(2, 2), lambda: torch.tensor([float("nan"), float("inf"), 1.0]))


def test_a_run_with_such_a_model_is_refused(folder, monkeypatch):
    world = world_of(folder, "bert")
    layer = world.local_model.model.bert.encoder.layer[1].output
    monkeypatch.setattr(layer, "forward", lambda hidden, given: F.dropout(hidden[..., :1] + given, 0.1))
    with pytest.raises(RunFailed, match=r"encoder\.layer\.1\.output gives one batch two results"):
        world.clipped_sum(world.data.train, CLIP_NORM)


# Batches of one shape


def collate(examples):
    longest = max(len(e["input_ids"]) for e in examples)
    tokens = torch.tensor([e["input_ids"] + [0] * (longest - len(e["input_ids"])) for e in examples])
    return {"input_ids": tokens, "labels": torch.tensor([e["labels"] for e in examples])}


@pytest.mark.parametrize("ids", [[[5]], [[5, 6], [7]], [[], [1, 2, 3]], [[1] * 6, [2], [3], [4]]])
def test_a_batch_has_the_shape_asked_for_and_the_examples_first(ids):
    examples = [{"input_ids": own, "labels": n} for n, own in enumerate(ids)]
    batch = fixed_shape.of_shape(collate, examples, 4, 6)
    assert batch["input_ids"].shape == (4, 6)
    assert batch["labels"].tolist()[: len(ids)] == list(range(len(ids)))
    for row, own in zip(batch["input_ids"], ids, strict=False):
        assert row.tolist() == own + [0] * (6 - len(own))
