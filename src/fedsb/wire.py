"""Messages as bytes: one flat vector and a small typed header, in safetensors. Never pickle.

Numbers travel as fp32, or as 16 bits where both sides agreed on that. A received fp32 vector is a read-only
view of the message: nothing is copied, and nothing may write to it. 16 bits are widened to fp32.

A message is refused (UpdateRejected) when it is not safetensors, belongs to another method, round or
layout, has the wrong length, or holds a number that is not finite.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from fedsb.errors import UpdateRejected

FORMAT = "fedsb-1"
warnings.filterwarnings("ignore", message="The given buffer is not writable")  # a view for reading only
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Types that numbers may travel as, and what safetensors calls them."""
LARGEST_COUNT = 2**53
"""Counts up to this are exact as weights in fp64."""


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
    """

    method: str
    round: int
    layout: str
    client: int | None = None
    num_examples: int = 0
    train_loss: float | None = None
    base: int | None = None
    needs: int | None = None


def pack(header: Header, vector: Float[Tensor, "size"], dtype: torch.dtype = torch.float32) -> bytes:
    """The message's bytes: 4 (or 2) per number and about 300 more.

    Raises:
        Overflow: a finite number is not finite as this type.
    """
    text = json.dumps({k: v for k, v in asdict(header).items() if v is not None}, separators=(",", ":"))
    contiguous = vector.detach().to("cpu", torch.float32).contiguous()
    sent = contiguous.to(dtype)
    _check_overflow(contiguous, sent)
    return save({"v": sent}, metadata={FORMAT: text})


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


def unpack(message: bytes, dtype: torch.dtype = torch.float32) -> tuple[Header, Float[Tensor, "size"]]:
    """Header and vector, in fp32; `dtype` is what the numbers must have travelled as.

    Raises:
        UpdateRejected: the bytes are no message of this format.
    """
    try:
        start = 8 + int.from_bytes(message[:8], "little")
        described = json.loads(message[8:start])
        header = Header(**json.loads(described.pop("__metadata__")[FORMAT]))
        _check_numbers(described, numbers_bytes := len(message) - start, dtype)
    except (AttributeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UpdateRejected(f"not a {FORMAT} message: {error}") from error
    _check_kinds(header)
    if not numbers_bytes:
        return header, torch.zeros(0)
    return header, torch.frombuffer(message, dtype=dtype, offset=start).float()


def header_of(message: bytes) -> Header:
    """The header of a message made by `pack`, whatever type its numbers have."""
    described = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
    return Header(**json.loads(described["__metadata__"][FORMAT]))


def _check_numbers(described: dict[str, object], numbers_bytes: int, dtype: torch.dtype) -> None:
    """Refuse anything but one vector "v" of this type that fills the rest of the message."""
    size, rest = divmod(numbers_bytes, dtype.itemsize)
    whole = {"dtype": CODES[dtype], "shape": [size], "data_offsets": [0, numbers_bytes]}
    if rest or described != {"v": whole}:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"expected one {name} vector and no more, found {str(described)[:200]}")


def count(message: bytes) -> int:
    """How many numbers an fp32 message made by `pack` carries."""
    return (len(message) - 8 - int.from_bytes(message[:8], "little")) // 4


def _check_kinds(header: Header) -> None:
    """Refuse a header whose fields are not of the kinds they are declared as."""
    for name in ("round", "num_examples", "client", "base", "needs"):
        number, may_lack = getattr(header, name), name in ("client", "base", "needs")
        if not (type(number) is int and 0 <= number < LARGEST_COUNT) and not (number is None and may_lack):
            raise UpdateRejected(f"wrong {name}: expected a count, found {str(number)[:40]!r}")
    if not (header.train_loss is None or type(header.train_loss) in (int, float)):
        raise UpdateRejected(f"wrong train_loss: expected a number, found {header.train_loss!r}")


def check(header: Header, vector: Tensor, *, expected: Header, size: int) -> None:
    """Refuse a message that does not fit what is expected now.

    Raises:
        UpdateRejected: with the first reason found.
    """
    for name in ("method", "round", "layout", "client"):
        wanted, found = getattr(expected, name), getattr(header, name)
        if wanted != found:
            raise UpdateRejected(f"wrong {name}: expected {wanted!r}, found {found!r}")
    if vector.dtype != torch.float32 or tuple(vector.shape) != (size,):
        raise UpdateRejected(
            f"wrong shape: expected {size} float32 numbers, found {tuple(vector.shape)} {vector.dtype}"
        )
    if (
        not torch.dot(vector, vector).isfinite() and not torch.isfinite(vector).all()
    ):  # the dot is one fast pass
        bad = int((~torch.isfinite(vector)).sum())
        raise UpdateRejected(f"update is not finite: {bad} of {size} numbers are NaN or infinite")
