"""Peak memory of a run with 200 simulated clients beside one with 2, same 1,600 rows, MiniLM-sized model.

python benchmarks/client_memory.py
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MINILM, save_random_model, verdict


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(0)
    rows = [
        {"text": " ".join(f"w{rng.randrange(30000)}" for _ in range(16)), "label": i % 2}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, clients: int) -> None:
    """One round in this process; print its peak memory."""
    from fedsb import RunConfig
    from fedsb import run as run_config

    config = {
        "model": {"path": str(folder / "model")},
        "task": {"kind": "classification", "text": ["text"]},
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "federation": {"clients": clients, "rounds": 1},
    }
    result = run_config(RunConfig.from_dict(config), out=folder / f"run-{clients}")
    assert (
        len(json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[1])["clients"]) == clients
    )
    print(result.summary["peak_memory_bytes"])


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_model(folder / "model", MINILM)
        write_rows(folder / "train.jsonl", 1600)
        write_rows(folder / "test.jsonl", 64)
        peaks = {}
        for clients in (2, 200):
            command = [sys.executable, __file__, temporary, str(clients)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[clients] = int(done.stdout.splitlines()[-1])
            print(f"{clients:>4} clients   peak {peaks[clients] / 2**20:6.0f} MiB")
        verdict("peak memory: 200 clients / 2 clients", peaks[200] / peaks[2], 1.3)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else main()
