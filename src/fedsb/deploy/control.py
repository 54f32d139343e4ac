"""What the operator asks of the SuperLink: a run, a node let in, a node sent away. Needs the submit key.

Like `superexec.py`, this file uses the inside of Flower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from fedsb.errors import InputError, RunFailed

APP = b"""
[project]
name = "fedsb-run"
version = "1.0.0"
description = "Nothing: server and nodes run the fedsb that they installed."
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedsb"
[tool.flwr.app.components]
serverapp = "fedsb.deploy.server_app:app"
clientapp = "fedsb.deploy.client_app:app"
"""
"""Flower wants an app with every run. Nobody looks at this one."""
REVOKED = "unregistered"
"""Flower's word for it."""


@dataclass(frozen=True)
class Control:
    """Flower's Control API of one SuperLink.

    Args:
        address: host:port.
        authority: the certificate in PEM form that signed the SuperLink's.
        key: what `submit.key` holds.
    """

    address: str
    authority: bytes
    key: str

    @cached_property
    def _client(self) -> Any:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        return ControlHttpClient.from_server_address(
            self.address, insecure=False, root_certificates=self.authority, interceptors=[version, self]
        )

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Show the key with each request."""
        context.request.headers["Authorization"] = f"Bearer {self.key}"
        return call_next(context)

    def start_run(self) -> int:
        """The number of a new run, which waits for who takes it up."""
        from flwr.cli.build import build_fab_from_files
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        app, _ = build_fab_from_files({"pyproject.toml": APP})
        fab = Fab(hash_str=sha256(app).hexdigest(), content=app)
        return int(self._ask(self._client.StartRun, StartRunRequest(fab=fab)).run_id)

    def register(self, key: bytes) -> None:
        """Let in the node with this public key (PEM); nothing if it is let in already.

        Raises:
            InputError: it was sent away once.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        node = self._node_of(key)
        if node is not None and node.status == REVOKED:
            raise InputError(
                "this key was revoked, and Flower takes no key a second time; the node's owner should remove "
                "it and run ./make-key.sh"
            )
        if node is None:
            self._ask(self._client.RegisterNode, RegisterNodeRequest(public_key=key))

    def unregister(self, key: bytes) -> None:
        """Let the node with this public key in no more."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        node = self._node_of(key)
        if node is not None and node.status != REVOKED:
            self._ask(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node.node_id))

    def _node_of(self, key: bytes) -> Any:
        from flwr.proto.control_pb2 import ListNodesRequest

        nodes = self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info
        return next((node for node in nodes if node.public_key == key), None)

    def _ask(self, call: Callable[[Any], Any], request: Any) -> Any:
        import httpx
        from flwr.supercore.error import FlowerError

        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise InputError(
                    f"the SuperLink at {self.address} was started with another submit.key; start it again"
                ) from None
            told = FlowerError.from_json(error.response.text)
            raise RunFailed(f"the SuperLink refused: {told.message if told else error}") from None
        except httpx.RequestError as error:
            raise RunFailed(f"no SuperLink at {self.address} ({error}); run ./start.sh first") from None
