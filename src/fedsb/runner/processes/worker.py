"""One worker process: loads the model once, then trains the clients it is asked for, one after the other.

A request frame names the config, the run folder and the process's number; a frame answers that the model is
there. Each frame after it holds a client and its broadcast, and is answered by one frame with the client's
update or the reason why there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsb.common.child import read_frame, standard_output, write_frame
from fedsb.config import RunConfig
from fedsb.errors import RunFailed, explain
from fedsb.federation.local_model import load_state
from fedsb.federation.server import Arrived
from fedsb.models.devices import visible_gpus
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import LocalClient, local_clients, simulate_cohort
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import local_model_of, prepare_base
from fedsb.runner.split_record import kept_split


def main() -> None:
    """Answer until standard input closes."""
    answers = standard_output()
    request = read_frame(sys.stdin.buffer)
    if request is None:
        return
    try:
        client_of = open_run(request[0])
    except Exception as error:
        return write_frame(answers, {"broken": explain(error)})
    write_frame(answers, {"ready": True})
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        write_frame(answers, *answer(client_of, int(frame[0]["client"]), frame[1]))


def open_run(request: dict[str, Any]) -> Callable[[int], LocalClient]:
    """Client -> its party, over one model with the run's start factors. Base weights are those of its last
    finished round, for a process that takes another's place."""
    config = placed(RunConfig.from_dict(request["config"]), int(request["number"]), len(visible_gpus()))
    data = prepare_data(config, kept_split(Path(request["folder"]), config))
    saved = load_checkpoint(Path(request["folder"]) / "checkpoint")
    if saved is None:
        raise RunFailed(f"found no checkpoint of the run in {request['folder']}")
    local_model = local_model_of(config, data, prepare_base(config, data), saved.factors)
    state = saved.state
    load_state(local_model, state.vector, state.base.total, round_number=state.round, seed=config.seed)
    return local_clients(config, data, local_model, None)


def placed(config: RunConfig, number: int, gpus: int) -> RunConfig:
    """The config with the device of the process of this number: GPUs in turn, where the device is auto."""
    if config.model.device != "auto" or not gpus:
        return config
    return config.model_copy(
        update={"model": config.model.model_copy(update={"device": f"cuda:{number % gpus}"})}
    )


def answer(
    client_of: Callable[[int], LocalClient], client: int, broadcast: bytes
) -> tuple[dict[str, Any], bytes]:
    """Facts of what the client made of the broadcast, the reason where it failed, and its update."""
    (outcome,) = simulate_cohort([client], lambda c: client_of(c).answer(broadcast))
    if isinstance(outcome, Arrived):
        return {"client": client}, outcome.message
    return {"client": client, "reason": outcome.reason}, b""


if __name__ == "__main__":
    main()
