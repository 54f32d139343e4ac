"""Whatever a node sends, or fails to send, is that node's failure with a short reason; others continue."""

import random
import threading

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from stubs import CONFIG, StubHeld, StubNodes

from fedsb import RunConfig
from fedsb.deploy import asking, client_app
from fedsb.deploy import nodes as federation
from fedsb.deploy.answers import MOST_EXAMPLES, node_facts
from fedsb.deploy.asking import Question
from fedsb.deploy.node import NodeFacts
from fedsb.deploy.records import facts_of, pack
from fedsb.errors import RunFailed, UpdateRejected

ESCAPES = "quit \x1b[2J\x1b]0;owned\x07 \x9b31m \r over \x08 \u202e\u2028 [red]"


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    monkeypatch.setattr(client_app, "held", StubHeld())
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(federation, "AGAIN_SECONDS", 0.0)


@pytest.fixture
def nodes(tmp_path):
    return StubNodes(tmp_path, signed=False)


def array(dtype="uint8", shape=(4,), stype="fedsb", data=b"junk"):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def payload(*arrays):
    return RecordDict({"payload": ArrayRecord({f"{i or 'message'}": a for i, a in enumerate(arrays)})})


def facts(**more):
    return pack({"client": 2, "num_examples": 20, "base_digest": "0123456789abcdef"} | more)


def without(name):
    return pack({k: v for k, v in facts_of(facts()).items() if k != name})


JUNK = {
    "nothing": RecordDict({}),
    "an empty payload": payload(array(shape=(0,), data=b"")),
    "a refusal that is a list": pack({"refusal": ["a", "b"]}),
    "a refusal that is bytes": pack({"refusal": b"no"}),
    "a refusal of 5 MB": pack({"refusal": "R" * 5_000_000}),
    "a refusal that steers the terminal": pack({"refusal": ESCAPES * 100}),
    "a surrogate": pack({"refusal": "a\ud800b"}),
    "facts that are lists": pack({"client": [0], "num_examples": [1]}),
    "a fact of 5 MB": pack({"client": "c" * 5_000_000}),
    "a fact with a long name": pack({"c" * 5_000_000: 1}),
    "many facts": pack({str(i): i for i in range(10_000)}),
    "facts that are metrics": RecordDict({"facts": MetricRecord({"client": 2})}),
    "facts that are arrays": RecordDict(
        {"facts": ArrayRecord({"client": array()}), "payload": ConfigRecord()}
    ),
    "a signature of 5 MB": pack({"signature": b"s" * 5_000_000}),
    "a signature that is a number": pack({"signature": 5}),
    "a payload of another dtype": payload(array(dtype="float32")),
    "a payload of another stype": payload(array(stype="numpy.ndarray")),
    "a payload of another shape": payload(array(shape=(2, 2))),
    "a payload of a huge shape": payload(array(shape=(2**60,))),
    "two payloads": payload(array(), array()),
    "a payload that is settings": RecordDict({"payload": ConfigRecord({"message": "junk"})}),
    "a payload that is metrics": RecordDict({"payload": MetricRecord({"message": 1})}),
}
NO_HELLO = JUNK | {
    "client that is text": facts(client="zero"),
    "client -7": facts(client=-7),
    "client 3 of 3": facts(client=3),
    "client inf": facts(client=float("inf")),
    "client 0.0": facts(client=0.0),
    "client that is a bool": facts(client=True),
    "num_examples that is text": facts(num_examples="many"),
    "num_examples 0": facts(num_examples=0),
    "num_examples -5": facts(num_examples=-5),
    "num_examples 2e8": facts(num_examples=200_000_000),
    "num_examples nan": facts(num_examples=float("nan")),
    "num_examples that is a bool": facts(num_examples=True),
    "a digest that is a number": facts(base_digest=5),
    "a digest of other letters": facts(base_digest="g" * 16),
    "a digest with a line's end": facts(base_digest="0" * 16 + "\n"),
    "a long digest": facts(base_digest="0" * 64),
    "one fact more": facts(more=1),
    "no client": without("client"),
    "no num_examples": without("num_examples"),
    "no digest": without("base_digest"),
}


