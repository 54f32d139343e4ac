"""What is printed goes through here: a console whose terminal no text commands, text that is no markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from fedsb.common.printable import LONGEST, printable


class Screen(Console):
    """A console that shows control characters, and what cannot be seen, as escapes wherever they are."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, None, keep="\n"), style, control)


def shown(text: object, limit: int | None = LONGEST, *, keep: str = "") -> str:
    """As `printable`, for a place where rich looks for markup: it finds none."""
    return escape(printable(text, limit, keep=keep))


def say(lines: Iterable[str], console: Console) -> None:
    """Print sentences: broken between words on a terminal, a line each in a file or pipe."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
