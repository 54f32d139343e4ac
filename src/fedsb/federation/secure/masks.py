"""Keys and masks: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 and Poly1305 (RFC 8439).

Every key is of one session and one purpose, so no nonce is ever used twice under it: all are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsb.errors import InputError, UpdateRejected

KEY_BYTES, TAG_BYTES = 32, 16
BLOCK = 2**18
"""Bytes of a mask made at a time: what fits into a core's cache is added while it is there."""


class KeyPair(NamedTuple):
    """A private key and its public one, 32 bytes each."""

    private: bytes
    public: bytes


def key_pair(private: bytes | None = None) -> KeyPair:
    """The pair of this private key; None: of a fresh one of the operating system."""
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
    return KeyPair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def check_installed() -> None:
    """Refuse to begin without the package.

    Raises:
        InputError: it is missing.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InputError(
            "federation.secure_aggregation: the package cryptography is needed and missing; pip install "
            "'fedsb[dp]'"
        ) from None


def agree(private: bytes, publics: Sequence[bytes]) -> list[bytes]:
    """The 32 bytes that the holder of this private key shares with the holder of each of these public ones.

    Raises:
        UpdateRejected: a public key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    key = X25519PrivateKey.from_private_bytes(private)
    try:
        return [key.exchange(X25519PublicKey.from_public_bytes(public)) for public in publics]
    except ValueError:
        raise UpdateRejected("a public key that is none") from None


def derived(secret: bytes, purpose: str, terms: bytes, *clients: int) -> bytes:
    """The key of a purpose, 32 bytes: of these terms and these clients, in their order."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"/".join([b"fedsb secure 1", purpose.encode(), terms, *(b"%d" % client for client in clients)])
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def seal(key: bytes, text: bytes) -> bytes:
    """The text, encrypted and authenticated: TAG_BYTES longer."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(bytes(12), text, None)


def unsealed(key: bytes, sealed: bytes) -> bytes:
    """The text.

    Raises:
        UpdateRejected: it was not sealed with this key, or altered.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        raise UpdateRejected("a share that was altered, or is of another session") from None


def add_mask(numbers: np.ndarray, key: bytes, sign: int) -> None:
    """Add the key's mask to these unsigned integers in place, modulo their size; subtract it if sign < 0."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    put = np.add if sign > 0 else np.subtract
    zeros, made, per_block = bytes(BLOCK), bytearray(BLOCK), BLOCK // numbers.itemsize
    mask = np.frombuffer(made, numbers.dtype)
    for start in range(0, len(numbers), per_block):
        part = numbers[start : start + per_block]
        stream.update_into(zeros, made)
        put(part, mask[: len(part)], out=part)