def answers_with(node, content, kind):
    """Harm that puts this content in place of a node's answers."""

    def harm(asked, reply):
        if asked == node and reply.metadata.message_type == kind:
            reply.content = content
        return reply

    return harm


def assert_short_and_plain(text):
    assert len(text) < 500
    assert text.isprintable()


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK)
def test_junk_in_place_of_an_answer_is_that_nodes_failure(nodes, content):
    nodes.federation.gather(0.0)
    nodes.grid.harm = answers_with(102, content, "train")
    answers = nodes.asked()
    assert (answers[0], answers[1]) == (b"0: q", b"1: q")
    assert_short_and_plain(answers[2])


@pytest.mark.parametrize("content", NO_HELLO.values(), ids=NO_HELLO)
def test_junk_in_place_of_a_hello_keeps_that_node_out(nodes, content):
    nodes.grid.harm = answers_with(102, content, "query")
    with pytest.raises(RunFailed, match="no node for client 2 within"):
        nodes.federation.gather(0.0)
    (line,) = nodes.lines("node 102")
    assert_short_and_plain(line)
    nodes.grid.harm = lambda node, reply: reply
    nodes.federation.gather(0.0)
    assert set(nodes.asked()) == {0, 1, 2}


@pytest.mark.parametrize("content", NO_HELLO.values(), ids=NO_HELLO)
def test_a_node_that_comes_late_with_junk_ends_nothing(nodes, content):
    nodes.federation.gather(0.0)
    nodes.add(103, 0, None)
    nodes.grid.harm = answers_with(103, content, "query")
    for _ in range(3):
        assert nodes.asked() == {0: b"0: q", 1: b"1: q", 2: b"2: q"}
    (line,) = nodes.lines("node 103")
    assert_short_and_plain(line)


def test_reasons_of_one_node_fill_no_log(nodes):
    reasons = iter(range(1000))
    nodes.add(103, 0, None)
    nodes.grid.harm = lambda node, reply: (
        answers_with(103, pack({"refusal": f"reason {next(reasons)}"}), "query")(node, reply)
        if node == 103
        else reply
    )
    for _ in range(20):
        nodes.federation.meet()
    assert len(nodes.lines("node 103")) == federation.MOST_LINES
    assert len(nodes.federation.refusals[103]) == federation.MOST_LINES


@pytest.mark.parametrize("error", [Error(8, ESCAPES * 1000), Error(1, None), Error(-1, "")])
def test_errors_of_flower_with_odd_texts(nodes, error):
    nodes.federation.gather(0.0)
    nodes.grid.harm = lambda node, reply: Message(error, reply_to=_question(reply)) if node == 102 else reply
    answers = nodes.asked()
    assert answers[0] == b"0: q"
    assert_short_and_plain(answers[2])


def _question(reply):
    """What this is a reply to, as far as another reply needs it."""
    question = Message(RecordDict(), reply.metadata.src_node_id, "train", ttl=100.0)
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return question


def test_the_updates_count_of_examples_is_bounded_by_hello():
    most = facts_of(facts(num_examples=MOST_EXAMPLES))
    assert node_facts(most, 3) == NodeFacts(2, MOST_EXAMPLES, "0123456789abcdef")
    with pytest.raises(UpdateRejected, match="num_examples"):
        node_facts(facts_of(facts(num_examples=MOST_EXAMPLES + 1)), 3)


def test_facts_at_random_are_read_or_refused():
    rng, odd = random.Random(5), [0, 1, -1, 2**70, True, None, "", "0" * 16, b"", [], {}, 1.0, float("nan")]
    names = ["client", "num_examples", "base_digest", "other"]
    read = 0
    for _ in range(3000):
        some = facts_of(facts()) | {name: rng.choice(odd) for name in rng.sample(names, rng.randint(0, 3))}
        try:
            assert node_facts(some, 3).client in (0, 1, 2)
            read += 1
        except UpdateRejected as reason:
            assert_short_and_plain(str(reason))
    assert read


# Silence


def silent(node, kind):
    return lambda asked, reply: None if (asked, reply.metadata.message_type) == (node, kind) else reply


