"""The doctor says ok if and only if a run works: cases from the field, and a table of families and changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import save_byte_tokenizer
from run_helpers import FILLERS, KEYS, causal_config, classification_config, write_rows
from tiny_models import FAMILIES, POSITIONS, VOCABULARY, Tiny
from transformers import AutoTokenizer

from fedsb.cli import doctor as doctor_module
from fedsb.cli.doctor import Finding, Stage, examine
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.federation.server import broadcast
from fedsb.report.progress import Silent
from fedsb.runner import prepare_model, prepared
from fedsb.runner.clients import local_clients
from fedsb.runner.prepare_model import local_model_of
from fedsb.runner.prepared import prepare
from fedsb.runner.round_zero import begin

SHORT, LONG = 6, 3 * POSITIONS
"""Words in a row."""


def write_texts(folder: Path, words: int) -> Path:
    """Rows of so many words; the last word of the vocabulary is in the prompts of decoders."""
    folder.mkdir(exist_ok=True)
    texts = [" ".join((FILLERS * 9)[i : i + words]) for i in range(6)]
    labels = list(KEYS.values()) * 2
    pairs = zip(texts, labels, strict=True)
    rows = [{"text": text, "other": "w1 w2", "label": label} for text, label in pairs]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[:3])
    return folder


def config_for(family: Tiny, model: Path, data: Path, **changes: Any) -> RunConfig:
    """One client, one step; every part of a start that computes."""
    init = {"samples": 4, "head_warmup": {"rounds": 1, "steps": 1}}
    settings: dict[str, Any] = {
        "method__init": init,
        "method__rank": 2,
        "federation": {"clients": 1, "rounds": 1},
        "training__batch_size": 6,
        "training__max_length": 20,
    }
    if not family.causal:
        return RunConfig.from_dict(classification_config(model, data, **settings | changes))
    settings |= {"task__prompt": "{text} :", "task__max_new_tokens": 2, "evaluation__generate": 1}
    return RunConfig.from_dict(causal_config(model, data, **settings | changes))


def one_step(config: RunConfig, folder: Path) -> None:
    """A run up to its first client's answer."""
    run = prepare(config, folder, Silent())
    start = begin(run)
    local_model = local_model_of(config, run.data, run.base, start.factors)
    message = broadcast(start.state, local_model.exchange, 0, local_model.exchange.whole)
    local_clients(config, run.data, local_model, None)(0).answer(message)


def error_of_a_step(config: RunConfig, folder: Path) -> Exception | None:
    try:
        one_step(config, folder)
    except Exception as error:
        return error
    return None


def wrong(config: RunConfig) -> list[Finding]:
    return [finding for finding in examine(config) if finding.ok is False]


# ---------------------------------------------------------------- a table of families and changes

Change = Callable[[Tiny], tuple[dict[str, Any], dict[str, Any], int]]
"""Family -> (arguments of its config, settings of the run, words in a row)."""


def positions_key(family: Tiny) -> dict[str, Any]:
    """Where a family says how large its vocabulary is."""
    return {"n_words" if "n_words" in family.arguments else "vocab_size": VOCABULARY - 2}


CHANGES: dict[str, Change] = {
    "plain": lambda family: ({}, {}, SHORT),
    "as long as it goes": lambda family: ({}, {"training__max_length": family.usable or LONG}, LONG),
    "one token more": lambda family: ({}, {"training__max_length": (family.usable or LONG) + 1}, LONG),
    "fewer embeddings": lambda family: (positions_key(family), {}, SHORT),
    "a pad id out of reach": lambda family: ({}, {}, SHORT),
    "a pair in one segment": lambda family: (
        {"type_vocab_size": 1} if family.segments else {},
        {} if family.causal else {"task__text": ["text", "other"]},
        SHORT,
    ),
    "checkpointing": lambda family: ({}, {"training__gradient_checkpointing": True}, SHORT),
    "16 bits": lambda family: ({}, {"model__dtype": "bfloat16"}, SHORT),
    "all layers": lambda family: ({}, {"method__targets": "all-linear"}, SHORT),
}
TRIED_BY_ALL = 2
"""Changes that each family is tried with; the next family begins where this one ended."""


def combinations() -> Iterator[tuple[str, str]]:
    names, number = list(CHANGES), 0
    for family in FAMILIES:
        for _ in range(TRIED_BY_ALL):
            name, number = names[number % len(names)], number + 1
            if not (name == "one token more" and FAMILIES[family].trained):  # can be computed, and is refused
                yield family, name


def set_pad(folder: Path, pad: int) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": pad}))


@pytest.mark.parametrize(("name", "change"), combinations())
def test_the_doctor_says_ok_if_and_only_if_a_step_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    family = FAMILIES[name]
    arguments, settings, words = CHANGES[change](family)
    model = family.save(tmp_path / "model", **arguments)
    if change == "a pad id out of reach":
        set_pad(model, VOCABULARY + 5)
    config = config_for(family, model, write_texts(tmp_path / "data", words), **settings)
    findings = wrong(config)
    monkeypatch.setattr(prepared, "try_rows", lambda *a: 0)  # a run that does not look before
    monkeypatch.setattr(prepare_model, "check_limits", lambda *a: None)
    error = error_of_a_step(config, tmp_path / "run")
    assert bool(findings) == (error is not None), (findings, error)
    for finding in findings:
        assert ":" in finding.detail
        assert not any(part in finding.detail for part in ("Traceback", "not expected", "defect", *FILLERS))
