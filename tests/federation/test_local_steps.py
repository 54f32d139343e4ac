"""A method's own steps at a client against loops: which factor trains when, and what a filter makes of it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import numbers
from test_client import Bag, collate, losses, make_examples

from fedsb.adapter.attached import attach
from fedsb.adapter.bases import lora_factors
from fedsb.common.seeding import numpy_generator
from fedsb.federation.exchange import Exchange
from fedsb.federation.local_model import LocalModel
from fedsb.federation.private_training import train_privately
from fedsb.federation.training import LocalTraining, batch_indices, train
from fedsb.methods import Shape, fedit, fedsa_lora, la_lora
from fedsb.methods.la_lora import smoothed
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan

SGD = LocalTraining(optimizer="sgd", learning_rate=0.5, batch_size=4)
STEPS = 3
EXAMPLES = make_examples(12)


def party(method):
    """A tiny model with LoRA of rank 3 on its hidden layer, B not zero, and a head that trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Bag()
    draw = torch.Generator().manual_seed(1)
    start = {"hidden": lora_factors(8, 6, 3, generator=draw)._replace(B=torch.randn(8, 3, generator=draw))}
    attached = attach(model, start, trains=("A", "B"))
    head = {"out.weight": model.out.weight.requires_grad_(True)}
    exchange = Exchange(method, {"hidden": Shape(8, 6)}, 3, 1, {"out.weight": (3, 8)})
    local_model = LocalModel(attached, head, exchange, start, collate, losses, torch.device("cpu"))
    layer = attached.layers["hidden"]
    return local_model, {"hidden.A": layer.A, "hidden.B": layer.B, **head}


def mirrored(row):
    """Number by number: a binomial mean of five, the row mirrored at both ends."""
    n = len(row)
    at = lambda i: row[-1 - i if i < 0 else 2 * n - 1 - i if i >= n else i]  # noqa: E731
    return [
        sum(w * at(i + k) for k, w in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True)) / 16 for i in range(n)
    ]


@pytest.mark.parametrize("shape", [(3, 6), (2, 2), (4, 1), (1, 9)])
def test_the_filter_is_the_loops(shape, generator):
    gradient = torch.randn(shape, generator=generator)
    by_hand = np.array([mirrored(row) for row in numbers(gradient)]) if shape[1] > 1 else numbers(gradient)
    np.testing.assert_allclose(numbers(smoothed("A", gradient)), by_hand, atol=1e-6)
    np.testing.assert_allclose(numbers(smoothed("B", gradient.T)), by_hand.T, atol=1e-6)


def test_the_filter_keeps_what_is_even_and_never_enlarges(generator):
    assert torch.allclose(smoothed("A", torch.ones(2, 7)), torch.ones(2, 7))
    gradient = torch.randn(3, 40, generator=generator)
    assert smoothed("A", gradient).norm() < 0.7 * gradient.norm()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("private", [True, False], ids=["private", "plain"])
def test_steps_in_turns_are_those_of_a_loop(smooth, private):
    """Under privacy without clipping and noise, over all examples in each step."""
    local_model, parameters = party(la_lora.options(smooth=smooth))
    twin = copy.deepcopy(local_model.model)
    batches = [list(range(12))] * STEPS
    if private:
        plan = ExamplePlan(
            num_examples=12, expected_batch_size=12, steps_per_round=STEPS, rounds=1, clip_norm=1e9
        )
        train_privately(
            local_model,
            parameters,
            EXAMPLES,
            SGD,
            plan,
            noise=NoiseSource(),
            coins=Keystream.fresh(),
            masks={},
            round_number=1,
            client=0,
        )
    else:
        rng = numpy_generator(0, "batches", 1, 0)
        batches = list(batch_indices([len(e["input_ids"]) for e in EXAMPLES], SGD, rng))
        train(local_model, parameters, EXAMPLES, SGD, round_number=1, client=0, seed=0)
    layer = twin.hidden
    for step, batch in enumerate(batches):
        turn = "B" if step % 2 == 0 else "A"
        factor = getattr(layer, turn)
        loss = losses(twin, collate([EXAMPLES[i] for i in batch])).mean()
        gradient, head = torch.autograd.grad(loss, [factor, twin.out.weight])
        if smooth:
            rows = numbers(gradient if turn == "A" else gradient.T)
            filtered = torch.tensor(np.array([mirrored(row) for row in rows]), dtype=torch.float32)
            gradient = filtered if turn == "A" else filtered.T
        with torch.no_grad():
            factor -= 0.5 * gradient
            twin.out.weight -= 0.5 * head
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.detach(), twin.get_parameter(name).detach(), rtol=1e-4, atol=1e-6
        )
        assert parameter.requires_grad


