"""Nothing about a limited party's rows leaves uncharged: every question, under every setting of a run."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from run_helpers import KEYS, changed, classification_config, tiny_bert, write_data, write_rows

from fedsb import RunConfig
from fedsb.config.run_config import flat_settings
from fedsb.deploy import node as node_module
from fedsb.deploy.door import Door, NoisedRelease, PublicFacts, UnprotectedUpdate
from fedsb.deploy.node import QUESTIONS, Node
from fedsb.deploy.node_config import NodeConfig, Refused, config_digest
from fedsb.errors import FedsbError, InputError, RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.start.messages import pack_start
from fedsb.federation.training import ClientFailed
from fedsb.privacy.account import BudgetSpent
from fedsb.privacy.ledger import Spend, read_spends
from fedsb.runner.clients import Kind

ROWS = 12
RUN = "a" * 32
LIMITS = {"largest_epsilon": 1.0, "largest_delta": 1e-3, "smallest_clip_norm": 0.5}
PRIVACY = {"unit": "example", "epsilon": 1.0, "noise_multiplier": 40.0, "delta": 1e-3, "clip_norm": 1.0}
"""With more noise than epsilon needs, so that none is sought."""
PRIVATE_START = {"kind": "gradient", "private": True, "samples": 6, "head_warmup": None}
NO_START = {"kind": "weights", "head_warmup": None}
RAW = {"kind": "gradient", "samples": 6, "head_warmup": {"rounds": 1, "steps": 2}}
ERRORS = (FedsbError, ClientFailed)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, rows, and other rows of which there are as many."""
    folder = tmp_path_factory.mktemp("door")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=ROWS, test=ROWS)
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    keys, labels = list(KEYS), list(KEYS.values())
    others = [row | {"text": f"w3 {keys[i % 2]} w5", "label": labels[i % 2]} for i, row in enumerate(rows)]
    write_rows(folder / "data" / "other.jsonl", others)
    write_rows(folder / "data" / "public.jsonl", [row | {"text": f"w9 {row['text']}"} for row in rows])
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 2,
        "federation__clients": 1,
        "task__labels": ["pos", "neg", "flat"],
        "method__init": PRIVATE_START,
        "privacy": PRIVACY,
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def node_of(world, config, state, *, data="train", **node_changes):
    """A party with limits whose owner approved this very config; with rows, and so a budget, of its own."""
    config, rows = RunConfig.from_dict(config), Path(f"{state}-rows") / f"{data}.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    if not rows.exists():
        shutil.copy(world / "data" / f"{data}.jsonl", rows)
    values: dict[str, Any] = {
        "client": 0,
        "data": {
            "train": str(rows),
            "columns": {"text": "text", "label": "label"},
        },
        "state": str(state),
        "limits": LIMITS,
        "approved": [config_digest(config)],
    }
    return Node(config, NodeConfig(**changed(values, **node_changes)), RUN)


def question(node, kind):
    """What a server asks that means the run as its config says."""
    if kind in ("warm-up", "contribute"):
        head = {f"head.{n}": torch.ones_like(p) for n, p in node.base.task_head.items()}
        number = int(kind == "warm-up")
        return pack_start({"kind": kind, "round": number}, head | {"sizes": torch.tensor([node.registered])})
    if kind == "bases":
        template = {n: torch.ones(t.shape, dtype=torch.bfloat16) for n, t in node.start._bases_like().items()}
        return pack_start({"kind": kind, "round": 0}, template)
    if kind in ("train", "score"):
        exchange = node.local_client.local_model.exchange
        down = exchange.message(1, exchange.whole, None)
        return wire.pack(wire.Header(exchange.method.name, 1, down.digest), torch.zeros(down.size))
    return b""


def charged(state):
    return Counter((s.phase, s.round) for file in state.rglob("privacy.jsonl") for s in read_spends(file))


def answers(world, config, state, **node_changes):
    """Kind -> (answer or None, what was charged for it) of a party that is asked everything."""
    try:
        node = node_of(world, config, state, **node_changes)
    except InputError:
        return {}
    answered = {}
    for kind in ["bases", *(kind for kind in QUESTIONS if kind != "bases")]:
        before = charged(state)
        try:
            answer = node.answer(kind, question(node, kind))
        except ERRORS:
            answer = None
        answered[kind] = answer, charged(state) - before
    return answered


def uncharged(world, config, folder, **node_changes):
    """Kinds whose answers depend on what the rows hold, and were not charged."""
    ours = answers(world, config, folder / "ours", **node_changes)
    theirs = answers(world, config, folder / "theirs", data="other", **node_changes)
    return {
        kind
        for kind, (answer, spent) in ours.items()
        if answer is not None and not spent and answer != theirs[kind][0]
    }


