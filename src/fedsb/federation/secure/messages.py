"""Messages of a secure sum, in the format of the start's: facts and tensors. Each is read as from somebody
hostile: names, types and shapes are known before it is looked at."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsb.errors import UpdateRejected
from fedsb.federation.secure.masks import KEY_BYTES, TAG_BYTES
from fedsb.federation.secure.shares import SHARE_BYTES
from fedsb.federation.secure.terms import Terms
from fedsb.federation.start.messages import Facts, check_start, pack_start, unpack_start

Stage = Literal["keys", "shares", "unmask"]
STAGES: tuple[Stage, ...] = ("keys", "shares", "unmask")
"""The questions beside the work itself."""
BOTH_KEYS = 2 * KEY_BYTES
"""A client's public keys: for shares, and for masks."""
SEALED = 2 * SHARE_BYTES + TAG_BYTES
"""A sealed pair of shares: of the mask key, and of the self-mask."""
SIGNATURE_BYTES = 128
"""Room for a signature; its first byte says how long it is."""
MOST_CLIENTS = 100_000
TAIL = 3
"""Integers behind the numbers: the loss, and the weight's low and high 16 bits."""


def named(kind: str, terms: Terms, **more: int | str) -> Facts:
    """The facts that every message of a session has."""
    return {"kind": kind, "round": terms.number, "session": terms.session, **more}


def ids(clients: Iterable[int]) -> Tensor:
    """Client numbers as they travel."""
    return torch.tensor(list(clients), dtype=torch.int64)


def rows(texts: Sequence[bytes], width: int) -> Tensor:
    """Texts of one length as they travel."""
    return torch.from_numpy(np.frombuffer(b"".join(texts), np.uint8).copy()).view(len(texts), width)


def texts(tensor: Tensor) -> list[bytes]:
    """As `rows` had them."""
    return [bytes(row) for row in tensor.numpy()]


def padded(signature: bytes) -> bytes:
    """A signature in SIGNATURE_BYTES."""
    if len(signature) >= SIGNATURE_BYTES:
        raise UpdateRejected("its signature is none")
    return (bytes([len(signature)]) + signature).ljust(SIGNATURE_BYTES, b"\0")


def signature_of(row: bytes) -> bytes:
    """As `padded` had it."""
    return row[1 : 1 + row[0]]


Opened = tuple[Facts, dict[str, Tensor]]
"""A message's facts and tensors."""
Lists = Mapping[str, tuple[torch.dtype, tuple[int, ...], str]]
"""Name -> (type, shape of a row, name of the tensor that has as many rows)."""


def opened(message: bytes, template: Mapping[str, Tensor], expected: Facts) -> Opened:
    """Facts and tensors of a message of exactly these.

    Raises:
        UpdateRejected: it is another.
    """
    facts, tensors = unpack_start(message, template)
    check_start(facts, tensors, expected=expected, template=template)
    return facts, tensors


def opened_lists(message: bytes, shapes: Lists, expected: Facts) -> Opened:
    """Facts and tensors of a message whose tensors have as many rows as there are clients in a list of it.

    Raises:
        UpdateRejected: facts, types or shapes are others, or a list is not of ascending clients.
    """
    facts, tensors = unpack_start(message)
    check_start(facts, {}, expected=expected, template={})
    if set(tensors) != set(shapes):
        raise UpdateRejected("a secure sum's message: tensors differ from what is expected")
    for name, (dtype, row, counted) in shapes.items():
        tensor, count = tensors[name], tensors[counted].shape[0] if tensors[counted].dim() else -1
        if tensor.dtype != dtype or tuple(tensor.shape) != (count, *row):
            raise UpdateRejected(f"a secure sum's message: {name} has another type or shape")
        if dtype == torch.int64 and (
            count > MOST_CLIENTS or (tensor < 0).any() or (tensor.diff() <= 0).any()
        ):
            raise UpdateRejected(f"a secure sum's message: {name} are no clients in order")
    return facts, tensors


LIST = torch.int64, ()
BYTES = torch.uint8


def pack_keys_question(terms: Terms) -> bytes:
    """Opens a session."""
    facts = named("keys", terms, what=terms.kind, heaviest=terms.heaviest)
    return pack_start(facts, {"cohort": ids(terms.cohort)})


def read_keys_question(message: bytes) -> Terms:
    """The terms that a server proposes."""
    facts, tensors = opened_lists(message, {"cohort": (*LIST, "cohort")}, {"kind": "keys"})
    wants = {"kind": str, "what": str, "round": int, "session": str, "heaviest": int}
    if {name: type(value) for name, value in facts.items()} != wants:
        raise UpdateRejected("a secure sum's terms: facts are missing, or of another kind")
    number, heaviest, session = int(facts["round"]), int(facts["heaviest"]), str(facts["session"])
    if not (0 <= number < 2**53 and 1 <= heaviest < 2**32 and re.fullmatch("[0-9a-f]{32}", session)):
        raise UpdateRejected("a secure sum's terms: a count or the session's name is none")
    return Terms(str(facts["what"]), number, session, tuple(tensors["cohort"].tolist()), heaviest)


def keys_statement(terms: bytes, client: int, keys: bytes) -> bytes:
    """What is signed of a client's keys."""
    return json.dumps(["fedsb keys 1", terms.hex(), client, keys.hex()]).encode()


def with_question(lists: bytes, question: bytes) -> bytes:
    """A message of lists with a question behind it, copied once."""
    return b"".join([len(lists).to_bytes(8, "little"), lists, question])


def parted(message: bytes) -> tuple[bytes, bytes]:
    """As `with_question` had them."""
    end = 8 + int.from_bytes(message[:8], "little")
    if not 8 <= end < len(message):
        raise UpdateRejected("a secure sum's message: there is no question in it")
    return message[8:end], message[end:]


def digest_of(question: bytes) -> bytes:
    """By which clients know that they were asked the same."""
    return hashlib.sha256(question).digest()
