"""100 simulated clients, 5 rounds, LoRA of rank 8 on a MiniLM: `fedsb run` beside Flower's simulation on Ray.

    pip install 'ray==2.55.1'    # what flwr 1.41 asks for; Python 3.11 or 3.12
    python benchmarks/simulation.py

Same rows, same trained numbers, one step of 4 short texts for each client and round, no evaluation. All sides
are whole processes from start to end, ours with its report and adapter, on one thread and, clients in one
pass, on two; Ray gets a worker of one thread a core. Its clients load the base for each message, as in
Flower's examples, or keep it. Memory is the largest proportional set size (PSS) of the process and all its
children, looked at four times a second.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from common import MINILM, save_random_model, verdict

CLIENTS, ROUNDS, EACH, RANK = 100, 5, 4, 8
GOALS = {"Ray, base loaded": 0.3, "Ray, base kept": 0.45}
"""Share of its time."""
HERE = Path(__file__).resolve().parent


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fedsb-bench-") as name:
        folder = Path(name)
        save_random_model(folder / "model", MINILM)
        _write_rows(folder / "train.jsonl", CLIENTS * EACH)
        _write_rows(folder / "test.jsonl", 8)
        (folder / "run.yaml").write_text(yaml.safe_dump(_config(folder)))
        ours = [sys.executable, "-m", "fedsb", "run", folder / "run.yaml", "--out", folder / "run"]
        theirs = [sys.executable, HERE / "ray_clients.py"]
        stacked = [*ours[:-1], folder / "stacked", "-s", "federation.engine={kind: stacked, clients: 16}"]
        both = [*stacked[:-3], folder / "both", *stacked[-2:], "-s", "training.threads=2"]
        sides = {"fedsb": ours, "fedsb, 16 in one pass": stacked, "the same, two threads": both}
        sides |= {"Ray, base loaded": theirs, "Ray, base kept": theirs}
        found = {
            side: _watched(list(map(str, command)), folder, kept="kept" in side, threads=1 + ("two" in side))
            for side, command in sides.items()
        }
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for side, (seconds, memory) in found.items():
        print(f"{side:<21} {seconds:7.1f} s   {memory / 1e6:8.0f} MB")
    for ours in (side for side in sides if side not in GOALS):
        our_seconds, our_memory = found[ours]
        for side, goal in GOALS.items():
            seconds, memory = found[side]
            verdict(f"time of {ours} / {side}", our_seconds / seconds, goal)
            verdict(f"memory of {ours} / {side}", our_memory / memory, 0.25)


def _write_rows(file: Path, count: int) -> None:
    draw = random.Random(count)
    rows = [
        {"text": " ".join(f"w{draw.randrange(5000)}" for _ in range(8)), "label": i % 2} for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(folder: Path) -> dict[str, object]:
    return {
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "task": {"kind": "classification", "text": ["text"], "label": "label"},
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "method": {"name": "fedit", "rank": RANK, "init": {"head_warmup": None}},
        "federation": {"clients": CLIENTS, "rounds": ROUNDS},
        "training": {"learning_rate": 1e-3, "batch_size": EACH, "max_length": 32},
        "evaluation": {"every": None},
    }


def _watched(command: list[str], folder: Path, *, kept: bool, threads: int) -> tuple[float, int]:
    """Seconds to the end, and the largest PSS on the way."""
    settings = {"model": str(folder / "model"), "train": str(folder / "train.jsonl"), "rank": RANK}
    settings |= {
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "rows_per_client": EACH,
        "batch_size": EACH,
        "kept": kept,
    }
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": str(threads),
    }
    paths = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    told = {"FEDSB_BENCH": json.dumps(settings), "PYTHONPATH": paths, "FLWR_HOME": str(folder / "flwr")}
    began, largest = time.perf_counter(), 0
    process = psutil.Popen(command, env={**os.environ, **quiet, **told}, stdout=sys.stderr)
    while process.poll() is None:
        largest = max(largest, _pss(process))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{command[1]} ended with status {process.returncode}")
    return time.perf_counter() - began, largest


def _pss(process: psutil.Popen) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


if __name__ == "__main__":
    main()
