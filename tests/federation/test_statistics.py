"""The sums that a gate is made of, as they travel: added in their places, or refused with a reason."""

from dataclasses import replace

import pytest
import torch

from fedsb.adapter.routing import Statistics, gate_from
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.experts import ExpertsPlan, ExpertState
from fedsb.federation.server import Arrived, Failed
from fedsb.federation.state import ServerState
from fedsb.federation.statistics import POOLED, answer_layout, question_layout, statistics_question, summed
from fedsb.federation.traffic import Tally
from fedsb.methods import Shape, by_name

RANK, EXPERTS = 3, 3
METHOD = by_name("fed-mixer").experts(2)
PLAN = ExpertsPlan(EXPERTS)
EXCHANGE = Exchange(METHOD, {"a": Shape(5, 6), "b": Shape(4, 7)}, RANK, 1, {}, padding="owners", experts=PLAN)
COUNTS = {0: {0: 6}, 1: {1: 4, 2: 5}, 2: {0: 3, 2: 7}}
SIZES = {client: sum(held.values()) for client, held in COUNTS.items()}


@pytest.fixture
def state(generator):
    vector = torch.randn(EXCHANGE.down(RANK).size, generator=generator)
    return ServerState(2, vector, experts=ExpertState(COUNTS, torch.full((EXPERTS,), 1 / 3)))


def rows_of(client, generator):
    """By layer, this client's q and the expert of each."""
    experts = torch.tensor([e for e, count in COUNTS[client].items() for _ in range(count)])
    return {
        layer: (torch.randn(len(experts), RANK, generator=generator), experts) for layer in EXCHANGE.layers
    }


def packed(client, rows):
    """The message of a client's rows, put together entry by entry."""
    held, tensors = list(COUNTS[client]), {}
    for layer, (q, experts) in rows.items():
        exact = q.double()
        tensors[f"{layer}.counts"] = torch.tensor([float((experts == e).sum()) for e in held])
        tensors[f"{layer}.sums"] = torch.stack([exact[experts == e].sum(0) for e in held])
        moment = exact.T @ exact
        tensors[f"{layer}.moment"] = torch.stack([moment[i, j] for i in range(RANK) for j in range(i, RANK)])
    layout = answer_layout(EXCHANGE, held)
    return layout, layout.flatten(tensors)


def message(sender, layout, vector, **changes):
    facts = {"round": 2, "client": sender, "num_examples": SIZES[sender]} | changes
    return wire.pack(wire.Header(METHOD.name, layout=layout.digest, **facts), vector)


def add_up(state, outcomes):
    refused, received = {}, Tally()
    found = summed(
        outcomes, state, EXCHANGE, SIZES, received, lambda client, why: refused.update({client: why})
    )
    return found, refused, received


def test_sums_of_clients_are_those_of_all_rows_in_their_experts_places(state, generator):
    rows = {client: rows_of(client, generator) for client in COUNTS}
    outcomes = [Arrived(client, message(client, *packed(client, rows[client]))) for client in (2, 0, 1)]
    found, refused, received = add_up(state, outcomes)
    assert not refused
    assert received.numbers == sum(2 * (RANK * (RANK + 1) // 2 + len(COUNTS[c]) * (RANK + 1)) for c in COUNTS)
    for layer in EXCHANGE.layers:
        whole = Statistics.zero(EXPERTS, RANK)
        for client in COUNTS:
            whole.add(*rows[client][layer])
        assert torch.equal(found[layer].counts, whole.counts)
        torch.testing.assert_close(found[layer].sums, whole.sums, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[layer].moment, whole.moment, rtol=1e-6, atol=1e-6)
        assert torch.allclose(gate_from(found[layer]), gate_from(whole), rtol=1e-4, atol=1e-4)


def test_a_question_holds_the_experts_mean_by_their_use(state):
    usage = torch.tensor([0.5, 0.3, 0.2])
    state = replace(state, experts=replace(state.experts, usage=usage))
    header, vector = wire.unpack(statistics_question(state, EXCHANGE))
    layout = question_layout(EXCHANGE)
    named = EXCHANGE.down(RANK).unflatten(state.vector)
    assert (header.round, header.layout) == (2, layout.digest)
    mean = sum(u * core for u, core in zip(usage, named["b.R"], strict=True))
    torch.testing.assert_close(layout.unflatten(vector)["b.R"][0], mean)


def test_what_is_of_no_use_is_left_out_with_its_reason(state, generator):
    layout, vector = packed(0, rows_of(0, generator))
    negative, infinite = vector.clone(), vector.clone()
    negative[0], infinite[1] = -1.0, torch.inf
    wrong = {
        "wrong counts": message(0, layout, negative),
        "not finite": message(0, layout, infinite),
        "wrong round": message(0, layout, vector, round=1),
        "wrong client": message(0, layout, vector, client=1),
        "registered 6, its sums count 7": message(0, layout, vector, num_examples=7),
        "not a fedsb-1 message": b"none",
        "wrong layout": message(0, *packed(1, rows_of(1, generator))),
    }
    for reason, bad in wrong.items():
        _, refused, _ = add_up(state, [Arrived(0, bad)])
        assert reason in refused[0] or (reason == "wrong layout" and "too long" in refused[0])
    good = Arrived(0, message(0, layout, vector))
    found, refused, _ = add_up(state, [Failed(1, "gone"), good, good, Arrived(9, good.message)])
    assert refused == {
        1: "gone",
        0: "it was not asked, or answered before",
        9: "it was not asked, or answered before",
    }
    assert found["a"].counts.tolist() == [6.0, 0.0, 0.0]


def test_one_gate_for_all_layers_is_asked_for_with_nothing():
    plan = ExpertsPlan(EXPERTS, pooled=5)
    exchange = Exchange(METHOD, EXCHANGE.layers, RANK, 1, {}, experts=plan)
    assert question_layout(exchange).size == 0
    assert dict(answer_layout(exchange, (0, 2)).entries) == {
        f"{POOLED}.counts": (2,),
        f"{POOLED}.sums": (2, 5),
        f"{POOLED}.moment": (15,),
    }
