"""Shamir's secret sharing (Shamir 1979) over a prime field: any `threshold` shares give the secret, fewer
give nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fedsb.errors import UpdateRejected

PRIME = 2**256 + 297
"""The least prime above all secrets."""
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Holder -> its share: a random polynomial's value at the holder's number + 1; at 0 it is the secret."""
    if not (len(secret) == SECRET_BYTES and 1 <= threshold <= len(holders)):
        raise ValueError(f"{len(secret)} bytes in {len(holders)} shares, of which {threshold} are needed")
    higher = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = [*higher, int.from_bytes(secret, "big")]
    return {holder: _value(coefficients, holder + 1).to_bytes(SHARE_BYTES, "big") for holder in holders}


def _value(coefficients: Sequence[int], x: int) -> int:
    """Of the polynomial, highest power first."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of these shares, by holder; of wrong ones, something else.

    Raises:
        UpdateRejected: they are of no secret.
    """
    weights = _at_zero(tuple(shares))
    terms = (int.from_bytes(share, "big") * weights[holder] for holder, share in shares.items())
    secret = sum(terms) % PRIME
    if secret >= 1 << 8 * SECRET_BYTES:
        raise UpdateRejected("shares that are of no secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _at_zero(holders: tuple[int, ...]) -> dict[int, int]:
    """Lagrange's weights of the polynomial's value at 0."""
    points = [holder + 1 for holder in holders]
    weights = {}
    for holder, x in zip(holders, points, strict=True):
        above = below = 1
        for other in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        weights[holder] = above * pow(below, -1, PRIME) % PRIME
    return weights
