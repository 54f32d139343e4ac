"""Numbers as people read them. Units are decimal: 1 kB is 1000 bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath

DASH = "—"
THIN = "\u202f"  # narrow space that does not break, between a number and its unit
MINUS = "−"


def decimal(value: float | None, digits: int = 4) -> str:
    """
    >>> decimal(0.98765), decimal(-2.0), decimal(None)
    ('0.9877', '−2', '—')
    """
    return DASH if value is None else f"{value + 0.0:.{digits}g}".replace("-", MINUS)


def count(value: float | None) -> str:
    """
    >>> count(49922)
    '49,922'
    """
    return DASH if value is None or not math.isfinite(value) else f"{round(value):,}".replace("-", MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    if share is None or not math.isfinite(share):
        return decimal(share)
    return f"{100 * share + 0.0:.{digits}f}{THIN}%".replace("-", MINUS)


def human_bytes(number: float | None) -> str:
    """
    >>> human_bytes(412).replace(THIN, " "), human_bytes(1_236_000).replace(THIN, " ")
    ('412 B', '1.24 MB')
    """
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def human_count(number: float | None) -> str:
    """
    >>> human_count(412), human_count(83_886_080).replace(THIN, " ")
    ('412', '83.9 M')
    """
    return _scaled(number, ("", "k", "M", "G", "T"))


def _scaled(number: float | None, units: Sequence[str]) -> str:
    if number is None or not math.isfinite(number):
        return DASH
    size, place = float(number), 0
    while abs(size) >= 999.5 and place < len(units) - 1:
        size, place = size / 1000, place + 1
    return f"{size:.3g}{THIN}{units[place]}".removesuffix(THIN)


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.4).replace(THIN, " "), duration(125).replace(THIN, " ")
    ('0.4 s', '2 min 5 s')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    total_minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(total_minutes, 60)
    if hours:
        return f"{hours}{THIN}h {minutes}{THIN}min"
    return f"{minutes}{THIN}min {left}{THIN}s" if minutes else f"{left}{THIN}s"


def plural(number: int, word: str) -> str:
    """
    >>> plural(1, "round"), plural(5, "round")
    ('1 round', '5 rounds')
    """
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def short_name(value: object) -> str:
    """A config value in a few words: an absolute path's last part, named sources' names, a list's items."""
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    if isinstance(value, list):
        return ", ".join(map(short_name, value))
    text = str(value)
    return PurePath(text).name if PurePath(text).is_absolute() else text


def four_places(value: float | None) -> str:
    """Four places; nothing for a number that was not finite or is not there."""
    return "" if value is None else f"{value:.4f}"
