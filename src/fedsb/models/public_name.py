"""What a model or a data set is called in files that others get: never by a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")
"""Where the hub's cache keeps a model: its owner and its name."""


def is_local(path: str) -> bool:
    """Whether this is a path, and no id on the hub."""
    return Path(path).is_absolute() or path.startswith((".", "~"))


def public_name(path: str) -> str:
    """A hub id as it is, also of a folder in the hub's cache; the last part of any other path."""
    if snapshot := SNAPSHOT.search(path):
        return "/".join(snapshot.groups())
    return Path(path).name if is_local(path) else path
