"""The server side of a million clients, without training: one server beside a tree of partial sums.

    python studies/scale.py --participants 10000 100000 --out scale.svg

Each participant's message is real: a client's header over 49,152 fp32 numbers (rank 64, query and value of a
six-layer encoder), read, checked and added as a round's updates are. In the tree each node does that for at
most `--fan-in` clients and sends up one fp64 sum with its weight; a node above adds sums. What a method does
with a mean is done at the root alone, so a tree gives what one server gives, up to fp64's rounding.

All nodes are played one after the other in this process, and time is processor time. A tree's is that of its
slowest node of each level, one level after the other; what travels between the nodes is counted and takes no
time. Making the messages is not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import log10
from pathlib import Path

import numpy as np
import psutil
import torch

from fedsb.common.seeding import numpy_generator
from fedsb.federation import wire
from fedsb.federation.cohort import cohort
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.server import Arrived, RoundReport, accept, broadcast
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, Upload, fed_sb
from fedsb.methods.averaging.mean import WeightedSum
from fedsb.report.plots import Curve, Span, curves

LAYERS, WIDTH, RANK, DISTINCT = 12, 384, 64, 16
SEED = 0


@dataclass
class Node:
    """What one node did in a round: seconds of its own work, bytes in and out, clients or nodes heard."""

    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    heard: int = 0


@dataclass
class Crowd:
    """Participants of one round and their messages: one of a few vectors under a header of each one's own.

    Attributes:
        counts: training examples of each registered client, three digits.
    """

    exchange: Exchange
    state: ServerState
    counts: np.ndarray
    messages: list[bytearray] = field(init=False)

    def __post_init__(self) -> None:
        layout = self.exchange.up(1, self.exchange.whole)
        header = wire.Header(self.exchange.method.name, 1, layout.digest, 1_000_000, 100, train_loss=0.5)
        vectors = (numpy_generator(SEED, "update", i).standard_normal(layout.size) for i in range(DISTINCT))
        packed = (wire.pack(header, torch.from_numpy(vector).float()) for vector in vectors)
        self.messages = [bytearray(message) for message in packed]

    def message(self, client: int) -> bytes:
        """What this client sends."""
        message = self.messages[client % DISTINCT]
        for name, number in (("client", 1_000_000 + client), ("num_examples", int(self.counts[client]))):
            start = message.index(b'\\"%s\\":' % name.encode()) + len(name) + 5
            digits = str(number).encode()
            message[start : start + len(digits)] = digits
        return bytes(message)


def add_clients(crowd: Crowd, clients: Sequence[int], node: Node) -> WeightedSum:
    """The sum of these clients' updates, each read and checked against what the client registered."""
    exchange, state, report = crowd.exchange, crowd.state, RoundReport()
    layout, total = exchange.up(1, exchange.whole), WeightedSum(exchange.frame(1, state.vector))
    for client in clients:
        message, number = crowd.message(client), 1_000_000 + client
        began = time.process_time()
        registered = {number: int(crowd.counts[client])}
        header, vector = accept(Arrived(number, message), state, exchange, layout, report, registered)
        total.add(Upload(layout.view(vector), vector, float(header.num_examples), client=number))
        node.seconds += time.process_time() - began
    began = time.process_time()
    assert len(total.total) == layout.size  # with the last few, which wait for more until somebody looks
    node.seconds += time.process_time() - began
    node.bytes_in, node.heard = report.upload_bytes, len(clients)
    total.wide = torch.empty(0)  # of a sum that only waits to be sent
    return total


def merged(one: WeightedSum, other: WeightedSum) -> WeightedSum:
    """The sum over the clients of both, in the first one's place. Both are sums over whole uploads."""
    one.total.add_(other.total)
    one.weight += other.weight
    return one


def add_sums(sums: Iterable[WeightedSum], node: Node) -> WeightedSum:
    """The sum of partial sums, each of which came as 8 bytes a number and its weight."""
    received = list(sums)
    began = time.process_time()
    total = reduce(merged, received)
    node.seconds += time.process_time() - began
    node.heard, node.bytes_in = len(received), len(received) * sum_bytes(total)
    return total


def sum_bytes(total: WeightedSum) -> int:
    """Bytes of a partial sum that is sent up: its numbers and its weight in fp64, and a header's 300."""
    return 8 * total.total.numel() + 8 + 300


def in_groups(items: Sequence, most: int) -> Iterator[Sequence]:
    return (items[i : i + most] for i in range(0, len(items), most))


