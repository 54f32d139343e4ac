"""How far a reader walks: the package's files that one round of the quickstart enters.

A round is what `play_round` does: broadcast -> clients train -> aggregate -> evaluate -> record. Who is asked
was chosen before it, and the checkpoint, the folder and the pages are written after it. A file is entered
where a function of it is called. Whoever watches is not of the round: the watcher here is the test's own.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fedsb
from fedsb.cli.quickstart.recipe import quickstart_config
from fedsb.runner import loop

HOME = Path(fedsb.__file__).parent
FEW = ["federation.rounds=2", "data.limit.train=120", "data.limit.test=30", "method.init.samples=40"]
MOST = 16


class Blind:
    """A watcher that looks at nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **more: None


def files_entered(call: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What the call gives, and how many calls of functions there were in each file of the package."""
    entered: Counter[str] = Counter()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(HOME):
            entered[str(file.relative_to(HOME))] += 1

    sys.setprofile(look)
    try:
        return call(), entered
    finally:
        sys.setprofile(None)


def test_one_round_enters_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds, real = [], loop.play_round

    def traced(*args: Any) -> Any:
        record, entered = files_entered(lambda: real(*args))
        rounds.append(entered)
        return record

    monkeypatch.setattr(loop, "play_round", traced)
    loop.run(quickstart_config(tmp_path, FEW), tmp_path / "run", progress=Blind())
    entered = rounds[1]
    with capsys.disabled():
        print(f"\none round enters {len(entered)} files: {', '.join(sorted(entered))}")
    assert {"runner/rounds.py", "federation/server.py", "federation/client.py"} <= set(entered)
    assert len(entered) <= MOST
