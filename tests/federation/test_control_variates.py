"""SCAFFOLD, option II, through the real client, wire and server, against the paper's algorithm in a loop."""

import copy
from dataclasses import replace

import pytest
import torch
from test_client import Bag, collate, losses, make_examples

from fedsb.adapter import Factors
from fedsb.adapter.attached import attach
from fedsb.common.seeding import numpy_generator
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.server import Arrived, Failed, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining, batch_indices
from fedsb.methods import ALL, Shape, fed_sb
from fedsb.methods.averaging.beside import CONTROL, added_by, with_beside

TRAINING = LocalTraining(
    optimizer="sgd", learning_rate=0.4, batch_size=4, schedule="linear", rounds=4, epochs=1.5
)
SIZES = {0: 12, 1: 7, 2: 20}
ROWS = {client: make_examples(size, seed=client) for client, size in SIZES.items()}
COHORTS = [((0, 1, 2), ()), ((0, 2), ()), ((0, 1, 2), (1,)), ((1, 2), ())]
SEED = 5


class Party:
    """A tiny model with a core and a head that train; the server's state; what each client keeps."""

    def __init__(self, *, control=True, weighting="examples"):
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
        self.exchange = Exchange(
            fed_sb, {"hidden": Shape(8, 6)}, 3, 1, {"out.weight": (3, 8)}, control_variates=control
        )
        self.local_model = LocalModel(
            attached, head, self.exchange, {"hidden": factors}, collate, losses, torch.device("cpu")
        )
        start = {"hidden.R": factors.R, "out.weight": model.out.weight.detach()}
        self.state = ServerState(0, self.exchange.down(3).flatten(start))
        self.weighting, self.kept = weighting, {client: {} for client in SIZES}
        self.sizes = []

    def round(self, cohort, failing=()):
        total = float(sum(SIZES.values()) if self.weighting == "examples" else len(SIZES))
        aggregation = fed_sb.aggregation
        if self.exchange.control_variates:
            aggregation = with_beside(aggregation, (CONTROL,), added_by(total))
        self.state, report = aggregate(
            self.state,
            (self.outcome(client, failing) for client in cohort),
            self.exchange,
            weighting=self.weighting,
            aggregation=aggregation,
        )
        self.sizes.append(report.upload_parameters)

    def outcome(self, client, failing):
        if client in failing:
            return Failed(client, "went away")
        message = broadcast(self.state, self.exchange, client, self.exchange.whole)
        answer = client_update(
            message,
            self.local_model,
            ROWS[client],
            TRAINING,
            client=client,
            seed=SEED,
            kept=self.kept[client],
        )
        return Arrived(client, answer)

    @property
    def numbers(self):
        return self.exchange.down(3).unflatten(self.state.vector)


