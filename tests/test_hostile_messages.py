"""Whatever bytes a client or a server sends: a message is read or refused, and little memory is taken.

Each kind of message is mutated FEDSB_FUZZ times by its bytes and by its header (400 where that is not set;
`FEDSB_FUZZ=10000` does all).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import python
from safetensors.torch import save

from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.server import Arrived, Failed, aggregate
from fedsb.federation.start.from_gradients import as_sent, contribution
from fedsb.federation.start.messages import FORMAT as START
from fedsb.federation.start.messages import LARGEST, check_start, pack_start, unpack_start
from fedsb.federation.start.settings import Start
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining
from fedsb.methods import Shape, fed_sb
from fedsb.report.progress import Silent
from fedsb.runner.remote_start import LARGEST_SUM, _usable

MUTATIONS = int(os.environ.get("FEDSB_FUZZ", "400"))
LAYERS = {"l": Shape(8, 8), "m": Shape(12, 9)}
EXCHANGE = Exchange(fed_sb, LAYERS, 4, 1, {"h": (2,)})
UP, DOWN = EXCHANGE.up(1, EXCHANGE.whole), EXCHANGE.down(4)
STATE = ServerState(0, torch.zeros(DOWN.size))
HOW = Start(rule="sign", upload="factors", batch_size=4, rank=2, heads=1, step_size=0.1, seed=0)
BASES_LIKE = {name: torch.zeros(shape) for name, shape in (("l.B", (8, 2)), ("l.A", (2, 8)))}


def read_update(message: bytes) -> None:
    """As the server does: whatever it is, one client is in or out, and the round closes."""
    good = wire.pack(wire.Header("fed-sb", 1, UP.digest, 0, 10, 0.5), torch.ones(UP.size))
    outcomes = [Arrived(0, good), Arrived(1, message)]
    state, report = aggregate(
        STATE, outcomes, EXCHANGE, weighting="examples", registered={0: 10, 1: 10, 2: 10}
    )
    assert report.clients in ([0], [0, 1])
    assert torch.isfinite(state.vector).all()
    reason = "".join(str(entry["reason"]) for entry in report.rejected)
    assert len(reason) <= 300
    assert reason.isprintable()


def read_broadcast(message: bytes) -> None:
    """As a client does; reading is all it gets to."""
    try:
        client_update(message, _Client(), [{}], LocalTraining(), client=0, seed=0)  # type: ignore[arg-type]
    except (UpdateRejected, _Accepted):
        return


class _Accepted(Exception):
    """The message was read to the end."""


class _Client:
    exchange = EXCHANGE
    base_round = 0

    @property
    def attached(self) -> Any:
        raise _Accepted

    @property
    def start(self) -> Any:
        raise _Accepted


def read_start(kind: Any, like: dict[str, torch.Tensor], largest: float, message: bytes) -> None:
    """As the server does in the start."""
    said: list[str] = []

    class Told(Silent):
        def client_ends(self, client: int, problem: str | None) -> None:
            said.append(problem or "")

    number = 1 if kind == "warm-up" else 0
    for _, tensors, _ in _usable(kind, number, [Arrived(1, message)], like, Told(), largest=largest):
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert {name: t.dtype for name, t in tensors.items()} == {name: t.dtype for name, t in like.items()}
    assert all(len(text) <= 300 and text.isprintable() for text in said)


def read_bases(message: bytes) -> None:
    """As a node does."""
    like = {name: tensor.bfloat16() for name, tensor in BASES_LIKE.items()}
    try:
        facts, tensors = unpack_start(message, like)
        check_start(facts, tensors, expected={"kind": "bases", "round": 0}, template=like)
    except UpdateRejected:
        return


class Kind(NamedTuple):
    good: bytes
    read: Callable[[bytes], None]
    format: str


def start_kind(kind: str, like: dict[str, torch.Tensor], largest: float) -> Kind:
    facts = {"kind": kind, "round": 1 if kind == "warm-up" else 0, "client": 1}
    good = pack_start(facts, {name: torch.full(t.shape, 0.5, dtype=t.dtype) for name, t in like.items()})
    return Kind(good, partial(read_start, kind, like, largest), START)


def contributed(**changes: Any) -> Kind:
    how = replace(HOW, **changes)
    return start_kind("contribute", contribution(how).template(LAYERS, how), LARGEST_SUM)


KINDS = {
    "update": Kind(
        wire.pack(wire.Header("fed-sb", 1, UP.digest, 1, 10, 0.5), torch.ones(UP.size)),
        read_update,
        wire.FORMAT,
    ),
    "broadcast": Kind(
        wire.pack(wire.Header("fed-sb", 1, DOWN.digest), torch.ones(DOWN.size)), read_broadcast, wire.FORMAT
    ),
    "warm-up": start_kind("warm-up", {"head.w": torch.zeros(3, 4), "head.b": torch.zeros(3)}, LARGEST),
    "factors": contributed(),
    "sketch": contributed(upload="sketch"),
    "moments": contributed(rule="moments"),
    "bases": Kind(
        pack_start({"kind": "bases", "round": 0}, {n: t.bfloat16() for n, t in BASES_LIKE.items()}),
        read_bases,
        START,
    ),
}
HALF = max(1, MUTATIONS // 2)
fuzz = settings(max_examples=HALF, deadline=None, database=None)


def test_the_messages_that_are_mutated_are_good() -> None:
    for kind in KINDS.values():
        kind.read(kind.good)
    header = json.loads(KINDS["update"].good[8 : wire.header_end(KINDS["update"].good, 10_000)])
    assert set(header) == {"v", "__metadata__"}
    assert as_sent({}) == {}


@pytest.mark.parametrize("name", list(KINDS))
@fuzz
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    good = bytearray(KINDS[name].good)
    places = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=5)):
        good[place] = value
    how, cut = data.draw(st.integers(0, 20)), data.draw(st.integers(0, len(good)))
    message = bytes(good)[:cut] if how == 0 else bytes(good) + b"\xff" * (cut if how == 1 else 0)
    KINDS[name].read(message)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**53),
    st.integers(min_value=10**308, max_value=10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
FIELDS = st.sampled_from([
    "method", "round", "layout", "client", "num_examples", "train_loss", "base", "needs", "cores", "kind",
    "x",
])  # fmt: skip
SIZES = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans()), max_size=3)
TYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "F8_E4M3", "C64", "I64", "U8", "BOOL", "", 1, None])
SCALES = st.sampled_from([1, -1, 0, float("nan")])


@pytest.mark.parametrize("name", list(KINDS))
@fuzz
@given(data=st.data())
def test_a_changed_header_is_read_or_refused(name: str, data: st.DataObject) -> None:
    good, _, form = KINDS[name]
    start = wire.header_end(good, 10_000)
    header = json.loads(good[8:start])
    facts = json.loads(header["__metadata__"][form])
    facts |= data.draw(st.dictionaries(FIELDS, VALUES, max_size=3))
    header["__metadata__"][form] = json.dumps(facts)
    tensor = header[data.draw(st.sampled_from([key for key in header if key != "__metadata__"]))]
    changes = {"dtype": TYPES, "shape": SIZES, "data_offsets": SIZES}
    for key in data.draw(st.sets(st.sampled_from(list(changes)), max_size=2)):
        tensor[key] = data.draw(changes[key])
    for key in data.draw(st.sets(st.sampled_from(list(header)), max_size=1)):
        if data.draw(st.booleans()):
            header[key] = data.draw(VALUES)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    lie = data.draw(st.one_of(st.just(0), st.integers(-100, 2**60)))
    length = min(max(0, len(text) + lie), 2**64 - 1)
    KINDS[name].read(length.to_bytes(8, "little") + text + good[start:])


@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    for kind in KINDS.values():
        kind.read(garbage)


def headers(text: bytes, payload: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + payload


EDGES = {
    "deep": headers(b"[" * 8000),
    "deep objects": headers(b'{"a":' * 1500),
    "deep and closed": headers(b"[" * 500 + b"]" * 500),
    "digits": headers(b'{"v":' + b"9" * 5000 + b"}"),
    "exponent": headers(b'{"v":1e999}'),
    "constants": headers(b'{"v":NaN,"w":-Infinity}'),
    "twice": headers(b'{"v":1,"v":2}'),
    "latin": headers(b'{"v":"\xff"}'),
    "surrogate": headers(b'{"v":"\\ud800","__metadata__":{"fedsb-1":"{}","fedsb-start-1":"{}"}}'),
    "utf-16": headers('{"v":1}'.encode("utf-16")),
    "null": headers(b"null"),
    "nul": headers(b"\0" * 100),
    "no metadata": headers(b'{"v":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "metadata is a list": headers(b'{"__metadata__":[1]}'),
    "facts are a text": save({}, metadata={"fedsb-1": '"x"', "fedsb-start-1": '"x"'}),
    "facts are deep": save({}, metadata={"fedsb-1": "[" * 3000, "fedsb-start-1": "[" * 3000}),
    "no length": b"",
    "all ones": b"\xff" * 64,
}


@pytest.mark.parametrize("edge", list(EDGES))
@pytest.mark.parametrize("name", list(KINDS))
def test_known_edges_are_refused(name: str, edge: str) -> None:
    KINDS[name].read(EDGES[edge])


def take(message: bytes, wanted: dict[str, int | str], like: dict[str, torch.Tensor]) -> None:
    facts, tensors = unpack_start(message, like)
    check_start(facts, tensors, expected=wanted, template=like)


def test_a_start_message_of_another_type_is_refused_though_its_numbers_would_do() -> None:
    like = {"head.w": torch.zeros(3, 4)}
    wanted: dict[str, int | str] = {"kind": "warm-up"}
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(UpdateRejected):
            take(pack_start(wanted, {"head.w": torch.zeros(3, 4, dtype=dtype)}), wanted, like)


@pytest.mark.parametrize("number", [1e7, -1e30, 3e38])
def test_an_absurd_number_of_a_head_is_refused_though_finite(number: float) -> None:
    like = {"head.w": torch.zeros(3, 4)}
    tensors = {"head.w": torch.zeros(3, 4)}
    tensors["head.w"][1, 2] = number
    with pytest.raises(UpdateRejected, match=r"head\.w holds numbers beyond 1e\+06"):
        take(pack_start({"kind": "warm-up"}, tensors), {"kind": "warm-up"}, like)


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_a_fact_of_another_type_is_another_fact(value: Any) -> None:
    with pytest.raises(UpdateRejected):
        take(pack_start({"kind": "bases", "round": value}, {}), {"kind": "bases", "round": 1}, {})


# ---------------------------------------------------------------- what clients say of themselves


def update(client: int, examples: int = 10, *, claims: int | None = None) -> Arrived:
    header = wire.Header("fed-sb", 1, UP.digest, client if claims is None else claims, examples, 0.5)
    return Arrived(client, wire.pack(header, torch.full((UP.size,), float(client))))


def close(*outcomes: Any) -> Any:
    return aggregate(STATE, outcomes, EXCHANGE, weighting="examples", registered={0: 10, 1: 10, 2: 10})


@pytest.mark.parametrize("examples", [2**52, 11, 9, 1])
def test_an_update_counts_the_examples_that_its_client_registered(examples: int) -> None:
    state, report = close(update(0), update(1), update(2, examples))
    without, _ = close(update(0), update(1))
    assert torch.equal(state.vector, without.vector)
    (refused,) = report.rejected
    assert refused["client"] == 2
    assert "registered 10 examples" in str(refused["reason"])


def test_of_several_answers_of_a_client_the_first_counts() -> None:
    state, report = close(update(1), update(1), Failed(2, "away"), update(2), update(0))
    without, _ = close(update(1), update(0))
    assert torch.equal(state.vector, without.vector)
    assert report.clients == [1, 0]
    assert [r["client"] for r in report.rejected] == [1, 2, 2]


def test_nobody_but_the_cohort_is_listened_to() -> None:
    state, report = close(update(0), update(7), Failed(-1, "x"), update(99, claims=0))
    assert torch.equal(state.vector, close(update(0))[0].vector)
    assert [r["client"] for r in report.rejected] == [7, -1, 99]


@pytest.mark.parametrize("reason", ["R" * 30_000_000, "\x1b]52;c;eA==\x07\n\u202e\ud800"])
def test_the_reason_of_a_failure_is_short_and_printable(reason: str) -> None:
    kept = Failed(1, reason).reason
    assert len(kept) <= 300
    assert kept.isprintable()


# ---------------------------------------------------------------- memory

MEMORY = """
import json, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fedsb.federation import wire
from fedsb.errors import UpdateRejected
from fedsb.federation.start.messages import check_start, unpack_start

