"""What a run writes, made up: config, metrics, summary, partition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[..., Path]

LABELS = ["entailment", "neutral", "contradiction"]

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"path": "bert-tiny", "dtype": "float32"},
    "task": {"kind": "classification", "text": ["premise", "hypothesis"], "label": "label"},
    "data": {"train": "train.jsonl", "test": "test.jsonl", "limit": {"train": None, "test": None}},
    "method": {"name": "fed-sb", "rank": 64, "init": {"kind": "gradient", "samples": 2, "rule": "sign"}},
    "federation": {"clients": 5, "clients_per_round": 4, "rounds": 5, "partition": {"kind": "dirichlet"}},
    "privacy": None,
}
SUMMARY: dict[str, Any] = {
    "method": "fed-sb",
    "primary_metric": "accuracy",
    "base": {"accuracy": 0.241, "macro_f1": 0.1, "matthews": 0.0, "loss": 1.61},
    "final": {"accuracy": 0.913, "macro_f1": 0.9, "matthews": 0.88, "loss": 0.31},
    "rounds": 5,
    "communication": {
        "init_bytes": 120_000,
        "upload_bytes": 3_994_000,
        "download_bytes": 4_992_500,
        "upload_parameters_per_client_per_round": 49_922,
        "one_time": [
            {"what": "gradient", "direction": "up", "clients": 5, "bytes": 20_000, "parameters": 5_000},
            {"what": "bases", "direction": "down", "clients": 5, "bytes": 100_000, "parameters": 25_000},
        ],
    },
    "initialization": {"kind": "gradient", "rule": "sign", "samples": {str(c): [c, c + 9] for c in range(5)}},
    "privacy": None,
    "seconds": 41.2,
    "peak_memory_bytes": 612_000_000,
    "versions": {"fedsb": "0.1.0", "torch": "2.13.0"},
}
PRIVACY = {
    "unit": "example",
    "epsilon": 2.97,
    "delta": 1e-05,
    "accountant": "prv",
    "noise_multiplier": 1.13,
    "per_client": {"0": {"epsilon": 2.97, "steps": 120}, "1": {"epsilon": 2.5, "steps": 130}},
    "statement": "Each example is protected: ε = 2.97 at δ = 1e-05.",
}


def metrics(rounds: int = 5, final: float = 0.913) -> list[dict[str, Any]]:
    found = [
        {
            "round": 0,
            "train_loss": None,
            "eval": {"accuracy": 0.241, "macro_f1": 0.1, "matthews": 0.0, "loss": 1.61},
            "upload_bytes": 0,
            "download_bytes": 0,
            "upload_parameters": 0,
            "clients": [],
            "rejected": [],
            "seconds": 0.4,
        }
    ]
    for n in range(1, rounds + 1):
        score = final - (final - 0.241) * 0.5**n * (n < rounds)
        found.append(
            {
                "round": n,
                "train_loss": 1.6 * 0.7**n,
                "eval": {
                    "accuracy": score,
                    "macro_f1": score - 0.02,
                    "matthews": score - 0.1,
                    "loss": 1.7 * 0.75**n,
                },
                "upload_bytes": 798_800,
                "download_bytes": 998_500,
                "upload_parameters": 199_688,
                "clients": [c for c in range(5) if c != n % 5 and not (n == 2 and c == 3)],
                "rejected": [{"client": 3, "reason": "update is not finite"}] if n == 2 else [],
                "seconds": 7.9,
            }
        )
    return found


def partition() -> dict[str, Any]:
    sizes = [[30, 5, 12], [2, 40, 9], [20, 20, 1], [0, 3, 33], [8, 16, 11]]
    clients = {str(c): list(range(100 * c, 100 * c + sum(size))) for c, size in enumerate(sizes)}
    labels = {str(c): dict(zip(LABELS, size, strict=True)) for c, size in enumerate(sizes)}
    return {"kind": "dirichlet", "clients": clients, "labels": labels}