def through_tree(crowd: Crowd, clients: Sequence[int], fan_in: int) -> tuple[WeightedSum, list[list[Node]]]:
    """(The sum at the root, the nodes of each level from the clients up.) One level is one server."""
    levels: list[list[Node]] = [[]]
    sums = []
    for group in in_groups(clients, fan_in):
        levels[0].append(Node())
        sums.append(add_clients(crowd, group, levels[0][-1]))
    while len(sums) > 1:
        levels.append([])
        above = []
        for group in in_groups(sums, fan_in):
            for node in levels[-2][len(above) * fan_in :][:fan_in]:
                node.bytes_out = sum_bytes(group[0])
            levels[-1].append(Node())
            above.append(add_sums(group, levels[-1][-1]))
        sums = above
    return sums[0], levels


def critical_seconds(levels: Sequence[Sequence[Node]]) -> float:
    """Of the slowest node of each level, one level after the other."""
    return sum(max(node.seconds for node in level) for level in levels)


def largest_difference(one: WeightedSum, other: WeightedSum) -> tuple[float, float]:
    """Of two means: the largest relative difference in fp64, and the share of fp32 numbers that differ."""
    a, b = one.total / one.weight, other.total / other.weight
    relative = ((a - b).abs() / a.abs().clamp_min(1e-300)).max()
    return float(relative), float((a.float() != b.float()).double().mean())


def crowd_of(registered: int) -> Crowd:
    exchange = Exchange(fed_sb, {f"layer{i}": Shape(WIDTH, WIDTH) for i in range(LAYERS)}, RANK, 1, {})
    counts = numpy_generator(SEED, "counts").integers(100, 1000, registered)
    return Crowd(exchange, ServerState(0, torch.zeros(exchange.up(1, exchange.whole).size)), counts)


def study(registered: int, participants: int, fan_in: int) -> Mapping[str, float]:
    """Prints one server beside a tree for a round of so many, and returns both times by name."""
    resident, crowd = psutil.Process().memory_info().rss, crowd_of(registered)
    began = time.process_time()
    clients = cohort(registered, participants, SEED, 1)
    drawn = time.process_time() - began
    down = len(broadcast(crowd.state, crowd.exchange, 0, Part(RANK)))
    begun = psutil.Process().memory_info().rss
    flat, (server,) = through_tree(crowd, clients, len(clients))
    grown = psutil.Process().memory_info().rss - begun
    tree, levels = through_tree(crowd, clients, fan_in)
    relative, other = largest_difference(flat, tree)
    print(f"\n{participants:,} of {registered:,} clients; the cohort drawn in {drawn:.2f} s")
    print(f"  registered clients and messages take {(begun - resident) / 1e6:.0f} MB here")
    sizes = _sizes(server[0], down, participants)
    print(f"  one server: {server[0].seconds:.2f} s, {sizes}, +{grown / 1e6:.1f} MB")
    for number, level in enumerate(levels):
        slowest = max(level, key=lambda node: node.seconds)
        below = fan_in if number == 0 else 0
        print(
            f"  tree, level {number + 1}: {len(level):,} nodes, at most {slowest.seconds:.3f} s each, "
            f"{_sizes(level[0], down, below)}"
        )
    seconds = {"one server": server[0].seconds, "tree": critical_seconds(levels)}
    print(f"  tree: {seconds['tree']:.3f} s along its slowest nodes")
    print(f"  means differ by {relative:.1e} at most (relative, fp64); {other:.2%} of fp32 numbers differ")
    return seconds


def _sizes(node: Node, down: int, clients: int) -> str:
    sent = node.bytes_out + down * clients
    return f"{node.bytes_in / 1e6:,.1f} MB in, {sent / 1e6:,.1f} MB out"


def draw(found: Mapping[int, Mapping[str, float]], file: Path) -> None:
    """Seconds of the server's side by participants, on logarithmic axes."""
    names = list(next(iter(found.values())))
    points = {name: [(log10(n), log10(seconds[name])) for n, seconds in found.items()] for name in names}
    items = [Curve(name, points[name], group) for group, name in enumerate(names)]
    span = Span("participants", lambda y: f"{10**y:.2g} s", show_x=lambda x: f"{10**x:,.0f}")
    plot = curves("A round's sums: processor seconds", items, span, name="scale")
    if plot is not None:
        plot.save(file, file.suffix.removeprefix("."))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registered", type=int, default=1_000_000)
    parser.add_argument("--participants", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--fan-in", type=int, default=100)
    parser.add_argument("--out", type=Path, help="a picture, svg or png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    found = {n: study(args.registered, n, args.fan_in) for n in args.participants}
    if args.out:
        draw(found, args.out)


if __name__ == "__main__":
    main()