def test_every_question_has_its_answer_in_one_table():
    assert set(QUESTIONS) == set(get_args(Kind))


def test_a_fair_run_is_answered_and_every_look_at_rows_is_charged(world, tmp_path):
    answered = answers(world, config_of(world), tmp_path)
    assert {kind: dict(spent) for kind, (answer, spent) in answered.items() if answer is not None} == {
        "hello": {},
        "bases": {},
        "contribute": {("start", 0): 1},
        "train": {("round", 1): 1},
    }
    assert uncharged(world, config_of(world), tmp_path / "compared") == set()


SCORED = {"data__client_test": 0.5, "data__test": ..., "evaluation": {"at_clients": True}}


def test_scores_leave_noised_and_charged_where_the_owner_gives_them(world, tmp_path):
    config = config_of(world, **SCORED, privacy=PRIVACY | {"score_noise_multiplier": 40.0})
    for gives, spent in ((True, {("score", 0): 1}), (None, {})):
        answer, charge = answers(world, config, tmp_path / str(gives), give_scores=gives)["score"]
        header, counts = wire.unpack(answer)
        assert (dict(charge), header.num_examples, bool(counts.any())) == (
            spent,
            6 if gives else 0,
            bool(gives),
        )
    assert uncharged(world, config, tmp_path / "compared", give_scores=True) == set()


def test_a_limit_is_on_rounds_and_scores_together(world, tmp_path):
    config = config_of(world, **SCORED, privacy=PRIVACY | {"score_noise_multiplier": 4.0})
    assert node_of(world, config, tmp_path / "without").private.epsilon() == 0
    with pytest.raises(BudgetSpent, match="no room for this run"):
        node_of(world, config, tmp_path / "with", give_scores=True).private  # noqa: B018


TRICKS: dict[str, dict[str, Any]] = {
    "raw gradients": {"method__init": RAW | {"head_warmup": None}},
    "raw gradients, without privacy": {"method__init": RAW, "privacy": None},
    "warm-up on private rows": {"method__init": NO_START | {"head_warmup": {"rounds": 1}}},
    "public, says the server": {"method__init": RAW | {"public": "whatever.jsonl"}},
    "public, and it is there": {"method__init": RAW | {"public": "PUBLIC"}},
    "public rows of the party itself": {"method__init": RAW | {"public": "TRAIN"}},
    "public weights and warm-up": {"method__init": RAW | {"kind": "weights", "public": "x"}},
    "public sketch": {"method__init": RAW | {"upload": "sketch", "public": "x"}},
    "public moments": {"method__init": RAW | {"rule": "moments", "public": "x"}},
    "public and private": {"method__init": PRIVATE_START | {"public": "x"}},
    "whole gradients": {"method__init": RAW | {"upload": "whole", "public": "x"}},
    "no privacy": {"privacy": None, "method__init": NO_START},
    "privacy of clients": {
        "privacy": PRIVACY | {"unit": "client"},
        "federation__weighting": "uniform",
        "method__init": NO_START,
    },
    "clients, quantile": {
        "privacy": PRIVACY | {"unit": "client", "quantile": 0.5},
        "federation__weighting": "uniform",
        "method__init": NO_START,
    },
    "noise that repeats": {"privacy": PRIVACY | {"insecure_seed": 1}},
    "noise without epsilon": {"privacy": PRIVACY | {"epsilon": None}},
    "hardly any noise": {"privacy": PRIVACY | {"noise_multiplier": 1e-6}},
    "too little noise": {"privacy": PRIVACY | {"noise_multiplier": 0.5}},
    "the wrong clipping": {"training__grad_clip": 1.0},
    "half precision": {"federation__upload_dtype": "float16"},
    "refreshed bases": {"method__refresh_every": 1},
    "bases refreshed as cores stop": {"method__refresh_when": {}},
    "no time": {"federation__client_timeout_seconds": 1e-9},
    "another method": {"method__name": "fedit"},
    "a method that changes the base": {"method__name": "flora", "method__init": NO_START},
}


@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_of_a_config_gets_anything_uncharged(world, tmp_path, name):
    config = config_of(world, **TRICKS[name])
    public = config["method"]["init"].get("public")
    if public in ("PUBLIC", "TRAIN"):
        config["method"]["init"]["public"] = str(world / "data" / f"{public.lower()}.jsonl")
    assert uncharged(world, config, tmp_path) == set()
    for file in tmp_path.rglob("privacy.jsonl"):
        assert all(spend.mechanism.noise_multiplier >= 0.5 for spend in read_spends(file))


