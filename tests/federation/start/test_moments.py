"""Sketches add up to the whole's, and lead to the eigenvectors of Shampoo's second moments."""

import numpy as np
import pytest
import torch
from oracles import example_losses, full_gradient, numbers
from torch import nn

from fedsb.adapter.attached import find_targets
from fedsb.adapter.linear import features
from fedsb.errors import RunFailed
from fedsb.federation.start.moments import MomentSketch, add, leading_directions, probes, sketch_moments


def dense_moments(model, names, batches):
    """sum g g^T and sum g^T g over batches, g of the summed loss, by plain autograd."""
    found = {}
    for batch in batches:
        rows = len(batch["labels"])
        for name, mean in full_gradient(model, names, [batch], example_losses).items():
            g = rows * mean
            left, right = found.get(name, (0.0, 0.0))
            found[name] = (left + g @ g.T, right + g.T @ g)
    return found


def cut(batch, size):
    rows = len(batch["labels"])
    return [{n: t[i : i + size] for n, t in batch.items()} for i in range(0, rows, size)]


def sketches(model, targets, batches, rank, seed=0):
    shared = {
        name: probes(*features(layer), rank, generator=torch.Generator().manual_seed(seed + i))
        for i, (name, layer) in enumerate(targets.items())
    }
    model.requires_grad_(False)
    return sketch_moments(model, targets, batches, example_losses, shared), shared


def test_a_sketch_is_the_dense_moments_times_the_probe(any_model, token_batch):
    model, endings = any_model
    targets = find_targets(model, endings)
    batches = cut(token_batch, 2)
    found, shared = sketches(model, targets, batches, 2)
    for name, (left, right) in dense_moments(model, list(targets), batches).items():
        np.testing.assert_allclose(numbers(found[name].left), left @ numbers(shared[name].left), atol=1e-5)
        np.testing.assert_allclose(numbers(found[name].right), right @ numbers(shared[name].right), atol=1e-5)


def test_sketches_of_two_parties_add_up_to_the_sketch_of_both(bert, token_batch):
    targets = find_targets(bert, ["query", "value"])
    batches = cut(token_batch, 2)
    whole, _ = sketches(bert, targets, batches, 3)
    one, other = (sketches(bert, targets, part, 3)[0] for part in (batches[:1], batches[1:]))
    for name, sketch in whole.items():
        both = add(one[name], other[name])
        torch.testing.assert_close(both.left, sketch.left)
        torch.testing.assert_close(both.right, sketch.right)


@pytest.mark.parametrize(("size", "rank", "true_rank"), [(40, 6, 6), (40, 6, 4), (12, 10, 12), (5, 5, 2)])
def test_directions_of_a_low_rank_matrix_are_its_eigenvectors(size, rank, true_rank, generator):
    """Up to the sketch's width nothing is lost, so the subspace is exact."""
    basis = torch.linalg.qr(torch.randn(size, true_rank, generator=generator, dtype=torch.float64)).Q
    M = basis @ torch.diag(torch.linspace(5, 1, true_rank, dtype=torch.float64)) @ basis.T
    probe = probes(size, size, rank, generator=generator).left
    found = leading_directions((M @ probe.double()).float(), probe, rank)
    torch.testing.assert_close(found.T @ found, torch.eye(rank), atol=1e-5, rtol=0)
    kept = min(rank, true_rank)
    best = torch.linalg.eigh(M)[1].flip(1)[:, :kept]
    overlap = torch.linalg.svdvals(best.T @ found[:, :kept].double())
    assert overlap.min() > 1 - 1e-4


def test_a_decaying_spectrum_is_captured_nearly_as_well_as_by_the_eigenvectors(generator):
    size, rank = 100, 10
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    M = basis @ torch.diag(torch.arange(1, size + 1, dtype=torch.float64) ** -2.0) @ basis.T
    probe = probes(size, size, rank, generator=generator).left
    found = leading_directions((M @ probe.double()).float(), probe, rank).double()
    best = torch.linalg.eigvalsh(M).flip(0)[:rank].sum()
    assert torch.trace(found.T @ M @ found) > 0.99 * best


def test_no_gradient_at_all_still_gives_orthonormal_directions(generator):
    probe = probes(8, 8, 3, generator=generator).left
    found = leading_directions(torch.zeros_like(probe), probe, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3), atol=1e-6, rtol=0)


def test_a_layer_without_gradient_and_one_that_is_not_finite_are_refused(bert, token_batch):
    targets = find_targets(bert, ["query"])
    idle = {**targets, "idle": nn.Linear(4, 4)}
    with pytest.raises(RunFailed, match="no gradient reached layer 'idle'"):
        sketches(bert, idle, [token_batch], 2)
    name = next(iter(targets))
    bad = {name: MomentSketch(*(p for p in probes(*features(targets[name]), 2, generator=torch.Generator())))}

    def losses(model, batch):
        return example_losses(model, batch) * float("nan")

    with pytest.raises(RunFailed, match="not finite"):
        sketch_moments(bert, {name: targets[name]}, [token_batch], losses, bad)
