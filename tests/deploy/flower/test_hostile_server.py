"""Whatever a server asks, a node answers or refuses; it does not fail, and says nothing of its own."""

import json
import logging

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from run_helpers import changed, write_config
from stubs import CONFIG, RUN, StubHeld

from fedsb import RunConfig
from fedsb.config.base import MOST_FAULTS
from fedsb.deploy import client_app
from fedsb.deploy.questions import LARGEST_CONFIG
from fedsb.deploy.records import facts_of, pack, payload_of
from fedsb.errors import InputError


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    monkeypatch.setattr(client_app, "held", StubHeld())
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


@pytest.fixture
def ask(tmp_path):
    file = write_config(tmp_path / "node.yaml", {"client": 0, "data": {"train": "t.jsonl"}, "state": "state"})

    def ask(content, kind="train", own_file=str(file)):
        message = Message(content, 100, kind, ttl=100.0)
        reply = client_app.app(message, Context(1, 1, {"fedsb": own_file}, RecordDict(), {}))
        return facts_of(reply.content), payload_of(reply.content)

    return ask


FACTS = {"kind": "train", "config": json.dumps(CONFIG), "run": RUN, "nonce": "0" * 32}


def config(**changes):
    return FACTS | {"config": json.dumps(changed(CONFIG, **changes))}


def config_text(text):
    return FACTS | {"config": text}


def lacking(name):
    return {key: value for key, value in FACTS.items() if key != name}


BAD_FACTS = {
    "no facts": {},
    "no config": lacking("config"),
    "no run": lacking("run"),
    "config no JSON": config_text("{"),
    "config empty": config_text(""),
    "config deep": config_text("[" * 100_000),
    "config deep in a key": config_text('{"model": ' * 50_000),
    "config deep and whole": config_text('{"a":' * 900 + "1" + "}" * 900),
    "config a list": config_text("[]"),
    "config of pairs": config_text('[["model", 1]]'),
    "config null": config_text("null"),
    "config a number": config_text("5"),
    "config of 5,000 digits": config_text('{"model": ' + "9" * 5000 + "}"),
    "a number of 4,000 digits": config_text(
        json.dumps(CONFIG).replace('"clients": 3', '"clients": ' + "9" * 4000)
    ),
    "config with NaN": config(federation__deadline_seconds=float("nan")),
    "config with infinity": config(federation__deadline_seconds=float("inf")),
    "config with 1e999": config_text(
        json.dumps(CONFIG).replace('"deadline_seconds": 0.2', '"deadline_seconds": 1e999')
    ),
    "a key of 20 MB": config_text(json.dumps({"x" * 20_000_000: 1})),
    "a key of 900 kB": config_text(json.dumps({"x" * 900_000: 1})),
    "70,000 unknown keys": config_text(json.dumps({f"k{i}": 1 for i in range(70_000)})),
    "a surrogate in a key": config_text('{"\\ud800": 1}'),
    "config a list of texts": FACTS | {"config": [json.dumps(CONFIG)]},
    "config bytes": FACTS | {"config": json.dumps(CONFIG).encode()},
    "config a number, not text": FACTS | {"config": 5},
    "run of 20 MB": FACTS | {"run": "r" * 20_000_000},
    "run a list": FACTS | {"run": ["r"]},
    "run a number": FACTS | {"run": 5},
    "nonce of 20 MB": FACTS | {"nonce": "n" * 20_000_000},
    "nonce a list": FACTS | {"nonce": ["n"]},
}
BAD_KINDS = {
    "no kind": lacking("kind"),
    "kind of 20 MB": FACTS | {"kind": "k" * 20_000_000},
    "kind a list": FACTS | {"kind": ["train"]},
}


def assert_refused(answer):
    facts, payload = answer
    assert set(facts) == {"refusal"}
    assert payload == b""
    text = facts["refusal"]
    assert "this node failed" not in text
    assert len(text) < 400
    assert text.isprintable()
    assert not client_app.held.spoiled


@pytest.mark.parametrize("kind", ["train", "query"])
@pytest.mark.parametrize("facts", BAD_FACTS.values(), ids=BAD_FACTS)
def test_a_bad_question_is_refused_before_anything_is_made_of_it(ask, facts, kind):
    assert_refused(ask(pack(facts), kind))


def test_not_every_fault_of_many_is_explained():
    """Each takes a search for the key that was meant: a config of 70,000 would take minutes."""
    with pytest.raises(InputError, match="100 wrong") as refused:
        RunConfig.from_dict(CONFIG | {f"k{i}": 1 for i in range(100)})
    assert str(refused.value).count("unknown key") == MOST_FAULTS


@pytest.mark.parametrize("facts", BAD_KINDS.values(), ids=BAD_KINDS)
def test_a_question_of_no_kind_is_refused(ask, facts):
    assert_refused(ask(pack(facts)))


PAYLOADS = {
    "of another dtype": ArrayRecord({"message": Array("float32", (1,), "fedsb", b"junk")}),
    "of another shape": ArrayRecord({"message": Array("uint8", (2, 2), "fedsb", b"junk")}),
    "under another name": ArrayRecord({"other": Array("uint8", (4,), "fedsb", b"junk")}),
    "settings": ConfigRecord({"message": "junk"}),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_that_is_none_is_refused(ask, payload):
    content = pack(FACTS)
    content["payload"] = payload
    assert_refused(ask(content))


def test_a_question_without_content_is_refused(ask):
    question = Message(RecordDict(), 100, "train", ttl=100.0)
    question.metadata.__dict__["_message_id"] = "1"
    reply = client_app.app(
        Message(Error(1, "x"), reply_to=question), Context(1, 1, {"fedsb": "n"}, RecordDict(), {})
    )
    assert_refused((facts_of(reply.content), b""))


def test_a_question_without_a_nonce_is_answered(ask):
    """From a server that checks no signatures."""
    assert ask(pack(lacking("nonce"), b"q"))[1] == b"0: q"
    assert ask(pack(FACTS, b"q"))[1] == b"0: q"
    assert ask(pack(lacking("kind")), "query")[0]["client"] == 0


def test_what_a_server_chose_does_not_steer_the_nodes_terminal(ask, caplog):
    caplog.set_level(logging.ERROR)
    assert_refused(ask(pack(config(**{"\x1b[2J\x1b]0;owned\x07": 1}))))
    assert caplog.messages
    assert all(message.isprintable() for message in caplog.messages)


def test_a_failure_at_home_is_told_by_its_kind_alone(ask, monkeypatch):
    def fails(self, kind, question):
        raise ValueError("secret diagnosis")

    monkeypatch.setattr("stubs.StubNode.answer", fails)
    facts, _ = ask(pack(FACTS))
    assert facts == {"refusal": "this node failed (ValueError); its own log says why"}
    assert client_app.held.spoiled


def test_the_config_of_a_run_is_far_below_the_bound():
    assert len(json.dumps(CONFIG)) * 100 < LARGEST_CONFIG
