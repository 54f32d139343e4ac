"""A run on a terminal: its lines and bars."""

import io
import re

import pytest
from rich.console import Console

from fedsb.report.console import LiveBars, PlainLines, round_line

RECORD = {
    "round": 2,
    "train_loss": 0.25,
    "eval": {"accuracy": 0.9, "macro_f1": 0.8, "matthews": 0.7, "loss": 0.3},
    "upload_bytes": 2650,
    "clients": [0, 2],
    "rejected": [],
    "seconds": 1.25,
}


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (None, []),
        (140, []),
        (110, ["macro f1"]),
        (95, ["macro f1", "matthews"]),
        (80, ["macro f1", "matthews", "clients"]),
    ],
)
def test_round_lines_fit_the_terminal(width, gone):
    line = re.sub(r"\[.*?\]", "", round_line(RECORD, 3, width=width))
    assert line.startswith("round 2 of 3  accuracy 0.9000  ")
    assert line.endswith("  1.2 s")
    assert len(line) <= (width or 200)
    assert [word for word in ("macro f1", "matthews", "clients") if word not in line] == gone
    assert "loss 0.3000  train loss 0.2500  up 2.65" in line


def test_round_lines_without_scores_or_with_a_score_that_was_not_finite():
    assert "accuracy" not in round_line({**RECORD, "eval": {}}, 3, width=10)
    assert "loss not finite  train loss" in round_line({**RECORD, "eval": {"loss": None}}, 3)


def drive(progress):
    """The events of a round in which one client fails with brackets in its reason."""
    progress.stage("loading [odd] name")
    progress.evaluating(5, 10)
    progress.evaluating(10, 10)
    progress.round_ends({**RECORD, "round": 0, "train_loss": None, "clients": []})
    progress.round_begins(1, 3, [0, 2])
    for client, problem in ((0, None), (2, "KeyError: '[/b]'")):
        progress.client_begins(client, 30)
        progress.step(20)
        progress.step(10)
        progress.client_ends(client, problem)
    progress.evaluating(10, 10)
    progress.round_ends(RECORD)


def test_live_bars_leave_only_their_lines():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with LiveBars(console) as bars:
        drive(bars)
        assert not bars._bars.tasks
    text = console.file.getvalue()
    assert "loading [odd] name" in text
    assert "client 2 left out: KeyError: '[/b]'" in text
    assert "round 2 of 3  accuracy" in text


def test_plain_lines_are_one_per_event():
    console = Console(file=io.StringIO(), soft_wrap=True)
    drive(PlainLines(console))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["·", "base", "client", "client", "round"]
    assert lines[0] == "· loading [odd] name"
    assert lines[3] == "client 2 left out: KeyError: '[/b]'"
