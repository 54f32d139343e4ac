"""Private local training against the definition: sensitivity, noise, and plain SGD as the limit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_client import Setup, make_examples

from fedsb.federation.private_training import physical_batches, train_privately
from fedsb.federation.training import LocalTraining, train
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import ExamplePlan
from fedsb.tasks.task import length_of

SGD = LocalTraining(optimizer="sgd", learning_rate=1.0, batch_size=64)
EVERY = ExamplePlan(num_examples=12, expected_batch_size=12, steps_per_round=1, rounds=1, clip_norm=math.inf)


def moved(
    examples, plan, *, training=SGD, coins=None, client=0, number=1, noise=None, masks=None, setup=None
):
    """The change of all trained numbers in one round, by name, and the batches seen."""
    setup = setup or Setup()
    before = {name: p.detach().clone() for name, p in setup.parameters.items()}
    train_privately(
        setup.local_model,
        setup.parameters,
        examples,
        training,
        plan,
        noise=noise or NoiseSource(),
        coins=coins or Keystream.fresh(),
        masks=masks or {},
        round_number=number,
        client=client,
    )
    return {name: p.detach() - before[name] for name, p in setup.parameters.items()}, setup.seen


def flat(change):
    return torch.cat([value.flatten() for value in change.values()])


def clipped_sum(examples, clip_norm):
    """The sum of clipped gradients that a noiseless step over all examples releases."""
    plan = replace(EVERY, num_examples=len(examples), expected_batch_size=len(examples), clip_norm=clip_norm)
    return -len(examples) * flat(moved(examples, plan)[0]).double()


def test_without_clipping_and_noise_it_is_plain_sgd():
    examples, plain = make_examples(12), Setup()
    start = {name: p.detach().clone() for name, p in plain.parameters.items()}
    train(plain.local_model, plain.parameters, examples, SGD, round_number=1, client=0, seed=0)
    private, _ = moved(examples, EVERY)
    for name, change in private.items():
        torch.testing.assert_close(
            change, plain.parameters[name].detach() - start[name], rtol=1e-5, atol=1e-7
        )


@given(st.integers(0, 11), st.floats(1e-3, 3.0))
def test_adding_or_removing_an_example_moves_the_sum_by_at_most_the_sensitivity(left_out, clip_norm):
    examples = make_examples(12)
    others = examples[:left_out] + examples[left_out + 1 :]
    difference = clipped_sum(examples, clip_norm) - clipped_sum(others, clip_norm)
    assert difference.norm() <= replace(EVERY, clip_norm=clip_norm).sensitivity * (1 + 1e-5) + 1e-6


def test_the_sensitivity_is_reached():
    """A bound that nothing reaches would hide a wrong unit."""
    examples = make_examples(12)
    differences = [
        (clipped_sum(examples, 0.05) - clipped_sum(examples[:i] + examples[i + 1 :], 0.05)).norm()
        for i in range(12)
    ]
    assert max(differences) == pytest.approx(0.05, rel=1e-3)


def test_each_example_is_clipped_alone():
    """Against gradients of one example each, clipped by hand."""
    examples = make_examples(12)
    singles = [clipped_sum([example], math.inf) for example in examples]
    middle = float(np.median([g.norm() for g in singles]))
    by_hand = sum(g * min(1.0, middle / g.norm().item()) for g in singles)
    torch.testing.assert_close(clipped_sum(examples, middle), by_hand, rtol=1e-4, atol=1e-5)


class NeverSampled(ExamplePlan):
    """Batches are empty by construction."""

    def batches(self, coins, number=1):
        return iter([[]] * self.steps_per_round)


NOISE_ALONE = NeverSampled(
    num_examples=12,
    expected_batch_size=4,
    steps_per_round=300,
    rounds=1,
    clip_norm=0.5,
    noise_multiplier=3.0,
)


def noise_steps(**more):
    """The mean noise of each coordinate over a round of empty batches, in units of the noise on the sum."""
    change, _ = moved(make_examples(12), NOISE_ALONE, **more)
    plan = NOISE_ALONE
    return -flat(change).double() * plan.expected_batch_size / plan.steps_per_round**0.5


def test_the_noise_has_the_standard_deviation_of_the_plan():
    values = torch.cat([noise_steps() for _ in range(12)])
    expected = NOISE_ALONE.noise_multiplier * NOISE_ALONE.sensitivity
    assert NOISE_ALONE.noise_std == expected == 1.5
    assert values.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * len(values)))
    assert abs(values.mean()) < 4 * expected / math.sqrt(len(values))


def test_two_clients_and_two_rounds_have_noise_of_their_own():
    draws = [noise_steps(client=c, number=n).numpy() for c, n in [(0, 1), (1, 1), (0, 2)] for _ in range(2)]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / math.sqrt(draws[0].size)


def test_one_key_gives_one_order_of_examples_and_another_noise_each_time():
    examples, plan = (
        make_examples(12),
        replace(EVERY, expected_batch_size=4, steps_per_round=6, clip_norm=1.0),
    )
    plan = replace(plan, noise_multiplier=1.0)
    one, batches = moved(examples, plan, coins=Keystream(bytes(32)))
    two, same_batches = moved(examples, plan, coins=Keystream(bytes(32)))
    assert batches == same_batches
    assert not torch.allclose(flat(one), flat(two))
    assert moved(examples, plan)[1] != batches


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_decays_that_was_not_told_to(optimizer):
    """torch's AdamW takes a hundredth a step unless told otherwise, and noised cores are small."""
    training = LocalTraining(optimizer=optimizer, learning_rate=1.0, batch_size=64)
    quiet = replace(NOISE_ALONE, noise_multiplier=0.0)
    assert flat(moved([], quiet, training=training)[0]).abs().max() == 0
    decaying = replace(training, weight_decay=0.01)
    assert flat(moved([], quiet, training=decaying)[0]).abs().max() > 0


