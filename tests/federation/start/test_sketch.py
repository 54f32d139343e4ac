"""Sketches of parts add up to the whole's, and give a matrix of low rank back."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import best_of_rank, numbers

from fedsb.federation.start.sketches import (
    COLUMNS_PER_DIRECTION,
    add_sketches,
    draw_probes,
    matrix_of,
    sketch_of,
    sketch_widths,
    sketched_numbers,
)
from fedsb.methods import Shape


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix_with(spectrum, shape, generator):
    """Random singular vectors with these singular values."""
    count = len(spectrum)
    left, right = (torch.linalg.qr(torch.randn(n, count, generator=generator).double()).Q for n in shape)
    return (left * torch.as_tensor(spectrum, dtype=torch.float64)) @ right.T


def through_sketch(matrix, rank, seed=0):
    probes = draw_probes(Shape(*matrix.shape), rank, generator=draw(seed))
    return matrix_of(sketch_of(matrix.float(), probes), probes)


def largest_sine(first, second):
    """The sine of two column spaces' largest principal angle: unlike the cosine it shows small angles."""
    return np.linalg.norm(second - first @ (first.T @ second), 2)


shapes = st.builds(Shape, st.integers(1, 120), st.integers(1, 120))


@given(shape=shapes, rank=st.integers(1, 8), lacking=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_matrix_of_low_rank_has_the_svd_of_its_sketch(shape, rank, lacking, seed):
    """Singular values and subspaces, whether the sketch or (in small layers) the matrix itself travels."""
    kept = min(rank, *shape) - lacking
    assume(kept > 0)
    matrix = matrix_with(np.linspace(5, 1, kept), shape, draw(seed))
    U, S, Vh = np.linalg.svd(numbers(matrix), full_matrices=False)
    found = np.linalg.svd(numbers(through_sketch(matrix, rank, seed)), full_matrices=False)
    np.testing.assert_allclose(found[1][:kept], S[:kept], rtol=1e-4)
    assert largest_sine(U[:, :kept], found[0][:, :kept]) < 1e-4
    assert largest_sine(Vh[:kept].T, found[2][:kept].T) < 1e-4


@given(shape=shapes, rank=st.integers(1, 8), parts=st.integers(1, 6), seed=st.integers(0, 99))
def test_sketches_of_parts_add_up_to_the_sketch_of_the_sum_in_any_order(shape, rank, parts, seed):
    generator = draw(seed)
    probes = draw_probes(shape, rank, generator=generator)
    matrices = [torch.randn(shape, generator=generator) for _ in range(parts)]
    whole = sketch_of(torch.stack(matrices).sum(0), probes)
    for order in (matrices, matrices[::-1]):
        total = sketch_of(order[0], probes)
        for matrix in order[1:]:
            total = add_sketches(total, sketch_of(matrix, probes))
        torch.testing.assert_close(total.columns, whole.columns, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(total.rows, whole.rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [Shape(120, 90), Shape(90, 120)])
def test_the_mean_squared_error_keeps_to_the_papers_bound(decay, shape):
    """At most 4 times the best possible, in expectation; here the mean over twenty draws of the probes."""
    rank, errors = 6, []
    matrix = matrix_with(np.arange(1, 91) ** -decay, shape, draw())
    best = np.square(numbers(matrix) - best_of_rank(numbers(matrix), rank)).sum()
    for seed in range(20):
        errors.append(float((through_sketch(matrix, rank, seed).double() - matrix).square().sum()))
    assert np.mean(errors) <= 4 * best
    assert np.max(errors) <= 8 * best


@given(shape=shapes, rank=st.integers(1, 40))
def test_what_travels_has_the_numbers_of_the_formula_and_never_more_than_the_matrix(shape, rank):
    probes = draw_probes(shape, rank, generator=draw())
    sent = sum(tensor.numel() for tensor in sketch_of(torch.zeros(shape), probes))
    assert sent == sketched_numbers(shape, rank) <= shape.out * shape.n_in
    widths = sketch_widths(shape, rank, COLUMNS_PER_DIRECTION)
    assert (widths is None) == (sent == shape.out * shape.n_in)
    if probes is not None:
        assert widths == (2 * rank + 1, 4 * rank + 3)
        for side in (probes.right.T, probes.left):
            torch.testing.assert_close(side @ side.T, torch.eye(len(side)), atol=1e-5, rtol=0)


def test_no_gradient_at_all_comes_back_as_zero():
    assert torch.equal(through_sketch(torch.zeros(60, 50), 3), torch.zeros(60, 50))


def test_probes_depend_on_the_generator_alone():
    one, again, other = (draw_probes(Shape(60, 50), 3, generator=draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.right, again.right)
    assert torch.equal(one.left, again.left)
    assert not torch.equal(one.right, other.right)
