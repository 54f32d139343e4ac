"""No text from elsewhere commands a terminal, turns the direction of writing, hides, or is markup."""

from __future__ import annotations

import ast
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from run_helpers import classification_config, shell, write_config

import fedsb
from fedsb import RunConfig
from fedsb.cli import compare
from fedsb.cli.common import print_json
from fedsb.common.printable import printable
from fedsb.report import markup
from fedsb.report.console import LiveBars, PlainLines, round_line
from fedsb.report.screen import Screen, shown

EVIL = (
    "a\x1b[2J\x1b]0;owned\x07\x1b]52;c;eA==\x07\x9b31m\r\x08\x7f\u202eb\u2066\u200b\u2028\ufeff[red]c[/red]"
)
UNWANTED = [c for c in EVIL if not c.isprintable()]
RECORD: dict[str, Any] = {
    "round": 1,
    "eval": {EVIL: 0.5},
    "train_loss": 0.1,
    "clients": [0],
    "rejected": [{"client": 1, "reason": EVIL}],
    "upload_bytes": 1,
    "download_bytes": 1,
    "upload_parameters": 1,
    "seconds": 1.0,
}


def assert_clean(text: str, *, ours: str = "\n") -> None:
    found = sorted({hex(ord(c)) for c in text if c in UNWANTED and c not in ours})
    assert not found, found


@given(text=st.text(st.characters(exclude_categories=[]), max_size=60), limit=st.integers(5, 80))
def test_what_is_printable_is_short_and_seen(text: str, limit: int) -> None:
    found = printable(text, limit)
    assert len(found) <= limit
    assert not {unicodedata.category(c) for c in found} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(found) & set(UNWANTED)
    assert printable(found, limit) == found


def test_what_can_be_seen_stays_as_it_is() -> None:
    text = "Zürich, 東京, São Paulo, naïve – “quoted” ½ 🙂 \\ [x] {y} <z>"
    assert printable(text) == text
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"


@given(value=st.dictionaries(st.text(st.characters(exclude_categories=[]), max_size=5), st.text(max_size=20)))
def test_json_stays_the_same_json(value: dict[str, str]) -> None:
    assert json.loads(printable(json.dumps(value, ensure_ascii=False), None)) == value


def test_a_long_text_is_not_walked_through() -> None:
    class Long(str):
        def __getitem__(self, place: Any) -> str:
            assert place.stop <= 301
            return str(super().__getitem__(place))

    assert len(printable(Long("\x1b" * 1000))) == 300


# ---------------------------------------------------------------- the doors


def printed(say: Any, kind: Any = PlainLines) -> str:
    written = io.StringIO()
    console = Console(file=written, width=200, force_terminal=True, color_system=None)
    say(kind(console))
    return written.getvalue()


@pytest.mark.parametrize("kind", [PlainLines, LiveBars])
@pytest.mark.parametrize(
    "say",
    [
        lambda lines: lines.client_ends(2, EVIL),
        lambda lines: lines.stage(EVIL),
        lambda lines: lines.round_ends(RECORD),
    ],
)
def test_a_run_prints_no_control_characters_and_obeys_no_markup(kind: Any, say: Any) -> None:
    text = printed(say, kind)
    assert_clean(text)
    assert "[red]c[/red]" in text


def test_a_comparison_prints_none_either() -> None:
    def say(lines: Any) -> None:
        lines.begins(1)
        lines.run_begins(EVIL)
        lines.run_at(EVIL, 0.5, f"round {EVIL}")
        lines.run_ends(EVIL, EVIL)
        lines.stage(EVIL)

    for kind in (compare.PlainLines, compare.LiveBars):
        text = printed(say, kind)
        assert_clean(text)
        assert "[red]c[/red]" in text


def test_a_screen_shows_everything_that_it_is_given() -> None:
    written = io.StringIO()
    screen = Screen(file=written, width=400, force_terminal=True, color_system=None)
    table = Table(title=EVIL, show_header=True)
    table.add_column(EVIL)
    table.add_row(shown(EVIL))
    screen.print(table)
    screen.print(EVIL, markup=False)
    screen.print(shown(EVIL))
    assert_clean(written.getvalue())
    assert written.getvalue().count("\\u001b[2J") == 5


def test_json_on_stdout_has_no_control_characters_and_the_same_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({EVIL: [EVIL, "\ud800"]})
    text = capsys.readouterr().out
    assert_clean(text)
    assert json.loads(text) == {EVIL: [EVIL, "\ud800"]}


def test_a_page_shows_no_control_characters() -> None:
    evil = EVIL + '"><script>'
    parts = [
        markup.paragraph(evil),
        markup.link(evil, evil),
        markup.table(evil, markup.texts(evil), [[evil]]),
        markup.pairs([(evil, evil)]),
        markup.section("a", 2, evil),
        markup.details(evil),
    ]
    for part in parts:
        assert_clean(part)
        assert "<script" not in part
    assert "a\n\tb" in markup.paragraph("a\n\tb")


def test_round_line_takes_no_markup_from_a_metrics_name() -> None:
    assert "\\[red]" in round_line(RECORD, 3)


def test_the_commands_print_none_of_a_folder_that_somebody_sent(tmp_path: Path) -> None:
    config = classification_config(tmp_path / "m", tmp_path / "d")
    (tmp_path / "config.yaml").write_text(RunConfig.from_dict(config).to_yaml())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    status = shell("status", tmp_path, FORCE_COLOR="1")
    assert status.returncode == 0, status.stderr
    assert_clean(status.stdout + status.stderr)
    assert "client 1" in status.stdout
    config["data"]["train"] = str(tmp_path / "no\x1b[2J\u202e.jsonl")
    wrong = shell("run", write_config(tmp_path / "c.yaml", config), cwd=tmp_path, FORCE_COLOR="1")
    assert wrong.returncode == 2
    assert "\x1b[2J" not in wrong.stdout + wrong.stderr
    assert "\\u001b[2J" in wrong.stderr


def test_no_module_prints_past_the_door() -> None:
    """Consoles are made, and markup is escaped, in `screen` alone."""
    for path in Path(fedsb.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        calls = {
            n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        if path.name != "screen.py":
            assert "escape" not in names, path
            assert "Console" not in calls, path
