"""LoRAs over shared bases are the LoRAs themselves, or the best part of them that a rank holds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import numbers

from fedsb.adapter.cores import SharedCores, cores_from_pairs, full_rank, share_lost
from fedsb.adapter.layer import LoraPair

sizes = st.integers(1, 9)
ranks = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)


def pairs_of(out: int, n_in: int, of_each: list[int], seed: int = 0) -> list[LoraPair | None]:
    """LoRAs of these ranks; rank 0 is a layer that one does not adapt."""
    generator = torch.Generator().manual_seed(seed)
    return [
        LoraPair(torch.randn(out, r, generator=generator), torch.randn(r, n_in, generator=generator))
        if r
        else None
        for r in of_each
    ]


def update(cores: SharedCores, expert: int) -> np.ndarray:
    return numbers(cores.B) @ numbers(cores.R[expert]) @ numbers(cores.A)


@given(sizes, sizes, ranks, st.integers(0, 3))
def test_every_lora_is_exact_at_the_full_rank_and_above(out, n_in, of_each, more):
    pairs = pairs_of(out, n_in, of_each)
    rank = full_rank(pairs) + more
    cores = cores_from_pairs(pairs, rank)
    assert (cores.B.shape, cores.A.shape) == ((out, rank), (rank, n_in))
    assert cores.R.shape == (len(of_each), rank, rank)
    assert share_lost([cores]).max() < 1e-6
    for expert, pair in enumerate(pairs):
        dense = numbers(pair.B) @ numbers(pair.A) if pair else np.zeros((out, n_in))
        np.testing.assert_allclose(update(cores, expert), dense, atol=2e-5)
        if pair is None:
            assert not cores.R[expert].any()


@pytest.mark.parametrize(("out", "n_in", "of_each"), [(9, 7, [2, 3]), (4, 9, [3, 3]), (9, 4, [3, 3, 1])])
def test_bases_are_orthonormal_where_there_are_directions(out, n_in, of_each):
    cores = cores_from_pairs(pairs := pairs_of(out, n_in, of_each), full_rank(pairs))
    for base in (cores.B.T, cores.A):
        gram = numbers(base @ base.T)
        np.testing.assert_allclose(gram, np.diag(np.diag(gram).round()), atol=1e-6)
        assert set(np.diag(gram).round()) <= {0.0, 1.0}


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_at_a_lower_rank_the_loss_is_that_of_each_update(rank):
    pairs = pairs_of(8, 7, [2, 3])
    cores = cores_from_pairs(pairs, rank)
    for expert, pair in enumerate(pairs):
        dense = numbers(pair.B) @ numbers(pair.A)
        left_out = np.linalg.norm(dense - update(cores, expert)) / np.linalg.norm(dense)
        assert left_out == pytest.approx(float(share_lost([cores])[expert]), abs=1e-6)
        assert left_out > 0.01


def test_over_several_layers_the_loss_is_that_of_all_updates_together():
    layers = [pairs_of(8, 7, [2, 3], seed=1), pairs_of(5, 9, [3, 0], seed=2)]
    cores = [cores_from_pairs(pairs, 2) for pairs in layers]
    of_first = [numbers(p[0].B) @ numbers(p[0].A) for p in layers]
    left_out = [dense - update(c, 0) for dense, c in zip(of_first, cores, strict=True)]
    lost = np.linalg.norm(np.concatenate([d.ravel() for d in left_out]))
    whole = np.linalg.norm(np.concatenate([d.ravel() for d in of_first]))
    assert share_lost(cores)[0] == pytest.approx(lost / whole, abs=1e-6)


def test_one_lora_at_a_lower_rank_is_its_truncated_svd():
    (pair,) = pairs = pairs_of(8, 7, [4])
    dense = numbers(pair.B) @ numbers(pair.A)
    U, S, Vh = np.linalg.svd(dense)
    np.testing.assert_allclose(update(cores_from_pairs(pairs, 2), 0), U[:, :2] * S[:2] @ Vh[:2], atol=1e-5)


def test_loras_that_share_their_directions_need_no_more_rank_than_one():
    (pair,) = pairs_of(8, 7, [3])
    twice = [pair, LoraPair(-2 * pair.B, pair.A)]
    cores = cores_from_pairs(twice, 3)
    assert share_lost([cores]).max() < 1e-6
    np.testing.assert_allclose(update(cores, 1), -2 * update(cores, 0), atol=1e-5)


def test_no_lora_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        cores_from_pairs([None, None], 2)
