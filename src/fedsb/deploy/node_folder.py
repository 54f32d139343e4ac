"""What a node keeps of one run: a folder of its own that nobody else on the machine can read."""

from __future__ import annotations

import re
from pathlib import Path

from fedsb.deploy.node_config import Refused
from fedsb.errors import InputError

RUN_NAME = re.compile("[0-9a-f]{32}")


def run_folder(state: str, run: str) -> Path:
    """Where this run is kept under `state`; nothing is made yet.

    Raises:
        Refused: the name is not 32 hexadecimal digits. It comes from the server, and becomes a path.
    """
    if not RUN_NAME.fullmatch(run):
        raise Refused(
            f"run: expected a name of 32 hexadecimal digits (0-9, a-f), found {str(run)[:40]!r}; server and "
            "node may have other versions"
        )
    return Path(state) / run


def make_private(folder: Path) -> None:
    """Make the folder, and those above it that are missing, for this user alone.

    Raises:
        InputError: a link or a file is in its place.
    """
    for missing in reversed([folder, *folder.parents]):
        if not missing.exists():
            missing.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of this party's own, found a link or a file; remove it"
        )
    folder.chmod(0o700)
