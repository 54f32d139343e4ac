"""What `fedsb deploy init` writes, and what it refuses."""

import json
import os
import subprocess

import pytest
import yaml
from run_helpers import classification_config, main_status, tiny_bert, write_config, write_data

from fedsb import RunConfig
from fedsb.node_config import NodeConfig

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
        own = NodeConfig.from_yaml(tmp_path / "out" / "nodes" / f"client-{client}" / "node.yaml")
        assert own.client == client
        assert own.data.columns == {"text": "text", "label": "label"}
    services = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "client-0", "client-1"}


def test_the_runs_epsilon_is_the_nodes_first_limit(monkeypatch, tmp_path, run_file):
    privacy = "privacy={unit: example, epsilon: 2.5, delta: 1.0e-3, clip_norm: 1.0}"
    assert init(monkeypatch, tmp_path, run_file, "-s", privacy) == 0
    own = NodeConfig.from_yaml(tmp_path / "out" / "nodes" / "client-1" / "node.yaml")
    assert own.limits.largest_epsilon == 2.5


def test_the_certificates_are_for_the_host_and_signed_by_the_authority(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file, host="10.1.2.3") == 0
    server = tmp_path / "out" / "server"
    subprocess.run([server / "make-certificates.sh"], check=True, capture_output=True)
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_ip", "10.1.2.3", "server.crt"]
    assert "server.crt: OK" in subprocess.run(verify, cwd=server, capture_output=True, text=True).stdout
    assert (server / "ca.key").stat().st_mode & 0o077 == 0
    again = subprocess.run([server / "make-certificates.sh"], capture_output=True, text=True)
    assert again.returncode == 1
    assert "remove ca.key first" in again.stderr
    before = (server / "server.crt").read_bytes()
    subprocess.run([server / "make-certificates.sh", "--renew"], check=True, capture_output=True)
    assert (server / "server.crt").read_bytes() != before
    assert "server.crt: OK" in subprocess.run(verify, cwd=server, capture_output=True, text=True).stdout


def test_a_node_makes_its_own_key(monkeypatch, tmp_path, run_file):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1"
    subprocess.run([node / "make-key.sh"], check=True, capture_output=True)
    assert (node / "client-1.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert (node / "client-1").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "host", "message"),
    [
        (("-s", "task.labels=null"), "fl.example.org", "task.labels"),
        (("-s", "method.refresh_every=1"), "fl.example.org", "method.refresh_every"),
        ((), "https://fl.example.org", "--host"),
        ((), "a b", "--host"),
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


def test_check_names_missing_data(monkeypatch, tmp_path, run_file, capsys):
    assert init(monkeypatch, tmp_path, run_file) == 0
    node = tmp_path / "out" / "nodes" / "client-1" / "node.yaml"
    assert main_status(monkeypatch, "deploy", "check", node, run_file) == 2
    assert "train.jsonl" in capsys.readouterr().err
