"""Clients trained in one pass beside the same clients one after another: MiniLM, Fed-SB rank 64 on query and
value, AdamW. Seconds of a whole round's training, messages in and out, at several sizes of a client's batch.

    python benchmarks/stacked.py [MODEL_FOLDER] [--clients 16] [--repeats 5] [--sizes 1x16 16x64] [--private]

--private: example-level DP-SGD, batches of that size on average, without noise.
Without a folder the model has MiniLM's size and random weights. Dropout is off.
"""

import argparse
import os
import random
from functools import partial

import torch
from common import MINILM, example_losses, random_bert, side_by_side
from transformers import AutoModelForSequenceClassification

from fedsb.adapter.attached import attach, find_targets
from fedsb.adapter.bases import orthonormal_bases
from fedsb.adapter.linear import features
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.private_training import train_privately
from fedsb.federation.server import broadcast
from fedsb.federation.stacked import Asked, stacked_updates
from fedsb.federation.stacked_private import PrivateWay, train_stacked_privately
from fedsb.federation.state import ServerState
from fedsb.federation.training import LocalTraining
from fedsb.methods import Shape, by_name
from fedsb.models.head import head_parameters
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan

RANK, STEPS = 64, 2
SIZES = {(1, 16): 2.0, (4, 16): 1.3, (1, 64): None, (16, 64): 0.95}
"""(rows, tokens) of a client's batch -> the least speed, of one after another, that is asked for."""


def collate(examples):
    ids = torch.tensor([example["input_ids"] for example in examples])
    labels = torch.tensor([example["labels"] for example in examples])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def federation(model):
    """The model with the adapter in it, and the state that a round begins with."""
    method, layers = by_name("fed-sb"), find_targets(model, ["query", "value"])
    generator = torch.Generator().manual_seed(0)
    start = {n: orthonormal_bases(*features(m), RANK, generator=generator) for n, m in layers.items()}
    head = head_parameters(model)
    attached = attach(model, start)
    for parameter in head.values():
        parameter.requires_grad_(True)
    shapes = {name: Shape(*features(layer)) for name, layer in layers.items()}
    exchange = Exchange(method, shapes, RANK, 1, {name: tuple(p.shape) for name, p in head.items()})
    sent = {f"{name}.R": part.R for name, part in start.items()} | {n: p.detach() for n, p in head.items()}
    state = ServerState(0, exchange.down(RANK).flatten(sent))
    local_model = LocalModel(attached, head, exchange, start, collate, example_losses, torch.device("cpu"))
    return local_model, state


def asked_of(local_model, state, clients, rows, tokens):
    rng = random.Random(0)
    exchange = local_model.exchange

    def examples():
        return [
            {"input_ids": [rng.randrange(1000, 30000) for _ in range(tokens)], "labels": rng.randrange(2)}
            for _ in range(rows * STEPS)
        ]

    return [
        Asked(client, broadcast(state, exchange, client, exchange.whole), examples(), exchange.whole)
        for client in range(clients)
    ]


def way_of(one, rows):
    """A private client's plan and coins, the same each time."""
    plan = ExamplePlan(
        num_examples=len(one.examples),
        expected_batch_size=rows,
        steps_per_round=STEPS,
        rounds=1,
        clip_norm=1.0,
    )
    return PrivateWay(plan, NoiseSource(), Keystream.derived(b"coins", one.client))


def one_by_one(asked, local_model, training, private):
    for one in asked:
        train = None
        if private:
            way = way_of(one, training.batch_size)
            train = partial(train_privately, plan=way.plan, noise=way.noise, coins=way.coins)
        client_update(
            one.broadcast,
            local_model,
            one.examples,
            training,
            client=one.client,
            seed=0,
            train_with=train,
        )


def in_one_pass(asked, local_model, training, private):
    train = None
    if private:
        ways = {one.client: way_of(one, training.batch_size) for one in asked}
        train = partial(train_stacked_privately, ways=ways)
    answers = dict(stacked_updates(asked, local_model, training, seed=0, train_with=train))
    assert all(isinstance(answer, bytes) for answer in answers.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=[f"{rows}x{tokens}" for rows, tokens in SIZES])
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args()
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = (
        AutoModelForSequenceClassification.from_pretrained(
            options.model, num_labels=2, dtype=torch.float32, **drops
        )
        if options.model
        else random_bert(MINILM | drops)
    )
    local_model, state = federation(model)
    print(f"{options.clients} clients in one pass, {torch.get_num_threads()} threads, {STEPS} steps each")
    for (rows, tokens), least in SIZES.items():
        if f"{rows}x{tokens}" not in options.sizes:
            continue
        asked = asked_of(local_model, state, options.clients, rows, tokens)
        training = LocalTraining(batch_size=rows, learning_rate=1e-4)
        functions = {
            "one by one": partial(one_by_one, asked, local_model, training, options.private),
            "in one pass": partial(in_one_pass, asked, local_model, training, options.private),
        }
        seconds = side_by_side(functions, repeats=options.repeats)
        ratio = seconds["one by one"] / seconds["in one pass"]
        goal = (
            f"target >= {least:g}   {'ok' if ratio >= least else 'MISSED'}"
            if least and not options.private
            else ""
        )
        times = "  ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
        load = os.getloadavg()[0]
        print(
            f"batch {rows:>2} x {tokens}   {times}   speed {ratio:5.2f}   load {load:4.1f}   {goal}",
            flush=True,
        )


if __name__ == "__main__":
    main()
