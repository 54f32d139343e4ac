"""A Flower ServerApp around `runner.run`. Started again with the same `out`, it resumes that run.

Its settings, which `fedsb deploy submit` takes from this machine alone:

    config          the run's YAML file
    out             its run folder
    clients         folder of the clients' public keys; left out: nodes are taken at their word
    wait-seconds    how long to wait for the nodes
"""

from __future__ import annotations

import secrets
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedsb.common.files import alone, write_text
from fedsb.config import RunConfig
from fedsb.deploy.nodes import Nodes
from fedsb.errors import FedsbError, InputError
from fedsb.report.console import PlainLines
from fedsb.report.result import show_result
from fedsb.report.screen import Screen
from fedsb.runner import run
from fedsb.runner.clients import RemoteClients

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
    progress.stage("resuming the run in its folder" if resume else "waiting for the nodes")
    name, keys = _run_name(out, resume=resume), context.run_config.get("clients")
    nodes = Nodes(grid, config, name, progress.stage, keys=str(keys) if keys else None)
    nodes.gather(float(context.run_config.get("wait-seconds", 600)))
    facts = [nodes.facts[client] for client in range(config.federation.clients)]
    sizes, experts = [f.num_examples for f in facts], [f.expert_counts for f in facts]
    tests = [f.test_examples or 0 for f in facts]
    remote = RemoteClients(sizes, nodes.ask, facts[0].base_digest, experts, tests, name, nodes.verify)
    result = run(config, out, resume=resume, progress=progress, remote=remote)
    show_result(result.summary, result.folder, console)


def _setting(context: Context, name: str) -> str:
    value = context.run_config.get(name)
    if not value:
        raise InputError(f"{name}: missing in the run config; give it with fedsb deploy submit --{name} ...")
    return str(value)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def _run_name(out: Path, *, resume: bool) -> str:
    """What nodes call this run, 32 hexadecimal digits: drawn when it begins, kept beside its folder. A run
    begun again has a new name, so that nodes take up nothing of the former one."""
    file = _beside(out, "run_name")
    if not (resume and file.exists()):
        write_text(file, secrets.token_hex(16), private=True)
    return file.read_text(encoding="utf-8")
