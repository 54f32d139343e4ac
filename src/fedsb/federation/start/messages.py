"""Messages of the one-time start: named tensors and a few facts, in safetensors. Never pickle.

Whatever the bytes are, a message is read or refused (UpdateRejected). Names, types, shapes and lengths are
looked at before anything is made of them; tensors are read-only views of the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedsb.common.printable import printable
from fedsb.common.strict_json import strict_json
from fedsb.errors import UpdateRejected
from fedsb.federation.wire import LONGEST_TEXT, blocks, header_end, not_finite, view

FORMAT = "fedsb-start-1"
HEADER_BYTES = 16 << 20
"""Most bytes of a header where nobody said which tensors are expected."""
FACTS_BYTES = 4096
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
"""Types that tensors may travel as, by what safetensors calls them."""
DIMENSIONS = 8
LARGEST = 1e6
"""Head, bases: no finite number that means anything is larger."""
Facts = dict[str, int | str]


def pack_start(facts: Facts, tensors: Mapping[str, Tensor]) -> bytes:
    """The message's bytes."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(ready, metadata={FORMAT: json.dumps(facts)})


def unpack_start(
    message: bytes, template: Mapping[str, Tensor] | None = None
) -> tuple[Facts, dict[str, Tensor]]:
    """Facts and tensors.

    Args:
        template: tensors of the names, types and shapes that are expected; a message too long for them is not
            looked at. None: any.

    Raises:
        UpdateRejected: the bytes are no message of this format, or hold a number that is not finite.
    """
    try:
        most = HEADER_BYTES if template is None else _check_length(message, template)
        start = header_end(message, most)
        described = strict_json(message[8:start], most)
        facts = _facts(strict_json(described.pop("__metadata__")[FORMAT], FACTS_BYTES))
        tensors = _tensors(message, start, described)
    except Exception as error:  # whatever hostile bytes lead to: they are this sender's alone
        raise UpdateRejected(f"not a {FORMAT} message: {printable(error, 200)}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not_finite(tensor):
            raise UpdateRejected(f"start message: {printable(name)} holds numbers that are NaN or infinite")
    return facts, tensors


def _check_length(message: bytes, template: Mapping[str, Tensor]) -> int:
    """The most bytes that a header of these tensors can have."""
    header = FACTS_BYTES + 1024 + sum(6 * len(name) + 256 for name in template)
    numbers = sum(tensor.numel() * tensor.itemsize for tensor in template.values())
    if len(message) > (most := 8 + header + numbers):
        raise ValueError(f"{len(message)} bytes, {most} is the most")
    return header


def _facts(content: Any) -> Facts:
    """Refuse anything but short texts and counts by name."""
    if not isinstance(content, dict):
        raise ValueError("facts are not named")
    for name, value in content.items():
        if type(value) not in (int, str) or len(str(value)) > LONGEST_TEXT:
            raise ValueError(f"the fact {printable(name, 40)} is no count and no short text")
    return content


def _tensors(message: bytes, start: int, described: dict[str, Any]) -> dict[str, Tensor]:
    """Views of the message, which they must fill without a gap."""
    places = {name: _place(name, entry) for name, entry in described.items()}
    ends = sorted((begin, end) for _, _, begin, end in places.values())
    edges = [0, *chain.from_iterable(ends), len(message) - start]
    if edges[::2] != edges[1::2]:
        raise ValueError("tensors that overlap, or do not fill the message")
    return {
        name: _view(message, start + begin, dtype, shape) for name, (dtype, shape, begin, _) in places.items()
    }


def _place(name: str, entry: dict[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
    """(type, shape, first byte, last byte + 1) of one tensor."""
    if set(entry) != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
        raise ValueError(f"{printable(name, 100)} is not described as a tensor")
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if len(shape) > DIMENSIONS or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{printable(name, 100)} has a shape or place that is no count")
    if end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"{printable(name, 100)} has not the length of its shape")
    return dtype, shape, begin, end


def _view(message: bytes, offset: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if not (count := prod(shape)):
        return torch.empty(shape, dtype=dtype)
    return view(message, dtype, offset, count).view(shape)


def check_start(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    *,
    expected: Facts,
    template: Mapping[str, Tensor],
    largest: float = LARGEST,
) -> None:
    """Refuse a message of another step or client, or whose tensors differ from `template` in name, shape and
    type.

    Args:
        largest: magnitude above which a finite number is absurd.

    Raises:
        UpdateRejected: with the first reason found.
    """
    for name, value in expected.items():
        fact = facts.get(name)
        if type(fact) is not type(value) or fact != value:
            raise UpdateRejected(f"wrong {name}: expected {value!r}, found {printable(repr(fact), 100)}")
    kinds, expected_kinds = ({_kind(n, t) for n, t in side.items()} for side in (tensors, template))
    if kinds != expected_kinds:
        first = printable(sorted(kinds ^ expected_kinds)[:3])
        raise UpdateRejected(f"start message: tensors differ from what is expected, first in {first}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if any(float(block.abs().max()) > largest for block in blocks(tensor) if block.numel()):
            raise UpdateRejected(f"start message: {name} holds numbers beyond {largest:g}")


def _kind(name: str, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    return name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
