"""Ranks of layers from their spectra, beside every other way to deal them out."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from fedsb.adapter.bases import bases_from_update, cut_to_rank
from fedsb.federation.start.factors import FACTORS
from fedsb.federation.start.ranks import fault_of_ranks, most_basis_numbers, spectrum_ranks, widest_rank
from fedsb.federation.start.settings import Start
from fedsb.federation.start.sketches import SKETCH
from fedsb.methods.method import Shape


def spectra_of(seed, layers, rank, heads):
    """Falling at other speeds and of other sizes; one layer is too narrow for the largest rank."""
    rng = np.random.default_rng(seed)
    made = {}
    for number in range(layers):
        widest = 2 * rank - (number == 0 and rank > 1)
        speed, size = rng.uniform(0, 1.5), 10.0 ** rng.integers(-3, 4)
        S = size * np.exp(-speed * np.arange(heads * widest)) * rng.uniform(0.7, 1.0, heads * widest)
        made[f"layer{number}"] = torch.from_numpy(np.sort(S)[::-1].copy()).float()
    return made


def everything(spectra, rank, heads):
    """Every choice of ranks at the numbers of equal ones or fewer, with what all layers hold together: each a
    share of what it would at the equal rank."""
    tables = []
    for S in spectra.values():
        energy = [float(s) ** 2 for s in S]
        equal = sum(energy[: heads * rank])
        ranks = range(max(1, rank // 4), len(S) // heads + 1)
        tables.append({r: sum(energy[: heads * r]) / equal for r in ranks})
    return {
        ranks: sum(table[r] for table, r in zip(tables, ranks, strict=True))
        for ranks in product(*tables)
        if sum(r * r for r in ranks) <= len(tables) * rank * rank
    }


SIZES = [(2, 3, 1), (2, 3, 2), (3, 6, 1), (3, 4, 2)]
CASES = [(seed, *size) for seed in range(12) for size in SIZES]
"""(seed, layers, rank, heads)."""


@pytest.mark.parametrize(("seed", "layers", "rank", "heads"), CASES)
def test_no_rank_added_or_moved_would_gain(seed, layers, rank, heads):
    spectra = spectra_of(seed, layers, rank, heads)
    chosen = spectrum_ranks(spectra, rank, heads)
    assert list(chosen) == list(spectra)
    held, ours = everything(spectra, rank, heads), tuple(chosen.values())
    assert ours in held  # and so within the numbers and each layer's bounds
    assert held[ours] >= layers - 1e-6  # what equal ranks hold
    assert held[ours] >= max(held.values()) - 0.05 * layers
    for other, value in held.items():
        moved = sorted(theirs - mine for theirs, mine in zip(other, ours, strict=True))
        if moved in ([*[0] * (layers - 1), 1], [-1, *[0] * (layers - 2), 1]):
            assert value <= held[ours] + 1e-8


def test_dealing_is_mostly_the_best_there_is():
    best = []
    for seed, *size in CASES:
        spectra = spectra_of(seed, *size)
        held = everything(spectra, *size[1:])
        ours = held[tuple(spectrum_ranks(spectra, *size[1:]).values())]
        best.append(ours >= max(held.values()) - 1e-6)
    assert np.mean(best) > 0.75


def test_like_spectra_get_equal_ranks_whatever_their_size():
    S = torch.linspace(5, 1, 16)
    assert set(spectrum_ranks({"a": S, "b": 1000 * S, "c": 1e-3 * S}, 8).values()) == {8}
    assert set(spectrum_ranks({"a": torch.zeros(16), "b": torch.zeros(16)}, 8).values()) == {8}


def test_a_slow_spectrum_takes_ranks_of_a_steep_one():
    steep, slow = 2.0 ** -torch.arange(16), torch.ones(16)
    ranks = spectrum_ranks({"steep": steep, "slow": slow}, 8)
    assert ranks["steep"] < 8 < ranks["slow"]
    assert ranks["steep"] >= 2


@pytest.mark.parametrize("heads", [1, 2])
def test_a_lower_rank_of_an_update_is_the_update_s_own(heads, generator):
    update = torch.randn(20, 16, generator=generator)
    wide, narrow = (bases_from_update(update, r, heads=heads, generator=generator) for r in (7, 3))
    for mine, theirs in zip(cut_to_rank(wide, 3)[:3], narrow[:3], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bases_have_no_more_numbers_than_stated():
    rng = np.random.default_rng(3)
    shapes = [Shape(*map(int, rng.integers(8, 60, 2))) for _ in range(6)]
    for seed in range(20):
        widths = [np.sort(np.random.default_rng(seed).exponential(size=8))[::-1].copy() for _ in shapes]
        chosen = spectrum_ranks({str(i): torch.from_numpy(w) for i, w in enumerate(widths)}, 4)
        numbers = sum(rank * sum(shape) for rank, shape in zip(chosen.values(), shapes, strict=True))
        assert numbers <= most_basis_numbers(shapes, 4, 1)
    assert most_basis_numbers([Shape(9, 7)] * 5, 3, 2) == 5 * 2 * 3 * 16


SHAPES = {"a": Shape(12, 9), "b": Shape(9, 30)}
START = Start(rule="sign", batch_size=1, rank=4, heads=2, step_size=1.0, seed=0, ranks="spectrum")


def test_ranks_of_somebody_else_are_looked_at():
    assert widest_rank(SHAPES["a"], 4, 2) == 4
    assert widest_rank(SHAPES["a"], 4, 1) == 8
    assert fault_of_ranks({"a": 4, "b": 4}, SHAPES, START) is None
    assert fault_of_ranks({"a": 1, "b": 4}, SHAPES, START) is None
    assert "layer b: expected a rank from 1 to 4, found 0" in fault_of_ranks({"a": 4, "b": 0}, SHAPES, START)
    assert "found 5" in fault_of_ranks({"a": 1, "b": 5}, SHAPES, START)
    wide = {"a": Shape(40, 40), "b": Shape(40, 40)}
    assert "add up to 61, 32 is the most" in fault_of_ranks({"a": 5, "b": 6}, wide, START)


@pytest.mark.parametrize("kind", [FACTORS, SKETCH])
def test_clients_send_the_directions_of_the_widest_ranks(kind):
    """Of fewer, no layer's later directions could be seen."""
    shapes, equal = {"a": Shape(90, 80)}, replace(START, ranks="equal")
    for mine, theirs in ((START, replace(equal, rank=8)), (equal, equal)):
        sent, expected = (kind.template(shapes, start) for start in (mine, theirs))
        assert {n: t.shape for n, t in sent.items()} == {n: t.shape for n, t in expected.items()}
