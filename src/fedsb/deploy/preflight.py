"""What keeps a SuperLink or SuperNode from working, found before it starts.

A SuperLink starts with an expired certificate and says nothing: nodes are refused, and runs wait for ever.
"""

from __future__ import annotations

import secrets
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from fedsb.config import RunConfig
from fedsb.deploy.node import Node
from fedsb.deploy.node_config import NodeConfig, config_digest
from fedsb.errors import InputError
from fedsb.report.cuts import cut_notes
from fedsb.runner.prepare_data import cut_record

SOON = timedelta(days=14)


def checked_node(config: RunConfig, node_config: NodeConfig, file: Path) -> tuple[dict[str, Any], list[str]]:
    """What this node would tell the server of this run and the digest of the run's config; and what its owner
    should look at.

    Args:
        file: where `node_config` was read from.

    Raises:
        InputError: the node would not take part, its approval of the config aside.
    """
    authority, digest = file.resolve().parent / "ca.crt", config_digest(config)
    warnings = [check_certificate(authority) if authority.exists() else None]
    approved = digest in (node_config.approved or [])
    if not approved:
        warnings.append(f"not approved yet: once the config is read, add {digest} to approved: in {file}")
    as_if_approved = node_config.model_copy(update={"approved": [digest], "audit": False})
    node = Node(config, as_if_approved, secrets.token_hex(16))
    warnings += node.data.notes
    warnings += cut_notes(cut_record(node.config, node.data, shown=False))
    facts = node.facts().said()
    return facts | {"config_digest": digest, "approved": approved}, [text for text in warnings if text]


def check_certificate(file: Path, now: datetime | None = None) -> str | None:
    """A warning if it expires within two weeks; None if all is well.

    Args:
        now: another time than this one.

    Raises:
        InputError: there is no such file, it is no certificate, or it is not valid now.
    """
    certificate, now = _read(file), now or datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise InputError(
            f"{file}: this certificate is valid from {begins:%Y-%m-%d %H:%M} UTC on, and here it is "
            f"{now:%Y-%m-%d %H:%M} UTC; set the clock, or make it again"
        )
    if now > ends:
        raise InputError(f"{file}: this certificate expired on {ends:%Y-%m-%d %H:%M} UTC. {_cure(file)}")
    if ends - now < SOON:
        return f"{file}: this certificate expires in {(ends - now).days} days. {_cure(file)}"
    return None


def _cure(file: Path) -> str:
    if file.name == "server.crt":
        return "At the server, ./make-certificates.sh --renew makes a new one; nodes need nothing new"
    return "At the server, remove ca.key, run ./make-certificates.sh and give the new ca.crt to every node"


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such certificate; ./make-certificates.sh at the server makes it, and ca.crt goes to "
            "every node"
        ) from None
    except ValueError as error:
        raise InputError(f"{file}: expected a certificate in PEM form ({error})") from None


def check_port(host: str, port: int) -> None:
    """Refuse a port that something else listens on.

    Raises:
        InputError: it is taken, or not to be had at this address.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {host}: {error.strerror}. Is the same server or node running already? Stop "
                f"what listens there (`ss -ltnp 'sport = :{port}'` shows it), or change the port in start.sh"
            ) from None
