"""A round averages what fits, leaves out what does not with a reason, and never goes backwards."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import numbers, weighted_mean
from safetensors.torch import save

from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.server import Arrived, Failed, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.traffic import Traffic, total_bytes
from fedsb.federation.training import ClientFailed
from fedsb.methods import Shape, fed_sb
from fedsb.runner.clients import simulate_cohort

EXCHANGE = Exchange(fed_sb, {"query": Shape(3, 4), "value": Shape(2, 5)}, 2, 1, {})
LAYOUT = EXCHANGE.up(3, EXCHANGE.whole)
OTHER_LAYOUT = replace(EXCHANGE, layers={"key": Shape(3, 4), "value": Shape(2, 5)}).down(2)
STATE = ServerState(2, torch.zeros(8))


def update(client, vector=None, /, *, examples=10, loss=None, **changed):
    """A good answer to STATE's broadcast, but for what is changed."""
    header = wire.Header(fed_sb.name, 3, LAYOUT.digest, client, num_examples=examples, train_loss=loss)
    numbers_sent = torch.full((8,), float(client)) if vector is None else vector
    return Arrived(client, wire.pack(replace(header, **changed), numbers_sent))


def raw_update(client, /, **header):
    """An answer whose header can say anything."""
    fields = {
        "method": fed_sb.name,
        "round": 3,
        "layout": LAYOUT.digest,
        "client": client,
        "num_examples": 10,
    }
    return Arrived(client, save({"v": torch.ones(8)}, metadata={wire.FORMAT: json.dumps(fields | header)}))


def close_round(outcomes, *, weighting="examples", state=STATE):
    return aggregate(state, outcomes, EXCHANGE, weighting=weighting)


# ---------------------------------------------------------------- the mean


@given(
    vectors=st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8), min_size=1, max_size=8
    ),
    sizes=st.lists(st.integers(1, 10_000), min_size=8, max_size=8),
    dropped=st.sets(st.integers(1, 7)),
    weighting=st.sampled_from(["examples", "uniform"]),
)
def test_a_round_is_the_weighted_mean_of_those_who_answered(vectors, sizes, dropped, weighting):
    vectors = [torch.tensor(v) for v in vectors]
    kept = [c for c in range(len(vectors)) if c not in dropped]
    outcomes = [
        update(c, v, examples=sizes[c]) if c in kept else Failed(c, "went away")
        for c, v in enumerate(vectors)
    ]
    state, report = close_round(outcomes, weighting=weighting)
    weights = [float(sizes[c]) if weighting == "examples" else 1.0 for c in kept]
    expected = weighted_mean([numbers(vectors[c]) for c in kept], weights)
    np.testing.assert_allclose(numbers(state.vector), expected, rtol=1e-6, atol=1e-4)
    assert state.round == 3
    assert report.clients == kept
    assert [r["client"] for r in report.rejected] == [c for c in range(len(vectors)) if c in dropped]


def test_a_round_of_equal_answers_changes_nothing():
    vector = torch.randn(8, generator=torch.Generator().manual_seed(0))
    state, _ = close_round([update(c, vector, examples=3 * c + 1) for c in range(5)])
    assert torch.equal(state.vector, vector)


def test_updates_are_taken_in_one_at_a_time():
    """No second answer is asked for before the first is averaged in: memory does not grow with the cohort."""
    order = []
    aggregation = fed_sb.aggregation
    method = fed_sb._replace(
        aggregation=aggregation._replace(
            add=lambda state, upload: order.append("add") or aggregation.add(state, upload)
        )
    )

    def outcomes():
        for client in range(3):
            order.append("ask")
            yield update(client)

    aggregate(STATE, outcomes(), replace(EXCHANGE, method=method), weighting="uniform")
    assert order == ["ask", "add"] * 3


# ---------------------------------------------------------------- what is left out

NAN = torch.tensor([1.0, float("nan"), 1, 1, 1, 1, 1, 1])
BAD = {
    "failed": (Failed(7, "timed out after 3 s"), "timed out after 3 s"),
    "nan": (update(7, NAN), "not finite: 1 of 8"),
    "infinite": (update(7, torch.full((8,), float("inf"))), "not finite: 8 of 8"),
    "shape": (update(7, torch.zeros(9)), "wrong shape: expected 8"),
    "layout": (update(7, layout=OTHER_LAYOUT.digest), "wrong layout"),
    "stale": (update(7, round=2), "wrong round: expected 3, found 2"),
    "early": (update(7, round=4), "wrong round: expected 3, found 4"),
    "client": (update(7, client=1), "wrong client: expected 7, found 1"),
    "method": (update(7, method="other"), "wrong method"),
    "no examples": (update(7, examples=0), "wrong num_examples: expected at least 1, found 0"),
    "negative examples": (update(7, examples=-5), "wrong num_examples"),
    "garbage": (Arrived(7, b"\x00garbage"), "not a fedsb-1 message"),
    "empty": (Arrived(7, b""), "not a fedsb-1 message"),
}


