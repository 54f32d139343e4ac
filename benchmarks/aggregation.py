"""The server's stream: 1,000 updates of 917,504 numbers, against numpy adding 1,000 such arrays once.

    python benchmarks/aggregation.py

Two ratios: the weighted mean alone (vectors in, vector out), and the server's whole round (bytes in: parsing,
checks of method, round, layout and finiteness, then the mean). Memory: live blocks per update taken in.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import torch

from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.server import Arrived, aggregate
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, Upload, fed_sb

LAYERS, RANK, UPDATES, DISTINCT = 224, 64, 1000, 20


def main() -> None:
    exchange = Exchange(fed_sb, {f"layer{i}": Shape(512, 512) for i in range(LAYERS)}, RANK, 1, {})
    layout = exchange.up(1, exchange.whole)
    arrays = [
        np.random.default_rng(i).standard_normal(layout.size, dtype=np.float32) for i in range(DISTINCT)
    ]
    header = wire.Header("fed-sb", 1, layout.digest, 0, num_examples=7, train_loss=1.0)
    messages = [wire.pack(header, torch.from_numpy(array)) for array in arrays]
    state = ServerState(0, torch.zeros(layout.size))
    numpy_seconds, mean_seconds, round_seconds = [], [], []
    for _ in range(3):
        numpy_seconds.append(_seconds(lambda: _numpy_sum(arrays)))
        mean_seconds.append(_seconds(lambda: _mean(exchange, state, arrays)))
        round_seconds.append(_seconds(lambda: _round(exchange, state, messages, UPDATES)))
    base = min(numpy_seconds)
    print(f"numpy adds {UPDATES} arrays of {layout.size:,} in {base:.3f} s")
    print(f"weighted mean / numpy: {min(mean_seconds) / base:.2f} (target < 3)")
    print(f"whole round, from bytes / numpy: {min(round_seconds) / base:.2f} (target < 3)")
    few, many = (_peak(exchange, state, messages, count) for count in (10, 100))
    print(f"Python memory at its peak, 100 updates / 10: {many / few:.3f} (target: 1)")


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def _numpy_sum(arrays: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(arrays[0])
    for i in range(UPDATES):
        total += arrays[i % DISTINCT]
    return total


def _mean(exchange: Exchange, state: ServerState, arrays: list[np.ndarray]) -> object:
    mean, layout = exchange.method.aggregation, exchange.up(1, exchange.whole)
    vectors = [torch.from_numpy(array) for array in arrays]
    accumulator = mean.start(exchange.frame(1, state.vector))
    for i in range(UPDATES):
        vector = vectors[i % DISTINCT]
        accumulator = mean.add(accumulator, Upload(layout.view(vector), vector, 7.0))
    return mean.finish(accumulator)


def _arrivals(messages: list[bytes], count: int) -> Iterator[Arrived]:
    return (Arrived(0, messages[i % DISTINCT]) for i in range(count))


def _round(exchange: Exchange, state: ServerState, messages: list[bytes], count: int) -> object:
    return aggregate(state, _arrivals(messages, count), exchange, weighting="examples")


def _peak(exchange: Exchange, state: ServerState, messages: list[bytes], count: int) -> int:
    """Bytes that Python and numpy hold at most; torch's own blocks are one accumulator by construction."""
    tracemalloc.start()
    _round(exchange, state, messages, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
