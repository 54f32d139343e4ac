"""Does a core of one's own help? Fed-SB shared, personal and alone, and FedSA-LoRA; each site has a task.

    python studies/mixture_rows.py classes OUT --rows 320 [--of ...]
    python studies/personal_cores.py OUT MODEL RESULTS [--seeds 0,1,2]

The first 80 rows of each task choose each arm's rate, on rows held out of those at each site; the other rows
are split and scored under every seed. Results are kept as lines of JSON: a study that was stopped resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedsb import RunConfig, run

TASKS, TUNING_ROWS = 4, 80
ARMS: dict[str, dict[str, Any]] = {
    "shared": {"method": {"name": "fed-sb"}},
    "personal": {"method": {"name": "fed-sb", "personal": True}},
    "fedsa-lora": {"method": {"name": "fedsa-lora"}},
}
RATES = {"shared": [2e-3, 5e-3, 1e-2], "fedsa-lora": [1e-3, 3e-3, 1e-2]}
PERSONAL_RATES = [0.3, 1.0]
"""Times the rate of the shared core, over the rate that `shared` chose."""


def config_of(
    model: str, train: Path, arm: str, seed: int, rate: float, own: float = 1.0, *, alone: bool = False
) -> RunConfig:
    """One run; `alone`: with the baseline beside it."""
    method = {"rank": 32, "targets": ["query", "value"]} | ARMS[arm]["method"]
    training = {"learning_rate": rate, "personal_rate": own, "batch_size": 16, "max_length": 96}
    values = {
        "seed": seed,
        "model": {"path": model},
        "task": {"kind": "classification", "text": ["first", "second"], "label": "label"},
        "data": {"train": str(train), "client_test": 0.2},
        "method": method,
        "federation": {
            "clients": TASKS,
            "rounds": 3,
            "partition": {"kind": "by-column", "column": "source"},
        },
        "training": training | {"group_by_length": True},
        "evaluation": {"at_clients": True, "every": 3, "baselines": ["local"] if alone else []},
    }
    return RunConfig.from_dict(values)


def split(folder: Path, results: Path) -> tuple[Path, Path]:
    """The rows in two files: to choose rates on, and to study."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    seen: dict[str, int] = {}
    parts: tuple[list[Any], list[Any]] = ([], [])
    for row in rows:
        seen[row["source"]] = seen.get(row["source"], 0) + 1
        parts[seen[row["source"]] > TUNING_ROWS].append(row)
    files = results / "tuning.jsonl", results / "study.jsonl"
    for file, part in zip(files, parts, strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    return files


def done(results: Path, key: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """What this run gave: accuracies by site, and of training alone; run if it is not there yet."""
    file = results / "runs.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if known := next((line for line in lines if line["key"] == key), None):
        return dict(known)
    out = results / "run"
    shutil.rmtree(out, ignore_errors=True)
    sites = run(config, out).summary["sites"]
    scores = {kind: of for kind, of in {"run": sites["scores"], **sites["baselines"]}.items()}
    accuracy = {kind: [of[s]["accuracy"] for s in sorted(of)] for kind, of in scores.items()}
    line = {"key": key, "rows": sites["rows"], **accuracy}
    with file.open("a") as kept:
        kept.write(json.dumps(line) + "\n")
    return line


def best(
    results: Path, model: str, file: Path, arm: str, choices: list[tuple[float, float]]
) -> tuple[float, float]:
    """The (rate, own rate) with the highest mean over sites on the tuning rows."""

    def score(choice: tuple[float, float]) -> float:
        key = {"arm": arm, "tuning": True, "rates": choice}
        return fmean(
            done(results, {**key, "rates": list(choice)}, config_of(model, file, arm, 9, *choice))["run"]
        )

    return max(choices, key=score)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    asked = parser.parse_args()
    asked.results.mkdir(parents=True, exist_ok=True)
    tuning, study = split(asked.rows, asked.results)
    rates = {
        arm: best(asked.results, asked.model, tuning, arm, [(r, 1.0) for r in RATES[arm]]) for arm in RATES
    }
    choices = list(product([rates["shared"][0]], PERSONAL_RATES))
    rates["personal"] = best(asked.results, asked.model, tuning, "personal", choices)
    print(f"rates: {rates}")
    lines: dict[str, list[list[float]]] = {}
    for seed, arm in product(map(int, asked.seeds.split(",")), ARMS):
        config = config_of(asked.model, study, arm, seed, *rates[arm], alone=arm == "shared")
        line = done(asked.results, {"arm": arm, "seed": seed, "rates": list(rates[arm])}, config)
        lines.setdefault(arm, []).append(line["run"])
        if "local" in line:
            lines.setdefault("alone", []).append(line["local"])
    for arm, runs in lines.items():
        means = [fmean(sites) for sites in runs]
        each = " ".join(f"{fmean(site):.3f}" for site in zip(*runs, strict=True))
        print(f"{arm:<12} {fmean(means):.3f} +- {stdev(means) if len(means) > 1 else 0:.3f}   sites {each}")
        paired = [fmean(sites) - fmean(base) for sites, base in zip(runs, lines["shared"], strict=True)]
        print(f"{'':<12} minus shared, by seed: {' '.join(f'{gain:+.3f}' for gain in paired)}")


if __name__ == "__main__":
    main()
