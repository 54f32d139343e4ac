"""A client's update is what a plain training loop gives, and depends on (seed, round, client) alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedsb.adapter import Factors
from fedsb.adapter.attached import Attached, attach
from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.training import ClientFailed, LocalTraining, batch_indices, learning_rate_factor, train
from fedsb.methods import Shape, fed_sb


class Bag(nn.Module):
    """Mean of word vectors, a hidden layer, a label: small, and with a place for an adapter."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens, mask):
        mean = (self.words(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.out(self.dropout(self.hidden(mean).tanh()))


def make_examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": i,
            "input_ids": rng.integers(1, 20, rng.integers(1, 9)).tolist(),
            "label": int(rng.integers(3)),
        }
        for i in range(count)
    ]


def collate(examples):
    longest = max(len(e["input_ids"]) for e in examples)
    rows = [e["input_ids"] + [0] * (longest - len(e["input_ids"])) for e in examples]
    tokens = torch.tensor(rows)
    labels = torch.tensor([e["label"] for e in examples])
    return {"tokens": tokens, "mask": (tokens > 0).float(), "labels": labels}


def losses(model, batch):
    return F.cross_entropy(model(batch["tokens"], batch["mask"]), batch["labels"], reduction="none")


class Setup:
    """A model with an adapter on it and a head that trains too, and a record of the batches it saw."""

    def __init__(self, *, dropout=0.0):
        draw = torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Bag(dropout)
        factors = Factors(
            B=torch.linalg.qr(torch.randn(8, 3, generator=draw)).Q,
            A=torch.linalg.qr(torch.randn(6, 3, generator=draw)).Q.T,
            R=torch.randn(1, 3, 3, generator=draw),
        )
        start = {"hidden": factors}
        attached = attach(self.model, start)
        head = {"out.weight": self.model.out.weight.requires_grad_(True)}
        self.parameters = {"hidden.R": attached.layers["hidden"].R, **head}
        shapes = {name: tuple(p.shape) for name, p in head.items()}
        self.exchange = Exchange(fed_sb, {"hidden": Shape(8, 6)}, 3, 1, shapes)
        self.layout = self.exchange.up(1, self.exchange.whole)
        self.start = self.layout.flatten(self.parameters)
        self.seen: list[list[int]] = []
        self.local_model = LocalModel(
            attached, head, self.exchange, start, self._collate, losses, torch.device("cpu")
        )

    def _collate(self, examples):
        self.seen.append([e["id"] for e in examples])
        return collate(examples)

    def message(self, number=1):
        return wire.pack(wire.Header("fed-sb", number, self.layout.digest), self.start)

    def update(self, examples, training, *, number=1, client=0, seed=0, **more):
        self.seen.clear()
        answer = client_update(
            self.message(number), self.local_model, examples, training, client=client, seed=seed, **more
        )
        return wire.unpack(answer)


