"""What travels, in Flower's records: a message of ours as one array of bytes, and named facts. No pickle.

`RecordDict.array_records` and its like are never used: each makes a cycle with the record (flwr 1.41), which
keeps a message of megabytes in memory until Python next looks for cycles.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

Facts = Mapping[str, str | int | float]


def pack(facts: Facts, payload: bytes = b"") -> RecordDict:
    """Facts, and bytes that Flower carries as they are (in chunks, if they are many)."""
    content = RecordDict({"facts": ConfigRecord(dict(facts))})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype="fedsb", data=payload)
        content["payload"] = ArrayRecord({"message": array})
    return content


def facts_of(content: RecordDict) -> dict[str, str | int | float]:
    """The facts; none if the sender is not of our kind."""
    record = content.get("facts")
    return dict(record) if isinstance(record, ConfigRecord) else {}  # type: ignore[arg-type]


def payload_of(content: RecordDict) -> bytes:
    """The bytes; none if there are none."""
    record = content.get("payload")
    return record["message"].data if isinstance(record, ArrayRecord) and "message" in record else b""
