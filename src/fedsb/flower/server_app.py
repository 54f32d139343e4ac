"""A Flower ServerApp around `runner.run`. Started again with the same `out`, it goes on with that run.

Its run config (`[tool.flwr.app.config]` of the app folder, or `flwr run --run-config`):

    config          the run's YAML file, on the server
    out             its run folder
    wait-seconds    how long to wait for the nodes
"""

from __future__ import annotations

import secrets
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedsb.config import RunConfig
from fedsb.console import PlainLines
from fedsb.errors import FedsbError, InputError
from fedsb.files import alone, write_text
from fedsb.flower.federation import Federation
from fedsb.peers import Remote
from fedsb.runner import run
from fedsb.screen import Screen

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Gather the nodes and do the run, or what is left of it."""
    console = Screen(width=110)
    try:
        _serve(grid, context, console)
    except FedsbError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise


def _serve(grid: Grid, context: Context, console: Console) -> None:
    config = RunConfig.from_yaml(_setting(context, "config"))
    out = Path(_setting(context, "out"))
    with alone(_beside(out, "lock"), f"the run in {out}"):
        _run_alone(grid, context, console, config, out)


def _run_alone(grid: Grid, context: Context, console: Console, config: RunConfig, out: Path) -> None:
    resume, progress = (out / "config.yaml").exists(), PlainLines(console)
    progress.stage("going on with the run in its folder" if resume else "waiting for the nodes")
    federation = Federation(grid, config, _run_name(out, resume=resume), progress.stage)
    federation.gather(float(context.run_config.get("wait-seconds", 600)))
    facts = [federation.facts[client] for client in range(config.federation.clients)]
    remote = Remote([f.num_examples for f in facts], federation.ask, facts[0].base_digest)
    result = run(config, out, resume=resume, progress=progress, remote=remote)
    console.print(f"report   {result.folder / 'report.html'}", highlight=False, markup=False)


def _setting(context: Context, name: str) -> str:
    value = context.run_config.get(name)
    if not value:
        raise InputError(
            f"{name}: missing in the run config; give it with flwr run --run-config '{name}=\"...\"'"
        )
    return str(value)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def _run_name(out: Path, *, resume: bool) -> str:
    """What nodes call this run: drawn when it begins, kept beside its folder. A run begun anew has a new
    name, so that nodes take up nothing of the former one."""
    file = _beside(out, "run_name")
    if not (resume and file.exists()):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, secrets.token_hex(16))
    return file.read_text(encoding="utf-8")
