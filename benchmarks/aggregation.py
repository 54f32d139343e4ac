"""The server's stream: 1,000 updates of 917,504 numbers, beside numpy adding such arrays to an fp64 one.

    python benchmarks/aggregation.py            # with torch's own number of threads; OMP_NUM_THREADS=1: one

Two ratios, each the median of five that were taken side by side: the weighted mean alone (vectors in, vector
out), and the server's whole round (bytes in: parsing, checks of method, round, layout, client and finiteness,
then the mean). Memory: what Python and the process hold at their peak for ten times as many updates.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from common import verdict

from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.server import Arrived, aggregate
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, Upload, fed_sb

LAYERS, RANK, UPDATES, DISTINCT, REPEATS = 224, 64, 1000, 20, 7
FIRST_CLIENT = 1_000_000
"""Clients' numbers all have seven digits, so that a message can be given another's."""


def main() -> None:
    exchange = Exchange(fed_sb, {f"layer{i}": Shape(512, 512) for i in range(LAYERS)}, RANK, 1, {})
    layout = exchange.up(1, exchange.whole)
    arrays = [
        np.random.default_rng(i).standard_normal(layout.size, dtype=np.float32) for i in range(DISTINCT)
    ]
    header = wire.Header("fed-sb", 1, layout.digest, FIRST_CLIENT, num_examples=7, train_loss=1.0)
    messages = [bytearray(wire.pack(header, torch.from_numpy(array))) for array in arrays]
    state = ServerState(0, torch.zeros(layout.size))
    seconds: list[tuple[float, float, float]] = []
    for _ in range(REPEATS):
        seconds.append(
            (
                _seconds(lambda: _numpy_sum(arrays)),
                _seconds(lambda: _mean(exchange, state, arrays)),
                _seconds(lambda: _round(exchange, state, messages, UPDATES)),
            )
        )
    base = statistics.median(numpy for numpy, _, _ in seconds)
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    print(f"load {load:.1f} on {os.cpu_count()} cores, torch with {threads} threads")
    print(f"numpy adds {UPDATES} fp32 arrays of {layout.size:,} to an fp64 one in {base:.3f} s")
    verdict("weighted mean / numpy", statistics.median(m / n for n, m, _ in seconds), 1.2)
    verdict("whole round, from bytes / numpy", statistics.median(r / n for n, _, r in seconds), 1.6)
    few, many = (_peak(exchange, state, messages, count) for count in (100, 1000))
    verdict("Python's memory at its peak, 1,000 updates / 100", many[0] / few[0], 1.5)
    verdict("the process's memory at its peak, 1,000 updates / 100", many[1] / few[1], 1.01)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _numpy_sum(arrays: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(arrays[0].size)
    for i in range(UPDATES):
        np.add(total, arrays[i % DISTINCT], out=total)
    return total


def _mean(exchange: Exchange, state: ServerState, arrays: list[np.ndarray]) -> object:
    mean, layout = exchange.method.aggregation, exchange.up(1, exchange.whole)
    vectors = [torch.from_numpy(array) for array in arrays]
    accumulator = mean.start(exchange.frame(1, state.vector))
    for i in range(UPDATES):
        vector = vectors[i % DISTINCT]
        accumulator = mean.add(accumulator, Upload(layout.view(vector), vector, 7.0))
    return mean.finish(accumulator)


def _arrivals(messages: list[bytearray], count: int) -> Iterator[Arrived]:
    """Every client once: its number is written into one of the messages, where the last one's was."""
    place = messages[0].index(str(FIRST_CLIENT).encode())
    digits = slice(place, place + len(str(FIRST_CLIENT)))
    for i in range(count):
        messages[i % DISTINCT][digits] = str(FIRST_CLIENT + i).encode()
        yield Arrived(FIRST_CLIENT + i, messages[i % DISTINCT])
    for message in messages:
        message[digits] = str(FIRST_CLIENT).encode()


def _round(exchange: Exchange, state: ServerState, messages: list[bytearray], count: int) -> object:
    after, report = aggregate(state, _arrivals(messages, count), exchange, weighting="examples")
    assert len(report.clients) == count, report.rejected[:1]
    return after


def _peak(exchange: Exchange, state: ServerState, messages: list[bytearray], count: int) -> tuple[int, int]:
    """Bytes that Python and numpy hold at most beyond what they held before; and kilobytes of the process."""
    tracemalloc.start()
    _round(exchange, state, messages, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
