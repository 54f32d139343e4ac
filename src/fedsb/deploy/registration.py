"""Which key is which client's: `server/clients/client-K.pub`, written when a node is registered."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsb.common.files import write_text
from fedsb.deploy.control import Control
from fedsb.deploy.identity import client_of
from fedsb.errors import InputError

LARGEST_KEY = 4096
"""Bytes of a public key file."""


def register(clients: Path, file: Path, client: int | None, control: Control) -> int:
    """Bind the public key in this file to a client number and let its node in; the number.

    Args:
        client: None: the number in the file's name, `client-K.pub`.

    Raises:
        InputError: no such key, no number, the number has another key, or the key another number.
    """
    client = _number_in(file.name) if client is None else client
    line, pem = read_public_key(file)
    for other in sorted(clients.glob("client-*.pub")):
        if (other.name == f"client-{client}.pub") != (other.read_text(encoding="ascii").strip() == line):
            raise InputError(_taken(file, client, other))
    control.register(pem)
    clients.mkdir(mode=0o700, exist_ok=True)
    write_text(clients / f"client-{client}.pub", line + "\n")
    return client


def revoke(clients: Path, client: int, control: Control) -> None:
    """Let this client's node in no more, and forget its key.

    Raises:
        InputError: the number has no key.
    """
    file = clients / f"client-{client}.pub"
    if not file.exists():
        known = ", ".join(sorted(other.stem for other in clients.glob("client-*.pub"))) or "none"
        raise InputError(f"client {client}: has no registered key here; registered: {known}")
    _, pem = read_public_key(file)
    file.unlink()
    control.unregister(pem)


def _number_in(name: str) -> int:
    client = client_of(name)
    if client is None:
        raise InputError(f"{name}: which client's key? Expected client-K.pub, or K as the second argument")
    return client


def _taken(file: Path, client: int, other: Path) -> str:
    number = _number_in(other.name)
    if number == client:
        return (
            f"client {client}: another key is registered for it. If {file.name} is to take its place, "
            f"./revoke.sh {client} first; if nobody told you of a new key, ask the owner of the node"
        )
    return f"{file}: this key is registered for client {number} and cannot be client {client}'s too"


def read_public_key(file: Path) -> tuple[str, bytes]:
    """A node's key as one line without its comment, and in PEM form.

    Raises:
        InputError: there is none in this file.
    """
    try:
        with open(file, "rb") as source:
            key = serialization.load_ssh_public_key(source.read(LARGEST_KEY))
    except OSError as error:
        raise InputError(f"{file}: cannot read it ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise InputError(f"{file}: expected the public key that a node's ./make-key.sh made (EC P-384)")
    encoding, form = serialization.Encoding, serialization.PublicFormat
    line = key.public_bytes(encoding.OpenSSH, form.OpenSSH).decode("ascii")
    return line, key.public_bytes(encoding.PEM, form.SubjectPublicKeyInfo)
