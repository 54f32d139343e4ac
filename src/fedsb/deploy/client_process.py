"""A client process that lasts: beside its SuperNode, it answers message after message with one loaded model.

It ends when its SuperNode ends, and after a failure that nobody foresaw, so that whoever started it starts a
fresh one. It lets go of the model when nothing was asked for a while.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil

from fedsb.deploy.superexec import Tasks, check_flower
from fedsb.errors import InputError, RunFailed

POLL_SECONDS = 0.5
WATCH_SECONDS = 0.5
IDLE_SECONDS = 1800.0


def serve(port: int, secret_file: Path, supernode: int) -> None:
    """Answer the messages of the SuperNode with this process id, whose Runtime API is at this port of this
    machine; does not return.

    Raises:
        InputError: another Flower than tested, or no secret.
        RunFailed: a failure that nobody foresaw.
    """
    check_flower()
    tasks = Tasks(f"127.0.0.1:{port}", _secret(secret_file))
    _end_with(supernode)
    from fedsb.deploy import client_app

    print("fedsb: the client process is ready", flush=True)
    asked = time.monotonic()
    while not client_app.held.spoiled:
        token = tasks.acquire()
        if token is not None:
            tasks.answer(token, client_app.app)
            asked = time.monotonic()
            continue
        if client_app.held.node is not None and time.monotonic() - asked > IDLE_SECONDS:
            client_app.held.drop()
        time.sleep(POLL_SECONDS)
    raise RunFailed("the client process ends after the failure above; a fresh one is to take its place")


def _secret(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"--secret: cannot read {file} ({error.strerror}); start.sh writes it") from None


def _end_with(supernode: int) -> None:
    """End this process when that one is gone. Ctrl-C is for that one too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while psutil.pid_exists(supernode):
            time.sleep(WATCH_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
