"""Clients trained in one pass: the answers that each would give alone, and a word where that cannot be."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from torch import nn

from fedsb.adapter.attached import attach, find_targets
from fedsb.adapter.bases import orthonormal_bases
from fedsb.adapter.linear import features
from fedsb.common.seeding import torch_generator
from fedsb.federation import wire
from fedsb.federation.client import client_update
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.local_model import LocalModel, load_state
from fedsb.federation.second_exchange import after_second_exchange, second_answer
from fedsb.federation.server import Arrived, aggregate, broadcast
from fedsb.federation.stack_trial import not_stackable, seconds_per_client, unlike_alone
from fedsb.federation.stacked import Asked, PassCost, passes, stacked_updates
from fedsb.federation.state import ServerState
from fedsb.federation.training import ClientFailed, LocalTraining
from fedsb.methods import ALL, Shape, by_name
from fedsb.models.head import head_parameters
from fedsb.models.targets import group
from fedsb.tasks.answers import _collate as collate_answers
from fedsb.tasks.answers import _losses as answer_losses
from fedsb.tasks.logits import losses as class_losses
from fedsb.tasks.task import collate_texts

SEED, RANK, CLIENTS = 3, 4, 4
SGD = LocalTraining(
    optimizer="sgd", momentum=0.5, learning_rate=0.2, batch_size=2, schedule="cosine", rounds=3, grad_clip=0.5
)
ADAM = replace(SGD, optimizer="adamw", momentum=0.0, learning_rate=0.01, weight_decay=0.1)
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=3, pad_token_type_id=0)
TARGETS = {"bert": ["query", "intermediate.dense"], "llama": ["q_proj", "up_proj"]}
STACKED = [method.name for method in ALL if method.experts is None]


@lru_cache
def built(family: str, dropout: float = 0.0):
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return FAMILIES[family].build(**(drops if family == "bert" else {}))


def examples_of(client, *, causal):
    """Unequal clients: 1 to 5 examples of 2 to 12 tokens."""
    rng = np.random.default_rng(client)
    made = []
    for _ in range((2, 5, 1, 3)[client]):
        ids = rng.integers(4, 20, rng.integers(2, 13)).tolist()
        labels = [-100, *ids[1:]] if causal else int(rng.integers(3))
        made.append({"input_ids": ids, "labels": labels})
    return made


class World:
    """Server and clients over one tiny model; clients answer in turn, or in stacks."""

    def __init__(
        self, method, family="bert", *, heads=None, parts=None, model=None, targets=None, **exchange
    ):
        model = copy.deepcopy(built(family)) if model is None else model
        causal = FAMILIES[family].causal
        heads = method.heads_of(heads)
        layers = find_targets(model, targets or TARGETS[family])
        self.start = {name: self._factors(method, name, layer, heads) for name, layer in layers.items()}
        scale = method.scale(RANK, 4.0)
        head = {} if causal else head_parameters(model)
        attached = attach(
            model, self.start, trains=method.trains(1), scale=scale, less_start=method.less_start
        )
        shapes = {name: Shape(*features(layer)) for name, layer in layers.items()}
        sizes = {name: tuple(p.shape) for name, p in head.items()}
        self.exchange = Exchange(method, shapes, RANK, heads, sizes, scale, **exchange)
        for parameter in head.values():
            parameter.requires_grad_(True)
        collate = (
            partial(collate_answers, TOKENIZER)
            if causal
            else partial(collate_texts, TOKENIZER, label_type=torch.long)
        )
        self.local = LocalModel(
            attached,
            head,
            self.exchange,
            copy.deepcopy(self.start),
            collate,
            answer_losses if causal else class_losses,
            torch.device("cpu"),
        )
        self.examples = [examples_of(client, causal=causal) for client in range(CLIENTS)]
        self.parts = parts or [self.exchange.whole] * CLIENTS
        sent = {f"{n}.{f}": getattr(part, f) for n, part in self.start.items() for f in method.sends}
        vector = self.exchange.down(RANK).flatten(sent | {n: p.detach() for n, p in head.items()})
        self.state, self.kept = ServerState(0, vector), {client: {} for client in range(CLIENTS)}

    def _factors(self, method, name, layer, heads):
        shape, draw = features(layer), torch_generator(SEED, "start", name)
        if method.draw is not None:
            return method.draw(*shape, RANK, generator=draw)
        made = orthonormal_bases(*shape, RANK, heads=heads, generator=draw)
        core = 0.1 * torch.randn(heads, RANK, RANK, generator=draw) if method.has_core else None
        own = torch.zeros(heads, RANK, RANK) if "P" in method.stays else None
        s = torch.ones(heads) if "s" in method.trains(1) else None
        return made._replace(R=core, P=own, s=s)

    def asked(self, cohort=range(CLIENTS)):
        return [
            Asked(
                client,
                broadcast(self.state, self.exchange, client, self.parts[client]),
                self.examples[client],
                self.parts[client],
                kept=self.kept[client],
            )
            for client in cohort
        ]

    def alone(self, asked, training):
        return client_update(
            asked.broadcast,
            self.local,
            asked.examples,
            training,
            client=asked.client,
            seed=SEED,
            part=asked.part,
            kept=asked.kept,
        )

    def play(self, training, stack):
        """One round, in stacks of so many clients; None: one after another."""
        state, asked = self.state, self.asked()
        if stack is None:
            answers = [(one.client, self.alone(one, training)) for one in asked]
        else:
            groups = [asked[i : i + stack] for i in range(0, CLIENTS, stack)]
            answers = [a for group in groups for a in stacked_updates(group, self.local, training, seed=SEED)]
        second = partial(
            after_second_exchange,
            state=state,
            exchange=self.exchange,
            ask=self._ask_again,
            weighting="examples",
        )
        self.state, report = aggregate(
            state,
            [Arrived(client, answer) for client, answer in answers],
            self.exchange,
            weighting="examples",
            part_of=self.parts.__getitem__,
            start=self.exchange.started(self.start),
            second=second if self.exchange.method.follow_up else None,
        )
        assert len(report.clients) == CLIENTS
        load_state(
            self.local, self.state.vector, self.state.base.total, round_number=self.state.round, seed=SEED
        )
        return report.train_loss

    def _ask_again(self, clients, question):
        for client in clients:
            sizes = len(self.examples[client])
            kept = self.kept[client]
            yield Arrived(
                client, second_answer(question, self.exchange, kept, client=client, num_examples=sizes)
            )

    def values(self):
        """All that a round leaves, by name."""
        shared = self.exchange.down(RANK).unflatten(self.state.vector)
        kept = {f"kept {c} {n}": t for c, of in self.kept.items() for n, t in of.items()}
        return {**shared, **{f"base {n}": t for n, t in self.state.base.total.items()}, **kept}


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).float().norm() <= tolerance * value.float().norm() + 1e-8, name


def assert_stacks_like_one_by_one(make, training, *, rounds=2, stack=3, tolerance=1e-5):
    """Rounds of a world of its own each: all that is left, and the losses."""
    one_by_one, stacked = make(), make()
    for _ in range(rounds):
        losses = one_by_one.play(training, None), stacked.play(training, stack)
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_near(stacked.values(), one_by_one.values(), tolerance)
    return one_by_one


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_is_its_clients_one_by_one(name):
    """Unequal numbers of batches, short last ones, a clip norm that binds, a schedule: in a classifier."""
    assert_stacks_like_one_by_one(lambda: World(by_name(name)), SGD)


@pytest.mark.parametrize("name", ["fedit", "ravan"])
def test_in_a_decoder_too_with_adam_and_accumulation(name):
    """AdamW divides by a root that is near zero where a gradient is, and enlarges rounding there."""
    training = replace(ADAM, accumulation=2, epochs=1.5, group_by_length=True)
    assert_stacks_like_one_by_one(lambda: World(by_name(name), "llama"), training, tolerance=1e-3)


RANKS = [Part(2), Part(4), Part(1), Part(3)]
HEADS = [Part(RANK, (0,)), Part(RANK, (1, 3)), Part(RANK), Part(RANK, (2,))]


@pytest.mark.parametrize("name", [m.name for m in ALL if m.mixed_ranks])
def test_clients_of_mixed_ranks_stack(name):
    assert_stacks_like_one_by_one(lambda: World(by_name(name), parts=RANKS), SGD, rounds=1, stack=4)


@pytest.mark.parametrize("training", [SGD, replace(ADAM, weight_decay=0.0)], ids=["sgd", "adamw"])
def test_clients_that_train_some_heads_stack(training):
    made = partial(World, by_name("ravan"), parts=HEADS)
    assert_stacks_like_one_by_one(made, training, tolerance=1e-5 if training is SGD else 1e-3)


def test_what_joins_gradients_and_what_stays_is_each_clients_own():
    """SCAFFOLD and FedProx; moments that are kept; a core of each client's own at a rate of its own."""
    plain = replace(SGD, momentum=0.0, proximal=0.3)
    made = assert_stacks_like_one_by_one(
        lambda: World(by_name("fed-sb"), control_variates=True), plain, rounds=2
    )
    assert any("kept" in name for name in made.values())
    kept = replace(ADAM, weight_decay=0.0)
    assert_stacks_like_one_by_one(lambda: World(by_name("fed-sb"), moments="kept"), kept, tolerance=1e-3)
    personal = by_name("fed-sb").with_personal_cores()
    assert_stacks_like_one_by_one(lambda: World(personal, heads=2), replace(SGD, personal_rate=0.5))


