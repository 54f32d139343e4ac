"""Which processes train the clients of a simulated run: this one, a pool, or Ray's workers."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.report.progress import Progress
from fedsb.runner.clients import AskClients
from fedsb.runner.processes.pool import pool


def check_engine(config: RunConfig) -> None:
    """Refuse an engine that is not installed.

    Raises:
        InputError: with the command that installs it.
    """
    if config.federation.engine.kind == "ray" and find_spec("ray") is None:
        raise InputError(
            "federation.engine: ray: the package ray is needed and missing; pip install 'fedsb[ray]'"
        )


def workers(config: RunConfig, folder: Path, progress: Progress) -> AbstractContextManager[AskClients | None]:
    """Peers that train in other processes, which end with the block; None where clients train in this one."""
    if config.federation.engine.kind != "ray":
        return pool(config, folder, progress)
    if config.federation.engine.address is None:
        _guard()
    from fedsb.runner.processes.ray_workers import ray_workers

    return ray_workers(config, folder, progress)


def _guard() -> None:
    """A Ray of this machine listens on its network, and runs what it is sent: it takes a token that nobody
    else has. Ray looks at it as it is imported. Nor does it report its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