def test_a_node_silent_at_hello_holds_up_nobody(nodes):
    """With three minutes more for its hello, the rest does its rounds."""
    nodes.add(103, 0, None)
    nodes.grid.harm = silent(103, "query")
    nodes.federation.gather(0.0)
    for _ in range(3):
        assert nodes.asked() == {0: b"0: q", 1: b"1: q", 2: b"2: q"}
    assert nodes.grid.pushed.count((103, "query")) == 1


def test_its_hello_ends_and_it_is_asked_again(nodes, monkeypatch):
    monkeypatch.setattr(federation, "HELLO_SECONDS", 0.0)
    nodes.grid.harm = silent(102, "query")
    for _ in range(3):
        nodes.federation.meet()
    assert nodes.lines("node 102: no answer within 0 s")
    assert nodes.grid.pushed.count((102, "query")) == 3


def test_a_node_silent_at_training_is_left_out_at_the_deadline(nodes):
    nodes.federation.gather(0.0)
    nodes.grid.harm = silent(102, "train")
    assert nodes.asked() == {0: b"0: q", 1: b"1: q", 2: "no answer within 0.2 s"}


def test_without_a_deadline_there_is_one(monkeypatch, nodes):
    monkeypatch.setattr(asking, "DEADLINE_SECONDS", 0.05)
    asked = Question(nodes.grid, lambda ids: [("never", node) for node in ids], print, again=True)
    assert list(asked.answers([7], None)) == [(7, "no answer within 0.05 s")]


def test_a_node_whose_hello_comes_during_the_round_takes_part_in_it(nodes):
    nodes.federation.gather(0.0)
    del nodes.grid.node_configs[100]
    nodes.add(200, 0, None)
    late = []

    def hello_after_the_others(node, reply):
        if node == 200 and reply.metadata.message_type == "query":
            late.append(reply)
            return None
        for held in late[:1] if node == 102 else []:
            nodes.grid._replies[held.metadata.reply_to_message_id] = held
        return reply

    nodes.grid.harm = hello_after_the_others
    assert nodes.asked() == {0: b"0: q", 1: b"1: q", 2: b"2: q"}


# In Flower's own code, which makes objects of what a node sent


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError(5), RecursionError(), TimeoutError(), SystemExit()]
)
def test_an_answer_that_flower_cannot_read_is_that_nodes_failure(nodes, error):
    nodes.federation.gather(0.0)

    def raises():
        raise error

    nodes.grid.fetched[101] = raises
    answers = nodes.asked()
    assert (answers[0], answers[2]) == (b"0: q", b"2: q")
    assert answers[1] == f"its answer cannot be read ({type(error).__name__})"


def test_an_upload_that_never_ends_holds_up_nobody(nodes, monkeypatch):
    monkeypatch.setattr(asking, "FETCH_SECONDS", 0.02)
    nodes.federation.gather(0.0)
    ended = threading.Event()
    nodes.grid.fetched[101] = lambda: ended.wait(60)
    assert nodes.asked() == {0: b"0: q", 1: "no answer within 0.2 s", 2: b"2: q"}
    ended.set()


def test_a_slow_upload_is_waited_for_beside_the_others(nodes, monkeypatch):
    monkeypatch.setattr(asking, "FETCH_SECONDS", 0.0)
    config = RunConfig.from_dict(CONFIG | {"federation": {"clients": 3, "deadline_seconds": 60}})
    nodes.federation.gather(10.0)
    nodes.federation.config = config
    others, ended = [], threading.Event()
    nodes.grid.fetched[101] = lambda: ended.wait(60)
    for outcome in nodes.federation.ask("train", [0, 1, 2], lambda client: b"q"):
        others.append(outcome.client)
        if len(others) == 2:
            ended.set()
    assert others[2] == 1


def test_an_answer_in_anothers_name_is_none(nodes):
    """It names the question of node 100, whose own answer is still to come."""
    nodes.federation.gather(0.0)
    questions = {}

    def names_another(node, reply):
        if node == 102:
            reply.metadata.__dict__["_reply_to_message_id"] = questions[100]
        questions[node] = reply.metadata.reply_to_message_id
        return reply

    nodes.grid.harm = names_another
    assert nodes.asked() == {0: b"0: q", 1: b"1: q", 2: "no answer within 0.2 s"}
