"""Whose key is whose: one number a key, one key a number."""

import os
import subprocess
from dataclasses import dataclass, field

import pytest
from run_helpers import main_status

from fedsb.deploy import server_process
from fedsb.deploy.control import Control
from fedsb.deploy.registration import read_public_key, register, revoke
from fedsb.errors import InputError, RunFailed


@dataclass
class Flower:
    """Whose node Flower lets in."""

    keys: list[bytes] = field(default_factory=list)

    def register(self, key):
        self.keys.append(key)

    def unregister(self, key):
        self.keys.remove(key)


def key_file(folder, name, *kind):
    command = ["ssh-keygen", "-q", *(kind or ("-t", "ecdsa", "-b", "384")), "-N", "", "-C", "someone"]
    subprocess.run([*command, "-f", str(folder / name)], check=True)
    return folder / f"{name}.pub"


@pytest.fixture
def clients(tmp_path):
    return tmp_path / "server-clients"


def registered(clients):
    return {file.name: file.read_text() for file in clients.iterdir()} if clients.exists() else {}


def test_a_key_is_bound_to_the_number_in_its_files_name(tmp_path, clients):
    flower, file = Flower(), key_file(tmp_path, "client-1")
    assert register(clients, file, None, flower) == 1
    line, pem = read_public_key(file)
    assert registered(clients) == {"client-1.pub": line + "\n"}
    assert "someone" not in line
    assert flower.keys == [pem]
    assert clients.stat().st_mode & 0o077 == 0
    assert register(clients, clients / "client-1.pub", None, flower) == 1  # after Flower lost its database


def test_a_second_key_for_a_number_is_refused(tmp_path, clients):
    flower = Flower()
    register(clients, key_file(tmp_path, "client-0"), None, flower)
    before = registered(clients)
    with pytest.raises(InputError, match=r"client 0: another key is registered .*revoke.sh 0 first"):
        register(clients, key_file(tmp_path, "stranger"), 0, flower)
    assert registered(clients) == before
    assert len(flower.keys) == 1


def test_a_second_number_for_a_key_is_refused(tmp_path, clients):
    flower, file = Flower(), key_file(tmp_path, "client-0")
    register(clients, file, None, flower)
    with pytest.raises(InputError, match="registered for client 0 and cannot be client 3's too"):
        register(clients, file, 3, flower)
    assert set(registered(clients)) == {"client-0.pub"}
    assert len(flower.keys) == 1


def test_a_revoked_number_is_free_for_another_key(tmp_path, clients):
    flower = Flower()
    register(clients, key_file(tmp_path, "client-2"), None, flower)
    revoke(clients, 2, flower)
    assert (registered(clients), flower.keys) == ({}, [])
    assert register(clients, key_file(tmp_path, "other"), 2, flower) == 2
    with pytest.raises(InputError, match=r"client 5: has no registered key here; registered: client-2"):
        revoke(clients, 5, flower)


@pytest.mark.parametrize("name", ["mine", "client-", "client-01", "client--1", "client-1.2", "client-1e3"])
def test_a_name_without_a_number_needs_one(tmp_path, clients, name):
    with pytest.raises(InputError, match="which client's key"):
        register(clients, key_file(tmp_path, name), None, Flower())
    assert not registered(clients)


@pytest.mark.parametrize("kind", ["ecdsa -b 256", "ed25519", "rsa -b 2048"])
def test_another_kind_of_key_is_refused(tmp_path, clients, kind):
    with pytest.raises(InputError, match=r"client-0.pub: expected the public key .*make-key.sh"):
        register(clients, key_file(tmp_path, "client-0", "-t", *kind.split()), None, Flower())


@pytest.mark.parametrize("content", [b"", b"x" * 10_000, b"\xff\xfe", b"ecdsa-sha2-nistp384 AAAA"])
def test_what_is_no_key_is_refused(tmp_path, clients, content):
    (tmp_path / "client-0.pub").write_bytes(content)
    with pytest.raises(InputError, match=r"client-0.pub: expected the public key"):
        register(clients, tmp_path / "client-0.pub", None, Flower())
    with pytest.raises(InputError, match=r"client-9.pub: cannot read it"):
        register(clients, tmp_path / "client-9.pub", None, Flower())


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path, clients):
    key_file(tmp_path, "client-0")
    os.rename(tmp_path / "client-0", tmp_path / "client-1.pub")
    with pytest.raises(InputError, match="expected the public key"):
        register(clients, tmp_path / "client-1.pub", None, Flower())


def test_nothing_is_bound_that_flower_did_not_let_in(tmp_path, clients):
    class Gone(Flower):
        def register(self, key):
            raise RunFailed("no SuperLink")

    with pytest.raises(RunFailed):
        register(clients, key_file(tmp_path, "client-0"), None, Gone())
    assert not registered(clients)


def test_without_a_superlink_the_commands_say_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(server_process.Link, "control", lambda self: unreachable())
    file = key_file(tmp_path, "client-0")
    assert main_status(monkeypatch, "deploy", "register", file, "--port", 9, "--server", tmp_path) == 1
    assert "run ./start.sh first" in capsys.readouterr().err


def unreachable():
    control = Control("localhost:9", b"", "k" * 64)
    control.__dict__["_client"] = Unreachable()
    return control


class Unreachable:
    def ListNodes(self, request):
        import httpx

        raise httpx.ConnectError("refused")
