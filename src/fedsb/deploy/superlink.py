"""The SuperLink behind two doors: nodes reach Flower's Fleet API from anywhere, all else needs this machine
and the submit key.

Flower alone lets whoever reaches the port register nodes, submit apps, stop runs and read their logs. Here
requests for all but the Fleet API are answered only if they come from this machine, and those for the Control
API only if they carry the key of `submit.key`. Like `superexec.py`, this file uses the inside of Flower.
"""

from __future__ import annotations

import hmac
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from starlette.responses import JSONResponse

from fedsb.deploy.superexec import check_flower
from fedsb.errors import InputError

log = logging.getLogger("flwr")
FLEET = "/v1/fleet/"
LARGEST_BODY = 64 * 2**20
"""Bytes of one request from elsewhere. Flower cuts what nodes send into pieces of 5 MiB."""
FROM_AFAR = "Other machines are answered as nodes alone; ./submit.sh and ./register.sh run at the server."
BY_OTHER_WAYS = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FLWR_OIDC_ENABLED")
"""Variables that would have Flower listen elsewhere too, or ask somebody else who may come in."""

Receive = Callable[[], Awaitable[Any]]
AsgiApp = Callable[[Any, Receive, Any], Awaitable[None]]


def read_key(file: Path) -> str:
    """The key that lets submit, register and revoke.

    Raises:
        InputError: there is none, or it is too short to be one.
    """
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        key = ""
    if len(key) < 32:
        raise InputError(
            f"{file}: expected the submit key (at least 32 characters, for the server's own eyes); "
            "./make-certificates.sh makes it"
        )
    return key


def serve(server: Path, host: str, port: int) -> None:
    """Run the SuperLink of this folder; does not return.

    Raises:
        InputError: another Flower than tested, or no submit key.
    """
    import uvicorn

    check_flower()
    app, config = superlink(_arguments(server, host, port), read_key(server / "submit.key"))
    os.umask(0o077)
    uvicorn.run(app, **config)


def superlink(arguments: Sequence[str], key: str) -> tuple[AsgiApp, dict[str, Any]]:
    """Flower's SuperLink behind the doors, and how uvicorn is to serve it.

    Args:
        arguments: of `flower-superlink`.
    """
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    for name in BY_OTHER_WAYS:
        os.environ.pop(name, None)
    sys.argv = ["flower-superlink", *arguments]
    config = replace(_parse_superlink_lifespan_config(), authn_plugin=KeyHolder(key))
    app = guarded(create_app(config, SuperLinkLifespan))
    tls = {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
    logs = get_uvicorn_log_config(console_handler.level)
    return app, {"host": config.host, "port": config.port, **tls, "log_config": logs, "proxy_headers": False}


def _arguments(server: Path, host: str, port: int) -> list[str]:
    return [
        *("--host", host, "--port", str(port), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", str(server / "ca.crt")),
        *("--ssl-certfile", str(server / "server.crt"), "--ssl-keyfile", str(server / "server.key")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(server / "submit.key")),
        *("--disable-runtime-dependency-installation", "--database", str(server / "flower" / "superlink.db")),
    ]


class KeyHolder(NoOpControlAuthnPlugin):
    """Flower's one account, for who holds the key."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key.encode("ascii")

    def validate_tokens_in_metadata(self, metadata: Any) -> Any:
        _, account = super().validate_tokens_in_metadata(metadata)
        shown = next((value for _, value in metadata), "")
        shown = shown if isinstance(shown, bytes) else shown.encode("utf-8", "replace")
        if not hmac.compare_digest(shown, self.key):
            log.warning("fedsb: refused a request to submit, register or look that does not carry submit.key")
            return False, None
        return True, account


def guarded(app: AsgiApp) -> AsgiApp:
    """The app, for who is far away no more than its Fleet API, with bodies that fit into memory."""

    async def door(scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] == "lifespan" or _is_here(scope):
            await app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(FLEET):
            await app(scope, _no_more_than(LARGEST_BODY, receive), send)
        elif scope["type"] == "http":
            await JSONResponse({"detail": FROM_AFAR}, 403)(scope, receive, send)

    return door


def _is_here(scope: Any) -> bool:
    """Whether it comes from this machine."""
    client, server = (scope.get(side) or ("",) for side in ("client", "server"))
    try:
        return ip_address(client[0]).is_loopback or client[0] == server[0]
    except ValueError:
        return False


def _no_more_than(largest: int, receive: Receive) -> Receive:
    """A body, cut off as if its sender had gone when it grows too large."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        event = await receive()
        seen += len(event.get("body", b""))
        return {"type": "http.disconnect"} if seen > largest else event

    return counted
