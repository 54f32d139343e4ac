"""The SuperLink's doors: who gets an answer from where, with which key."""

import asyncio
import os
import subprocess

import pytest
from run_helpers import main_status
from starlette.testclient import TestClient

from fedsb.deploy import superlink
from fedsb.deploy.superlink import KeyHolder, guarded, read_key
from fedsb.errors import InputError

KEY = "k" * 64
FAR, NEAR = ("192.0.2.7", 5000), ("127.0.0.1", 5000)
WITHOUT_KEY = {"get-login-details", "get-auth-tokens", "refresh-auth-tokens"}
"""Flower answers these to anybody on this machine; nobody has an account to log into."""


def answer(client, path, *, server=("192.0.2.1", 9092), kind="http", body=(b"",)):
    """Whether the app behind the door was asked, the body that it read, and the status."""
    asked, sent, parts = [], [], list(body)

    async def app(scope, receive, send):
        read = b""
        while (event := await receive())["type"] == "http.request":
            read += event["body"]
            if not event["more_body"]:
                break
        asked.append(read if event["type"] == "http.request" else "cut off")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(event):
        sent.append(event)

    scope = {"type": kind, "path": path, "client": client, "server": server, "headers": [], "method": "POST"}
    asyncio.run(guarded(app)(scope, receive, send))
    return asked, [event["status"] for event in sent if "status" in event]


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/control/start-run", "/v1/control/register-node", "/v1/control/unregister-node"),
        *("/v1/runtime/acquire-task", "/v1/runtime/push-messages", "/docs", "/openapi.json", "/"),
        *("/v1/fleet", "/v1/fleetx/get-run", "//v1/fleet/get-run", "/V1/fleet/get-run", "/v1/future/thing"),
    ],
)
def test_from_elsewhere_nothing_is_answered_but_the_fleet_api(path):
    assert answer(FAR, path) == ([], [403])
    assert answer(FAR, path, kind="websocket") == ([], [])
    assert answer(NEAR, path) == ([b""], [200])


def test_nodes_are_answered_from_anywhere():
    assert answer(FAR, "/v1/fleet/get-run", body=(b"a", b"b")) == ([b"ab"], [200])


@pytest.mark.parametrize("client", [None, ("", 0), ("unix", 0), ("::ffff:192.0.2.7", 1), ("192.0.2.2", 1)])
def test_who_cannot_be_placed_is_far_away(client):
    assert answer(client, "/v1/control/start-run") == ([], [403])


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "192.0.2.1"])
def test_this_machine_by_any_of_its_addresses(client):
    assert answer((client, 1), "/v1/control/start-run") == ([b""], [200])


def test_a_body_from_elsewhere_that_would_fill_the_memory_is_cut_off(monkeypatch):
    monkeypatch.setattr(superlink, "LARGEST_BODY", 10)
    assert answer(FAR, "/v1/fleet/push-object", body=(b"x" * 5, b"x" * 5)) == ([b"x" * 10], [200])
    assert answer(FAR, "/v1/fleet/push-object", body=(b"x" * 5, b"x" * 6))[0] == ["cut off"]


@pytest.mark.parametrize("shown", [[], [("a", "")], [("a", "k" * 63)], [("a", KEY + "k")], [("a", "ü" * 64)]])
def test_another_key_opens_nothing(shown, caplog):
    assert KeyHolder(KEY).validate_tokens_in_metadata(shown) == (False, None)
    assert "does not carry submit.key" in caplog.text


def test_the_key_opens_flowers_one_account():
    valid, account = KeyHolder(KEY).validate_tokens_in_metadata([("a", KEY)])
    assert valid
    assert account.flwr_aid


@pytest.mark.parametrize("content", [None, "", "short", "\n" * 40, "ü" * 40])
def test_a_key_that_is_none(tmp_path, content):
    file = tmp_path / "submit.key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=r"submit.key: expected the submit key .*make-certificates.sh"):
        read_key(file)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Flower's own SuperLink behind the doors, as it is served here."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "flower").mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "server.key"]
    command = ["openssl", "req", "-x509", *key, "-subj", "/CN=x", "-days", "30", "-out", "server.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "ca.crt").write_bytes((folder / "server.crt").read_bytes())
    (folder / "submit.key").write_text(KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        for name in superlink.BY_OTHER_WAYS:
            patch.setenv(name, "1")
        app, config = superlink.superlink(superlink._arguments(folder, "127.0.0.1", 9), KEY)
        assert not set(superlink.BY_OTHER_WAYS) & set(os.environ)
    return app, config


def routes_of(app):
    from fastapi.routing import iter_route_contexts

    inner = next(c.cell_contents for c in app.__closure__ if hasattr(c.cell_contents, "routes"))
    return {context.route.path for context in iter_route_contexts(inner.routes)}


def test_every_route_of_flowers_asks_for_the_key_or_a_secret_or_a_nodes_signature(flowers):
    app, _ = flowers
    paths = routes_of(app)
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/activate-node"} <= paths
    near, headers = TestClient(app, client=NEAR), {"content-type": "application/protobuf"}
    shown = [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}]
    for path in paths:
        if path.startswith("/v1/") and path.rsplit("/", 1)[-1] not in WITHOUT_KEY:
            for more in shown:
                assert near.post(path, headers=headers | more, content=b"").status_code in (401, 403), path
        if not path.startswith("/v1/fleet/"):
            assert TestClient(app, client=FAR).post(path, headers=headers).status_code == 403, path


def test_it_speaks_tls_of_today_and_believes_no_forwarded_address(flowers):
    import ssl

    import uvicorn

    app, config = flowers
    served = uvicorn.Config(app, **config)
    served.load()
    assert served.ssl.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert not served.proxy_headers


def test_without_a_submit_key_it_does_not_start(monkeypatch, tmp_path, capsys):
    told = ("deploy", "superlink", "--port", 9, "--server", tmp_path)
    assert main_status(monkeypatch, *told) == 2
    assert "submit.key" in capsys.readouterr().err
