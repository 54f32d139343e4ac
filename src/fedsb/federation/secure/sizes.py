"""How many bytes a secure sum sends beside the question and the numbers: keys, shares, lists, envelopes.

Of messages as `server.SecureSum` and `member.Member` make them, with zeros for what is secret, in a session
that loses nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedsb.federation.secure import messages
from fedsb.federation.secure.messages import BOTH_KEYS, SEALED, SIGNATURE_BYTES, TAIL, named
from fedsb.federation.secure.shares import SHARE_BYTES
from fedsb.federation.secure.terms import Rules, Terms, reach
from fedsb.federation.start.messages import Facts, pack_start


class SessionBytes(NamedTuple):
    """Bytes of a session, all clients together.

    Attributes:
        down, up: in the ledger's lines of the work, beside the question and the numbers.
        keys_down, keys_up: in its lines of keys and shares.
    """

    down: int
    up: int
    keys_down: int
    keys_up: int

    @property
    def total(self) -> int:
        """Both ways."""
        return sum(self)


def session_bytes(terms: Terms, rules: Rules, size: int, *, bits: int) -> SessionBytes:
    """What a session over these clients sends for a sum of `size` numbers of so many bits.

    >>> session_bytes(Terms("train", 1, "0" * 32, (0, 1, 2)), Rules("", 0.67, 8.0), 100, bits=32).keys_down
    4392
    """
    cohort, clients = messages.ids(terms.cohort), len(terms.cohort)
    holders = min(clients, 2 * reach(clients, rules) + 1)
    some, sealed, kind = cohort[:holders].clone(), _rows(holders, SEALED), terms.kind
    known = {"clients": cohort, "keys": _rows(clients, BOTH_KEYS)}
    known["signatures"] = _rows(clients, SIGNATURE_BYTES)
    asked = (
        messages.pack_keys_question(terms),
        pack_start(named("shares", terms), known),
        pack_start(named("unmask", terms), {"survivors": cohort, "lost": messages.ids(())}),
    )
    lists = pack_start(named(kind, terms), {"members": cohort, "from": some, "sealed": sealed})

    def answers(client: int) -> int:
        keys = {"keys": _rows(BOTH_KEYS), "signature": _rows(SIGNATURE_BYTES)}
        shares = named("shares", terms, client=client, seed="0" * 64)
        unmask = named("unmask", terms, client=client), {"shares": _rows(holders, SHARE_BYTES)}
        given = (named("keys", terms, client=client), keys), (shares, {"sealed": sealed}), unmask
        return sum(len(pack_start(*answer)) for answer in given)

    def envelope(client: int) -> int:
        return _envelope(named(kind, terms, client=client), size + TAIL, bits // 8) + TAIL * bits // 8

    return SessionBytes(
        down=clients * len(messages.with_question(lists, b"")),
        up=_over(terms, envelope),
        keys_down=clients * sum(map(len, asked)),
        keys_up=_over(terms, answers),
    )


def _rows(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def _over(terms: Terms, length: Callable[[int], int]) -> int:
    """The sum over clients, which differ in the digits of their numbers alone."""
    digits = Counter(len(str(client)) for client in terms.cohort)
    return sum(count * length(10 ** (width - 1)) for width, count in digits.items())


def _envelope(facts: Facts, count: int, width: int) -> int:
    """Bytes of a message of so many numbers, without making them: safetensors describes them in text that is
    filled up to a multiple of 8."""
    empty: Mapping[str, Tensor] = {"masked": torch.empty(0, dtype=torch.int32 if width == 4 else torch.int64)}
    text = pack_start(facts, empty)[8:].decode().rstrip()
    longer = len(f"{count}{count * width}") - len("00")
    return 8 + -(-(len(text) + longer) // 8) * 8