def test_one_stack_size_gives_the_same_bits_with_dropout_too():
    found = []
    for _ in range(2):
        world = World(by_name("fed-sb"), model=copy.deepcopy(built("bert", 0.3)))
        world.play(ADAM, 3)
        found.append(world.values())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_no_number_beyond_a_clients_rank_is_trained():
    world = World(by_name("fed-sb"), parts=RANKS)
    answers = dict(stacked_updates(world.asked(), world.local, ADAM, seed=SEED))
    sizes = {client: wire.unpack(answer)[1].numel() for client, answer in answers.items()}
    assert sizes == {c: world.exchange.up(1, part).size for c, part in enumerate(RANKS)}


def test_a_client_that_fails_leaves_the_others_as_they_are():
    """No examples, another method's broadcast, a loss that is not finite."""
    world = World(by_name("fed-sb"))
    expected = dict(stacked_updates(world.asked([1]), world.local, SGD, seed=SEED))
    asked = world.asked()
    asked[0] = replace(asked[0], examples=[])
    asked[2] = replace(asked[2], broadcast=World(by_name("fedit")).asked([2])[0].broadcast)
    losses = world.local.losses

    def spoiled(model, batch):
        found = losses(model, batch)
        return torch.where((batch["input_ids"] == 25).any(1), torch.inf, found)

    world.local.losses = spoiled
    asked[3] = replace(asked[3], examples=[e | {"input_ids": [25, 5]} for e in asked[3].examples])
    found = dict(stacked_updates(asked, world.local, SGD, seed=SEED))
    assert [isinstance(found[client], Exception) for client in range(CLIENTS)] == [1, 0, 1, 1]
    assert "not finite" in str(found[3])
    for client, message in expected.items():
        vectors = wire.unpack(message)[1], wire.unpack(found[client])[1]
        torch.testing.assert_close(vectors[1], vectors[0], rtol=1e-5, atol=1e-6)


