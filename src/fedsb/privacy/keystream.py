"""Random bits of a cryptographic generator: ChaCha20 (RFC 8439) under a key of 256 bits.

Whoever sees any part of a stream cannot tell it from chance, nor compute the rest, without its key. Keys come
from the operating system, or from a secret of it; never from a run's seed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

import numpy as np

from fedsb.errors import InputError

KEY_BYTES = 32
GENERATOR = "ChaCha20"


class Keystream:
    """One stream of bits. No two reads share any: each has a nonce of its own, counted from 0."""

    def __init__(self, key: bytes):
        self._key, self._reads = key, 0

    @classmethod
    def fresh(cls) -> Keystream:
        """Under a key of the operating system that nobody else gets."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def derived(cls, secret: bytes, *path: str | int) -> Keystream:
        """Under a key that this secret and path give again, and that tells nothing of others (HMAC)."""
        return cls(hmac.digest(secret, "/".join(map(str, path)).encode(), hashlib.sha256))

    def read(self, count: int) -> np.ndarray:
        """So many uniform 64-bit integers."""
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        except ImportError:
            raise InputError(
                "privacy: the package cryptography is needed and missing; pip install 'fedsb[dp]'"
            ) from None
        nonce = (0).to_bytes(4, "little") + self._reads.to_bytes(12, "little")
        self._reads += 1
        encryptor = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        return np.frombuffer(encryptor.update(bytes(8 * count)), dtype="<u8")
