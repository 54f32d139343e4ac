"""Noise is Gaussian, fresh for every release, and cannot be guessed by trying seeds."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedsb.privacy import noise
from fedsb.privacy.noise import NoiseSource, add_noise, gaussian_like


def test_it_is_gaussian_of_the_standard_deviation_asked_for():
    draws = gaussian_like(torch.zeros(200, 100), 2.5, NoiseSource().stream()).flatten().numpy()
    assert kstest(draws / 2.5, "norm").pvalue > 1e-4
    assert draws.dtype == np.float64


def test_no_stream_is_given_out_twice():
    source = NoiseSource()
    draws = {source.stream("step", 0, 1).standard_normal() for _ in range(100)}
    assert len(draws) == 100


def test_it_does_not_depend_on_any_seed():
    def draw():
        torch.manual_seed(0)
        np.random.seed(0)
        return gaussian_like(torch.zeros(5), 1.0, NoiseSource().stream("a"))

    assert not torch.equal(draw(), draw())


def test_each_stream_takes_256_bits_from_the_operating_system(monkeypatch):
    asked = []
    monkeypatch.setattr(noise.secrets, "randbits", lambda bits: asked.append(bits) or 1)
    NoiseSource().stream()
    assert asked == [256]


def test_why_not_a_torch_generator():
    """Seeds that agree in 32 bits give one and the same noise: the reason for a source of our own."""
    one, two = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.randn(9, generator=one), torch.randn(9, generator=two))


def test_insecure_streams_repeat_by_path_alone():
    one, two = NoiseSource(3), NoiseSource(3)
    assert one.stream("a", 1).standard_normal() == two.stream("a", 1).standard_normal()
    assert one.stream("a", 1).standard_normal() != one.stream("a", 2).standard_normal()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_rounded_once(dtype):
    total = torch.full((1000,), 1e4, dtype=dtype)
    noised = add_noise(total, 3.0, NoiseSource().stream())
    assert noised.dtype == dtype
    assert noised.float().std() == pytest.approx(3.0, rel=0.15) or dtype == torch.bfloat16
    assert abs(noised.float().mean() - 1e4) < 40
    assert math.isfinite(noised.float().sum())
