"""A SuperNode's messages, answered here in place of `flower-superexec` and the process it starts for each.

The SuperNode runs with `--isolation process --superexec-auth-secret-file FILE`. The app that came with a run
is never looked at: only installed code runs here. This file uses the inside of Flower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from fedsb.errors import InputError

log = logging.getLogger("flwr")
TESTED = "1.41."
"""Versions of flwr whose inside is as this file expects it."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

App = Callable[[Any, Any], Any]
"""(message, context) -> its reply, as a `flwr.clientapp.ClientApp`."""


def check_flower() -> None:
    """Refuse a Flower that this file was not tested with.

    Raises:
        InputError: which version does.
    """
    installed = version("flwr")
    if not installed.startswith(TESTED):
        raise InputError(
            f"flwr {installed}: fedsb's own processes were tested with flwr {TESTED}x alone. Run pip install "
            f"'flwr=={TESTED}*'"
        )


@dataclass(frozen=True)
class Tasks:
    """What waits at one SuperNode or SuperLink: messages, or runs.

    Args:
        address: host:port of its Runtime API.
        secret: what its `--superexec-auth-secret-file` holds.
        authority: the certificate (PEM) that signed its own; None: it is on this machine, without TLS.
        kind: the name of Flower's type of task.
    """

    address: str
    secret: bytes
    authority: bytes | None = None
    kind: str = "CLIENT_APP"

    @cached_property
    def _door(self) -> Any:
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        return self._client(
            SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=frozenset({ACQUIRE}))
        )

    def _client(self, who: Any) -> Any:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient

        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.authority is None,
            root_certificates=self.authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), who],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def acquire(self) -> str | None:
        """The token of what waits longest, which is this process's from now on; None if nothing waits.

        Waits until the other side can be reached.
        """
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        response = self._door.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType[self.kind]]))
        return response.token if response.HasField("task") and response.token else None

    def answer(self, token: str, app: App) -> None:
        """Have the app answer this message. What goes wrong is logged, and told as Flower tells it."""
        from flwr.common.constant import SubStatus
        from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        client = self._client(RuntimeTokenHttpInterceptor(token))
        beat, context, failure = HeartbeatSender(make_task_heartbeat_fn_http(client)), None, "no message"
        beat.start()
        try:
            message, context, _, _ = pull_task_input(client)
            reply, failure = _reply(app, message, context)
            push_message(client, reply, context)
        except Exception as error:
            log.exception("fedsb: this message could not be answered")
            failure = type(error).__name__
        finally:
            status = SubStatus.FAILED if failure else SubStatus.COMPLETED
            push_task_output(client=client, context=context, sub_status=status, details=failure)
            beat.stop()
            client.close()


def _reply(app: App, message: Any, context: Any) -> tuple[Any, str]:
    """The app's reply, or an error of Flower's; and the name of what was raised, if anything was."""
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode

    try:
        return app(message, context), ""
    except Exception as error:
        log.exception("fedsb: the app failed")
        name = type(error).__name__
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, name), reply_to=message), name
