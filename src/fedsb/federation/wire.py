"""Messages as bytes: one flat vector and a small typed header, in safetensors. Never pickle.

Numbers travel as fp32, or as 16 bits where both sides agreed on that (within one party as fp64, too). A
received fp32 vector is a read-only view of the message: nothing is copied, and nothing may write to it. 16
bits are widened to fp32.

Whatever the bytes are, a message is read or refused (UpdateRejected): when it is too long for what is
expected, not safetensors of one vector, of another method, round or layout, or holds a number that is not
finite. Lengths, counts and texts are looked at before anything is allocated.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from fedsb.common.printable import printable
from fedsb.common.strict_json import strict_json
from fedsb.errors import UpdateRejected
from fedsb.methods.averaging.mean import one_thread

FORMAT = "fedsb-1"
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Types that numbers may travel as, and what safetensors calls them."""
LARGEST_COUNT = 2**53
"""Counts up to this are exact as weights in fp64."""
LARGEST_LOSS = 1e12
LONGEST_TEXT = 300
HEADER_BYTES = 8 * 1024
"""Most bytes of a header, many times what `pack` writes."""
BLOCK = 2**18
"""Numbers looked at together: a check of all of them needs little memory of its own."""


@dataclass(frozen=True)
class Header:
    """What a message says about itself.

    Attributes:
        method: method name.
        round: the round it belongs to, from 1.
        layout: `Layout.digest` of the vector.
        client: who sends it; None from the server.
        num_examples: how many examples the client trained on; 0 from the server.
        train_loss: the client's mean local loss, if it is declared; None otherwise.
        base: for methods that change base weights, the rank of the last round's update, which follows; 0 if
            everything added so far follows instead, dense; None if nothing does.
        needs: the round whose base weights the receiver must have already, for what follows to add to; None
            if it needs none.
        cores: of a mixture, true if all cores as they were after the hard rounds follow; None otherwise.
        exchange: 2 in a round's second exchange; None in its first.
    """

    method: str
    round: int
    layout: str
    client: int | None = None
    num_examples: int = 0
    train_loss: float | None = None
    base: int | None = None
    needs: int | None = None
    cores: bool | None = None
    exchange: int | None = None


def pack(header: Header, vector: Float[Tensor, "size"], dtype: torch.dtype = torch.float32) -> bytes:
    """The message's bytes: 4 (or 2) per number and about 300 more.

    Raises:
        Overflow: a finite number is not finite as this type.
    """
    text = json.dumps({k: v for k, v in asdict(header).items() if v is not None}, separators=(",", ":"))
    contiguous = vector.detach().to("cpu", _wide(dtype)).contiguous()
    sent = contiguous.to(dtype)
    _check_overflow(contiguous, sent)
    return save({"v": sent}, metadata={FORMAT: text})


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers that travel as this type are made from, and read as."""
    return torch.promote_types(dtype, torch.float32)


class Overflow(Exception):
    """A number is too large for the type that it should travel as."""


def _check_overflow(vector: Tensor, sent: Tensor) -> None:
    """What was not finite before goes through: the receiver refuses it by that name."""
    if sent.dtype == vector.dtype or torch.isfinite(sent).all():
        return
    lost = torch.isfinite(vector) & ~torch.isfinite(sent)
    if lost.any():
        name, largest = str(sent.dtype).removeprefix("torch."), torch.finfo(sent.dtype).max
        raise Overflow(
            f"{int(lost.sum())} of {vector.numel()} numbers are too large for {name}: up to "
            f"{float(vector[lost].abs().max()):.3g}, where {largest:.3g} is the most; set "
            "federation.upload_dtype to bfloat16 or float32, or lower training.learning_rate"
        )


def unpack(
    message: bytes, dtype: torch.dtype = torch.float32, size: int | None = None
) -> tuple[Header, Float[Tensor, "size"]]:
    """Header and vector, in fp32 (fp64 where it travelled as that).

    Args:
        dtype: what the numbers must have travelled as.
        size: how many there can be at most; a longer message is not looked at.

    Raises:
        UpdateRejected: the bytes are no message of this format.
    """
    if size is not None and len(message) > (most := 8 + HEADER_BYTES + size * dtype.itemsize):
        raise UpdateRejected(f"message too long: {len(message)} bytes, {most} is the most")
    header, described, start = _opened(message)
    numbers_bytes = len(message) - start
    if _written(described) != _expected(numbers_bytes, dtype):
        name, text = str(dtype).removeprefix("torch."), printable(described, 200)
        raise UpdateRejected(f"not a {FORMAT} message: expected one {name} vector and no more, found {text}")
    if not numbers_bytes:
        return header, torch.zeros(0)
    return header, view(message, dtype, start).to(_wide(dtype))


def view(message: bytes, dtype: torch.dtype, offset: int, count: int = -1) -> Tensor:
    """The numbers from `offset` on, without a copy: for reading only."""
    _hear_the_warning()
    return torch.frombuffer(message, dtype=dtype, count=count, offset=offset)


@cache
def _hear_the_warning() -> None:
    """Torch says once in a process that a buffer may not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        torch.frombuffer(bytes(4), dtype=torch.float32)