def by_hand(setup, examples, steps, rates, *, clip=None):
    """SGD written out: `steps` lists for each step the batches of example ids. Vector and mean loss."""
    setup.layout.copy_into(setup.parameters, setup.start)
    total = count = 0.0
    for step, rate in zip(steps, rates, strict=True):
        chosen = [examples[i] for batch in step for i in batch]
        each = losses(setup.model, collate(chosen))
        gradients = torch.autograd.grad(each.mean(), list(setup.parameters.values()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        factor = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
        with torch.no_grad():
            for parameter, gradient in zip(setup.parameters.values(), gradients, strict=True):
                parameter -= rate * factor * gradient
        total, count = total + each.sum().item(), count + len(chosen)
    return setup.layout.flatten(setup.parameters), total / count


SGD = LocalTraining(optimizer="sgd", learning_rate=0.3, batch_size=8, rounds=3)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_update_is_what_a_hand_written_loop_gives(schedule, clip):
    setup, examples = Setup(), make_examples(29)
    training = replace(SGD, schedule=schedule, warmup_ratio=0.2, grad_clip=clip, accumulation=2, epochs=2)
    header, vector = setup.update(examples, training, number=2)
    seen = list(setup.seen)
    steps = [seen[i : i + 2] for i in range(0, len(seen), 2)]
    assert [len(ids) for ids in seen] == [8, 8, 8, 5] * 2
    factors = [
        learning_rate_factor(len(steps) + i, 3 * len(steps), schedule=schedule, warmup_ratio=0.2)
        for i in range(len(steps))
    ]
    expected, mean_loss = by_hand(setup, examples, steps, [0.3 * f for f in factors], clip=clip)
    assert (expected - setup.start).abs().max() > 0.005
    torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-6)
    assert header.train_loss == pytest.approx(mean_loss, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("count", [32, 28, 24, 5])
def test_two_batches_of_8_accumulated_are_one_batch_of_16(optimizer, count):
    setup, examples = Setup(), make_examples(count)
    training = replace(SGD, optimizer=optimizer, learning_rate=0.01)
    _, small = setup.update(examples, replace(training, batch_size=8, accumulation=2))
    _, large = setup.update(examples, replace(training, batch_size=16, accumulation=1))
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-5)
    assert not torch.equal(small, setup.start)


def test_adamw_is_torchs_from_a_fresh_state_each_round():
    setup, examples = Setup(), make_examples(24)
    training = replace(SGD, optimizer="adamw", weight_decay=0.1)
    _, vector = setup.update(examples, training)
    seen = list(setup.seen)
    _, again = setup.update(examples, training)
    assert torch.equal(vector, again)
    setup.layout.copy_into(setup.parameters, setup.start)
    optimizer = torch.optim.AdamW(setup.parameters.values(), lr=0.3, weight_decay=0.1)
    for ids in seen:
        optimizer.zero_grad()
        losses(setup.model, collate([examples[i] for i in ids])).mean().backward()
        optimizer.step()
    torch.testing.assert_close(vector, setup.layout.flatten(setup.parameters), atol=1e-6, rtol=1e-6)


def test_a_clipped_step_is_as_long_as_the_clip_and_a_small_gradient_is_left_alone():
    setup, examples = Setup(), make_examples(8)
    _, clipped = setup.update(examples, replace(SGD, grad_clip=0.01))
    assert (clipped - setup.start).norm().item() == pytest.approx(0.3 * 0.01, rel=1e-3)
    _, free = setup.update(examples, SGD)
    _, high = setup.update(examples, replace(SGD, grad_clip=100.0))
    assert torch.equal(free, high)


def test_rates_go_on_over_the_rounds_and_do_not_start_again():
    """With the gradient one everywhere, the vector is minus the sum of the rates."""
    parameter = nn.Parameter(torch.zeros(2))
    attached = Attached(nn.ParameterDict({"p": parameter}), {}, {})
    per_example = lambda m, batch: m["p"].sum() * torch.ones(len(batch["labels"]))  # noqa: E731
    exchange = Exchange(fed_sb, {}, 1, 1, {"p": (2,)})
    local_model = LocalModel(attached, {}, exchange, {}, collate, per_example, torch.device("cpu"))
    training = LocalTraining(
        optimizer="sgd", learning_rate=0.1, batch_size=2, rounds=2, schedule="linear", warmup_ratio=0.25
    )
    rates = []
    before = 0.0
    for number in (1, 2):
        train(
            local_model, {"p": parameter}, make_examples(8), training, round_number=number, client=0, seed=0
        )
        rates.append(before - parameter[0].item())
        before = parameter[0].item()
    curve = [0.1 * learning_rate_factor(s, 8, schedule="linear", warmup_ratio=0.25) for s in range(8)]
    assert rates == pytest.approx([sum(curve[:4]), sum(curve[4:])], rel=1e-5)


def test_only_the_trained_parameters_change():
    setup = Setup()
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    setup.update(make_examples(16), SGD)
    changed = {n for n, value in setup.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"hidden.R", "out.weight"}


def test_bfloat16_autocast_trains_nearly_the_same_in_fp32_parameters():
    setup, examples = Setup(), make_examples(16)
    _, exact = setup.update(examples, SGD)
    _, rough = setup.update(examples, replace(SGD, autocast="bfloat16"))
    assert not torch.equal(exact, rough)
    assert (exact - rough).norm() < 0.05 * (exact - setup.start).norm()
    assert {p.dtype for p in setup.parameters.values()} == {torch.float32}


# ---------------------------------------------------------------- randomness


def test_the_same_seed_round_and_client_give_the_same_bytes_whatever_came_before():
    setup, examples = Setup(dropout=0.3), make_examples(30)
    once = setup.update(examples, SGD, client=2)
    torch.rand(17)
    setup.update(make_examples(9, seed=3), SGD, client=1)
    again = setup.update(examples, SGD, client=2)
    assert once[0] == again[0]
    assert torch.equal(once[1], again[1])


@pytest.mark.parametrize("other", [{"client": 1}, {"number": 2}, {"seed": 1}])
def test_another_client_round_or_seed_has_another_order_and_other_dropout(other):
    setup, examples = Setup(), make_examples(30)
    setup.update(examples, SGD)
    order = list(setup.seen)
    setup.update(examples, SGD, **other)
    assert setup.seen != order
    noisy, same = Setup(dropout=0.5), make_examples(1) * 30  # without an order, only dropout can differ
    _, one = noisy.update(same, SGD)
    _, two = noisy.update(same, SGD, **other)
    assert (one - two).norm() > 1e-3


def test_training_leaves_the_global_generator_alone():
    setup = Setup(dropout=0.5)
    before = torch.random.get_rng_state()
    setup.update(make_examples(12), SGD)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- batches

lengths_of = st.lists(st.integers(1, 50), min_size=1, max_size=300)


@given(lengths=lengths_of, size=st.integers(1, 9), grouped=st.booleans(), epochs=st.sampled_from([1, 2, 3]))
def test_every_example_comes_once_per_epoch(lengths, size, grouped, epochs):
    training = LocalTraining(batch_size=size, group_by_length=grouped, epochs=epochs)
    batches = list(batch_indices(lengths, training, np.random.default_rng(0)))
    per_epoch = -(-len(lengths) // size)
    assert len(batches) == training.batches_per_round(len(lengths)) == epochs * per_epoch
    assert all(1 <= len(batch) <= size for batch in batches)
    for epoch in range(epochs):
        flat = [i for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch]
        assert sorted(flat) == list(range(len(lengths)))


@pytest.mark.parametrize(("epochs", "batches"), [(0.5, 5), (0.01, 1), (1.2, 12), (2.55, 26)])
def test_fractions_of_an_epoch_are_rounded_up_to_whole_batches(epochs, batches):
    training = LocalTraining(batch_size=10, epochs=epochs, accumulation=2)
    assert len(list(batch_indices([1] * 100, training, np.random.default_rng(0)))) == batches
    assert training.steps_per_round(100) == -(-batches // 2)


def test_grouping_by_length_saves_padding_and_still_shuffles():
    lengths = np.random.default_rng(1).integers(1, 100, 512).tolist()

    def batches(grouped, seed):
        training = LocalTraining(batch_size=8, group_by_length=grouped)
        return list(batch_indices(lengths, training, np.random.default_rng(seed)))

    def padding(chosen):
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in chosen)

    assert padding(batches(True, 0)) < 0.3 * padding(batches(False, 0))
    assert batches(True, 0) != batches(True, 1)
    longest = [max(lengths[i] for i in batch) for batch in batches(True, 0)]
    assert longest != sorted(longest)


def test_a_client_without_examples_does_not_hang():
    class FewDraws:
        left = 5

        def permutation(self, n):
            self.left -= 1
            if not self.left:
                raise TimeoutError("asked for a new epoch again and again")
            return np.arange(n)

    assert list(batch_indices([], LocalTraining(), FewDraws())) == []


# ---------------------------------------------------------------- failing


def test_a_client_out_of_time_has_failed():
    with pytest.raises(ClientFailed, match=r"timed out after 0\.001 s"):
        Setup().update(make_examples(400), replace(SGD, batch_size=1, timeout_seconds=0.001))
    Setup().update(make_examples(4), replace(SGD, timeout_seconds=60.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_has_failed_with_a_cure(bad):
    setup = Setup()
    setup.local_model = replace(setup.local_model, losses=lambda model, batch: losses(model, batch) * bad)
    with pytest.raises(ClientFailed, match=r"loss is not finite .* lower training.learning_rate"):
        setup.update(make_examples(8), SGD)


def test_training_that_blows_up_in_its_last_step_is_refused_by_the_server():
    setup = Setup()
    setup.local_model = replace(setup.local_model, losses=lambda model, batch: losses(model, batch) * 1e5)
    header, vector = setup.update(make_examples(8), replace(SGD, learning_rate=1e38))
    assert not torch.isfinite(vector).all()
    expected = wire.Header("fed-sb", 1, setup.layout.digest, 0)
    with pytest.raises(UpdateRejected, match="not finite"):
        wire.check(header, vector, expected=expected, size=setup.layout.size)


@pytest.mark.parametrize("break_it", ["layout", "size", "nan", "garbage"])
def test_a_broadcast_that_does_not_fit_is_refused_before_training(break_it):
    setup = Setup()
    vector, digest = setup.start.clone(), setup.layout.digest
    if break_it == "nan":
        vector[0] = float("nan")
    digest = "0" * 16 if break_it == "layout" else digest
    vector = vector[:-1] if break_it == "size" else vector
    message = wire.pack(wire.Header("fed-sb", 1, digest), vector)
    with pytest.raises(UpdateRejected):
        client_update(
            message[:40] if break_it == "garbage" else message,
            setup.local_model,
            make_examples(4),
            SGD,
            client=0,
            seed=0,
        )
    assert not setup.seen
    assert torch.equal(setup.layout.flatten(setup.parameters), setup.start)


def test_the_answer_says_who_trained_on_how_much_for_which_round():
    setup, counts = Setup(), []
    header, _ = setup.update(make_examples(21), SGD, number=3, client=5, on_step=counts.append)
    assert (header.method, header.round, header.client, header.num_examples) == ("fed-sb", 3, 5, 21)
    assert header.layout == setup.layout.digest
    assert counts == [8, 8, 5]