class Loop:
    """The algorithm as the paper has it, over a model's own parameters."""

    def __init__(self, party):
        self.model, self.weighting = party.twin, party.weighting
        self.x = {name: tensor.clone() for name, tensor in party.numbers.items()}
        self.c = {name: torch.zeros_like(value) for name, value in self.x.items()}
        self.own = {client: dict(self.c) for client in SIZES}

    def steps(self, client, number):
        """y and the sum of rates."""
        lengths = [len(row["input_ids"]) for row in ROWS[client]]
        batches = list(batch_indices(lengths, TRAINING, numpy_generator(SEED, "batches", number, client)))
        places = {name: self.model.get_parameter(name).requires_grad_(True) for name in self.x}
        with torch.no_grad():
            for name, parameter in places.items():
                parameter.copy_(self.x[name])
        rates = 0.0
        for k, batch in enumerate(batches):
            loss = losses(self.model, collate([ROWS[client][i] for i in batch])).mean()
            gradients = torch.autograd.grad(loss, list(places.values()))
            done, total = (number - 1) * len(batches) + k, TRAINING.rounds * len(batches)
            rate = 0.4 * (1 - done / total)
            rates += rate
            with torch.no_grad():
                for (name, parameter), gradient in zip(places.items(), gradients, strict=True):
                    parameter -= rate * (gradient - self.own[client][name] + self.c[name])
        return {name: p.detach().clone() for name, p in places.items()}, rates

    def round(self, number, cohort, failing=()):
        answered = [client for client in cohort if client not in failing]
        weight = {c: float(SIZES[c]) if self.weighting == "examples" else 1.0 for c in SIZES}
        y, change = {}, {}
        for client in answered:
            y[client], rates = self.steps(client, number)
            after = {n: self.own[client][n] - self.c[n] + (self.x[n] - y[client][n]) / rates for n in self.x}
            change[client] = {n: after[n] - self.own[client][n] for n in self.x}
            self.own[client] = after
        there = sum(weight[client] for client in answered)
        for name in self.x:
            self.x[name] = sum(weight[c] * y[c][name] for c in answered) / there
            self.c[name] = self.c[name] + sum(weight[c] * change[c][name] for c in answered) / sum(
                weight.values()
            )


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_several_rounds_are_those_of_the_papers_algorithm(weighting):
    """With partial cohorts, a dropout, unequal sizes, and a rate that falls."""
    party = Party(weighting=weighting)
    loop = Loop(party)
    for number, (cohort, failing) in enumerate(COHORTS, start=1):
        party.round(cohort, failing)
        loop.round(number, cohort, failing)
        for name, value in party.numbers.items():
            torch.testing.assert_close(value, loop.x[name], rtol=1e-3, atol=2e-5)
            torch.testing.assert_close(
                party.state.memory[f"control {name}"], loop.c[name], rtol=1e-3, atol=2e-5
            )
        for client in set(cohort) - set(failing):
            for name, value in loop.own[client].items():
                found = party.kept[client][f"control {name}"]
                torch.testing.assert_close(found, value, rtol=1e-3, atol=5e-5)


def test_the_first_round_is_plain_averaging_bit_for_bit_and_the_second_is_not():
    plain, controlled = Party(control=False), Party()
    for party in (plain, controlled):
        party.round((0, 1, 2))
    assert torch.equal(plain.state.vector, controlled.state.vector)
    for party in (plain, controlled):
        party.round((0, 1, 2))
    assert not torch.equal(plain.state.vector, controlled.state.vector)


def test_they_double_what_travels():
    plain, controlled = Party(control=False), Party()
    for party in (plain, controlled):
        party.round((0, 1, 2))
    assert controlled.sizes == [2 * plain.sizes[0]] == [2 * 3 * (9 + 24)]
    sent = [len(broadcast(p.state, p.exchange, 0, p.exchange.whole)) for p in (plain, controlled)]
    assert 4 * 33 - 8 <= sent[1] - sent[0] <= 4 * 33 + 8


def test_the_servers_are_the_weighted_mean_of_all_clients_own():
    """Of those who never answered too, whose are zero."""
    party = Party()
    for cohort, failing in COHORTS[1:]:
        party.round([c for c in cohort if c not in failing])
    zero = {f"control {n}": torch.zeros_like(v) for n, v in party.numbers.items()}
    for name in zero:
        mean = sum(SIZES[c] * (party.kept[c] or zero)[name] for c in SIZES) / sum(SIZES.values())
        torch.testing.assert_close(party.state.memory[name], mean, rtol=1e-4, atol=1e-6)


def test_which_methods_take_them():
    assert {m.name for m in ALL if m.sends_plainly} == {
        "fed-sb",
        "lora-xs",
        "fedit",
        "ffa-lora",
        "rolora",
        "fedsa-lora",
    }


def test_the_rates_of_a_rounds_steps_add_up():
    training = replace(TRAINING, schedule="constant", accumulation=2)
    assert training.rates(2, 12) == pytest.approx(0.4 * training.steps_per_round(12))