def header_of(message: bytes) -> Header:
    """The header of a message, whatever type its numbers have.

    Raises:
        UpdateRejected: it has none.
    """
    return _opened(message)[0]


def _opened(message: bytes) -> tuple[Header, dict[str, Any], int]:
    """The header, what safetensors is told of the tensors, and where the numbers start."""
    try:
        start = header_end(message, HEADER_BYTES)
        described = strict_json(message[8:start], HEADER_BYTES)
        header = Header(**strict_json(described.pop("__metadata__")[FORMAT], HEADER_BYTES))
    except Exception as error:  # whatever hostile bytes lead to: they are this sender's alone
        raise UpdateRejected(f"not a {FORMAT} message: {printable(error, 200)}") from None
    _check_kinds(header)
    return header, described, start


def header_end(message: bytes, most: int) -> int:
    """Where a safetensors header ends, if it is whole and has at most so many bytes.

    Raises:
        ValueError: it is not.
    """
    length = int.from_bytes(message[:8], "little")
    if len(message) < 8 or length > len(message) - 8:
        raise ValueError(f"a header of {length} bytes in a message of {len(message)}")
    if length > most:
        raise ValueError(f"a header of {length} bytes, {most} is the most")
    return 8 + length


def _written(described: dict[str, Any]) -> str:
    """Where 1, 1.0 and true differ."""
    return json.dumps(described, sort_keys=True)


@lru_cache(maxsize=16)
def _expected(numbers_bytes: int, dtype: torch.dtype) -> str:
    """One vector that fills the rest of the message; of part of a number: nothing that could be found."""
    size, remainder = divmod(numbers_bytes, dtype.itemsize)
    shape = [None if remainder else size]
    return _written({"v": {"dtype": CODES[dtype], "shape": shape, "data_offsets": [0, numbers_bytes]}})


def count(message: bytes) -> int:
    """How many numbers an fp32 message made by `pack` carries."""
    return (len(message) - 8 - int.from_bytes(message[:8], "little")) // 4


def _check_kinds(header: Header) -> None:
    """Refuse a header whose fields are not of the kinds and sizes they are declared as."""
    for name in ("method", "layout"):
        text = getattr(header, name)
        if type(text) is not str or len(text) > LONGEST_TEXT:
            raise UpdateRejected(f"wrong {name}: expected a short text, found {printable(repr(text), 40)}")
    for name in ("round", "num_examples", "client", "base", "needs", "exchange"):
        number, may_lack = getattr(header, name), name in ("client", "base", "needs", "exchange")
        if not (type(number) is int and 0 <= number < LARGEST_COUNT) and not (number is None and may_lack):
            raise UpdateRejected(f"wrong {name}: expected a count, found {printable(repr(number), 40)}")
    if header.cores is not None and header.cores is not True:
        raise UpdateRejected(f"wrong cores: expected true, found {printable(repr(header.cores), 40)}")
    loss = header.train_loss
    if not (loss is None or (type(loss) in (int, float) and abs(loss) <= LARGEST_LOSS)):
        raise UpdateRejected(
            f"wrong train_loss: expected a number up to {LARGEST_LOSS:g}, found {printable(repr(loss), 40)}"
        )


def check(header: Header, vector: Tensor, *, expected: Header, size: int) -> None:
    """Refuse a message that does not fit what is expected now.

    Raises:
        UpdateRejected: with the first reason found.
    """
    for name in ("method", "round", "layout", "client"):
        value, actual = getattr(expected, name), getattr(header, name)
        if value != actual:
            raise UpdateRejected(f"wrong {name}: expected {value!r}, found {printable(repr(actual), 100)}")
    if vector.dtype != torch.float32 or tuple(vector.shape) != (size,):
        raise UpdateRejected(
            f"wrong shape: expected {size} float32 numbers, found {tuple(vector.shape)} {vector.dtype}"
        )
    with one_thread():
        finite = math.isfinite(torch.dot(vector, vector))  # one fast pass, and too large where no number is
    if not finite and (bad := not_finite(vector)):
        raise UpdateRejected(f"update is not finite: {bad} of {size} numbers are NaN or infinite")


def not_finite(tensor: Tensor) -> int:
    """How many of its numbers are NaN or infinite."""
    return sum(int((~torch.isfinite(block)).sum()) for block in blocks(tensor))


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Its numbers, some at a time."""
    return iter(tensor.reshape(-1).split(BLOCK))
