"""16 simulated clients in two processes of the pool beside two workers of Ray, on this machine.

    pip install 'fedsb[ray]'
    python benchmarks/engines.py

Whole runs of five rounds on a MiniLM with random weights, one thread a process, in turn. The first round has
the start of the processes in it, so later rounds are told apart.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import simulation
from common import MINILM, save_random_model, verdict

from fedsb import RunConfig, run

CLIENTS, ROUNDS, EACH, REPEATS = 16, 5, 16, 3
ENGINES: dict[str, dict[str, Any]] = {
    "pool": {"processes": 2},
    "Ray": {"engine": {"kind": "ray", "workers": 2}},
}


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory(prefix="fedsb-bench-") as name:
        folder = Path(name)
        save_random_model(folder / "model", MINILM)
        simulation._write_rows(folder / "train.jsonl", CLIENTS * EACH)
        simulation._write_rows(folder / "test.jsonl", 8)
        for repeat in range(REPEATS):
            for engine in ENGINES:
                found[engine].append(_seconds(folder, engine, folder / f"{engine}-{repeat}"))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for engine, seconds in found.items():
        first, later = (statistics.median(values) for values in zip(*seconds, strict=True))
        print(f"{engine:<5} the first round {first:6.1f} s, a later one {later:6.2f} s")
    pairs = list(zip(found["pool"], found["Ray"], strict=True))
    verdict("first round, pool / Ray", statistics.median(pool[0] / ray[0] for pool, ray in pairs), 1.0)
    verdict("later rounds, pool / Ray", statistics.median(pool[1] / ray[1] for pool, ray in pairs), 1.05)


def _seconds(folder: Path, engine: str, out: Path) -> tuple[float, float]:
    """Of the first round with the start of what trains, and of a later round on average."""
    values: dict[str, Any] = simulation._config(folder)
    values["federation"] = {"clients": CLIENTS, "rounds": ROUNDS, **ENGINES[engine]}
    values["training"] |= {"threads": 1}
    began = time.perf_counter()
    run(RunConfig.from_dict(values), out)
    whole = time.perf_counter() - began
    rounds = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    print(f"{engine:<5} {whole:6.1f} s, rounds {rounds}", flush=True)
    return rounds[0], statistics.fmean(rounds[1:])


if __name__ == "__main__":
    main()