@pytest.mark.parametrize("kind", list(BAD))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unusable_answer_is_left_out_with_a_reason_and_the_round_goes_on(kind, place):
    bad, reason = BAD[kind]
    outcomes = [update(1), update(2)]
    outcomes.insert(place, bad)
    state, report = close_round(outcomes)
    without, _ = close_round([update(1), update(2)])
    assert torch.equal(state.vector, without.vector)
    assert state.round == 3
    assert report.clients == [1, 2]
    assert [r["client"] for r in report.rejected] == [7]
    assert reason in str(report.rejected[0]["reason"])


@pytest.mark.parametrize(
    "field",
    [
        {"num_examples": "10"},
        {"num_examples": None},
        {"num_examples": [1]},
        {"num_examples": float("nan")},
        {"num_examples": float("inf")},
        {"num_examples": 10**400},
        {"train_loss": "low"},
        {"train_loss": [1]},
    ],
    ids=str,
)
def test_a_header_field_of_the_wrong_kind_is_left_out_like_any_unusable_answer(field):
    state, report = close_round([update(1), raw_update(7, **field), update(2)])
    assert torch.isfinite(state.vector).all()
    assert report.clients == [1, 2]
    assert [r["client"] for r in report.rejected] == [7]


def test_with_nobody_left_the_run_fails_and_the_state_is_unchanged():
    vector = torch.randn(8, generator=torch.Generator().manual_seed(0))
    state = ServerState(2, vector.clone())
    outcomes = [bad for bad, _ in BAD.values()]
    with pytest.raises(
        RunFailed, match=r"round 3: no client's update could be used \(client 7: timed out"
    ) as e:
        close_round(outcomes, state=state)
    assert f"and {len(BAD) - 3} more" in str(e.value)
    assert state.round == 2
    assert torch.equal(state.vector, vector)


def test_an_empty_cohort_fails_the_run():
    with pytest.raises(RunFailed, match="no client's update could be used"):
        close_round([])


def test_a_good_round_leaves_the_former_state_as_it_was():
    state = ServerState(2, torch.zeros(8))
    close_round([update(1)], state=state)
    assert not state.vector.any()


# ---------------------------------------------------------------- what is said and counted


def test_the_broadcast_opens_the_next_round():
    header, vector = wire.unpack(broadcast(ServerState(2, torch.arange(8.0)), EXCHANGE, 0, EXCHANGE.whole))
    assert header == wire.Header("fed-sb", 3, LAYOUT.digest)
    assert torch.equal(vector, torch.arange(8.0))


def test_refused_bytes_were_sent_and_are_counted():
    outcomes = [update(1), BAD["nan"][0], BAD["failed"][0]]
    _, report = close_round(outcomes)
    assert report.upload_bytes == sum(len(o.message) for o in outcomes[:2])
    assert report.upload_parameters == 16


def test_the_train_loss_is_weighted_by_examples_over_those_who_declared_it():
    outcomes = [update(1, examples=30, loss=1.0), update(2, examples=10, loss=3.0), update(3), Failed(4, "x")]
    _, report = close_round(outcomes)
    assert report.train_loss == pytest.approx((30 * 1.0 + 10 * 3.0) / 40)
    assert close_round([update(1)])[1].train_loss is None


def test_traffic_adds_up_by_direction_and_phase():
    once = [Traffic(0, "bases", "down", 3, 300, 30), Traffic(0, "gradient", "up", 2, 50, 5, measured=False)]
    rounds = [Traffic(n, "updates", "up", 3, 10 * n, n) for n in (1, 2)] + [
        Traffic(2, "broadcast", "down", 3, 7, 1)
    ]
    entries = once + rounds
    assert total_bytes(entries) == 300 + 50 + 10 + 20 + 7
    assert total_bytes(entries, direction="up") == 80
    assert total_bytes(entries, once=True) == 350
    assert total_bytes(entries, direction="down", once=False) == 7


# ---------------------------------------------------------------- the cohort in one process


def test_clients_are_trained_in_turn_and_only_when_asked_for():
    trained = []
    outcomes = simulate_cohort([3, 1], lambda client: trained.append(client) or b"x")
    assert trained == []
    assert next(outcomes) == Arrived(3, b"x")
    assert trained == [3]
    assert list(outcomes) == [Arrived(1, b"x")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClientFailed("timed out"), "timed out"),
        (UpdateRejected("wrong layout"), "wrong layout"),
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh"),
    ],
)
def test_a_client_that_raises_has_failed_and_the_others_go_on(error, reason, caplog):
    def train(client):
        if client == 1:
            raise error
        return b"x"

    caplog.set_level(logging.CRITICAL)
    assert list(simulate_cohort([0, 1, 2], train)) == [Arrived(0, b"x"), Failed(1, reason), Arrived(2, b"x")]


def test_an_interrupt_stops_the_cohort():
    def train(client):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(simulate_cohort([0], train))
