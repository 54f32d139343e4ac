"""Bytes of an update as Flower sends it, beside 4 (or 2) per number: MiniLM and a 7B model at rank 64.

    python benchmarks/bytes_on_wire.py

The numbers are those of `fedsb cost`'s formula; the bytes are all objects of the Message, as Flower pushes
them (equal chunks once, so the numbers here are random).
"""

from __future__ import annotations

import torch
from common import MINILM, verdict
from flower_wire import objects_of
from flwr.app import Message

from fedsb.deploy.records import pack
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.methods import Shape, fed_sb

RANK = 64
HEAD = {"classifier.weight": (2, 384), "classifier.bias": (2,)}
BLOCKS_7B = [
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
]
"""A Mistral 7B's linear layers of one block, of which it has 32."""


def minilm() -> dict[str, Shape]:
    """Query and value of each block."""
    width, blocks = MINILM["hidden_size"], MINILM["num_hidden_layers"]
    return {f"block{i}.{name}": Shape(width, width) for i in range(blocks) for name in ("query", "value")}


def seven_billion() -> dict[str, Shape]:
    return {f"block{i}.{j}": Shape(*shape) for i in range(32) for j, shape in enumerate(BLOCKS_7B)}


def main() -> None:
    _compare("MiniLM", minilm(), HEAD)
    _compare("MiniLM, float16", minilm(), HEAD, torch.float16)
    _compare("7B", seven_billion(), {})


def _compare(
    what: str,
    layers: dict[str, Shape],
    head: dict[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
) -> None:
    exchange = Exchange(fed_sb, layers, RANK, 1, head, upload_dtype=dtype)
    layout = exchange.up(1, exchange.whole)
    head_numbers = sum(torch.Size(shape).numel() for shape in head.values())
    numbers = head_numbers + sum(fed_sb.cost(shape, RANK, 1, 3).up for shape in layers.values())
    header = wire.Header(fed_sb.name, 100, layout.digest, 199, num_examples=123456, train_loss=0.123456789)
    message = wire.pack(header, torch.rand(layout.size), dtype)
    sent = sum(map(len, objects_of(Message(pack({}, message), 1, "train")).values()))
    formula = dtype.itemsize * numbers
    print(f"{what}: {numbers:,} numbers, {len(message):,} bytes of ours, {sent:,} as Flower sends them")
    verdict("difference between what Flower sends and the formula", abs(sent / formula - 1), 0.03)


if __name__ == "__main__":
    main()
