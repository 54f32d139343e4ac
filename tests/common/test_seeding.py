"""Streams differ by seed, purpose, round and client, and global generators are put back."""

import numpy as np
import pytest
import torch

from fedsb.common.seeding import derive, numpy_generator, scoped_global_seed, torch_generator


def test_no_two_purposes_rounds_or_clients_share_a_seed():
    seeds = [
        derive(seed, purpose, number, client)
        for seed in (0, 1)
        for purpose in ("batches", "dropout")
        for number in range(1, 15)
        for client in range(30)
    ]
    assert len(set(seeds)) == len(seeds)


def test_digits_do_not_run_into_each_other():
    assert derive(0, "batches", 1, 23) != derive(0, "batches", 12, 3)
    assert derive(1, "x") != derive(0, "1x")
    assert derive(1, 1) != derive(11)


def test_a_seed_is_not_negative_and_fits_in_63_bits():
    assert all(0 <= derive(seed, "purpose") < 2**63 for seed in range(200))
    assert any(derive(seed, "purpose") >= 2**62 for seed in range(200))


def test_generators_start_at_their_derived_seed():
    assert torch_generator(3, "a", 1).initial_seed() == derive(3, "a", 1)
    expected = np.random.default_rng(derive(3, "a", 1)).integers(1 << 60)
    assert numpy_generator(3, "a", 1).integers(1 << 60) == expected


def test_streams_of_two_clients_are_not_correlated():
    a = torch.randn(4000, generator=torch_generator(0, "batches", 1, 0))
    b = torch.randn(4000, generator=torch_generator(0, "batches", 1, 1))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.06


def test_the_scope_seeds_inside_and_restores_outside():
    torch.rand(3)
    before = torch.random.get_rng_state()
    with scoped_global_seed(0, "dropout", 1, 2):
        inside = torch.rand(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    with scoped_global_seed(0, "dropout", 1, 2):
        assert torch.equal(torch.rand(5), inside)
    with scoped_global_seed(0, "dropout", 1, 3):
        assert not torch.equal(torch.rand(5), inside)


def test_the_scope_restores_the_state_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), scoped_global_seed(0, "dropout"):
        _ = torch.rand(5) / (1 // 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_making_generators_leaves_the_global_ones_alone():
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    torch_generator(0, "a")
    numpy_generator(0, "a")
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()
