"""An option or an override that would have no effect is an error, in every command; one that has is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import write_config

from fedsb.cli.options import evaluation_config

COST = ("cost", "--model", "ROOT/bert", "--clients", 3)
SPENT = ("privacy", "--ledger", "ROOT/none.jsonl")
COMPARE = ("compare", "ROOT/good.yaml", "--out", "OUT")

UNUSED: dict[str, tuple[tuple[object, ...], list[str]]] = {
    **{
        f"evaluate --run -s {text}": (
            ("evaluate", "--run", "ROOT/done", "-s", text),
            [f"-s {text.partition('=')[0]}", "no effect on scores"],
        )
        for text in (
            "method.rank=2",
            "federation.rounds=9",
            "training.learning_rate=1",
            "privacy.epsilon=3",
            "evaluation.every=2",
            "model.check_memory=false",
            "tracking=[tensorboard]",
            "method.init.kind=weights",
        )
    },
    "evaluate --run -s of a whole section": (
        ("evaluate", "--run", "ROOT/done", "-s", "training={batch_size: 3, max_length: 16}"),
        ["-s training.batch_size"],
    ),
    "evaluate --run --config -s": (
        ("evaluate", "--run", "ROOT/done", "--config", "ROOT/good.yaml", "-s", "federation.clients=2"),
        ["-s federation.clients"],
    ),
    "evaluate --run --adapter": (
        ("evaluate", "--run", "ROOT/done", "--adapter", "ROOT/done/adapter"),
        ["--adapter", "--run scores the run's own"],
    ),
    "evaluate --model -s model.path": (
        ("evaluate", "--model", "ROOT/bert", "--config", "ROOT/good.yaml", "-s", "model.path=ROOT/llama"),
        ["-s model.path", "--model names"],
    ),
    "evaluate -s compare": (
        ("evaluate", "--run", "ROOT/done", "-s", "compare.validation=0.5"),
        ["-s compare.validation"],
    ),
    "export lora --dtype": (
        ("export", "ROOT/done", "--out", "OUT", "--dtype", "float32"),
        ["--dtype", "--format merged"],
    ),
    "export merged --rank": (
        ("export", "ROOT/done", "--out", "OUT", "--format", "merged", "--rank", 4),
        ["--rank", "--format lora"],
    ),
    "export merged --for": (
        ("export", "ROOT/done", "--out", "OUT", "--format", "merged", "--for", "vllm"),
        ["--for", "--format lora"],
    ),
    "doctor -s without a config": (("doctor", "-s", "method.rank=4"), ["-s", "without a config"]),
    "doctor -s compare": (("doctor", "ROOT/good.yaml", "-s", "compare.validation=1"), ["compare.validation"]),
    "run -s compare": (
        ("run", "ROOT/good.yaml", "--out", "OUT", "-s", "compare={validation: 0.5}"),
        ["-s compare.validation", "fedsb compare"],
    ),
    "cost --rank": ((*COST, "--methods", "fed-sb:4,fedit:2", "--rank", 8), ["--rank", "rank of its own"]),
    "cost --heads": ((*COST, "--methods", "fedit", "--rank", 4, "--heads", 2), ["--heads", "core"]),
    "cost --init": ((*COST, "--methods", "fedit", "--rank", 4, "--init", "weights"), ["--init", "bases"]),
    "cost --upload": ((*COST, "--methods", "lora-xs:4", "--upload", "sketch"), ["--upload", "bases"]),
    "cost --ranks": (
        (*COST, "--methods", "ravan:4,fedit:2", "--ranks", "spectrum"),
        ["--ranks", "none of --methods has bases to choose"],
    ),
    "cost --init --ranks": (
        (*COST, "--rank", 4, "--init", "weights", "--ranks", "spectrum"),
        ["--ranks", "--init gradient"],
    ),
    "cost --init --upload": (
        (*COST, "--rank", 4, "--init", "orthonormal", "--upload", "sketch"),
        ["--upload", "--init gradient"],
    ),
    "cost --init weights --upload of the default": (
        (*COST, "--rank", 4, "--init", "weights", "--upload", "factors"),
        ["--upload"],
    ),
    **{
        f"privacy --ledger {option}": ((*SPENT, option, value), [option, "--ledger says what was spent"])
        for option, value in {
            "--examples": 9,
            "--batch-size": 3,
            "--epochs": 1,
            "--clients": 3,
            "--cohort": 2,
            "--rounds": 3,
            "--epsilon": 1,
            "--noise-multiplier": 1,
        }.items()
    },
    "compare -s seed": ((*COMPARE, "--methods", "fed-sb", "-s", "seed=3"), ["-s seed", "--seeds"]),
    "compare -s method.name": (
        (*COMPARE, "--methods", "fed-sb,fedit", "-s", "method.name=fedit"),
        ["-s method.name", "--methods"],
    ),
    "compare -s training.learning_rate": (
        (
            *(*COMPARE, "--methods", "fed-sb", "-s", "training.learning_rate=1"),
            *("-s", "compare.learning_rates=[0.1, 0.2]"),
        ),
        ["-s training.learning_rate", "compare.learning_rates"],
    ),
}

Fedsb = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("case", UNUSED)
def test_what_has_no_effect_is_refused(world: Path, tmp_path: Path, fedsb: Fedsb, case: str) -> None:
    arguments, parts = UNUSED[case]
    place = {"ROOT": str(world), "OUT": str(tmp_path / "out")}
    words = [str(word) for word in arguments]
    for name, folder in place.items():
        words = [word.replace(name, folder) for word in words]
    status, out, err = fedsb(*words)
    assert (status, out) == (2, "")
    assert all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_what_has_an_effect_is_taken(world: Path, tmp_path: Path) -> None:
    """The model's section is the run's, but for what is said of it."""
    other = write_config(
        tmp_path / "other.yaml",
        {
            "model": {"path": "elsewhere", "dtype": "float16"},
            "task": {"kind": "classification", "text": ["text"], "label": "key"},
            "data": {"train": "a.jsonl", "test": "b.jsonl"},
        },
    )
    overrides = ["model.dtype=bfloat16", "data.limit.test=3", "training.max_length=9", "seed=4"]
    plain = evaluation_config(world / "done", None, overrides)
    assert (plain.model.path, plain.model.dtype) == (str(world / "bert"), "bfloat16")
    assert (plain.data.limit.test, plain.training.max_length, plain.seed) == (3, 9, 4)
    mixed = evaluation_config(world / "done", other, [*overrides, "evaluation.batch_size=2"])
    assert (mixed.model.path, mixed.model.dtype) == (str(world / "bert"), "bfloat16")
    assert (mixed.task.label, mixed.evaluation.batch_size) == ("key", 2)  # type: ignore[union-attr]
    assert evaluation_config(None, other, ["model.dtype=float32"]).model.dtype == "float32"


def test_other_dtypes_of_a_run_are_scored(world: Path, fedsb: Fedsb) -> None:
    assert fedsb("evaluate", "--run", world / "done", "-s", "model.dtype=bfloat16")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--methods", "fed-sb,fedit", "--rank", 4, "--heads", 2, "--init", "weights"),
        ("--methods", "fed-sb:4,fedit", "--rank", 4, "--upload", "sketch"),
        ("--rank", 4, "--init", "gradient", "--upload", "whole"),
    ],
)
def test_options_that_one_method_looks_at_are_taken(
    world: Path, fedsb: Fedsb, arguments: tuple[object, ...]
) -> None:
    assert fedsb("cost", "--model", world / "bert", "--clients", 3, *arguments, "--json")[0] == 0
