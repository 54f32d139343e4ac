"""The server's part of a run: `fedsb deploy submit` starts it at the SuperLink and serves it, in its process.

The installed fedsb alone runs here, with the config and the folders that the operator named on this machine.
What came with a run, its app and its settings, is never looked at: who could make a run would gain nothing.
Like `superexec.py`, this file uses the inside of Flower.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsb.deploy.control import Control
from fedsb.deploy.superexec import Tasks, check_flower
from fedsb.deploy.superlink import read_key
from fedsb.errors import RunFailed

TAKE_UP_SECONDS = 60.0
POLL_SECONDS = 0.2

Settings = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Link:
    """The SuperLink of this folder, on this machine."""

    server: Path
    port: int

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def authority(self) -> bytes:
        return (self.server / "ca.crt").read_bytes()

    def control(self) -> Control:
        return Control(self.address, self.authority, read_key(self.server / "submit.key"))

    def tasks(self) -> Tasks:
        return Tasks(self.address, (self.server / "submit.key").read_bytes(), self.authority, "SERVER_APP")


def submit(link: Link, settings: Settings) -> None:
    """Start a run and do the server's part of it, until it is done.

    Args:
        settings: as `server_app` has them.

    Raises:
        InputError: another Flower than tested, no submit key, or another than the SuperLink's.
        RunFailed: no SuperLink, or the run was stopped there.
        FedsbError: what the run itself raises.
    """
    check_flower()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = link.control().start_run()
    _serve(link, _taken_up(link.tasks(), run), settings)


def _taken_up(tasks: Tasks, run: int) -> str:
    """The token of the run that waits longest: this one, or what a stopped submit left behind. Which of them
    makes no difference, as all is named here."""
    deadline = time.monotonic() + TAKE_UP_SECONDS
    while (token := tasks.acquire()) is None:
        if time.monotonic() > deadline:
            raise RunFailed(f"the SuperLink did not hand out run {run} within {TAKE_UP_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return token


def _serve(link: Link, token: str, settings: Settings) -> None:
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.superlink.grid import HttpGrid

    grid = HttpGrid(link.address, insecure=False, root_certificates=link.authority, token=token)
    beat, failure = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client)), "stopped"
    beat.start()
    try:
        _run(grid, settings)
        failure = ""
    except KeyboardInterrupt:
        raise RunFailed("stopped; ./submit.sh resumes after the last finished round") from None
    except Exception as error:
        failure = type(error).__name__
        raise
    finally:
        _finish(grid, beat, failure)


def _run(grid: Any, settings: Settings) -> None:
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.proto.runtime_pb2 import PullTaskInputRequest
    from flwr.supercore.task_identity import TaskIdentity

    from fedsb.deploy import server_app

    task_input = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(task_input.context)
    TaskIdentity.task_id, TaskIdentity.run_id = task_input.task_id, task_input.run.run_id
    TaskIdentity.node_id = context.node_id
    grid.set_run(run_from_proto(task_input.run))
    context.run_config = dict(settings)
    server_app.app(grid=grid, context=context)


def _finish(grid: Any, beat: Any, failure: str) -> None:
    """Tell Flower how it ended, if it can be told."""
    import httpx
    from flwr.common.constant import SubStatus
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest

    grid._retry_invoker.max_tries = 1
    status = SubStatus.FAILED if failure else SubStatus.COMPLETED
    try:
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=failure))
    except (httpx.HTTPError, RuntimeError):
        pass  # the run was ended at the SuperLink, or there is none
    finally:
        beat.stop()
        grid.close()
