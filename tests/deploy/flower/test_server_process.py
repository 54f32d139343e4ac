"""The server's part of a run: the installed code with this machine's settings, whatever came with the run."""

import io
import zipfile
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import Context, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_to_proto, run_to_proto
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import PullTaskInputResponse
from flwr.supercore.run import Run
from run_helpers import main_status

from fedsb.deploy import server_app, server_process, superexec
from fedsb.deploy.control import Control
from fedsb.deploy.server_process import Link, _run, _serve, _taken_up
from fedsb.errors import InputError, RunFailed

SETTINGS = {"config": "/here/run.yaml", "out": "/here/run", "clients": "/here/clients", "wait-seconds": 1.0}
THEIRS = {"config": "/theirs.yaml", "out": "/etc", "clients": "/theirs", "wait-seconds": 9.0, "more": "x"}


class Client:
    """A SuperLink whose waiting run came with a hostile app and settings."""

    def __init__(self):
        self.finished = []

    def PullTaskInput(self, request):
        run = Run.create_empty(5)
        run.override_config = THEIRS
        context = Context(5, 1, {}, RecordDict(), THEIRS)
        fab = Fab(hash_str="x", content=b"no app at all")
        return PullTaskInputResponse(
            context=context_to_proto(context), run=run_to_proto(run), fab=fab, task_id=3
        )

    def PushTaskOutput(self, request):
        self.finished.append((request.sub_status, request.details))

    def SendTaskHeartbeat(self, request):
        return SimpleNamespace(success=True)


def grid_of(client, monkeypatch):
    grid = SimpleNamespace(
        _runtime_client=client,
        _retry_invoker=SimpleNamespace(max_tries=None),
        set_run=lambda run: None,
        close=lambda: None,
    )
    monkeypatch.setattr("flwr.superlink.grid.HttpGrid", lambda *arguments, **more: grid)
    return grid


def test_the_settings_of_a_run_are_those_of_this_machine(monkeypatch):
    settings = []
    monkeypatch.setattr(server_app, "app", lambda grid, context: settings.append(context.run_config))
    _run(grid_of(Client(), monkeypatch), SETTINGS)
    assert settings == [SETTINGS]


@pytest.mark.parametrize(
    ("raised", "told"), [(None, ""), (InputError("a"), "InputError"), (KeyboardInterrupt(), "stopped")]
)
def test_flower_is_told_how_it_ended(monkeypatch, tmp_path, raised, told):
    client = Client()
    grid_of(client, monkeypatch)
    (tmp_path / "ca.crt").write_text("x")

    def app(grid, context):
        if raised is not None:
            raise raised

    monkeypatch.setattr(server_app, "app", app)
    expected = RunFailed if isinstance(raised, KeyboardInterrupt) else InputError
    if raised is None:
        _serve(Link(tmp_path, 9), "token", SETTINGS)
    else:
        with pytest.raises(expected):
            _serve(Link(tmp_path, 9), "token", SETTINGS)
    status = SubStatus.FAILED if told else SubStatus.COMPLETED
    assert client.finished == [(status, told)]


def test_a_superlink_that_went_away_hides_no_error(monkeypatch, tmp_path):
    class Gone(Client):
        def PushTaskOutput(self, request):
            raise httpx.ConnectError("gone")

    grid_of(Gone(), monkeypatch)
    (tmp_path / "ca.crt").write_text("x")

    def app(grid, context):
        raise InputError("what went wrong")

    monkeypatch.setattr(server_app, "app", app)
    with pytest.raises(InputError, match="what went wrong"):
        _serve(Link(tmp_path, 9), "token", SETTINGS)


def test_a_run_that_is_not_handed_out_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(server_process, "TAKE_UP_SECONDS", 0.0)
    monkeypatch.setattr(server_process, "POLL_SECONDS", 0.0)
    with pytest.raises(RunFailed, match="did not hand out run 7"):
        _taken_up(SimpleNamespace(acquire=lambda: None), 7)
    waiting = iter([None, "token"])
    monkeypatch.setattr(server_process, "TAKE_UP_SECONDS", 60.0)
    assert _taken_up(SimpleNamespace(acquire=lambda: next(waiting)), 7) == "token"


def test_the_app_that_flower_wants_has_no_code():
    """It is built as `start_run` builds it, and names installed modules alone."""
    sent = []

    class Takes:
        def StartRun(self, request):
            sent.append(request.fab.content)
            return SimpleNamespace(run_id=4)

    control = Control("localhost:9", b"", "k" * 64)
    control.__dict__["_client"] = Takes()
    assert control.start_run() == 4
    names = zipfile.ZipFile(io.BytesIO(sent[0])).namelist()
    assert not [name for name in names if name.endswith(".py")]


@pytest.mark.parametrize(
    ("status", "error", "message"), [(401, InputError, "another submit.key"), (400, RunFailed, "refused")]
)
def test_what_the_superlink_refuses_is_said(status, error, message):
    class Refuses:
        def StartRun(self, request):
            response = httpx.Response(
                status, json={"code": 1, "detail": "no"}, request=httpx.Request("POST", "x")
            )
            raise httpx.HTTPStatusError("no", request=response.request, response=response)

    control = Control("localhost:9", b"", "k" * 64)
    control.__dict__["_client"] = Refuses()
    with pytest.raises(error, match=message):
        control.start_run()


def test_each_request_shows_the_key():
    request = httpx.Request("POST", "https://x")
    control = Control("localhost:9", b"", "k" * 64)
    control.intercept(SimpleNamespace(request=request), lambda context: None)
    assert request.headers["authorization"] == "Bearer " + "k" * 64


def test_another_flower_or_no_key_is_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "ca.crt").write_text("x")
    told = ("deploy", "submit", "--port", 9, "--server", tmp_path, "--config", "a", "--out", "b")
    assert main_status(monkeypatch, *told) == 2
    assert "submit.key" in capsys.readouterr().err
    monkeypatch.setattr(superexec, "version", lambda name: "1.99.0")
    assert main_status(monkeypatch, *told) == 2
    assert "flwr==1.41.*" in capsys.readouterr().err


def test_a_node_is_let_in_once_and_never_after_it_was_sent_away():
    asked = []

    class StubNodes:
        nodes = (
            SimpleNamespace(public_key=b"in", status="online", node_id=1),
            SimpleNamespace(public_key=b"out", status="unregistered", node_id=2),
        )

        def ListNodes(self, request):
            return SimpleNamespace(nodes_info=self.nodes)

        def RegisterNode(self, request):
            asked.append(request.public_key)

        def UnregisterNode(self, request):
            asked.append(request.node_id)

    control = Control("localhost:9", b"", "k" * 64)
    control.__dict__["_client"] = StubNodes()
    control.register(b"in")
    control.unregister(b"out")
    control.unregister(b"nobody")
    assert not asked
    with pytest.raises(InputError, match=r"was revoked, .*make-key.sh"):
        control.register(b"out")
    control.register(b"new")
    control.unregister(b"in")
    assert asked == [b"new", 1]
