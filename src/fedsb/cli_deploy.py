"""The commands `fedsb deploy ...`: a server's and a node's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli_common import AsJson, Overrides, err_console, out_console, print_json

deploy = typer.Typer(
    help="Run across machines, over Flower (needs the extra fedsb[flower]).", no_args_is_help=True
)


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="New folder; the server keeps it.")],
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    host: Annotated[str, typer.Option(help="Name or address by which nodes reach the server.")],
    port: Annotated[int, typer.Option(help="Port of the server.")] = 9092,
    set_: Overrides = None,
) -> None:
    """Write a Flower app, scripts for certificates, keys and starting, node configs, and a guide.

    Example: `fedsb deploy init hospitals run.yaml --host fl.example.org`, then follow hospitals/README.md
    """
    from fedsb.config import RunConfig
    from fedsb.flower.deploy import write_deployment

    written = write_deployment(folder, RunConfig.from_yaml(config, set_ or []), host=host, port=port)
    out_console.print(
        f"{len(written)} files in {folder}; go on with {folder / 'README.md'}", highlight=False, markup=False
    )


@deploy.command("check")
def deploy_check(
    node: Annotated[Path, typer.Argument(help="This party's node.yaml.")],
    config: Annotated[Path, typer.Argument(help="YAML file of the run, from the server.")],
    json_: AsJson = False,
) -> None:
    """At a node: read its data, its model and the server's ca.crt as a run would, and print what the server
    would be told, and the digest by which `approved` in node.yaml names this config.

    Example: `fedsb deploy check node.yaml run.yaml`
    """
    import secrets
    from dataclasses import asdict

    from fedsb.config import RunConfig
    from fedsb.flower.preflight import check_certificate
    from fedsb.node import Node
    from fedsb.node_config import NodeConfig, approves, config_digest

    authority = node.resolve().parent / "ca.crt"
    if authority.exists() and (warning := check_certificate(authority)):
        err_console.print(warning, style="yellow", highlight=False, markup=False)
    run, own = RunConfig.from_yaml(config), NodeConfig.from_yaml(node)
    digest = config_digest(run)
    as_if_approved = own.model_copy(update={"approved": [digest], "audit": False})
    facts = asdict(Node(run, as_if_approved, secrets.token_hex(16)).facts())
    facts |= {"config_digest": digest, "approved": approves(own, digest)}
    if json_:
        return print_json(facts)
    for name, value in facts.items():
        out_console.print(f"{name:<14} {value}", highlight=False, markup=False)


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
    from fedsb.flower.preflight import check_certificate, check_port

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
    from fedsb.flower.client_process import serve

    serve(port, secret, supernode)