def trained_by(local_model, parameters, training, private, **more):
    """Three steps over all examples, with or without the machinery of private training."""
    if not private:
        train(local_model, parameters, EXAMPLES, training, round_number=1, client=0, seed=0, **more)
        return
    plan = ExamplePlan(num_examples=12, expected_batch_size=12, steps_per_round=3, rounds=1, clip_norm=1e9)
    train_privately(
        local_model,
        parameters,
        EXAMPLES,
        training,
        plan,
        noise=NoiseSource(),
        coins=Keystream.fresh(),
        masks={},
        round_number=1,
        client=0,
    )


@pytest.mark.parametrize("private", [True, False], ids=["private", "plain"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance(private, decay):
    """Beside the optimizer's weight decay, which draws to zero."""
    whole = replace(SGD, batch_size=12, epochs=3, proximal=0.7, weight_decay=decay)
    local_model, parameters = party(fedit)
    twin = copy.deepcopy(local_model.model)
    trained_by(local_model, parameters, whole, private)
    theirs = {name: twin.get_parameter(name) for name in parameters}
    began = {name: p.detach().clone() for name, p in theirs.items()}
    for _ in range(3):
        distance = sum(((p - began[name]) ** 2).sum() for name, p in theirs.items())
        objective = losses(twin, collate(EXAMPLES)).mean() + 0.35 * distance
        gradients = torch.autograd.grad(objective, list(theirs.values()))
        with torch.no_grad():
            for parameter, gradient in zip(theirs.values(), gradients, strict=True):
                parameter -= 0.5 * (gradient + decay * parameter)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), theirs[name].detach(), rtol=1e-4, atol=1e-6)


def test_a_mu_of_zero_is_no_term_bit_for_bit():
    found = []
    for training in (SGD, replace(SGD, proximal=0.0)):
        local_model, parameters = party(fedit)
        train(local_model, parameters, EXAMPLES, training, round_number=1, client=0, seed=0)
        found.append({name: p.detach().clone() for name, p in parameters.items()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_what_stays_with_a_client_is_drawn_nowhere():
    far = replace(SGD, learning_rate=0.01, proximal=90.0)
    moved = {}
    for method in (fedit, fedsa_lora):
        local_model, parameters = party(method)
        before = parameters["hidden.B"].detach().clone()
        train(local_model, parameters, EXAMPLES, far, round_number=1, client=0, seed=0)
        moved[method.name] = (parameters["hidden.B"] - before).norm()
    assert moved["fedsa-lora"] > 1.5 * moved["fedit"]


def clipped_step(examples, clip_norm, smooth):
    """What the first step of so many moves B and the head by, without noise, times the examples."""
    local_model, parameters = party(la_lora.options(smooth=smooth))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    size = len(examples)
    plan = ExamplePlan(
        num_examples=size, expected_batch_size=size, steps_per_round=1, rounds=1, clip_norm=clip_norm
    )
    train_privately(
        local_model,
        parameters,
        examples,
        replace(SGD, learning_rate=1.0, batch_size=64),
        plan,
        noise=NoiseSource(),
        coins=Keystream.fresh(),
        masks={},
        round_number=1,
        client=0,
    )
    moved = {name: size * (before[name] - p.detach()).double() for name, p in parameters.items()}
    assert not moved["hidden.A"].any()
    return torch.cat([moved["hidden.B"].flatten(), moved["out.weight"].flatten()])


@pytest.mark.parametrize("smooth", [True, False])
def test_one_example_moves_the_step_of_one_factor_by_one_clip_norm_at_most(smooth):
    """And, before the filter, by all of it: the factor that rests takes nothing of the clip norm."""
    whole = clipped_step(EXAMPLES, 0.05, smooth)
    moves = [(whole - clipped_step(EXAMPLES[:i] + EXAMPLES[i + 1 :], 0.05, smooth)).norm() for i in range(12)]
    assert max(moves) <= 0.05 * (1 + 1e-4)
    if not smooth:
        assert max(moves) == pytest.approx(0.05, rel=1e-3)


def test_noise_falls_on_the_factor_of_the_step_alone():
    local_model, parameters = party(la_lora.options(smooth=False))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    plan = ExamplePlan(
        num_examples=12,
        expected_batch_size=12,
        steps_per_round=1,
        rounds=1,
        clip_norm=1.0,
        noise_multiplier=50.0,
    )
    train_privately(
        local_model,
        parameters,
        EXAMPLES,
        SGD,
        plan,
        noise=NoiseSource(),
        coins=Keystream.fresh(),
        masks={},
        round_number=1,
        client=0,
    )
    assert torch.equal(parameters["hidden.A"], before["hidden.A"])
    assert (parameters["hidden.B"] - before["hidden.B"]).std() > 1.0
