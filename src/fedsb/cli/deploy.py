"""The commands `fedsb deploy ...`: a server's and a node's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli.common import AsJson, Overrides, err_console, out_console, print_json

deploy = typer.Typer(
    help="Run across machines, over Flower (needs the extra fedsb[flower]).", no_args_is_help=True
)
ServerFolder = Annotated[Path, typer.Option("--server", help="The deployment's folder `server`.")]
ServerPort = Annotated[int, typer.Option("--port", help="Port of the SuperLink.")]
HERE = Path()


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="New folder; the server keeps it.")],
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    host: Annotated[str, typer.Option(help="Name or address by which nodes reach the server.")],
    port: Annotated[int, typer.Option(help="Port of the server.")] = 9092,
    names: Annotated[
        str | None,
        typer.Option(help="Names of the sites, by commas, client 0 first: federation.sites."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Write scripts for certificates, keys, starting and letting in, node configs, and a guide.

    Examples: `fedsb deploy init hospitals run.yaml --host fl.example.org`, then follow hospitals/README.md ·
    `fedsb deploy init hospitals run.yaml --host fl.example.org --names north,south,west`
    """
    from fedsb.cli.options import check_run_overrides
    from fedsb.config import RunConfig
    from fedsb.deploy.write import write_deployment

    check_run_overrides(set_ or [])
    sites = [f"federation.sites={json.dumps([name.strip() for name in names.split(',')])}"] if names else []
    run = RunConfig.from_yaml(config, [*(set_ or []), *sites])
    written = write_deployment(folder, run, host=host, port=port)
    out_console.print(
        f"{len(written)} files in {folder}; continue with {folder / 'README.md'}",
        highlight=False,
        markup=False,
    )


@deploy.command("check")
def deploy_check(
    node: Annotated[Path, typer.Argument(help="This party's node.yaml.")],
    config: Annotated[Path, typer.Argument(help="YAML file of the run, from the server.")],
    json_: AsJson = False,
) -> None:
    """At a node: read its data, its model and the server's ca.crt as a run would, and print what the server
    would be told, and the digest by which its owner approves of this config.

    Example: `fedsb deploy check node.yaml run.yaml`
    """
    from fedsb.config import RunConfig
    from fedsb.deploy.node_config import NodeConfig
    from fedsb.deploy.preflight import checked_node

    facts, warnings = checked_node(RunConfig.from_yaml(config), NodeConfig.from_yaml(node), node)
    for warning in warnings:
        err_console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if json_:
        return print_json(facts)
    for name, value in facts.items():
        out_console.print(f"{name:<14} {value}", highlight=False, soft_wrap=True)


@deploy.command("superlink")
def deploy_superlink(port: ServerPort, host: str = "127.0.0.1", server: ServerFolder = HERE) -> None:
    """At the server: what nodes connect to. `start.sh` calls it.

    From other machines it answers registered nodes alone; on this one, whoever holds submit.key.
    """
    from fedsb.deploy.superlink import serve

    serve(server.resolve(), host, port)


@deploy.command("register")
def deploy_register(
    key: Annotated[Path, typer.Argument(help="The node's public key, client-K.pub.")],
    port: ServerPort,
    client: Annotated[int | None, typer.Argument(min=0, help="K, where the file's name is another.")] = None,
    server: ServerFolder = HERE,
) -> None:
    """At the server: let in the node with this key, as client K and no other. `register.sh` calls it."""
    from fedsb.deploy.registration import register
    from fedsb.deploy.server_process import Link

    number = register(server / "clients", key, client, Link(server, port).control())
    out_console.print(f"client {number} is who has the other half of {key.name}", highlight=False)


@deploy.command("revoke")
def deploy_revoke(
    client: Annotated[int, typer.Argument(min=0, help="K of client-K.")],
    port: ServerPort,
    server: ServerFolder = HERE,
) -> None:
    """At the server: let client K's node in no more. `revoke.sh` calls it."""
    from fedsb.deploy.registration import revoke
    from fedsb.deploy.server_process import Link

    revoke(server / "clients", client, Link(server, port).control())
    out_console.print(f"client {client}: its key is let in no more", highlight=False)


@deploy.command("submit")
def deploy_submit(
    port: ServerPort,
    config: Annotated[Path, typer.Option(help="YAML file of the run.")],
    out: Annotated[Path, typer.Option(help="Its run folder; a run that stopped there is resumed.")],
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the nodes.")] = 600.0,
    server: ServerFolder = HERE,
) -> None:
    """At the server: start a run over the SuperLink and do the server's part of it. `submit.sh` calls it."""
    from fedsb.deploy.server_process import Link, submit

    folders = {"config": config, "out": out, "clients": server / "clients"}
    settings = {name: str(folder.resolve()) for name, folder in folders.items()}
    submit(Link(server, port), settings | {"wait-seconds": wait_seconds})


@deploy.command("preflight")
def deploy_preflight(
    port: Annotated[int, typer.Option(help="Port that is about to be listened on.")],
    certificate: Annotated[
        list[Path], typer.Option(help="PEM file that must be valid now; repeat for more.")
    ],
    host: Annotated[str, typer.Option(help="Address that is about to be listened on.")] = "127.0.0.1",
) -> None:
    """Before a SuperLink or SuperNode starts: is the port free, are the certificates there and valid?

    The start scripts call it. Example: `fedsb deploy preflight --port 9092 --certificate ca.crt`
    """
    from fedsb.deploy.preflight import check_certificate, check_port

    for file in certificate:
        if warning := check_certificate(file):
            err_console.print(warning, style="yellow", highlight=False, markup=False)
    check_port(host, port)


@deploy.command("client")
def deploy_client(
    port: Annotated[int, typer.Option(help="Port of the SuperNode's Runtime API on this machine.")],
    secret: Annotated[Path, typer.Option(help="The SuperNode's --superexec-auth-secret-file.")],
    supernode: Annotated[int, typer.Option(help="Process id of the SuperNode; this one ends with it.")],
) -> None:
    """At a node: answer the SuperNode's messages in one process that lasts. `start.sh` calls it."""
    from fedsb.deploy.client_process import serve

    serve(port, secret, supernode)