def schema_of(part, whole):
    """The part with its reference followed."""
    return whole["$defs"][part["$ref"].split("/")[-1]] if "$ref" in part else part


def values_of(part, whole):
    """Some values of a kind that the part of the schema takes."""
    part = schema_of(part, whole)
    for choice in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from values_of(choice, whole)
    yield from part.get("enum", ())
    examples = {"boolean": (True, False), "null": (None,), "number": (1e-6, 1e9), "integer": (1, 10**9)}
    yield from examples.get(part.get("type"), ()) if "const" not in part else (part["const"],)
    if part.get("type") == "string" and "enum" not in part and "const" not in part:
        yield "x"
    if part.get("type") == "array":
        yield from ([value] for value in values_of(part["items"], whole))


def settings(part, whole, path=()):
    """(key, value) of some values for every key of the config."""
    part = schema_of(part, whole)
    for choice in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from settings(choice, whole, path)
    for key, inner in part.get("properties", {}).items():
        yield from ((".".join((*path, key)), value) for value in values_of(inner, whole))
        yield from settings(inner, whole, (*path, key))


def all_settings():
    schema = RunConfig.model_json_schema()
    return list({repr(setting): setting for setting in settings(schema, schema)}.values())


ELSEWHERE = ("evaluation.", "tracking", "data.test", "data.limit.test", "model.path", "data.train")
"""Keys that a node does not read, or that lead nowhere in a test."""


def test_no_setting_gets_a_look_at_rows_that_is_not_noised(world, tmp_path):
    """One key of the config after the other, whichever there are; nothing is computed."""
    seen, base, opened = Counter(), config_of(world), 0
    assert {key for key, _ in all_settings()} >= set(flat_settings(RunConfig.from_dict(base)))
    for number, (key, value) in enumerate(all_settings()):
        if key.startswith(ELSEWHERE):
            continue
        try:
            config = changed(base, **{key.replace(".", "__"): value})
            node = node_of(world, config, tmp_path / str(number))
            node_module.make_private(node.folder)
            opened += 1
        except (InputError, AttributeError, TypeError):
            continue
        for kind, answer in QUESTIONS.items():
            try:
                disclosure = answer(node, question(node, kind))
            except ERRORS:
                continue
            seen[kind] += 1
            noised = (
                isinstance(disclosure, NoisedRelease) and disclosure.charge.mechanism.noise_multiplier > 0
            )
            assert noised or (isinstance(disclosure, PublicFacts) and kind in ("hello", "bases")), (
                key,
                value,
            )
    assert opened > 40
    assert min(seen[kind] for kind in ("hello", "bases", "contribute", "train")) > 20


# The door itself


def door_of(world, state, **node_changes):
    return node_of(world, config_of(world), state, **node_changes).door


def ledgers_question(monkeypatch, answer):
    monkeypatch.setitem(QUESTIONS, "evaluate", answer)


def test_a_question_that_is_added_must_pass_the_door(world, tmp_path, monkeypatch):
    """One that gives its bytes away, adds no noise, or only says that it charged, gets nothing out."""
    node = node_of(world, config_of(world), tmp_path)
    secret = json.dumps(node.data.train).encode()
    charge = Spend(0, "round", 1, node.private.plans[0].of_round(1))
    longer = charge.mechanism._replace(steps=9)
    for answer, error in [
        (secret, TypeError),
        (UnprotectedUpdate(lambda: secret), Refused),
        (NoisedRelease(lambda: secret, charge), RunFailed),
        (NoisedRelease(lambda: secret, charge, again=True), RunFailed),
        (NoisedRelease(lambda: secret, replace(charge, mechanism=longer)), RunFailed),
    ]:
        ledgers_question(monkeypatch, lambda node, asked, answer=answer: answer)
        with pytest.raises(error):
            node.answer("evaluate", b"")


def test_the_comparison_above_sees_a_leak(world, tmp_path, monkeypatch):
    """A question that calls rows public is caught by asking two parties with other rows."""
    ledgers_question(monkeypatch, lambda node, asked: PublicFacts(json.dumps(node.data.train).encode()))
    assert uncharged(world, config_of(world), tmp_path) == {"evaluate"}


def test_an_unknown_question_is_refused(world, tmp_path):
    with pytest.raises(UpdateRejected, match="unknown question 'rows'"):
        node_of(world, config_of(world), tmp_path).answer("rows", b"")


