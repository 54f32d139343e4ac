"""Sentences on a terminal and in a pipe."""

import io

from fedsb.report.screen import Screen, say

WORDS = "one line of words that is longer than a narrow terminal is wide, [b]with brackets[/b]"


def printed(*, terminal: bool) -> list[str]:
    to = io.StringIO()
    say([WORDS, "two"], Screen(file=to, width=30, force_terminal=terminal, soft_wrap=True, no_color=True))
    return [line.rstrip() for line in to.getvalue().splitlines()]


def test_lines_break_between_words_where_somebody_watches() -> None:
    lines = printed(terminal=True)
    assert max(map(len, lines)) <= 30
    assert " ".join(lines) == f"{WORDS} two"


def test_a_pipe_gets_a_line_each() -> None:
    assert printed(terminal=False) == [WORDS, "two"]
