"""What `fedsb deploy init` writes, and what it refuses."""

import contextlib
import json
import os
import ssl
import subprocess

import pytest
import yaml
from run_helpers import (
    classification_config,
    main_status,
    tiny_bert,
    write_config,
    write_data,
    write_rows,
)

from fedsb import RunConfig
from fedsb.deploy.node_config import NodeConfig, config_digest

LABELS = ["pos", "neg", "flat"]


@pytest.fixture
def run_file(tmp_path):
    tiny_bert(tmp_path / "bert")
    write_data(tmp_path / "data", train=30, test=12)
    init = {"kind": "weights", "head_warmup": None}
    config = classification_config(
        tmp_path / "bert", tmp_path / "data", task__labels=LABELS, federation__clients=2, method__init=init
    )
    return write_config(tmp_path / "run.yaml", config)


def init(monkeypatch, tmp_path, run_file, *more, host="fl.example.org"):
    return main_status(
        monkeypatch, "deploy", "init", tmp_path / "out", run_file, "--host", host, "--port", 9555, *more
    )


def test_the_folder_holds_everything_and_no_blank_is_left(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file) == 0
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    for file in files:
        assert "@" not in file.read_text().replace('"$@"', ""), file
        assert os.access(file, os.X_OK) == (file.suffix == ".sh")
    assert RunConfig.from_yaml(tmp_path / "out" / "run.yaml").federation.clients == 2
    for client in (0, 1):
        node_config = NodeConfig.from_yaml(tmp_path / "out" / "nodes" / f"client-{client}" / "node.yaml")
        assert node_config.client == client
        assert node_config.data.columns == {"text": "text", "label": "label"}
    services = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "client-0", "client-1"}


def test_what_lies_beside_keys_and_state_is_for_its_owners_eyes(monkeypatch, tmp_path, run_file):
    old = os.umask(0o022)
    try:
        assert init(monkeypatch, tmp_path, run_file) == 0
    finally:
        os.umask(old)
    out = tmp_path / "out"
    for folder in (out / "server", out / "nodes" / "client-0", out / "nodes" / "client-1"):
        assert folder.stat().st_mode & 0o077 == 0, folder
    for script in out.rglob("*.sh"):
        text = script.read_text()
        assert "umask 077" in text or ". ./environment.sh" in text, script
    assert not [file for file in out.rglob("*") if file.suffix in (".key", ".crt", ".pub")]


