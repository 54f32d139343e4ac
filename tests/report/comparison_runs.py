"""What a comparison writes, made up: any number of methods, seeds with their spread, whole run folders."""

import json
import random
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from report_runs import CONFIG, SUMMARY, metrics, partition

NAMES = [
    *("fed-sb", "fedit", "ffa-lora", "flora", "fedex-lora", "lora-xs"),
    *("ravan", "fedsvd", "rolora", "flexlora", "fed-sb-w0"),
]
BYTES = [31e6, 59e6, 30e6, 190e6, 240e6, 33e6, 36e6, 66e6, 31.5e6, 61e6, 3.6e6]
VALUES = [0.8345, 0.829, 0.812, 0.8335, 0.838, 0.806, 0.8361, 0.8302, 0.8244, 0.8296, 0.821]
RATES = [0.00167, 0.005, 0.015]


def write_comparison(
    folder: Path, methods: int = 3, seeds: int = 3, names: list[str] = NAMES, rounds: int = 5
) -> Path:
    """A folder as `fedsb compare` leaves it, down to the files that its page reads."""
    draw, records, tuning = random.Random(7), [], []
    for at, name in enumerate(names[:methods]):
        for seed in range(seeds):
            score = VALUES[at % 11] + draw.gauss(0, 0.005)
            records.append(_record(folder, name, at, seed, score, rounds))
        tuning += [_trial(name, at, rate, draw) for rate in RATES]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(_document(records, tuning)))
    config = {**CONFIG, "compare": {"validation": 0.1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def _record(folder: Path, name: str, at: int, seed: int, score: float, rounds: int) -> dict[str, Any]:
    path = f"runs/{name.replace('/', '_')}/seed-{seed}"
    rate, run = RATES[at % 3], folder / path
    run.mkdir(parents=True)
    method = {**CONFIG["method"], "name": name.removesuffix("-w0"), "rank": 64 if at % 5 == 0 else 32}
    config = {**CONFIG, "seed": seed, "method": method, "training": {"learning_rate": rate}}
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    lines = metrics(rounds, final=score)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "method": name}))
    (run / "partition.json").write_text(json.dumps(partition()))
    return {
        "method": name,
        "seed": seed,
        "metric": "accuracy",
        "value": score,
        "total_bytes": int(BYTES[at % 11]),
        "run": path,
        "learning_rate": rate,
        "base": 0.241,
        "seconds": 41.2,
        "init_bytes": 0.6 * BYTES[at % 11],
        "bytes_per_round": BYTES[at % 11] / 40,
    }


def _trial(name: str, at: int, rate: float, draw: random.Random) -> dict[str, Any]:
    failed = at == 3 and rate == RATES[2]
    return {
        "method": name,
        "learning_rate": rate,
        "value": None if failed else VALUES[at % 11] - draw.random() / 50,
        "run": f"tuning/{name}/lr-{rate}",
        "problem": "diverged" if failed else None,
        "chosen": rate == RATES[at % 3],
    }


def _document(records: list[dict[str, Any]], tuning: list[dict[str, Any]]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    first = next(iter(groups.values()))
    summary = {name: _summary(held, first) for name, held in groups.items()}
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "baseline": records[0]["method"],
        "runs": records,
        "summary": summary,
        "pareto": [name for name, row in summary.items() if not _beaten(row, summary)],
        "split": {"seed": 0, "train": 7200, "validation": 800},
        "tuning": tuning,
        "failed": [],
    }


def _summary(held: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    values = [record["value"] for record in held]
    apart = [a["value"] - b["value"] for a, b in zip(held, first, strict=True)]
    several = len(values) > 1
    return {
        "mean": mean(values),
        "std": stdev(values) if several else None,
        "total_bytes": held[0]["total_bytes"],
        "init_bytes": held[0]["init_bytes"],
        "bytes_per_round": held[0]["bytes_per_round"],
        "learning_rate": held[0]["learning_rate"],
        "seeds": len(held),
        "tuned": True,
        "edge": held[0]["learning_rate"] != RATES[1],
        "difference": {"mean": mean(apart), "std": stdev(apart) if several else None, "seeds": len(held)},
    }


def _beaten(row: dict[str, Any], summary: dict[str, dict[str, Any]]) -> bool:
    return any(
        other["total_bytes"] <= row["total_bytes"]
        and other["mean"] >= row["mean"]
        and (other["total_bytes"], other["mean"]) != (row["total_bytes"], row["mean"])
        for other in summary.values()
    )
