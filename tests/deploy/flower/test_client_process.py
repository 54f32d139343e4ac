"""The client process that lasts: when it ends, and with which Flower it starts at all."""

import os
import subprocess
import sys

import pytest
from run_helpers import main_status

from fedsb.deploy import client_app, client_process, superexec
from fedsb.errors import InputError, RunFailed


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 32)
    return tmp_path / "secret"


def test_another_flower_is_refused_with_the_way_out(monkeypatch, secret, capsys):
    monkeypatch.setattr(superexec, "version", lambda name: "1.42.0")
    told = ("deploy", "client", "--port", 9, "--secret", secret, "--supernode", os.getpid())
    assert main_status(monkeypatch, *told) == 2
    said = capsys.readouterr().err
    assert "flwr 1.42.0" in said
    assert "flwr==1.41.*" in said


def test_a_missing_secret_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--secret: cannot read .*none"):
        client_process.serve(9, tmp_path / "none", os.getpid())


def test_it_answers_until_something_fails_that_nobody_foresaw(monkeypatch, secret):
    answered = []

    class Waiting:
        def __init__(self, address, secret):
            assert (address, secret) == ("127.0.0.1:9100", b"x" * 32)

        def acquire(self):
            return len(answered)

        def answer(self, token, app):
            answered.append(token)
            assert app is client_app.app
            client_app.held.spoiled = token == 2

    monkeypatch.setattr(client_process, "Tasks", Waiting)
    monkeypatch.setattr(client_process, "_end_with", lambda supernode: None)
    with pytest.raises(RunFailed, match="a fresh one is to take its place"):
        client_process.serve(9100, secret, os.getpid())
    assert answered == [0, 1, 2]
    client_app.held.spoiled = False


def test_it_ends_with_its_supernode(secret):
    supernode = subprocess.Popen(["sleep", "60"])
    told = ["--port", "9", "--secret", str(secret), "--supernode", str(supernode.pid)]
    client = subprocess.Popen([sys.executable, "-m", "fedsb", "deploy", "client", *told])
    supernode.kill()
    supernode.wait()
    assert client.wait(60) == 0