SIZE = 8_000_000
LIKE = {"head.w": torch.empty(SIZE, device="meta")}

def headed(described, form, facts, payload):
    text = json.dumps(described | {"__metadata__": {form: json.dumps(facts)}}).encode()
    return b"".join([(len(text)).to_bytes(8, "little"), text, payload])

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def update(message):
    header, vector = wire.unpack(message, size=SIZE)
    wire.check(header, vector, expected=wire.Header("m", 1, "x", 1), size=SIZE)

def start(message):
    facts, tensors = unpack_start(message, LIKE)
    check_start(facts, tensors, expected={"kind": "warm-up"}, template=LIKE)

zeros, bad = bytes(4 * SIZE), bytes(4 * SIZE - 4) + b"\\xff" * 4
place = {"dtype": "F32", "shape": [SIZE], "data_offsets": [0, 4 * SIZE]}
facts = {"method": "m", "round": 1, "layout": "x", "client": 1}
for name in ("good", "not finite", "claims more", "huge", "deep"):
    for read, key, form, said in (
        (update, "v", "fedsb-1", facts), (start, "head.w", "fedsb-start-1", {"kind": "warm-up"})
    ):
        lying = {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}
        message = {
            "good": lambda: headed({key: place}, form, said, zeros),
            "not finite": lambda: headed({key: place}, form, said, bad),
            "claims more": lambda: headed({key: lying}, form, said, zeros),
            "huge": lambda: (2**26).to_bytes(8, "little") + b'{"a":[' + b"[]," * 2**23,
            "deep": lambda: (2**24).to_bytes(8, "little") + b"[" * 2**24,
        }[name]()
        read(headed({key: place}, form, said, zeros)) if name == "good" else None  # what is loaded once
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        try:
            read(message)
            result = "read"
        except UpdateRejected:
            result = "refused"
        print(json.dumps([name, read.__name__, result, resident("VmHWM") - before]))
"""


def test_memory_stays_below_one_and_a_half_times_the_largest_message(tmp_path: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("needs Linux: the peak of a process's memory is read from /proc")
    done = python(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line[2] for line in lines] == ["read"] * 2 + ["refused"] * 8
    assert all(taken < 0.5 * 4 * 8_000_000 for *_, taken in lines), lines