def test_the_model_is_as_it_was_after_a_stack():
    world = World(by_name("fed-sb"))
    modules = dict(world.local.model.named_modules())
    list(stacked_updates(world.asked(), world.local, SGD, seed=SEED))
    assert dict(world.local.model.named_modules()) == modules


# ---------------------------------------------------------------- what cannot be stacked


def test_the_trial_finds_a_model_that_mixes_rows():
    world = World(by_name("fed-sb"))
    assert unlike_alone(world.asked(), world.local, SGD, SEED) is None
    losses = world.local.losses
    world.local.losses = lambda model, batch: losses(model, batch).flip(0)
    assert "mixes rows" in unlike_alone(world.asked(), world.local, SGD, SEED)


def test_the_trial_finds_layers_that_see_other_rows():
    """Tokens in another order, as those of experts are."""
    world = World(by_name("fed-sb"))
    block = world.local.model.bert.encoder.layer[0].intermediate

    def gathered(x):
        rows = x.flatten(0, 1)
        order = torch.arange(len(rows)).flip(0)
        return block.intermediate_act_fn(block.dense(rows[order])[order].view(*x.shape[:-1], -1))

    block.forward = gathered
    assert "intermediate.dense.R is not that" in unlike_alone(world.asked(), world.local, SGD, SEED)


