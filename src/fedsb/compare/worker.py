"""One run in a process of its own: a JSON request comes in, JSON lines about the run go out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from fedsb.compare.perform import explain, perform
from fedsb.compare.progress import OneRun
from fedsb.config import RunConfig
from fedsb.errors import FedsbError


def main() -> None:
    """Do the run that the first line asks for; end at once when standard input closes."""
    request = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    say({"ended": _run(request, OneRun(lambda share, text: say({"share": share, "text": text})))})


def _run(request: dict[str, Any], watcher: OneRun) -> str | None:
    """None, or why it failed."""
    try:
        config = RunConfig.from_dict(request["config"])
    except FedsbError as error:
        return explain(error)
    return perform(config, Path(request["folder"]), watcher, asks=request["asks"])


def _end_with_parent() -> None:
    """No run goes on beside the command that is given again."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
