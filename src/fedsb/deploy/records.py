"""What travels, in Flower's records: a message of ours as one array of bytes, and named facts. No pickle.

`RecordDict.array_records` and its like are never used: each makes a cycle with the record (flwr 1.41), which
keeps a message of megabytes in memory until Python next looks for cycles.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsb.errors import UpdateRejected

Facts = Mapping[str, str | int | float | bytes]
LARGEST_PAYLOAD = 2**32
"""Bytes. What a message holds in detail is checked by whoever reads it."""


def pack(facts: Facts, payload: bytes = b"") -> RecordDict:
    """Facts, and bytes that Flower carries as they are (in chunks, if they are many)."""
    content = RecordDict({"facts": ConfigRecord(dict(facts))})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype="fedsb", data=payload)
        content["payload"] = ArrayRecord({"message": array})
    return content


def facts_of(content: RecordDict) -> dict[str, object]:
    """The facts, of any kind and size; none if the sender is not of our kind."""
    record = content.get("facts")
    return dict(record) if isinstance(record, ConfigRecord) else {}


def payload_of(content: RecordDict) -> bytes:
    """The bytes, as they came; none if there are none.

    Raises:
        UpdateRejected: there is something else than one array of bytes, as `pack` makes it.
    """
    record = content.get("payload")
    if record is None:
        return b""
    array = record.get("message") if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if (
        array is None
        or not isinstance(array.data, bytes)
        or len(array.data) > LARGEST_PAYLOAD
        or (array.dtype, tuple(array.shape), array.stype) != ("uint8", (len(array.data),), "fedsb")
    ):
        raise UpdateRejected("not a message of fedsb: its payload is not one array of bytes")
    return array.data
