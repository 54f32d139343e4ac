"""The estimate is the plain full gradient, with never more than one layer's gradient alive."""

import copy

import numpy as np
import pytest
import torch
from oracles import (
    best_of_rank,
    dense_update,
    example_losses,
    full_gradient,
    numbers,
    present,
    relative_error,
)
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from fedsb.adapter.attached import find_targets
from fedsb.adapter.bases import bases_from_update
from fedsb.adapter.linear import features
from fedsb.adapter.update_estimate import estimate_update
from fedsb.errors import RunFailed
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import start_factors
from fedsb.federation.start.settings import Start
from fedsb.methods import fed_sb
from fedsb.runner.spill import SpilledTensors


def keep(name, update):
    return update.clone()


def split(batch, sizes):
    """The batch cut into batches of these sizes."""
    parts = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: tensors[i] for name, tensors in parts.items()} for i in range(len(sizes))]


def estimate(model, names, batches, losses=example_losses, *, rate=1.0, rule="raw", sums=None, reduce=keep):
    layers = {name: model.get_submodule(name) for name in names}
    model.requires_grad_(False)
    return estimate_update(model, layers, batches, losses, reduce, learning_rate=rate, rule=rule, sums=sums)


class Toy(nn.Module):
    """Linear and Conv1D layers over plain vectors; `shared` is used twice, `idle` not at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.conv = nn.Linear(5, 6), nn.Linear(6, 6), Conv1D(4, 6)
        self.idle = nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.shared(self.first(x).tanh()).tanh()
        return self.conv(self.shared(hidden).tanh())


def toy_losses(model, batch):
    return (model(batch["x"]) - batch["y"]).square().flatten(1).sum(1)


@pytest.fixture
def toy():
    with torch.random.fork_rng(devices=[]):
        return Toy()


@pytest.fixture
def vectors(generator):
    return {"x": torch.randn(8, 3, 5, generator=generator), "y": torch.randn(8, 3, 4, generator=generator)}


# ---------------------------------------------------------------- equal to the oracle


@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_raw_estimate_is_minus_rate_times_the_full_gradient_however_batched(any_model, token_batch, sizes):
    model, targets = any_model
    names = list(find_targets(model, targets))
    oracle = full_gradient(model, names, [token_batch], example_losses)
    found = estimate(model, names, split(token_batch, sizes), rate=0.5)
    assert list(found) == names
    for name in names:
        assert found[name].shape == features(model.get_submodule(name))
        assert found[name].dtype == torch.float32
        assert relative_error(numbers(found[name]), -0.5 * oracle[name]) < 1e-4


def test_sign_estimate_is_minus_rate_times_the_sign(any_model, token_batch):
    model, targets = any_model
    names = list(find_targets(model, targets))
    oracle = full_gradient(model, names, [token_batch], example_losses)
    found = estimate(model, names, split(token_batch, [2, 2]), rate=0.01, rule="sign")
    for name in names:
        clear = np.abs(oracle[name]) > 1e-5 * np.abs(oracle[name]).max()  # not within rounding of zero
        assert clear.mean() > 0.9
        np.testing.assert_allclose(
            numbers(found[name])[clear], -0.01 * np.sign(oracle[name])[clear], rtol=1e-6
        )


def test_padding_does_not_change_the_estimate(bert, token_batch):
    names = list(find_targets(bert, ["query", "value"]))
    batches = split(token_batch, [1, 1, 1, 1])
    trimmed = [
        {k: t[:, : int(b["attention_mask"].sum())] if t.dim() == 2 else t for k, t in b.items()}
        for b in batches
    ]
    padded, bare = estimate(bert, names, [token_batch]), estimate(bert, names, trimmed)
    for name in names:
        assert relative_error(numbers(padded[name]), numbers(bare[name])) < 1e-4


@pytest.mark.parametrize("sizes", [[8], [3, 5]])
def test_a_layer_used_twice_gets_the_sum_of_both_uses(toy, vectors, sizes):
    names = ["first", "shared", "conv"]
    oracle = full_gradient(toy, names, [vectors], toy_losses)
    found = estimate(toy, names, split(vectors, sizes), toy_losses)
    for name in names:
        assert relative_error(numbers(found[name]), -oracle[name]) < 1e-4


def test_spilled_sums_give_the_same_and_leave_no_file(bert, token_batch, tmp_path):
    names = list(find_targets(bert, ["query", "dense"]))
    batches = split(token_batch, [2, 1, 1])
    sums = SpilledTensors(tmp_path / "spill")
    seen_on_disk = []

    def watching_losses(model, batch):
        seen_on_disk.append(len(list((tmp_path / "spill").iterdir())))
        return example_losses(model, batch)

    spilled = estimate(bert, names, batches, watching_losses, sums=sums)
    in_memory = estimate(bert, names, batches)
    assert all(torch.equal(spilled[name], in_memory[name]) for name in names)
    assert seen_on_disk == [0, len(names), len(names)]
    assert not list((tmp_path / "spill").iterdir())


def test_a_spilled_mapping_is_a_mapping(tmp_path):
    spilled = SpilledTensors(tmp_path)
    spilled["a/b"], spilled["c"] = torch.arange(3.0), torch.ones(2, 2).T
    spilled["c"] = torch.zeros(2, 2)
    assert list(spilled) == ["a/b", "c"]
    assert torch.equal(spilled.pop("a/b"), torch.arange(3.0))
    assert "a/b" not in spilled
    assert torch.equal(spilled["c"], torch.zeros(2, 2))
    with pytest.raises(KeyError):
        spilled["a/b"]


def test_reentrant_checkpointing_changes_nothing(llama, token_batch):
    names = list(find_targets(llama, ["q_proj", "v_proj", "down_proj"]))
    plain = estimate(llama, names, split(token_batch, [3, 1]))
    llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    llama.enable_input_require_grads()
    llama.train()  # transformers checkpoints only in training mode; these models have no dropout
    checkpointed = estimate(llama, names, split(token_batch, [3, 1]))
    for name in names:
        assert relative_error(numbers(checkpointed[name]), numbers(plain[name])) < 1e-5


def test_a_layer_used_in_two_checkpointed_segments_is_refused(toy, vectors):
    class Checkpointed(Toy):
        def forward(self, x):
            hidden = checkpoint(lambda h: self.shared(h).tanh(), self.first(x).tanh(), use_reentrant=True)
            return self.conv(checkpoint(lambda h: self.shared(h).tanh(), hidden, use_reentrant=True))

    model = Checkpointed()
    model.load_state_dict(toy.state_dict())
    with pytest.raises(RunFailed, match="several checkpointed segments"):
        estimate(model, ["first", "shared"], [vectors], toy_losses)


def test_a_bfloat16_base_gives_a_finite_fp32_estimate_near_the_fp32_one(llama, token_batch):
    names = list(find_targets(llama, ["q_proj", "v_proj"]))
    exact = estimate(llama, names, [token_batch])
    rough = estimate(llama.bfloat16(), names, [token_batch])
    for name in names:
        assert rough[name].dtype == torch.float32
        assert relative_error(numbers(rough[name]), numbers(exact[name])) < 0.1


# ---------------------------------------------------------------- memory and side effects


def test_one_batch_keeps_one_layers_gradient_at_a_time(llama, token_batch):
    """Counted on storages, which also sees tensors that Python has let go of but autograd has not."""
    names = list(find_targets(llama, ["q_proj", "k_proj", "v_proj", "down_proj"]))
    handed_over: list[StorageWeakRef] = []
    alive = []

    def reduce(name, update):
        alive.append(sum(not ref.expired() for ref in handed_over))
        handed_over.append(StorageWeakRef(update.untyped_storage()))
        return name

    assert estimate(llama, names, [token_batch], reduce=reduce) == {name: name for name in names}
    assert alive == [0] * len(names)


def test_every_layer_is_reduced_once_and_after_the_last_batch_only(bert, token_batch):
    names = list(find_targets(bert, ["query", "value"]))
    events = []

    def losses(model, batch):
        events.append("batch")
        return example_losses(model, batch)

    estimate(bert, names, split(token_batch, [1, 3]), losses, reduce=lambda name, update: events.append(name))
    assert events[:2] == ["batch", "batch"]
    assert sorted(events[2:]) == sorted(names)


def test_frozen_weights_stay_frozen_unchanged_and_without_hooks(any_model, token_batch):
    model, targets = any_model
    before = copy.deepcopy(model.state_dict())
    estimate(model, list(find_targets(model, targets)), split(token_batch, [2, 2]))
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_when_the_loss_fails(toy, vectors):
    def broken(model, batch):
        model(batch["x"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        estimate(toy, ["first"], [vectors], broken)
    assert not any(module._forward_hooks for module in toy.modules())


# ---------------------------------------------------------------- errors


def test_a_layer_that_no_gradient_reaches_is_named(toy, vectors):
    with pytest.raises(RunFailed, match=r"no gradient reached layer 'idle'; leave it out of method.targets"):
        estimate(toy, ["first", "idle"], [vectors], toy_losses)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["raw", "sign"])
def test_a_gradient_that_is_not_finite_is_refused(toy, vectors, bad, rule):
    vectors["y"][0, 0, 0] = bad
    with pytest.raises(RunFailed, match=r"gradient of layer .* is not finite"):
        estimate(toy, ["first", "conv"], split(vectors, [4, 4]), toy_losses, rule=rule)


# ---------------------------------------------------------------- up to the factors of a run


def test_a_gradient_start_is_the_svd_of_the_estimate_over_all_clients_draws(bert, token_batch):
    """Through `start_factors`, whose batches mix the clients' examples."""
    targets = find_targets(bert, ["query", "value"])
    oracle = full_gradient(bert, list(targets), [token_batch], example_losses)
    examples = split(token_batch, [1, 1, 1, 1])

    def batches(chosen, size):
        groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [{k: torch.cat([e[k] for e in group]) for k in group[0]} for group in groups]

    flags = [p.requires_grad for p in bert.parameters()]
    start = Start(
        kind="gradient",
        rule="raw",
        samples=4,
        batch_size=3,
        upload="whole",
        head_warmup=None,
        rank=2,
        step_size=0.1,
        seed=0,
    )
    calibration = Calibration({0: [0, 2], 1: [1, 3]}, examples, batches, example_losses)
    started = start_factors(bert, targets, {}, fed_sb, start, calibration, num_clients=2)
    assert [p.requires_grad for p in bert.parameters()] == flags
    for name in targets:
        expected = best_of_rank(-0.1 * oracle[name], 2)
        assert (
            relative_error(dense_update(started.factors[name]), expected) < 1e-2
        )  # the bases travel as bfloat16
    up, down = started.traffic
    numbers_in_gradient = 4 * 16 * 16
    assert (up.direction, up.clients, up.parameters, up.measured) == ("up", 2, 2 * numbers_in_gradient, False)
    assert (down.direction, down.clients, down.parameters) == ("down", 2, 2 * 4 * (16 * 2 + 2 * 16))
    assert up.bytes == 4 * up.parameters
    assert 4 * down.parameters < down.bytes < 4 * down.parameters + 4000


def test_reducing_to_bases_while_the_gradient_flows_equals_reducing_afterwards(bert, token_batch, generator):
    names = list(find_targets(bert, ["query"]))

    def svd(name, update):
        return bases_from_update(update, 3, generator=torch.Generator())

    during = estimate(bert, names, [token_batch], reduce=svd)
    after = {name: svd(name, update) for name, update in estimate(bert, names, [token_batch]).items()}
    for name in names:
        pairs = zip(present(during[name]), present(after[name]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
