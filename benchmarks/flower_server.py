"""A server's round over Flower's messages, 200 clients x 3.67 MB: ours beside Flower's own FedAvg.

    python benchmarks/flower_server.py

Replies lie serialized on disk, as at a SuperLink. Each side gets them by the same in-process grid, with
Flower's own serialization; ours checks every message (method, round, layout, finiteness) and takes it in
as it comes, FedAvg averages the list of all replies. Each measurement is a process of its own,
after a round of two clients: seconds of the whole round (questions out, answers in, average) on the clock and
of the CPU, and growth of resident memory at its peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import torch
from common import verdict

CLIENTS, LAYERS, RANK, REPEATS = 200, 224, 64, 3
NUMBERS = LAYERS * RANK * RANK


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fedsb-bench-") as folder:
        for side in ("ours", "theirs"):
            _in_a_process("write", side, folder)
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(REPEATS):
            for side, runs in found.items():
                runs.append(json.loads(_in_a_process("round", side, folder)))
    best = {side: {k: min(run[k] for run in runs) for k in runs[0]} for side, runs in found.items()}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; least of {REPEATS} runs")
    for side, values in best.items():
        seconds = f"{values['seconds']:6.2f} s, CPU {values['cpu']:6.2f} s"
        print(f"{side:<7} {seconds}   memory growth {values['growth'] / 1e6:7.1f} MB")
    verdict("server round / FedAvg's, time", best["ours"]["seconds"] / best["theirs"]["seconds"], 1.0)
    verdict("server round / FedAvg's, CPU time", best["ours"]["cpu"] / best["theirs"]["cpu"], 1.0)
    verdict("server round / FedAvg's, memory growth", best["ours"]["growth"] / best["theirs"]["growth"], 0.2)
    verdict("growth of the server's memory, in 100 MB", best["ours"]["growth"] / 1e8, 1.0)


def _in_a_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def _write(side: str, folder: Path) -> None:
    from flower_wire import write_reply
    from flwr.app import Message

    for client in range(CLIENTS):
        vector = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(client))
        reply = Message(_our_reply(client, vector) if side == "ours" else _their_reply(vector), 1, "train")
        write_reply(folder / f"{side}-{client}", reply)


def _our_reply(client: int, vector: torch.Tensor):  # type: ignore[no-untyped-def]
    from fedsb.deploy.records import pack
    from fedsb.federation import wire

    exchange = _exchange()
    layout = exchange.up(1, exchange.whole)
    header = wire.Header("fed-sb", 1, layout.digest, client, num_examples=7 + client, train_loss=1.0)
    return pack({}, wire.pack(header, vector))


def _their_reply(vector: torch.Tensor):  # type: ignore[no-untyped-def]
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    metrics = MetricRecord({"num-examples": 7, "train_loss": 1.0})
    return RecordDict({"arrays": ArrayRecord({"v": Array(vector.numpy())}), "metrics": metrics})


def _exchange():  # type: ignore[no-untyped-def]
    from fedsb.federation.exchange import Exchange
    from fedsb.methods import Shape, fed_sb

    return Exchange(fed_sb, {f"layer{i}": Shape(512, 512) for i in range(LAYERS)}, RANK, 1, {})


def _our_round(files: list[Path]) -> Callable[[], object]:
    from flower_wire import StoredGrid

    from fedsb.config import RunConfig
    from fedsb.deploy.nodes import Nodes
    from fedsb.federation.server import aggregate, broadcasts
    from fedsb.federation.state import ServerState

    config = RunConfig.from_dict(
        {
            "model": {"path": "m"},
            "task": {"text": ["t"], "kind": "classification"},
            "data": {"train": "t", "test": "t"},
            "federation": {"clients": CLIENTS},
        }
    )
    grid, exchange = StoredGrid(files), _exchange()
    nodes = Nodes(grid, config, "run", print)  # type: ignore[arg-type]
    nodes.hello_at, nodes.nodes = dict.fromkeys(grid.replies, inf), dict(enumerate(grid.replies))
    state = ServerState(0, torch.zeros(NUMBERS))

    def do() -> object:
        message_for = broadcasts(state, exchange)
        answers = nodes.ask("train", range(len(files)), lambda client: message_for(client, exchange.whole))
        after, report = aggregate(state, answers, exchange, weighting="examples")
        assert len(report.clients) == len(files), report.rejected[:3]
        return after

    return do


def _their_round(files: list[Path]) -> Callable[[], object]:
    from flower_wire import StoredGrid
    from flwr.app import Array, ArrayRecord, ConfigRecord
    from flwr.serverapp.strategy import FedAvg

    grid, strategy = StoredGrid(files), FedAvg(fraction_train=1.0)
    arrays = ArrayRecord({"v": Array(torch.zeros(NUMBERS).numpy())})

    def do() -> object:
        questions = strategy.configure_train(1, arrays, ConfigRecord(), grid)  # type: ignore[arg-type]
        averaged, _ = strategy.aggregate_train(1, grid.send_and_receive(questions))
        assert averaged is not None
        return averaged

    return do


def _round(side: str, folder: Path) -> None:
    files = [folder / f"{side}-{client}" for client in range(CLIENTS)]
    make = _our_round if side == "ours" else _their_round
    make(files[:2])()
    do = make(files)
    with _peak_growth() as growth:
        began, cpu = time.perf_counter(), time.thread_time()
        do()
        found = {"seconds": time.perf_counter() - began, "cpu": time.thread_time() - cpu}
    print(json.dumps(found | {"growth": growth[0]}))


@contextmanager
def _peak_growth() -> Iterator[list[int]]:
    """Bytes by which this process' resident memory grew at most, looked at every millisecond."""
    before, found, ended = _resident(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            found[0] = max(found[0], _resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    ended.set()
    thread.join()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        torch.set_num_threads(1)
        {"write": _write, "round": _round}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
