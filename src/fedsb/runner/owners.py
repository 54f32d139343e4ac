"""The owners of a run's rows, where `privacy.owner` names their column; what to say where it does not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fedsb.config import RunConfig
from fedsb.federation.local_model import Example
from fedsb.tasks import Row
from fedsb.tasks.owners import count_owners, owner_like, owner_numbers
from fedsb.tasks.sources import train_name


def owners_of(
    config: RunConfig, rows: Sequence[Row], parts: Sequence[Collection[int]], source: str | None = None
) -> tuple[list[int], tuple[int, ...]]:
    """Each row's owner, and how many owners each client has; nothing where owners are no unit.

    Args:
        parts: each client's rows. source: their name; None: of the training data.

    Raises:
        InputError: rows have no owner, or an owner's rows are at several clients.
    """
    if config.owner is None:
        return [], ()
    owners = owner_numbers(rows, config.owner, source or train_name(config))
    return owners, tuple(count_owners(owners, parts))


def with_owners(examples: Sequence[Example], owners: Sequence[int]) -> list[Example]:
    """The examples with their owners' numbers, where there are any."""
    if not owners:
        return list(examples)
    return [example | {"owner": owner} for example, owner in zip(examples, owners, strict=True)]


def suspected_owner(config: RunConfig, rows: Sequence[Row]) -> str | None:
    """A column that looks as if it said whose a row is, in a run that protects rows one by one."""
    if config.privacy is None or config.privacy.protects != "example":
        return None
    return owner_like(rows, config.task.columns or [])


def owner_notes(column: str | None) -> Iterator[str]:
    """A warning about such a column, if there is one."""
    if column is not None:
        yield (
            f"warning: the column {column!r} has values that repeat, as those of an owner do, and "
            f"privacy.unit: example protects a row. privacy.owner: {column} would protect all rows of "
            "one; the "
            "report says what a person with several rows is left with"
        )
