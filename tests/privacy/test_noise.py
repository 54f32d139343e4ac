"""Noise is Gaussian, from ChaCha20 under a fresh key for every release, and cannot be guessed from a seed."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.stats import binom, kstest, kurtosis, norm

from fedsb.privacy import keystream
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource, add_noise, gaussian_like, standard_normals
from fedsb.privacy.sampling import poisson_sample

KEY = bytes(range(32))


def test_the_bits_are_those_of_chacha20():
    """Block by block against the library's own; the second read has a nonce of its own."""
    stream = Keystream(KEY)
    for nonce in (bytes(16), bytes(4) + (1).to_bytes(12, "little")):
        own = Cipher(algorithms.ChaCha20(KEY, nonce), mode=None).encryptor().update(bytes(8 * 100))
        assert stream.read(100).tobytes() == own


def test_chacha20_is_that_of_rfc_8439():
    """Appendix A.1, test vector 1: the key and the nonce are zero."""
    first = Keystream(bytes(32)).read(8).tobytes()
    assert first.hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def test_two_reads_share_no_block():
    stream = Keystream(KEY)
    blocks = [stream.read(8).tobytes() for _ in range(200)]
    assert len(set(blocks)) == 200


def test_normals_are_normal():
    """Moments, and the whole distribution, on a fixed key."""
    draws = standard_normals(200_000, Keystream(KEY))
    assert kstest(draws, "norm").pvalue > 0.01
    assert abs(draws.mean()) < 4 / math.sqrt(len(draws))
    assert draws.var() == pytest.approx(1, abs=4 * math.sqrt(2 / len(draws)))
    assert kurtosis(draws) == pytest.approx(0, abs=4 * math.sqrt(24 / len(draws)))


@pytest.mark.parametrize("beyond", [2.0, 3.0, 4.0])
def test_tails_are_as_often_as_they_should_be(beyond):
    draws, chance = standard_normals(1_000_000, Keystream(KEY)), norm.sf(beyond)
    for tail in (draws, -draws):
        count = int((tail > beyond).sum())
        assert 1e-4 < binom.cdf(count, len(draws), chance) < 1 - 1e-4


def test_the_farthest_tail_is_finite_and_exact(monkeypatch):
    """The least and the greatest places, which a float of 53 bits alone would round to infinity."""
    ends = np.array([0, 1, 2, 2**64 - 1, 2**64 - 2], dtype=np.uint64)
    monkeypatch.setattr(Keystream, "read", lambda self, count: ends[:count])
    draws = standard_normals(5, Keystream(KEY))
    assert np.isfinite(draws).all()
    far, near = norm.isf(2.0**-65), norm.isf(3 * 2.0**-65)
    assert draws[:3].tolist() == pytest.approx([-far, far, -near])
    assert abs(draws[3:]).max() < 1e-9


def test_it_has_the_standard_deviation_asked_for():
    draws = gaussian_like(torch.zeros(200, 100), 2.5, NoiseSource().stream())
    assert draws.shape == (200, 100)
    assert draws.dtype == torch.float64
    assert kstest(draws.flatten().numpy() / 2.5, "norm").pvalue > 1e-4


def test_a_release_without_numbers_has_no_noise():
    assert gaussian_like(torch.zeros(0, 3), 1.0, NoiseSource().stream()).shape == (0, 3)


def test_every_release_has_a_key_of_256_bits_from_the_operating_system(monkeypatch):
    keys, real = [], keystream.secrets.token_bytes
    monkeypatch.setattr(keystream.secrets, "token_bytes", lambda count: keys.append(real(count)) or keys[-1])
    source = NoiseSource()
    draws = {source.stream("step", 0, 1).read(1).item() for _ in range(50)}
    assert len(draws) == len(set(keys)) == 50
    assert {len(key) for key in keys} == {32}


def test_it_does_not_depend_on_any_seed():
    def draw():
        torch.manual_seed(0)
        np.random.seed(0)
        return gaussian_like(torch.zeros(5), 1.0, NoiseSource().stream("a"))

    assert not torch.equal(draw(), draw())


def test_insecure_streams_repeat_by_path_alone():
    one, two = NoiseSource(3), NoiseSource(3)
    assert one.stream("a", 1).read(1) == two.stream("a", 1).read(1)
    assert one.stream("a", 1).read(1) != one.stream("a", 2).read(1)


def test_a_derived_key_is_another_for_another_secret_or_path():
    paths = [("poisson", 1, 0, 0), ("poisson", 1, 0, 1), ("poisson", 10, 0), ("cohort", 1, 0)]
    drawn = {Keystream.derived(secret, *path).read(1).item() for secret in (KEY, KEY[::-1]) for path in paths}
    assert len(drawn) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_rounded_once(dtype):
    total = torch.full((1000,), 1e4, dtype=dtype)
    noised = add_noise(total, 3.0, NoiseSource().stream())
    assert noised.dtype == dtype
    assert noised.float().std() == pytest.approx(3.0, rel=0.15) or dtype == torch.bfloat16
    assert abs(noised.float().mean() - 1e4) < 40
    assert math.isfinite(noised.float().sum())


@pytest.mark.parametrize("probability", [1e-3, 0.1, 0.5, 1 - 2**-53])
def test_coins_come_down_as_often_as_they_should(probability):
    count = len(poisson_sample(100_000, probability, Keystream(KEY)))
    assert binom.cdf(count, 100_000, probability) > 1e-4
    assert binom.cdf(count - 1, 100_000, probability) < 1 - 1e-4


def test_a_coin_of_one_takes_all_and_of_zero_none():
    assert poisson_sample(5, 1.0, Keystream(KEY)) == [0, 1, 2, 3, 4]
    assert poisson_sample(5, 0.0, Keystream(KEY)) == []
