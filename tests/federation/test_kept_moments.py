"""Adam's moments over rounds, through the real client, wire and server, against an AdamW written out."""

import copy
import math

import pytest
import torch
from test_client import Bag, collate, losses, make_examples

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach
from fedsb.config.optimization_checks import lasting_moments
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.server import Arrived, Failed, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining
from fedsb.methods import ALL, Shape, fed_sb
from fedsb.methods.averaging.beside import MOMENTS, replaced, with_beside

TRAINING = LocalTraining(learning_rate=0.02, batch_size=64, epochs=3, rounds=4, weight_decay=0.1)
ROWS = {client: make_examples(size, seed=client) for client, size in {0: 12, 1: 7, 2: 20}.items()}
COHORTS = [((0, 1, 2), ()), ((0, 2), ()), ((0, 1, 2), (1,)), ((1, 2), ())]


class Party:
    """A tiny model with a core and a head that train; the server's state; what each client keeps."""

    def __init__(self, moments):
        draw = torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Bag()
        factors = Factors(
            B=torch.linalg.qr(torch.randn(8, 3, generator=draw)).Q,
            A=torch.linalg.qr(torch.randn(6, 3, generator=draw)).Q.T.contiguous(),
            R=torch.randn(1, 3, 3, generator=draw),
        )
        self.twin = copy.deepcopy(model)
        attach(self.twin, {"hidden": factors})
        attached = attach(model, {"hidden": factors})
        head = {"out.weight": model.out.weight.requires_grad_(True)}
        shapes = {"out.weight": (3, 8)}
        self.exchange = Exchange(fed_sb, {"hidden": Shape(8, 6)}, 3, 1, shapes, moments=moments)
        self.local_model = LocalModel(
            attached, head, self.exchange, {"hidden": factors}, collate, losses, torch.device("cpu")
        )
        start = {"hidden.R": factors.R, "out.weight": model.out.weight.detach()}
        self.state = ServerState(0, self.exchange.down(3).flatten(start))
        self.kept = {client: {} for client in ROWS}

    def round(self, cohort, failing=()):
        aggregation = fed_sb.aggregation
        if self.exchange.moments == "averaged":
            aggregation = with_beside(aggregation, MOMENTS, replaced)
        outcomes = (self.outcome(client, failing) for client in cohort)
        self.state, self.report = aggregate(
            self.state, outcomes, self.exchange, weighting="examples", aggregation=aggregation
        )

    def outcome(self, client, failing):
        if client in failing:
            return Failed(client, "went away")
        message = broadcast(self.state, self.exchange, client, self.exchange.whole)
        rows, kept = ROWS[client], self.kept[client]
        return Arrived(
            client,
            client_update(message, self.local_model, rows, TRAINING, client=client, seed=5, kept=kept),
        )

    @property
    def numbers(self):
        return self.exchange.down(3).unflatten(self.state.vector)


class Loop:
    """AdamW by hand, with moments that start anew, stay, or are averaged with the numbers."""

    def __init__(self, party):
        self.model, self.moments = party.twin, party.exchange.moments
        self.x = {name: tensor.clone() for name, tensor in party.numbers.items()}
        zero = {name: torch.zeros_like(value) for name, value in self.x.items()}
        self.server = (zero, zero)
        self.own = {client: (zero, zero, 0) for client in ROWS}

    def client(self, client, number):
        zero = {name: torch.zeros_like(value) for name, value in self.x.items()}
        m, v, t = {
            "fresh": (zero, zero, 0),
            "kept": self.own[client],
            "averaged": (*self.server, 3 * (number - 1)),
        }[self.moments]
        m, v = dict(m), dict(v)
        places = {name: self.model.get_parameter(name).requires_grad_(True) for name in self.x}
        with torch.no_grad():
            for name, parameter in places.items():
                parameter.copy_(self.x[name])
        for _ in range(3):
            t += 1
            loss = losses(self.model, collate(ROWS[client])).mean()
            gradients = torch.autograd.grad(loss, list(places.values()))
            with torch.no_grad():
                for (name, parameter), g in zip(places.items(), gradients, strict=True):
                    m[name] = 0.9 * m[name] + 0.1 * g
                    v[name] = 0.999 * v[name] + 0.001 * g * g
                    parameter -= 0.02 * 0.1 * parameter
                    root = (v[name] / (1 - 0.999**t)).sqrt() + 1e-8
                    parameter -= 0.02 * (m[name] / (1 - 0.9**t)) / root
        return {n: p.detach().clone() for n, p in places.items()}, m, v, t

    def round(self, number, cohort, failing):
        found, weights = {}, {c: len(ROWS[c]) for c in cohort if c not in failing}
        for client in weights:
            found[client] = self.client(client, number)
            self.own[client] = found[client][1:]
        for place, target in ((0, self.x), (1, dict(self.server[0])), (2, dict(self.server[1]))):
            for name in target:
                parts = [weights[c] * found[c][place][name] for c in weights]
                target[name] = sum(parts) / sum(weights.values())
            if place:
                self.server = (target, self.server[1]) if place == 1 else (self.server[0], target)


@pytest.mark.parametrize("moments", ["fresh", "kept", "averaged"])
def test_several_rounds_are_those_of_an_adamw_by_hand(moments):
    """With partial cohorts, a dropout and unequal sizes."""
    party = Party(moments)
    loop = Loop(party)
    for number, (cohort, failing) in enumerate(COHORTS, start=1):
        party.round(cohort, failing)
        loop.round(number, cohort, failing)
        for name, value in party.numbers.items():
            torch.testing.assert_close(value, loop.x[name], rtol=2e-3, atol=2e-4)
        if moments == "averaged":
            for kind, mine in zip(MOMENTS, loop.server, strict=True):
                for name, value in mine.items():
                    torch.testing.assert_close(party.state.memory[kind + name], value, rtol=1e-2, atol=1e-5)


def test_the_first_round_is_the_same_whatever_becomes_of_moments_bit_for_bit():
    parties = {moments: Party(moments) for moments in ("fresh", "kept", "averaged")}
    for party in parties.values():
        party.round((0, 1, 2))
    assert torch.equal(parties["fresh"].state.vector, parties["kept"].state.vector)
    assert torch.equal(parties["fresh"].state.vector, parties["averaged"].state.vector)
    for party in parties.values():
        party.round((0, 1, 2))
    vectors = [party.state.vector for party in parties.values()]
    assert not torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[1], vectors[2])


def test_averaged_moments_are_two_more_numbers_for_each_and_kept_ones_are_none():
    sizes = {}
    for moments in ("fresh", "kept", "averaged"):
        party = Party(moments)
        party.round((0, 1, 2))
        sizes[moments] = party.report.upload_parameters
        assert bool(party.kept[0]) == (moments == "kept")
    assert sizes == {"fresh": 3 * 33, "kept": 3 * 33, "averaged": 3 * 3 * 33}


def test_a_client_that_comes_late_takes_the_federations_moments():
    party = Party("averaged")
    party.round((0, 1))
    before = party.state.vector
    party.round((2,))
    assert math.isfinite(float(party.state.vector.norm()))
    assert (party.state.vector - before).abs().max() < 4 * 3 * 0.02


def test_which_methods_can():
    assert {m.name for m in ALL if lasting_moments(m)} == {
        "fed-sb",
        "lora-xs",
        "fedit",
        "ffa-lora",
        "fedsa-lora",
    }
