"""The server's own step against loops over numbers, and its neutral setting against no step at all."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from fake_federation import Federation
from oracles import numbers, weighted_mean

from fedsb.config.optimization_checks import takes_server_steps
from fedsb.federation import server, wire
from fedsb.methods import ALL, fed_sb, fedit, ffa_lora, rolora
from fedsb.methods.averaging.robust import robust
from fedsb.methods.averaging.server_optimizer import ServerOptimizer, stepped

RULES = {
    "sgd": ServerOptimizer("sgd", learning_rate=0.7, momentum=0.9),
    "adam": ServerOptimizer("adam", learning_rate=0.1, momentum=0.8, adaptivity=0.01),
    "yogi": ServerOptimizer("yogi", learning_rate=0.1, momentum=0.8, adaptivity=0.01),
}
COHORTS = [([0, 1, 2], [2]), ([1], []), ([0, 1, 2, 3], []), ([2, 3], [3]), ([0, 3], [])]


@dataclass
class Loop:
    """One number at the server, by the paper's algorithm 2."""

    rule: ServerOptimizer
    x: float
    m: float = 0.0
    v: float = 0.0
    begun: bool = False

    def close(self, mean: float) -> None:
        rule, d = self.rule, mean - self.x
        if not self.begun:
            self.v, self.begun = rule.adaptivity**2, True
        if rule.optimizer == "sgd":
            self.m = rule.momentum * self.m + d
            self.x += rule.learning_rate * self.m
            return
        self.m = rule.momentum * self.m + (1 - rule.momentum) * d
        if rule.optimizer == "adam":
            self.v = 0.99 * self.v + 0.01 * d * d
        else:
            self.v -= 0.01 * d * d * np.sign(self.v - d * d)
        self.x += rule.learning_rate * self.m / (np.sqrt(self.v) + rule.adaptivity)


def close(federation, cohort, aggregation, failing=()):
    """One round under this aggregation, without the dense oracle, which has no server's step."""
    federation.oracle.close_round = lambda number, answers: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake_federation.aggregate", partial(server.aggregate, aggregation=aggregation))
        weights = {c: 3 * c + 1 for c in cohort}
        federation.close_round(cohort, weights=weights, failing=failing)
    return {c: weights[c] for c in cohort if c not in failing}


def shared_numbers(federation):
    named = federation.exchange.down(federation.rank).unflatten(federation.state.vector)
    return {name: numbers(tensor) for name, tensor in named.items()}


def mean_of_uploads(federation, number, weights):
    layout = federation.exchange.up(number, federation.exchange.whole)
    sent = [layout.unflatten(wire.unpack(federation.messages[c][1])[1]) for c in weights]
    return {
        name: weighted_mean([numbers(part[name]) for part in sent], list(weights.values()))
        for name, _ in layout.entries
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", [fed_sb, fedit, rolora], ids=lambda m: m.name)
def test_several_rounds_are_those_of_a_loop_over_numbers(method, rule):
    """With weights and dropouts; of factors in turns each keeps its own moments while the other trains."""
    federation = Federation(method)
    loops = {
        (name, where): Loop(RULES[rule], value[where])
        for name, value in shared_numbers(federation).items()
        for where in np.ndindex(*value.shape)
    }
    for number, (cohort, failing) in enumerate(COHORTS, start=1):
        weights = close(federation, cohort, stepped(method.aggregation, RULES[rule]), failing)
        for name, mean in mean_of_uploads(federation, number, weights).items():
            for where in np.ndindex(*mean.shape):
                loops[name, where].close(mean[where])
        for name, value in shared_numbers(federation).items():
            for where in np.ndindex(*value.shape):
                assert value[where] == pytest.approx(loops[name, where].x, rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("method", [m for m in ALL if takes_server_steps(m)], ids=lambda m: m.name)
def test_the_neutral_rule_is_the_plain_mean_bit_for_bit(method):
    plain, ruled = Federation(method), Federation(method)
    for cohort, failing in COHORTS[:3]:
        close(plain, cohort, method.aggregation, failing)
        close(ruled, cohort, stepped(method.aggregation, ServerOptimizer()), failing)
        assert torch.equal(plain.state.vector, ruled.state.vector)
    assert not ruled.state.memory


def test_it_steps_along_a_median_too():
    """What robust averages give is one client's update to it."""
    rule = ServerOptimizer("sgd", learning_rate=0.5)
    plain, ruled = Federation(ffa_lora), Federation(ffa_lora)
    ruled.state, before = plain.state, plain.state.vector
    close(plain, [0, 1, 2], robust(ffa_lora.aggregation, "median", 0.1))
    close(ruled, [0, 1, 2], robust(stepped(ffa_lora.aggregation, rule), "median", 0.1))
    torch.testing.assert_close(ruled.state.vector, (before + plain.state.vector) / 2)


def test_which_methods_take_server_steps():
    assert {m.name for m in ALL if takes_server_steps(m)} == {
        "fed-sb",
        "lora-xs",
        "ravan",
        "fedit",
        "ffa-lora",
        "rolora",
        "fedsa-lora",
        "fedrot-lora",
        "la-lora",
    }
