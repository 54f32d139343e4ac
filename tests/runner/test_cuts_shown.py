"""Runs, reports and the doctor say what was cut from the examples; a private run's folder does not."""

import json

import pytest
from run_helpers import (
    causal_config,
    classification_config,
    main_status,
    tiny_bert,
    tiny_llama,
    write_config,
    write_rows,
)

from fedsb import RunConfig
from fedsb.report.progress import Silent
from fedsb.runner import run

LONG = " ".join(f"w{i % 16}" for i in range(40))
ROWS = [
    {"key": "good", "text": "good w1", "label": "pos"},
    {"key": "bad", "text": LONG, "label": "neg"},  # too long a text, and too long a prompt
    {"key": f"{LONG} dull", "text": "bad", "label": "neg"},
    {"key": "dull", "text": "good", "label": f"pos {LONG}"},  # too long a response
]
CAUSAL = (
    "training.max_length 24 cuts 8 of 16 {} examples (8 prompts, 4 whole prompts, 4 responses, 4 end tokens)"
)


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    for name in ("train", "test"):
        write_rows(folder / f"{name}.jsonl", ROWS * 4)
    return folder


def causal(world, **changes):
    short = {"training__max_length": 24, "federation__rounds": 1, "evaluation__generate": None}
    return causal_config(world / "llama", world, **(short | changes))


def test_a_run_warns_and_keeps_the_counts(world, tmp_path):
    told = Told()
    summary = run(RunConfig.from_dict(causal(world)), tmp_path / "out", progress=told).summary
    warnings = [line for line in told.lines if line.startswith("warning: training")]
    assert [line.split(";")[0] for line in warnings] == [
        f"warning: {CAUSAL.format(split)}" for split in ("train", "test")
    ]
    counts = json.loads((tmp_path / "out/summary.json").read_text())["tokens"]["train"]
    assert counts == summary["tokens"]["train"]
    assert (counts["examples"], counts["cut"], counts["cut_prompts"], counts["lost_end_tokens"]) == (
        16,
        8,
        8,
        4,
    )
    assert counts["length"]["max"] == 45  # say, 41 words, ":", a response of one and its end token
    page = (tmp_path / "out/report.html").read_text()
    assert CAUSAL.format("train") in page
    assert "<td>45</td>" in page.replace(' class="number"', "")


def test_a_run_that_cuts_nothing_warns_of_nothing(world, tmp_path):
    told = Told()
    config = causal(world, training__max_length=64)
    summary = run(RunConfig.from_dict(config), tmp_path / "out", progress=told).summary
    assert [line for line in told.lines if "warning" in line] == [
        "warning: 16 of 16 test examples are training examples, too, token by token; take them out of one of "
        "the two"
    ]
    assert "tokens in train examples: p50 5, p95 45, p99 45, max 45" in told.lines
    assert summary["tokens"]["train"]["cut"] == 0
    assert "training.max_length 64 cuts" not in (tmp_path / "out/report.html").read_text()


def test_cut_texts_of_a_classification_are_told(world, tmp_path):
    told = Told()
    config = classification_config(
        world / "bert", world, training__max_length=16, federation__rounds=1, method__init__head_warmup=None
    )
    summary = run(RunConfig.from_dict(config), tmp_path / "out", progress=told).summary
    assert summary["tokens"]["test"]["cut_texts"] == 4
    assert any("training.max_length 16 cuts 4 of 16 test examples (4 texts)" in line for line in told.lines)


def test_a_private_run_s_folder_says_nothing_of_its_rows(world, tmp_path):
    pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")
    told = Told()
    config = causal(
        world,
        privacy={"unit": "example", "epsilon": 8.0, "delta": 0.01, "clip_norm": 1.0},
        method__init={"kind": "weights"},
    )
    summary = run(RunConfig.from_dict(config), tmp_path / "out", progress=told).summary
    assert list(summary["tokens"]) == ["test"]
    assert CAUSAL.format("train") not in (tmp_path / "out/report.html").read_text()
    assert any(CAUSAL.format("train") in line for line in told.lines)  # on the screen of who has the rows


def test_the_doctor_lists_cuts_and_lengths(world, tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "c.yaml", causal(world))
    assert main_status(monkeypatch, "doctor", path, "--json") == 0
    found = [f["detail"] for f in json.loads(capsys.readouterr().out)["findings"] if f["what"] == "tokens"]
    assert found[0] == "in train examples: p50 5, p95 45, p99 45, max 45"
    assert [line.split(";")[0] for line in found[2:]] == [CAUSAL.format(split) for split in ("train", "test")]
