"""The bases are orthonormal, reproducible, and the best of their rank, by either way of getting the SVD."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from oracles import best_of_rank, dense_update, numbers, present, relative_error

from fedsb.adapter import bases
from fedsb.adapter.bases import (
    bases_from_update,
    bases_from_weight,
    lora_factors,
    orthonormal_bases,
    principal_pair,
    truncated_svd,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str, matrix: torch.Tensor, rank: int, heads: int, seed: int = 0):
    if kind == "orthonormal":
        return orthonormal_bases(*matrix.shape, rank, heads=heads, generator=seeded(seed))
    start = bases_from_update if kind == "update" else bases_from_weight
    return start(matrix, rank, heads=heads, generator=seeded(seed))


KINDS = ["update", "weight", "orthonormal"]


@pytest.fixture(params=["exact", "randomized"])
def branch(request, monkeypatch):
    """Each of the two ways to an SVD, whatever the size."""
    if request.param == "randomized":
        monkeypatch.setattr(bases, "EXACT_SVD_UP_TO", 0)
    return request.param


@given(data=st.data(), kind=st.sampled_from(KINDS), out=st.integers(1, 40), n_in=st.integers(1, 40))
def test_bases_are_orthonormal_fp32_and_of_the_documented_shapes(data, kind, out, n_in):
    heads = data.draw(st.integers(1, min(3, out, n_in)))
    rank = data.draw(st.integers(1, min(out, n_in) // heads))
    seed = data.draw(st.integers(0, 1000))
    factors = make(kind, torch.randn(out, n_in, generator=seeded(seed)), rank, heads)
    k = heads * rank
    assert factors.B.shape == (out, k)
    assert factors.A.shape == (k, n_in)
    assert factors.R.shape == (heads, rank, rank)
    assert [t.dtype for t in present(factors)] == [torch.float32] * 3
    assert np.abs(numbers(factors.B).T @ numbers(factors.B) - np.eye(k)).max() < 1e-5
    assert np.abs(numbers(factors.A) @ numbers(factors.A).T - np.eye(k)).max() < 1e-5


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
@pytest.mark.parametrize("kind", ["update", "weight"])
def test_both_ways_to_an_svd_give_orthonormal_bases(branch, kind, shape):
    factors = make(kind, torch.randn(shape, generator=seeded(3)), 8, 2)
    for basis in (numbers(factors.B).T, numbers(factors.A)):
        assert np.abs(basis @ basis.T - np.eye(16)).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bases_are_fp32_whatever_the_weights_type(dtype):
    factors = bases_from_weight(torch.randn(12, 10, generator=seeded()).to(dtype), 4, generator=seeded())
    assert [t.dtype for t in present(factors)] == [torch.float32] * 3
    assert np.abs(numbers(factors.B).T @ numbers(factors.B) - np.eye(4)).max() < 1e-5


def captured_energy(matrix: torch.Tensor, rank: int) -> float:
    """Energy of the truncated product over that of the best one of the rank."""
    U, S, Vh = truncated_svd(matrix, rank, generator=seeded(1))
    residual = np.linalg.norm(numbers(matrix) - numbers(U) * numbers(S) @ numbers(Vh)) ** 2
    total = np.linalg.norm(numbers(matrix)) ** 2
    best = np.linalg.norm(best_of_rank(numbers(matrix), rank)) ** 2
    return (total - residual) / best


def test_the_randomized_svd_of_a_decaying_spectrum_is_as_good_as_the_exact_one(monkeypatch):
    monkeypatch.setattr(bases, "EXACT_SVD_UP_TO", 0)
    U = torch.linalg.qr(torch.randn(200, 150, generator=seeded(1))).Q
    V = torch.linalg.qr(torch.randn(150, 150, generator=seeded(2))).Q
    matrix = (U * (1.0 / (1 + torch.arange(150.0)))) @ V.T
    assert 0.999 <= captured_energy(matrix, 16) <= 1 + 1e-6


def test_the_randomized_svd_of_a_sign_matrix_keeps_most_of_what_can_be_kept(monkeypatch):
    """The hard case and the default one: a sign matrix has hardly any decay."""
    monkeypatch.setattr(bases, "EXACT_SVD_UP_TO", 0)
    matrix = torch.randn(256, 300, generator=seeded(1)).sign()
    assert 0.97 <= captured_energy(matrix, 16) <= 1 + 1e-6


def test_the_forced_branch_is_really_another(monkeypatch):
    calls = []
    real = bases._randomized_svd
    monkeypatch.setattr(bases, "_randomized_svd", lambda *a: calls.append(1) or real(*a))
    matrix = torch.randn(96, 160, generator=seeded())
    truncated_svd(matrix, 4, generator=seeded())
    assert not calls
    monkeypatch.setattr(bases, "EXACT_SVD_UP_TO", 0)
    truncated_svd(matrix, 4, generator=seeded())
    assert calls


@given(out=st.integers(1, 20), n_in=st.integers(1, 20), seed=st.integers(0, 99))
def test_full_rank_reproduces_the_update(out, n_in, seed):
    update = torch.randn(out, n_in, generator=seeded(seed))
    factors = bases_from_update(update, min(out, n_in), generator=seeded())
    assert relative_error(dense_update(factors), numbers(update)) < 1e-4


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_start_is_the_best_of_its_rank_however_many_heads(heads):
    update = torch.randn(20, 30, generator=seeded(4))
    factors = bases_from_update(update, 8 // heads, heads=heads, generator=seeded())
    assert relative_error(dense_update(factors), best_of_rank(numbers(update), 8)) < 1e-4


def test_heads_get_the_singular_directions_in_order():
    update = torch.diag(torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))
    R = bases_from_update(update, 2, heads=3, generator=seeded()).R
    expected = torch.diag_embed(torch.tensor([[6.0, 5.0], [4.0, 3.0], [2.0, 1.0]]))
    torch.testing.assert_close(R, expected)


def test_bases_of_the_weight_span_its_leading_singular_vectors_and_change_nothing_yet():
    weight = torch.randn(10, 14, generator=seeded(2))
    factors = bases_from_weight(weight, 3, generator=seeded())
    best = best_of_rank(numbers(weight), 3)
    B, A = numbers(factors.B), numbers(factors.A)
    assert relative_error(B @ B.T @ numbers(weight) @ A.T @ A, best) < 1e-4
    assert not factors.R.any()


def test_bases_may_keep_the_weights_singular_values_as_lora_xs_does():
    weight = torch.randn(10, 14, generator=seeded(2))
    factors = bases_from_weight(weight, 3, singular_values=True, generator=seeded())
    assert relative_error(numbers(factors.B) @ numbers(factors.A), best_of_rank(numbers(weight), 3)) < 1e-4
    torch.testing.assert_close(factors.B.T @ factors.B, torch.eye(3))
    torch.testing.assert_close(factors.A, factors.B.T @ weight)  # they are on the side of the inputs


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_principal_pair_times_the_scale_is_the_best_approximation_of_the_weight(scale):
    weight = torch.randn(10, 14, generator=seeded(2))
    B, A, *_ = principal_pair(weight, 3, scale=scale, generator=seeded())
    assert relative_error(scale * numbers(B) @ numbers(A), best_of_rank(numbers(weight), 3)) < 1e-4
    torch.testing.assert_close((B.T @ B).diagonal(), (A @ A.T).diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bases_and_another_random_seed_others(branch, kind):
    matrix = torch.randn(96, 160, generator=seeded(3))
    one, again = make(kind, matrix, 4, 2, seed=7), make(kind, matrix, 4, 2, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(present(one), present(again), strict=True))
    if kind == "orthonormal":
        assert not torch.equal(one.B, make(kind, matrix, 4, 2, seed=8).B)


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
def test_the_global_generator_is_left_alone(branch, kind):
    matrix = torch.randn(96, 160, generator=seeded(3))
    before = torch.random.get_rng_state()
    if kind == "lora":
        lora_factors(96, 160, 4, generator=seeded())
    else:
        make(kind, matrix, 4, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_largest_entry_of_each_column_of_B_is_positive(branch):
    U, S, Vh = truncated_svd(torch.randn(96, 160, generator=seeded(3)), 8, generator=seeded())
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()
    assert (S[:-1] >= S[1:]).all()
    negated = truncated_svd(-torch.randn(96, 160, generator=seeded(3)), 8, generator=seeded())
    torch.testing.assert_close(negated[0], U, atol=1e-3, rtol=0)  # the sign moved to the other side
    torch.testing.assert_close(negated[2], -Vh, atol=1e-3, rtol=0)


def test_a_zero_update_still_gives_orthonormal_bases(branch):
    factors = bases_from_update(torch.zeros(96, 160), 4, generator=seeded())
    assert not factors.R.any()
    assert np.abs(numbers(factors.B).T @ numbers(factors.B) - np.eye(4)).max() < 1e-5


def test_lora_starts_at_no_update_with_A_like_a_linear_layers_weights():
    factors = lora_factors(40, 50, 30, generator=seeded())
    assert factors.R is None
    assert not factors.B.any()
    layer = torch.nn.Linear(50, 30)  # its default start is Kaiming-uniform with a = sqrt(5)
    assert factors.A.abs().max() <= 1 / np.sqrt(50)
    assert abs(factors.A.std().item() / layer.weight.std().item() - 1) < 0.1


def test_shapes_in_signatures_are_checked_while_the_tests_run():
    with pytest.raises(TypeCheckError):
        truncated_svd(torch.zeros(3), 1, generator=seeded())
