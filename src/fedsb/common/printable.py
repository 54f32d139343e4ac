"""Text that came from elsewhere, fit to be printed, stored and put on a page. Imports nothing of ours.

What a terminal would obey, what turns the direction of writing and what cannot be seen is shown as its JSON
escape: an escape sequence does nothing, and JSON text stays JSON with the same value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

LONGEST = 300
"""Characters kept of a reason."""
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
"""C0, DEL, C1; bidirectional marks, overrides and isolates; zero-width and filler characters; separators of
lines and paragraphs; lone surrogates; tags and variation selectors."""


def printable(text: object, limit: int | None = LONGEST, *, keep: str = "") -> str:
    """The text with such characters escaped, cut to `limit` characters.

    Args:
        limit: None: as long as it is.
        keep: characters let through all the same, such as the newlines of a text of several lines.

    >>> printable("red \x1b[31m")
    'red \\\\u001b[31m'
    """
    start = str(text)[: None if limit is None else limit + 1]
    escaped = UNSEEN.sub(lambda match: match[0] if match[0] in keep else json.dumps(match[0])[1:-1], start)
    return escaped if limit is None or len(escaped) <= limit else escaped[: limit - 1] + "…"


LONGEST_SITE = 64
"""Characters of a site's name."""


def site_name(names: Sequence[str], client: int | str) -> str:
    """What a client is called: its site's name, or `client 3` where sites have none.

    >>> site_name(["north", "south"], 1), site_name([], 1)
    ('south', 'client 1')
    """
    known = str(client).isdecimal() and int(client) < len(names)
    return names[int(client)] if known else f"client {client}"


def is_site_name(text: str) -> bool:
    """Whether a text can name a site: short, not blank at its ends, and shown as it is."""
    return 0 < len(text) <= LONGEST_SITE and text == text.strip() and printable(text) == text
