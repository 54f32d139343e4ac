"""Whose each row is, where a column says so: what privacy protects as one unit; columns that look so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence

from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text, is_missing, place, require_columns
from fedsb.tasks.rows.cells import Row

KEY = "privacy.owner"
SHOWN = 5
"""Rows that a message names."""
FEWEST_OWNERS = 10
ROWS_EACH = (1.2, 30.0)
"""Rows that a value of an owner's column has on average."""
LONGEST_ID = 64
"""Characters."""


def owner_cells(rows: Sequence[Row], column: str, source: str) -> list[str]:
    """Each row's owner.

    Raises:
        InputError: there is no such column, or rows have no owner: which, and no cell of theirs.
    """
    require_columns(rows, [column], source=source, key=KEY)
    missing = [(row, n) for n, row in enumerate(rows, start=1) if _is_blank(row.get(column))]
    if missing:
        named = "; ".join(place(row, source, number) for row, number in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"{KEY}: {len(missing):,} of {len(rows):,} rows have no value in the column {column!r}, so "
            "nobody "
            f"knows whose they are ({named}{more}); fill it, or remove these rows"
        )
    return [cell_text(row, column, source=source, number=n) for n, row in enumerate(rows, start=1)]


def owner_numbers(rows: Sequence[Row], column: str, source: str) -> list[int]:
    """Each row's owner as a number from 0, in order of appearance.

    Raises:
        InputError: as `owner_cells`.
    """
    numbers: dict[str, int] = {}
    return [numbers.setdefault(cell, len(numbers)) for cell in owner_cells(rows, column, source)]


def count_owners(owners: Sequence[int], parts: Sequence[Collection[int]]) -> list[int]:
    """How many owners each client has. parts: each client's rows.

    Raises:
        InputError: an owner's rows are at several clients, whose releases would add up for it.
    """
    held: dict[int, set[int]] = defaultdict(set)
    for client, part in enumerate(parts):
        for row in part:
            held[owners[row]].add(client)
    if scattered := sum(len(clients) > 1 for clients in held.values()):
        raise InputError(
            f"{KEY}: {scattered:,} of {len(held):,} owners have rows at several clients, and what these "
            "release adds up for them; deal whole owners: federation.partition: {kind: by-column, column: "
            "that of the owners}, with no more clients than owners"
        )
    return [len({owners[row] for row in part}) for part in parts]


def check_owners_apart(
    public: Sequence[Row], rows: Sequence[Row], column: str | None, source: str, key: str
) -> None:
    """Refuse public rows of owners that are to be protected. Public rows without the column say no owner.

    Raises:
        InputError: names the file, and how many owners are in both.
    """
    if column is None:
        return
    shown, hidden = (
        {str(row[column]) for row in of if not _is_blank(row.get(column))} for of in (public, rows)
    )
    if both := shown & hidden:
        raise InputError(
            f"{key}: {len(both):,} owners ({column}) of {source} have training rows, too, and what bases "
            "are made "
            "of has no protection. Name other rows, or take these owners' out"
        )


def owner_like(rows: Sequence[Mapping[str, object]], read: Container[str]) -> str | None:
    """The first column that looks as if it said whose a row is, if there is one.

    Every row has a short text or whole number in it, at least ten of them differ, and each stands in 1.2 to
    30 rows on average.

    Args:
        read: the columns that the task reads.
    """
    columns = [column for column in (rows[0] if rows else ()) if column not in read]
    return next((column for column in columns if _repeats([row.get(column) for row in rows])), None)


def _repeats(cells: Sequence[object]) -> bool:
    if not all(_is_id(cell) for cell in cells):
        return False
    different = len(set(cells))
    least, most = ROWS_EACH
    return different >= FEWEST_OWNERS and least <= len(cells) / different <= most


def _is_id(cell: object) -> bool:
    if isinstance(cell, str):
        return 0 < len(cell.strip()) <= LONGEST_ID
    return isinstance(cell, int) and not isinstance(cell, bool)


def _is_blank(cell: object) -> bool:
    return is_missing(cell) or (isinstance(cell, str) and not cell.strip())
