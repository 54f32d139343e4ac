"""The privacy ledger of a node's rows: where it lies, its name, what its owner allows over all runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedsb.deploy.node_config import NodeConfig
from fedsb.errors import InputError
from fedsb.privacy.account import Account
from fedsb.privacy.data_ledger import DataLedger, Place, place_at_node


def node_place(node: NodeConfig) -> Place:
    """Where the ledger of this node's rows lies."""
    rows = Path(node.data.train).resolve()
    return place_at_node(Path(node.state).resolve(), node.data.id or _id_of(rows), rows)


def node_account(node: NodeConfig, run: str, unit: str, *, secret_noise: bool) -> Account:
    """The account of this node's rows, to be charged by this run, which protects this unit.

    Raises:
        InputError: the rows' file cannot be read.
    """
    return Account(
        DataLedger(node_place(node), only=node.limits.of_all_runs is not None),
        run,
        unit,
        rows=_digest(Path(node.data.train)),
        largest_epsilon=node.limits.of_all_runs,
        largest_delta=node.limits.largest_delta,
        one_client=True,
        secret_noise=secret_noise,
    )


def _id_of(rows: Path) -> str:
    """The file's name, and eight digits that stand for its whole path."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in rows.stem)[:60]
    return f"{name.strip('-') or 'rows'}-{hashlib.sha256(str(rows).encode()).hexdigest()[:8]}"


def _digest(rows: Path) -> str:
    try:
        with open(rows, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"data.train: cannot read {rows}: {error.strerror}") from None
