"""A private run of a comparison that was stopped in a paid round begins again, and its ledger stays."""

import json
import shutil

import pytest
from run_helpers import classification_config, metrics_of, tiny_bert, write_data

from fedsb import RunConfig
from fedsb.cli.status import run_status
from fedsb.compare.perform import perform
from fedsb.compare.progress import OneRun
from fedsb.errors import InputError
from fedsb.privacy.accounting import epsilon
from fedsb.privacy.ledger import PrivacyLedger
from fedsb.runner import clients
from fedsb.runner.folder import finished_summary

PRIVACY = {"unit": "example", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5}


class Killed(BaseException):
    """As SIGKILL: nothing of the run gets to see it."""


@pytest.fixture
def config(tmp_path):
    tiny_bert(tmp_path / "bert")
    write_data(tmp_path / "data", train=60, test=12)
    changes = {"federation__rounds": 2, "method__init": {"kind": "weights"}, "privacy": PRIVACY}
    return RunConfig.from_dict(classification_config(tmp_path / "bert", tmp_path / "data", **changes))


def kill_at(monkeypatch, update):
    """Let the process die at this client update, counted from 1."""
    real, calls = clients.client_update, []

    def until_killed(*arguments, **more):
        calls.append(1)
        if len(calls) == update:
            raise Killed
        return real(*arguments, **more)

    monkeypatch.setattr(clients, "client_update", until_killed)


def released(folder):
    """(client, round) of each line of the ledger."""
    lines = (folder / "privacy.jsonl").read_text().splitlines()
    return [(line["client"], line["round"]) for line in map(json.loads, lines)]


def assert_status_counts_what_was_paid(folder):
    ledger, bytes_before = PrivacyLedger(folder / "privacy.jsonl"), (folder / "privacy.jsonl").read_bytes()
    found, reported = run_status(folder), metrics_of(folder)[-1]["epsilon"]
    assert (found["round"], found["paid_ahead"]) == (1, 1)
    assert found["epsilon"] == epsilon(ledger.mechanisms(0), PRIVACY["delta"]) > reported
    assert (folder / "privacy.jsonl").read_bytes() == bytes_before
    elsewhere = shutil.copytree(folder, folder.with_name("copy"), ignore=lambda *_: ["partition.json"])
    with pytest.raises(InputError, match=r"partition.json: needed for the epsilon"):
        run_status(elsewhere)
    shutil.rmtree(elsewhere)


def test_a_run_killed_in_a_paid_round_begins_anew_and_its_ledger_is_kept(tmp_path, config, monkeypatch):
    folder, said = tmp_path / "runs" / "fed-sb" / "seed-0", []
    kill_at(monkeypatch, 5)
    with pytest.raises(Killed):
        perform(config, folder, OneRun(lambda *_: None), asks=False)
    monkeypatch.undo()
    spent = released(folder)
    assert (0, 2) in spent
    assert len(metrics_of(folder)) == 2, "the start and round 1"
    assert_status_counts_what_was_paid(folder)

    assert perform(config, folder, OneRun(lambda share, text: said.append(text)), asks=False) is None
    assert released(folder.with_name("stopped-1-seed-0")) == spent
    assert any("stopped-1-seed-0" in text for text in said)
    assert released(folder) == [(client, number) for number in (1, 2) for client in range(3)]
    facts = finished_summary(folder)["privacy"]
    assert (facts["rounds"], facts["stopped_early"]) == (2, False)
    assert not any(record["rejected"] for record in metrics_of(folder))


def test_a_run_stopped_between_rounds_goes_on(tmp_path, config):
    folder = tmp_path / "runs" / "fed-sb" / "seed-0"
    assert perform(config, folder, OneRun(lambda *_: None), asks=False) is None
    before = (folder / "privacy.jsonl").read_text()
    (folder / "summary.json").unlink()
    assert perform(config, folder, OneRun(lambda *_: None), asks=False) is None
    assert (folder / "privacy.jsonl").read_text() == before
    assert [path.name for path in folder.parent.iterdir()] == ["seed-0"]
    found = run_status(folder)
    assert found["epsilon"] == metrics_of(folder)[-1]["epsilon"]
    assert found["paid_ahead"] == 0
