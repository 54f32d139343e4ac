"""What a 16-bit base loses of what rounds add to it: the run's loss beside its exported adapter's.

    python studies/base_updates_16bit.py MODEL E2E_FOLDER

A causal LM's folder, and a folder with E2E's trainset.csv and devset.csv. Prints, for methods that change
base weights and for both dtypes, the test loss of the model in the run and of its adapter on a fresh base.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fedsb import RunConfig, run
from fedsb.runner.evaluate import evaluate_run

ARMS: list[dict[str, Any]] = [
    {"name": "flora"},
    {"name": "fedex-lora"},
    {"name": "fed-sb", "refresh_every": 1},
]


def config(model: str, data: Path, dtype: str, method: dict[str, Any]) -> RunConfig:
    return RunConfig.from_dict(
        {
            "model": {"path": model, "dtype": dtype},
            "task": {"kind": "causal-lm", "prompt": "{mr} ->", "response": "ref"},
            "data": {
                "train": str(data / "trainset.csv"),
                "test": str(data / "devset.csv"),
                "limit": {"train": 384, "test": 64},
            },
            "method": {"rank": 8, **method},
            "federation": {"clients": 3, "rounds": 4, "partition": {"kind": "iid"}},
            "training": {"learning_rate": 3e-4, "batch_size": 16, "max_length": 160},
            "evaluation": {"every": 4},
        }
    )


def main(model: str, data: str) -> None:
    for method in ARMS:
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                in_run = run(config(model, Path(data), dtype, method), out).summary["final"]["loss"]
                adapter = evaluate_run(out)["metrics"]["loss"]
            print(f"{method['name']:12s} {dtype:9s} run {in_run:.4f}  adapter {adapter:.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
