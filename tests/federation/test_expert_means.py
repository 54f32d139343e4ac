"""Each expert is the mean over those who trained it, whoever stays away; others stay as they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import numbers, relative_error, weighted_mean

from fedsb.errors import UpdateRejected
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.experts import ExpertsPlan, ExpertState
from fedsb.federation.server import Arrived, Failed, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, by_name

LAYERS = {"a": Shape(7, 9), "b": Shape(5, 6)}
RANK, EXPERTS, CLIENTS = 3, 4, 6
METHOD = by_name("fed-mixer").experts(2, "router")
EXCHANGE = Exchange(METHOD, LAYERS, RANK, 1, {"head": (2, 3)}, padding="owners", experts=ExpertsPlan(EXPERTS))


@pytest.fixture
def bases(generator):
    def columns(size):
        return torch.linalg.qr(torch.randn(size, RANK, generator=generator)).Q

    return {name: (columns(out), columns(n_in).T) for name, (out, n_in) in LAYERS.items()}


def drawn_state(rng, generator):
    """Any numbers, and clients of one to three experts each, with some examples of each."""
    counts = {
        client: {
            int(e): int(rng.integers(1, 40)) for e in sorted(rng.choice(EXPERTS, rng.integers(1, 4), False))
        }
        for client in range(CLIENTS)
    }
    vector = torch.randn(EXCHANGE.down(RANK).size, generator=generator)
    return ServerState(0, vector, experts=ExpertState(counts, torch.full((EXPERTS,), 1 / EXPERTS)))


def part_of(state, client):
    return Part(RANK, experts=state.experts.held_by(client))


def answer_of(state, client, generator):
    layout = EXCHANGE.up(state.round + 1, part_of(state, client))
    vector = torch.randn(layout.size, generator=generator)
    count = sum(state.experts.counts[client].values())
    header = wire.Header(METHOD.name, state.round + 1, layout.digest, client, num_examples=count)
    return layout.unflatten(vector), wire.pack(header, vector)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_means_are_those_of_the_dense_updates_under_dropouts(bases, seed, weighting):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    state = drawn_state(rng, generator)
    cohort = sorted(rng.choice(CLIENTS, 4, replace=False).tolist())
    gone = cohort[int(rng.integers(4))]
    made = {client: answer_of(state, client, generator) for client in cohort}
    outcomes = [Failed(c, "gone") if c == gone else Arrived(c, made[c][1]) for c in cohort]
    after, report = aggregate(
        state, outcomes, EXCHANGE, weighting=weighting, part_of=lambda c: part_of(state, c)
    )
    before, named = (EXCHANGE.down(RANK).unflatten(s.vector) for s in (state, after))
    there = [c for c in cohort if c != gone]
    for layer, (B, A) in bases.items():
        for expert in range(EXPERTS):
            owners = [c for c in there if expert in state.experts.counts[c]]
            core = named[f"{layer}.R"][expert]
            if not owners:
                assert torch.equal(core, before[f"{layer}.R"][expert])
                assert expert in report.untrained
                continue
            assert expert not in report.untrained
            dense = [
                numbers(B)
                @ numbers(made[c][0][f"{layer}.R"][state.experts.held_by(c).index(expert)])
                @ numbers(A)
                for c in owners
            ]
            weights = [state.experts.counts[c][expert] if weighting == "examples" else 1 for c in owners]
            assert (
                relative_error(numbers(B) @ numbers(core) @ numbers(A), weighted_mean(dense, weights)) < 1e-6
            )
        assert torch.equal(named[f"{layer}.G"], before[f"{layer}.G"])
    sizes = [sum(state.experts.counts[c].values()) if weighting == "examples" else 1 for c in there]
    mean = weighted_mean([numbers(made[c][0]["head"]) for c in there], sizes)
    assert relative_error(numbers(named["head"]), mean) < 1e-6
    for order in (outcomes[::-1], outcomes[1:] + outcomes[:1]):
        again, _ = aggregate(state, order, EXCHANGE, weighting=weighting, part_of=lambda c: part_of(state, c))
        assert torch.equal(again.vector, after.vector)


def test_a_broadcast_holds_a_clients_own_experts(generator, rng):
    state = drawn_state(rng, generator)
    named = EXCHANGE.down(RANK).unflatten(state.vector)
    for client in range(CLIENTS):
        part = part_of(state, client)
        header, vector = wire.unpack(broadcast(state, EXCHANGE, client, part))
        layout = EXCHANGE.message(1, part, None)
        assert header.layout == layout.digest
        assert header.cores is None
        sent = layout.unflatten(vector)
        assert set(sent) == {"a.R", "b.R", "head"}
        assert torch.equal(sent["a.R"], named["a.R"][list(part.experts)])


def test_all_cores_follow_once_and_again_to_whom_they_were_lost(generator, rng):
    """To each client until an answer of it was used; with train: both, only where they are compared with."""
    state = replace(drawn_state(rng, generator), round=2)
    named = EXCHANGE.down(RANK).unflatten(state.vector)
    cores = {layer: named[f"{layer}.R"] for layer in LAYERS}
    state = replace(state, experts=replace(state.experts, opened=True, cores=cores))
    messages = {c: broadcast(state, EXCHANGE, c, EXCHANGE.whole) for c in range(3)}
    assert all(wire.header_of(message).cores for message in messages.values())
    _, vector = wire.unpack(messages[0])
    kept = EXCHANGE.cores().unflatten(vector[-EXCHANGE.cores().size :])
    assert all(torch.equal(kept[f"{layer}.R"], core) for layer, core in cores.items())
    layout = EXCHANGE.up(3, EXCHANGE.whole)
    answers = [
        Arrived(
            c,
            wire.pack(wire.Header(METHOD.name, 3, layout.digest, c, num_examples=1), torch.ones(layout.size)),
        )
        for c in (0, 2)
    ]
    outcomes = [*answers, Failed(1, "gone")]
    state, _ = aggregate(state, outcomes, EXCHANGE, weighting="uniform", part_of=lambda c: EXCHANGE.whole)
    again = {c: wire.header_of(broadcast(state, EXCHANGE, c, EXCHANGE.whole)).cores for c in range(3)}
    assert again == {0: None, 1: True, 2: None}
    state, _ = aggregate(
        replace(state, round=2),
        [answers[1], Failed(0, "it lost them")],
        EXCHANGE,
        weighting="uniform",
        part_of=lambda c: EXCHANGE.whole,
    )
    assert state.experts.holding == {2}
    both = replace(EXCHANGE, method=METHOD.experts(2, "both"))
    assert not both.needs_cores(3)
    assert replace(both, experts=ExpertsPlan(EXPERTS, compares=True)).needs_cores(3)


@pytest.mark.parametrize("cores", [1, 1.0, 0, False, "true", [True]])
def test_a_header_with_cores_of_another_kind_is_refused(cores):
    message = wire.pack(wire.Header(METHOD.name, 3, "0" * 16, cores=cores), torch.zeros(2))
    with pytest.raises(UpdateRejected, match="wrong cores: expected true"):
        wire.unpack(message)
