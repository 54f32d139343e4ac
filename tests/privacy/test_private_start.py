"""The noised sum of clipped gradients that private bases come from."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_per_example import example_losses

from fedsb.adapter.attached import find_targets
from fedsb.errors import RunFailed
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import StartPlan
from fedsb.privacy.private_start import noised_gradient_sums, scaled_sum

PLAN = StartPlan(num_examples=4, expected_samples=4)


def split(batch):
    return [
        {
            k: v[n : n + 1, : int(batch["attention_mask"][n].sum())] if v.dim() == 2 else v[n : n + 1]
            for k, v in batch.items()
        }
        for n in range(len(batch["input_ids"]))
    ]


def sums(model, targets, batches, plan=PLAN):
    model.requires_grad_(False)
    return noised_gradient_sums(model, targets, batches, example_losses, plan, noise=NoiseSource(), client=0)


def dense_gradient(model, targets, one):
    weights = {name: layer.weight for name, layer in targets.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    found = torch.autograd.grad(example_losses(model, one).sum(), list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def test_it_is_the_sum_of_normalized_gradients(bert, token_batch):
    """Against dense gradients of one example each."""
    targets = find_targets(bert, ["query", "value"])
    singles = [dense_gradient(bert, targets, one) for one in split(token_batch)]
    found = sums(bert, targets, [token_batch])
    for name in targets:
        expected = sum(one[name] / one[name].norm() for one in singles) / math.sqrt(len(targets))
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_adding_or_removing_an_example_moves_it_by_at_most_the_sensitivity(bert, token_batch):
    targets = find_targets(bert, ["query", "value"])
    ones = split(token_batch)
    whole = sums(bert, targets, ones)
    for left_out in range(4):
        part = sums(bert, targets, ones[:left_out] + ones[left_out + 1 :])
        moved = math.sqrt(sum((whole[n] - part[n]).square().sum().item() for n in targets))
        assert moved == pytest.approx(PLAN.sensitivity, rel=1e-4)


@given(st.integers(1, 6), st.integers(0, 1000), st.floats(0, 1))
def test_no_example_counts_for_more_than_the_norm(tokens, seed, cancelling):
    """Tokens that nearly cancel each other included: their norm is a difference of large numbers."""
    draw = torch.Generator().manual_seed(seed)
    g, x = torch.randn(1, tokens, 5, generator=draw), torch.randn(1, tokens, 7, generator=draw)
    g = torch.cat([g, -g * (1 - cancelling * 1e-6)], dim=1)
    x = torch.cat([x, x], dim=1)
    assert scaled_sum(g, x, 0.5).norm() <= 0.5 * (1 + 1e-4)


def test_the_noise_has_the_standard_deviation_of_the_plan(bert):
    targets = find_targets(bert, ["query", "value"])
    noised = sums(bert, targets, [], replace(PLAN, noise_multiplier=3.0))
    values = torch.cat([value.flatten() for value in noised.values()])
    assert values.std().item() == pytest.approx(3.0, rel=4 / math.sqrt(2 * len(values)))


def test_a_layer_used_twice_is_refused():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice().requires_grad_(False)
    with pytest.raises(RunFailed, match="more than once"):
        noised_gradient_sums(
            model,
            {"layer": model.layer},
            [torch.randn(2, 4, 3)],
            lambda m, batch: m(batch).square().sum((1, 2)),
            PLAN,
            noise=NoiseSource(),
            client=0,
        )