def test_only_this_machine_can_connect_unless_told_otherwise(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file) == 0
    start = (tmp_path / "out" / "server" / "start.sh").read_text()
    assert start.count("${HOST:-127.0.0.1}") == 2
    superlink = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]["superlink"]
    assert superlink["ports"] == ["${HOST:-127.0.0.1}:9555:9555"]
    assert "HOST=0.0.0.0" in (tmp_path / "out" / "README.md").read_text()
    fedsb = tmp_path / "bin" / "fedsb"
    fedsb.parent.mkdir()
    fedsb.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n')
    fedsb.chmod(0o755)
    told = {"PATH": f"{fedsb.parent}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    for more in ({}, {"HOST": "0.0.0.0"}):
        subprocess.run([tmp_path / "out" / "server" / "start.sh"], env=told | more, check=True)
    started = [line for line in (tmp_path / "log").read_text().splitlines() if "superlink" in line]
    assert started == [f"deploy superlink --host {host} --port 9555" for host in ("127.0.0.1", "0.0.0.0")]


def test_no_script_runs_what_is_sent(monkeypatch, tmp_path, run_file):
    """Neither Flower's own processes, which run a submitted app, nor an app to submit."""
    assert init(monkeypatch, tmp_path, run_file) == 0
    for script in (tmp_path / "out").rglob("*.sh"):
        text = script.read_text()
        assert "subprocess" not in text, script
        assert "flwr run" not in text, script
        assert "flower-superexec" not in text, script
        assert "flower-supernode" not in text or "--isolation process" in text, script
    assert not (tmp_path / "out" / "app").exists()


def test_the_runs_epsilon_is_the_nodes_first_limit(monkeypatch, tmp_path, run_file):
    privacy = "privacy={unit: example, epsilon: 2.5, delta: 1.0e-3, clip_norm: 1.0}"
    assert init(monkeypatch, tmp_path, run_file, "-s", privacy) == 0
    node_config = NodeConfig.from_yaml(tmp_path / "out" / "nodes" / "client-1" / "node.yaml")
    assert node_config.limits.largest_epsilon == 2.5


def test_the_certificates_are_for_the_host_and_signed_by_the_authority(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file, host="10.1.2.3") == 0
    server = tmp_path / "out" / "server"
    subprocess.run([server / "make-certificates.sh"], check=True, capture_output=True)
    for name in ("ca.key", "server.key", "submit.key"):
        assert (server / name).stat().st_mode & 0o777 == 0o600, name
    for name in ("ca.crt", "server.crt"):
        assert (server / name).stat().st_mode & 0o777 == 0o644, name
    submit_key = (server / "submit.key").read_text()
    assert len(submit_key.strip()) == 64
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_ip", "10.1.2.3", "server.crt"]
    assert "server.crt: OK" in subprocess.run(verify, cwd=server, capture_output=True, text=True).stdout
    again = subprocess.run([server / "make-certificates.sh"], capture_output=True, text=True)
    assert again.returncode == 1
    assert "remove ca.key first" in again.stderr
    before = (server / "server.crt").read_bytes()
    subprocess.run([server / "make-certificates.sh", "--renew"], check=True, capture_output=True)
    assert (server / "server.crt").read_bytes() != before
    assert (server / "submit.key").read_text() == submit_key
    assert "server.crt: OK" in subprocess.run(verify, cwd=server, capture_output=True, text=True).stdout


def test_the_server_is_believed_under_its_names_alone(monkeypatch, tmp_path, run_file):
    """What TLS does with the files that make-certificates.sh makes."""
    assert init(monkeypatch, tmp_path, run_file, host="fl.example.org") == 0
    server = tmp_path / "out" / "server"
    subprocess.run([server / "make-certificates.sh"], check=True, capture_output=True)
    for name in ("fl.example.org", "localhost", "127.0.0.1"):
        assert shake_hands(server, name, server / "ca.crt") is None
    assert "mismatch" in shake_hands(server, "other.example.org", server / "ca.crt")
    assert "certificate verify failed" in shake_hands(server, "fl.example.org", None)
    assert "certificate verify failed" in shake_hands(server, "fl.example.org", server / "server.crt")


def shake_hands(server, name, authority):
    """What a client that calls the server by this name has against it."""
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=authority)
    theirs.load_cert_chain(server / "server.crt", server / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(to_client, to_server, server_hostname=name)
    other = theirs.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for side in (client, other):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError as error:
        return str(error)
    return None


def test_a_node_makes_its_own_key(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1"
    subprocess.run([node / "make-key.sh"], check=True, capture_output=True)
    assert (node / "client-1.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert (node / "client-1").stat().st_mode & 0o077 == 0
    before = (node / "client-1").read_bytes()
    again = subprocess.run([node / "make-key.sh"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert again.returncode == 1
    assert "client-1 exists" in again.stderr
    assert (node / "client-1").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "host", "message"),
    [
        (("-s", "task.labels=null"), "fl.example.org", "task.labels"),
        (("-s", "method.refresh_every=1"), "fl.example.org", "method.refresh_every"),
        ((), "https://fl.example.org", "--host"),
        *(((), host, "--host") for host in ("a b", "a;b", "$(touch x)", "a`b`", "-x", "a\nb", "::1", "")),
    ],
)
def test_what_cannot_work_is_refused(monkeypatch, tmp_path, run_file, capsys, change, host, message):
    assert init(monkeypatch, tmp_path, run_file, *change, host=host) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_refused(monkeypatch, tmp_path, run_file, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert init(monkeypatch, tmp_path, run_file) == 2
    assert "is not empty" in capsys.readouterr().err


def test_check_prints_what_the_server_would_be_told(monkeypatch, tmp_path, run_file, capsys):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1"
    rows = (tmp_path / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (node / "train.jsonl").write_text("".join(rows[:10]))
    capsys.readouterr()
    assert main_status(monkeypatch, "deploy", "check", node / "node.yaml", run_file, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["client"], facts["num_examples"]) == (1, 10)


def test_check_tells_the_owner_what_is_cut(monkeypatch, tmp_path, run_file, capsys):
    assert init(monkeypatch, tmp_path, run_file, "-s", "training.max_length=4") == 0
    node = tmp_path / "out" / "nodes" / "client-1"
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    write_rows(node / "train.jsonl", rows)
    capsys.readouterr()
    assert main_status(monkeypatch, "deploy", "check", node / "node.yaml", tmp_path / "out" / "run.yaml") == 0
    said = capsys.readouterr()
    cut = sum(len(row["text"].split()) > 2 for row in rows)  # beside the two special tokens
    assert f"training.max_length 4 cuts {cut} of {len(rows)} train examples ({cut} texts)" in said.err
    assert "max_length" not in said.out  # what the server would be told


def test_check_prints_the_digest_that_the_owner_approves(monkeypatch, tmp_path, run_file, capsys):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1"
    (node / "train.jsonl").write_text((tmp_path / "data" / "train.jsonl").read_text())
    (node / "run.yaml").write_text((tmp_path / "out" / "run.yaml").read_text())
    node_config = yaml.safe_load((node / "node.yaml").read_text())
    assert node_config["approved"] == []
    digest = config_digest(RunConfig.from_yaml(node / "run.yaml"))
    told = ("deploy", "check", node / "node.yaml", node / "run.yaml", "--json")
    capsys.readouterr()
    assert main_status(monkeypatch, *told) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["config_digest"] == digest
    assert f"add {digest} to approved:" in said.err
    write_config(node / "node.yaml", node_config | {"approved": [digest]})
    assert main_status(monkeypatch, *told) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["approved"] is True
    assert "approved:" not in said.err


def test_check_names_missing_data(monkeypatch, tmp_path, run_file, capsys):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1" / "node.yaml"
    assert main_status(monkeypatch, "deploy", "check", node, run_file) == 2
    assert "train.jsonl" in capsys.readouterr().err
