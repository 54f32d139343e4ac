"""An audit in one run (Steinke et al. 2023, arXiv 2305.08846) of what really runs: a client that answers.

A thousand canaries, each in the data or not by a fair coin. The attacker knows them all, sees what leaves the
client, and says of each how likely it was in. What that proves of epsilon is below the claim; with the noise
divided by four it is above. The model's config asks for dropout.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import run_helpers
import torch
from private_world import PrivateWorld
from run_helpers import SPECIAL, changed, classification_config, save_tokenizer, write_rows
from scipy.stats import binom
from transformers import BertConfig, BertModel

from fedsb.federation import private_training as dp_sgd
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange
from fedsb.federation.server import Arrived, aggregate, broadcast
from fedsb.federation.state import ServerState
from fedsb.methods import Shape, fed_sb
from fedsb.privacy import client_level
from fedsb.privacy.audit import chance, epsilon_at_least, log_odds_among
from fedsb.privacy.client_level import ClientRelease
from fedsb.privacy.noise import NoiseSource, add_noise, gaussian_like
from fedsb.privacy.plan import ClientPlan
from fedsb.runner.clients import local_clients
from fedsb.runner.prepare_privacy import prepare_privacy

CANARIES = 1000
CLAIM, DELTA, CLIP_NORM = 1.5, 1e-5, 0.01
WORDS = [f"v{i}" for i in range(CANARIES)]
ROWS = [{"text": " ".join([word] * 3), "label": f"c{i}"} for i, word in enumerate(WORDS)]
"""A word and a class for each: gradients at the head that hardly overlap."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "bert"
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.3}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        patch.setattr(run_helpers, "WORDS", [*SPECIAL, *WORDS])
        BertModel(BertConfig(vocab_size=len(SPECIAL) + CANARIES, **size)).save_pretrained(folder)
        save_tokenizer(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | dropout))
    return folder