def test_insecure_noise_repeats_and_differs_by_client():
    def run(client):
        return flat(
            moved(make_examples(12), NOISE_ALONE, noise=NoiseSource(insecure_seed=7), client=client)[0]
        )

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1))


def test_physical_batches_change_nothing():
    examples = make_examples(12)
    plan = replace(EVERY, clip_norm=0.3)
    whole, _ = moved(examples, plan)
    small, seen = moved(examples, plan, training=replace(SGD, batch_size=5))
    assert [len(ids) for ids in seen] == [2, 2, 4, 4, 4], "two of two rows: the check for dropout"
    torch.testing.assert_close(flat(small), flat(whole), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("size", "expected"), [(0, [0]), (5, [5]), (6, [3, 3]), (11, [3, 4, 4])])
def test_physical_batches_are_even_and_of_like_length(size, expected):
    groups = physical_batches(make_examples(size), 5, length_of)
    assert [len(g) for g in groups] == expected
    lengths = [len(e["input_ids"]) for g in groups for e in g]
    assert lengths == sorted(lengths)


def test_an_example_that_overflows_does_not_fail_the_run():
    """A failure would tell of it."""
    examples = make_examples(12)
    setup = Setup()
    lost = setup.local_model.losses

    def losses(model, batch):
        return lost(model, batch) * torch.where(batch["labels"] == 1, math.inf, 1.0)

    setup.local_model.losses = losses
    change, _ = moved(examples, replace(EVERY, clip_norm=1.0), setup=setup)
    assert torch.isfinite(flat(change)).all()
    assert flat(change).norm() > 0


def test_masked_heads_stay_where_they_were():
    setup = Setup()
    mask = torch.zeros(1, 1, 1)
    plan = replace(EVERY, clip_norm=1.0, noise_multiplier=1.0)
    change, _ = moved(make_examples(12), plan, setup=setup, masks={"hidden.R": mask})
    assert not change["hidden.R"].any()
    assert change["out.weight"].any()


def test_weights_move_by_adam_too():
    change, _ = moved(
        make_examples(12),
        replace(EVERY, clip_norm=1.0, noise_multiplier=0.5, steps_per_round=3),
        training=replace(SGD, optimizer="adamw", learning_rate=0.01),
    )
    assert all(value.abs().max() > 0.005 for value in change.values())
