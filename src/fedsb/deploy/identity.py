"""Who a node is: a key of its own, registered at the server under its client number, signs all its answers.

This does not rest on Flower's registration, which tells who may connect, not who is which client. One key
serves both: EC P-384, as OpenSSH writes it.

    node:    statement(run, kind, nonce, node, client, facts, payload) -> sign
    server:  the same statement of what it asked and what came -> verify with the key of that client
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedsb.deploy.records import Facts
from fedsb.errors import InputError

PublicKey = EllipticCurvePublicKey
DOMAIN = "fedsb answer 1"
"""Sets these signatures apart from all others that a key may make."""
LARGEST_FILE = 10_000
"""Bytes of a key file; one of P-384 has less than 1,000."""
WRITABLE_BY_OTHERS, OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IWOTH, stat.S_IRWXG | stat.S_IRWXO


def read_registered(folder: str | Path) -> dict[int, PublicKey]:
    """The keys that may answer, by client: of each file `client-K.pub` in the folder; others are passed over.

    Raises:
        InputError: there is no such folder, others may write to it, a file holds no such key, or two clients
            have the same.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected the folder of registered keys, found none; ./register.sh makes it"
        )
    _check_mode(folder, folder.stat().st_mode, WRITABLE_BY_OTHERS)
    keys: dict[int, PublicKey] = {}
    for file in sorted(folder.iterdir()):
        client = client_of(file.name)
        if client is not None:
            key = _public_key(file)
            if key in keys.values():
                raise InputError(f"{file}: another client has the same key; each needs one of its own")
            keys[client] = key
    return keys


def client_of(name: str) -> int | None:
    """The client number in the name of a public key's file, `client-K.pub`; None of any other name."""
    match = re.fullmatch(r"client-(0|[1-9]\d{0,8})\.pub", name)
    return int(match[1]) if match else None


def statement(run: str, kind: str, nonce: str, node: int, client: int, facts: Facts, payload: bytes) -> bytes:
    """What is signed of one answer: whose it is, to which question, and all that it says.

    Args:
        nonce: from the question; only questions that were sent together have the same.
        node: Flower's id of the node that was asked.
        facts: those of the answer, without its signature.
    """
    said = hashlib.sha256(json.dumps(sorted(facts.items())).encode()).hexdigest()
    parts = [DOMAIN, run, kind, nonce, node, client, said, hashlib.sha256(payload).hexdigest()]
    return json.dumps(parts).encode()


def sign(private_key_file: str | Path, text: bytes) -> bytes:
    """The signature of these bytes.

    Raises:
        InputError: the file cannot be read, is open to others, or is no such key.
    """
    file = Path(private_key_file)
    content = _content(file, OPEN_TO_OTHERS)
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(
            f"{file}: expected a private key of OpenSSH without a passphrase; ./make-key.sh makes one"
        ) from None
    if not (isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1)):
        raise InputError(f"{file}: expected an EC P-384 key, found another kind; ./make-key.sh makes one")
    return key.sign(text, ECDSA(SHA384()))


def verify(public_key: PublicKey, signature: bytes, text: bytes) -> bool:
    """Whether the holder of this key signed these bytes."""
    try:
        public_key.verify(signature, text, ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _public_key(file: Path) -> PublicKey:
    try:
        key = load_ssh_public_key(_content(file, WRITABLE_BY_OTHERS))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{file}: expected a public key as ssh-keygen writes it, found something else"
        ) from None
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)):
        raise InputError(f"{file}: expected an EC P-384 key, found another kind; ./make-key.sh makes one")
    return key


def _content(file: Path, forbidden: int) -> bytes:
    """The file's bytes. No link is followed, and nothing but a plain file is read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise InputError(f"{file}: cannot read this key ({error.strerror})") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{file}: expected a key file, found no plain file")
        _check_mode(file, mode, forbidden)
        return os.read(descriptor, LARGEST_FILE)
    finally:
        os.close(descriptor)


def _check_mode(path: Path, mode: int, forbidden: int) -> None:
    """Others may not do this with it. Where files have no such modes (Windows), nothing is checked."""
    if os.name != "nt" and mode & forbidden:
        allowed = mode & 0o777 & ~forbidden
        raise InputError(
            f"{path}: its mode is {mode & 0o777:04o}, open to others; run chmod {allowed:o} {path}"
        )