def test_an_unprotected_update_is_not_even_made(world, tmp_path):
    made = []
    with pytest.raises(Refused, match=r"limits.largest_epsilon: this party takes part in runs that protect"):
        door_of(world, tmp_path).let_out(UnprotectedUpdate(lambda: made.append(1)))
    assert not made


def test_a_failure_after_rows_were_looked_at_is_charged(world, tmp_path):
    """That it took too long, or too much memory, tells of rows."""
    config = config_of(world, federation__client_timeout_seconds=1e-9)
    node = node_of(world, config, tmp_path)
    node.answer("bases", question(node, "bases"))
    for _ in range(2):
        with pytest.raises(ClientFailed, match="timed out"):
            node.answer("train", question(node, "train"))
    assert charged(tmp_path) == {("round", 1): 2}


def test_a_question_that_does_not_fit_is_not_charged(world, tmp_path):
    node = node_of(world, config_of(world), tmp_path)
    node.answer("bases", question(node, "bases"))
    whole = question(node, "train")
    header, vector = wire.unpack(whole)
    for bad in (b"", whole[:-4], wire.pack(wire.Header(**vars(header) | {"layout": "0" * 16}), vector)):
        with pytest.raises(UpdateRejected):
            node.answer("train", bad)
    assert not charged(tmp_path)


def test_a_round_asked_again_is_charged_again_until_nothing_is_left(world, tmp_path):
    privacy = PRIVACY | {"noise_multiplier": 10.0}
    node = node_of(world, config_of(world, privacy=privacy, method__init=NO_START), tmp_path)
    asked = question(node, "train")
    first, second = (node.answer("train", asked) for _ in range(2))
    assert first != second

    def ask_for_ever():
        while True:
            node.answer("train", asked)

    with pytest.raises(ClientFailed, match="used up"):
        ask_for_ever()
    assert node.private.epsilon() <= 1.0


@pytest.mark.parametrize("number", [0, 3, 10**6])
def test_a_round_that_is_not_of_the_plan_is_refused(world, tmp_path, number):
    node = node_of(world, config_of(world), tmp_path)
    node.answer("bases", question(node, "bases"))
    header, vector = wire.unpack(question(node, "train"))
    with pytest.raises(UpdateRejected, match="wrong round: expected one from 1 to 2"):
        node.answer("train", wire.pack(wire.Header(**vars(header) | {"round": number}), vector))
    assert not charged(tmp_path)


# What the owner may allow


def test_rows_that_the_owner_declared_public_are_all_that_a_public_start_looks_at(world, tmp_path):
    config = config_of(world, method__init=RAW | {"public": "the server's.jsonl"})
    public = {"data__public": str(world / "data" / "public.jsonl")}
    ours, theirs = (
        answers(world, config, tmp_path / data, data=data, **public) for data in ("train", "other")
    )
    for kind in ("warm-up", "contribute"):
        assert ours[kind][0] is not None
        assert ours[kind] == theirs[kind]


def test_rows_cannot_be_public_and_private(world, tmp_path):
    config = config_of(world, method__init=RAW | {"public": "x"})
    with pytest.raises(InputError, match="are training rows, too"):
        node_of(world, config, tmp_path, data__public=str(world / "data" / "train.jsonl"))


def test_a_public_start_without_public_rows_says_what_is_missing(world, tmp_path):
    config = config_of(world, method__init=RAW | {"public": "x"}, privacy=None)
    node = node_of(world, config, tmp_path, limits={})
    for kind in ("warm-up", "contribute"):
        with pytest.raises(Refused, match=r"declared no rows public.*data.public"):
            node.answer(kind, question(node, kind))


def test_an_owner_can_allow_unprotected_updates_in_spite_of_limits(world, tmp_path):
    config = config_of(world, privacy=None, method__init=RAW)
    with pytest.raises(Refused, match="allow_unprotected: true here"):
        node_of(world, config, tmp_path)
    node = node_of(world, config, tmp_path, allow_unprotected=True)
    assert node.answer("contribute", question(node, "contribute"))


def test_an_owner_without_limits_can_refuse_unprotected_updates(world, tmp_path):
    config = config_of(world, privacy=None, method__init=NO_START)
    with pytest.raises(Refused, match=r"^allow_unprotected: this party takes part in runs that protect"):
        node_of(world, config, tmp_path, limits={}, allow_unprotected=False)


def test_a_run_that_says_it_protects_examples_gets_no_unprotected_update_anywhere(world, tmp_path):
    """Not even of a party without limits: its privacy statement would be wrong."""
    door = door_of(world, tmp_path, limits={})
    assert isinstance(door, Door)
    with pytest.raises(Refused):
        door.let_out(UnprotectedUpdate(lambda: b""))
