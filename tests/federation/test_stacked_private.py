"""Clients under example-level DP in one pass: batches, clipping and noise are those that each has alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_stacked import CLIENTS, HEADS, RANKS, SEED, SGD, World, assert_near

from fedsb.errors import RunFailed
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.private_training import train_privately
from fedsb.federation.stacked import stacked_updates
from fedsb.federation.stacked_private import PrivateWay, train_stacked_privately
from fedsb.methods import by_name
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan

PLAIN = replace(SGD, momentum=0.0, grad_clip=None)


def way_of(world, client, *, clip_norm=0.05, **changes):
    """Plans of unequal steps; batches of 0 to all examples, in physical batches of two."""
    size = len(world.examples[client])
    plan = ExamplePlan(
        num_examples=size,
        expected_batch_size=max(1, size - 1),
        rounds=3,
        clip_norm=clip_norm,
        **{"noise_multiplier": 0.1, "steps_per_round": 2 + client % 2} | changes,
    )
    coins = Keystream.derived(b"coins", client)
    return PrivateWay(plan, NoiseSource(insecure_seed=5), coins)


def both(make, training, **changes):
    """By client, what it sends alone and in a stack, by name."""
    found = []
    for stacked in (False, True):
        world = make()
        ways = {client: way_of(world, client, **changes) for client in range(CLIENTS)}
        if stacked:
            train = partial(train_stacked_privately, ways=ways)
            asked = world.asked()
            answers = dict(
                stacked_updates(
                    asked, world.local, training, seed=SEED, train_with=train, declares_loss=False
                )
            )
        else:
            answers = {one.client: alone(world, one, training, ways[one.client]) for one in world.asked()}
        found.append({client: sent(world, client, answer) for client, answer in answers.items()})
    return found


def alone(world, asked, training, way):
    train = partial(train_privately, plan=way.plan, noise=way.noise, coins=way.coins)
    return client_update(
        asked.broadcast,
        world.local,
        asked.examples,
        training,
        client=asked.client,
        seed=SEED,
        part=asked.part,
        kept=asked.kept,
        train_with=train,
    )


def sent(world, client, answer):
    header, vector = wire.unpack(answer)
    assert header.train_loss is None
    return world.exchange.up(1, world.parts[client]).unflatten(vector)


WORLDS = {
    "cores": (lambda: World(by_name("fed-sb")), {}),
    "a decoder's bases": (lambda: World(by_name("fedit"), "llama"), {}),
    "in turns, filtered": (lambda: World(by_name("la-lora")), {}),
    "heads with scales": (lambda: World(by_name("ravan"), parts=HEADS), {}),
    "mixed ranks": (lambda: World(by_name("fed-sb"), parts=RANKS), {}),
    "a Gram matrix": (lambda: World(by_name("florg")), {}),
    "a clip norm that follows": (lambda: World(by_name("fed-sb")), {"quantile": 0.5}),
    "hardly clipped": (lambda: World(by_name("fed-sb")), {"clip_norm": 1e3, "noise_multiplier": 0.0}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_private_clients_in_one_pass_are_those_alone(name):
    make, changes = WORLDS[name]
    expected, found = both(make, PLAIN, **changes)
    for client in range(CLIENTS):
        assert_near(found[client], expected[client], 1e-5)


def test_an_example_changes_a_step_by_no_more_than_the_clip_norm():
    """However large its gradient is, and whoever is beside it."""
    sums = []
    for worst in (1.0, 1e6):
        world = World(by_name("fed-sb"))
        losses = world.local.losses

        def larger(model, batch, losses=losses, worst=worst):
            first = (batch["input_ids"][:, :2] == torch.tensor([21, 21])).all(1)
            return losses(model, batch) * torch.where(first, worst, 1.0)

        world.local.losses = larger
        for examples in world.examples:
            examples[0] = examples[0] | {"input_ids": [21, 21, 5]}
        ways = {
            c: way_of(world, c, clip_norm=0.01, noise_multiplier=0.0, steps_per_round=1)
            for c in range(CLIENTS)
        }
        training = replace(PLAIN, learning_rate=1.0, schedule="constant")
        answers = dict(
            stacked_updates(
                world.asked(),
                world.local,
                training,
                seed=SEED,
                train_with=partial(train_stacked_privately, ways=ways),
            )
        )
        sums.append({c: wire.unpack(a)[1].double() * ways[c].plan.expected_units for c, a in answers.items()})
    moved = [(sums[0][c] - sums[1][c]).norm() for c in range(CLIENTS)]
    assert max(moved) <= 2 * 0.01 * (1 + 1e-3)
    assert max(moved) > 0


def test_a_model_that_draws_by_itself_is_refused():
    world = World(by_name("fed-sb"))
    losses = world.local.losses
    world.local.losses = lambda model, batch: losses(model, batch) * (1 + torch.rand(1))
    ways = {client: way_of(world, client) for client in range(CLIENTS)}
    train = partial(train_stacked_privately, ways=ways)
    with pytest.raises(RunFailed, match="gives one batch two results"):
        list(stacked_updates(world.asked(), world.local, PLAIN, seed=SEED, train_with=train))