class Audited:
    """A client that holds the canaries whose coin said so, and what the attacker knows."""

    def __init__(self, model, folder, share, rounds):
        self.included = np.random.default_rng().integers(0, 2, CANARIES).astype(bool)
        write_rows(folder / "train.jsonl", [row for row, own in zip(ROWS, self.included, strict=True) if own])
        write_rows(folder / "test.jsonl", ROWS[:3])
        batch = round(share * self.included.sum())
        changes = {
            "task__labels": [row["label"] for row in ROWS],
            "method": {"name": "fed-sb", "rank": 2, "targets": ["query"], "init": {"kind": "orthonormal"}},
            "federation": {"clients": 1, "rounds": rounds},
            "training": {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": batch, "epochs": 0.05},
            "privacy": {"unit": "example", "epsilon": CLAIM, "delta": DELTA, "clip_norm": CLIP_NORM},
        }
        self.world = PrivateWorld(changed(classification_config(model, folder), **changes))
        self.folder, self.rounds = folder, rounds
        exchange = self.world.local_model.exchange
        self.state = ServerState(0, exchange.down(exchange.rank).flatten(self.world.shared))
        self.directions = self.world.directions(ROWS)

    def run(self, name):
        """The client's plan and ledger, and what its answers released."""
        world, sizes = self.world, {0: int(self.included.sum())}
        (self.folder / name).mkdir()
        private = prepare_privacy(world.config, sizes, self.folder / name)
        party = local_clients(world.config, world.data, world.local_model, private)(0)
        return private, [self._released(party, private.plans[0], number) for number in range(self.rounds)]

    def _released(self, party, plan, number):
        """The noisy sum that an answer is made of, in clip norms."""
        exchange = self.world.local_model.exchange
        message = broadcast(replace(self.state, round=number), exchange, 0, exchange.whole)
        before = exchange.up(1, exchange.whole).flatten(self.world.before())
        change = before.double() - wire.unpack(party.answer(message))[1].double()
        return change.numpy() * plan.expected_batch_size / CLIP_NORM


def looked_at(releases, directions):
    """Each release along the canaries' directions, and these among each other."""
    return [(directions @ released, directions @ directions.T) for released in releases]


@pytest.mark.parametrize(("share", "rounds"), [(1.0, 1), (0.1, 5)], ids=["full batch", "q = 0.1"])
def test_a_client_proves_less_than_it_claims_and_would_be_caught(model, tmp_path, monkeypatch, share, rounds):
    audited, found = Audited(model, tmp_path, share, rounds), {}
    for divisor in (1, 4):
        monkeypatch.setattr(
            dp_sgd, "add_noise", lambda total, std, stream, by=divisor: add_noise(total, std / by, stream)
        )
        private, releases = audited.run(f"noise-over-{divisor}")
        plan = private.plans[0]
        assert (plan.steps_per_round, private.guard.epsilon(0)) == (1, pytest.approx(CLAIM, rel=0.01))
        assert plan.sampling_probability == pytest.approx(share, rel=0.02)
        seen, noise = looked_at(releases, audited.directions), plan.noise_multiplier / divisor
        odds = log_odds_among(seen, plan.sampling_probability, noise)
        found[divisor] = epsilon_at_least(odds, audited.included, DELTA)
    assert found[1] < CLAIM < found[4]


def test_a_server_that_protects_clients_proves_less_than_it_claims_and_would_be_caught(monkeypatch):
    """Updates far beyond the clip norm, each along a direction of its own, through the server's own round."""
    exchange = Exchange(fed_sb, {"layer": Shape(40, 40)}, 32, 1, {})
    included = np.random.default_rng().integers(0, 2, CANARIES).astype(bool)
    plan = ClientPlan(num_clients=CANARIES, expected_cohort=CANARIES, rounds=1, clip_norm=CLIP_NORM)
    plan, layout = plan.calibrated(CLAIM, DELTA), exchange.up(1, exchange.whole)
    start, far, found = torch.zeros(layout.size), torch.eye(CANARIES, layout.size), {}

    def update(client):
        header = wire.Header("fed-sb", 1, layout.digest, client, num_examples=5)
        return Arrived(client, wire.pack(header, far[client]))

    for divisor in (1, 4):
        monkeypatch.setattr(
            client_level, "gaussian_like", lambda like, std, s, by=divisor: gaussian_like(like, std / by, s)
        )
        release = ClientRelease(plan, plan.clip_norm, NoiseSource(), 1)
        state, _ = aggregate(
            ServerState(0, start),
            map(update, np.flatnonzero(included).tolist()),
            exchange,
            weighting="uniform",
            aggregation=release.wrap(fed_sb.aggregation),
            fewest=0,
        )
        seen = state.vector[:CANARIES].double().numpy() * plan.expected_cohort / CLIP_NORM
        found[divisor] = epsilon_at_least(seen - 0.5, included, DELTA)
    assert found[1] < CLAIM < found[4]


# The bound itself


def test_the_chance_of_right_guesses_without_delta_is_the_binomial():
    assert chance(100, 40, 35, 1.0, 0.0) == pytest.approx(binom.sf(34, 40, 1 / (1 + np.exp(-1.0))))
    assert chance(100, 40, 35, 1.0, 1e-3) > chance(100, 40, 35, 1.0, 0.0)
    assert chance(100, 40, 0, 1.0, 0.0) == 1


def test_guessing_at_random_proves_nothing_and_knowing_all_much():
    draw = np.random.default_rng(0)
    included = draw.integers(0, 2, 500).astype(bool)
    assert epsilon_at_least(draw.standard_normal(500), included, 1e-5) == 0
    assert 4 < epsilon_at_least(np.where(included, 1.0, -1.0), included, 1e-5) < 6
    assert epsilon_at_least(np.where(included, -1.0, 1.0), included, 1e-5) == 0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomized_response_is_never_said_to_be_worse_than_it_is(epsilon):
    """The mechanism for which the bound is tight: of 100 audits at 95 % hardly one in twenty is above."""
    draw, above = np.random.default_rng(1), 0
    for _ in range(100):
        included = draw.integers(0, 2, 200).astype(bool)
        told = included ^ (draw.random(200) > 1 / (1 + np.exp(-epsilon)))
        above += epsilon_at_least(np.where(told, 1.0, -1.0), included, 0.0) > epsilon
    assert above <= binom.isf(1e-4, 100, 0.05)