def reason_of(family):
    """Why a tiny model of the family is not stacked, all its layers being adapted; None: it is."""
    model = copy.deepcopy(built(family))
    world = World(by_name("fed-sb"), family, model=model, targets=group(model, "all-linear"))
    return not_stackable(world.local, 1) or unlike_alone(world.asked(), world.local, SGD, SEED)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "funnel", "gpt2", "opt", "mixtral", "mamba"])
def test_models_of_many_families_stack(family):
    assert reason_of(family) is None


@pytest.mark.parametrize("family", ["deberta-v3", "xlnet"])
def test_layers_that_are_given_more_than_rows_are_not_stacked(family):
    """DeBERTa's see positions too, XLNet's have tokens first."""
    assert "a layer is given (1" in reason_of(family)


def test_a_head_beside_other_modules_is_not_stacked():
    world = World(by_name("fed-sb"))
    world.local.task_head = {"bias": nn.Parameter(torch.zeros(3))}
    assert "the task head's bias" in not_stackable(world.local, 1)


# ---------------------------------------------------------------- passes and times


def tokens_of(group, sizes):
    return len(group) * max(sizes[i][0] for i in group) * max(sizes[i][1] for i in group)


def splits(order):
    """Every way to cut a sequence into runs."""
    for cuts in range(1 << (len(order) - 1)):
        ends = [i + 1 for i in range(len(order) - 1) if cuts >> i & 1]
        yield [order[a:b] for a, b in zip([0, *ends], [*ends, len(order)], strict=True)]


@pytest.mark.parametrize("apart", [0, 32, 10**6])
@pytest.mark.parametrize("most", [100, 10**9])
def test_passes_are_the_cheapest_of_all_cuts(apart, most):
    def fits(groups):
        return all(len(group) == 1 or tokens_of(group, sizes) <= most for group in groups)

    def cost(groups):
        return sum(apart + tokens_of(group, sizes) for group in groups)

    rng = np.random.default_rng(apart)
    for count in range(1, 8):
        sizes = [(int(rng.integers(1, 4)), int(rng.integers(1, 90))) for _ in range(count)]
        found = passes(sizes, PassCost(apart, most))
        assert sorted(i for group in found for i in group) == list(range(count))
        assert fits(found)
        order = sorted(range(count), key=lambda i: -sizes[i][1])
        assert cost(found) == min(cost(groups) for groups in splits(order) if fits(groups))
    assert len(passes([(1, 9), (1, 50)], PassCost(10**6, 10**9))) == 1
    assert len(passes([(1, 9), (1, 50)], PassCost(0, 10**9))) == 2


def test_batches_of_unlike_lengths_pass_apart_and_give_the_same():
    world = World(by_name("fed-sb"))
    for client, examples in enumerate(world.examples):
        world.examples[client] = [e | {"input_ids": (e["input_ids"] * 9)[: 2 + 5 * client]} for e in examples]
    twin = copy.deepcopy(world)
    world.play(SGD, None), twin.play(SGD, CLIENTS)
    assert_near(twin.values(), world.values(), 1e-5)


def test_times_are_of_each_client_and_leave_the_round_as_it_was():
    world, twin = World(by_name("fed-sb")), World(by_name("fed-sb"))
    for count in (1, 3):
        assert 0 < seconds_per_client(world.asked()[:count], world.local, SGD, SEED) < 5
    world.play(SGD, 3), twin.play(SGD, 3)
    assert all(torch.equal(world.values()[n], v) for n, v in twin.values().items())
    with pytest.raises(ClientFailed):
        seconds_per_client([replace(world.asked()[0], examples=[])], world.local, SGD, SEED)
