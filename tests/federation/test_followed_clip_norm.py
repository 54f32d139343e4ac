"""A clip norm that follows a quantile of one client's gradients, and what the count that it takes costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")

from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.federation.private_training import clipping_optimizer, within_less_half
from fedsb.federation.training import LocalTraining
from fedsb.privacy.accounting import Mechanism, epsilon
from fedsb.privacy.noise import NoiseSource, gaussian_like, standard_normals
from fedsb.privacy.plan import FARTHEST, ExamplePlan

SIZE, NUMBERS = 200, 6
PLAN = ExamplePlan(
    num_examples=SIZE,
    expected_batch_size=SIZE,
    steps_per_round=1,
    rounds=1,
    clip_norm=1.0,
    noise_multiplier=0.8,
    quantile=0.5,
)


def gradients(scale: float) -> torch.Tensor:
    """One parameter's gradients of SIZE examples, of very different lengths."""
    rng = np.random.default_rng(0)
    lengths = scale * np.exp(rng.normal(0, 1, SIZE))
    directions = rng.normal(size=(SIZE, NUMBERS))
    return torch.tensor(
        directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths[:, None]
    ).float()


def stepped(plan: ExamplePlan, steps: int, given: torch.Tensor, noise: NoiseSource):
    parameter = nn.Parameter(torch.zeros(NUMBERS))
    training = LocalTraining(optimizer="sgd", learning_rate=1.0)
    optimizer = clipping_optimizer({"R": parameter}, training, plan, noise, ("step", 0, 1))
    for _ in range(steps):
        parameter.grad_sample = given.clone()
        optimizer.step()
        optimizer.zero_grad()
    return parameter.detach(), optimizer.max_grad_norm


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_clip_norm_comes_to_the_quantile_of_the_norms(scale, quantile):
    given = gradients(scale)
    expected = np.quantile(given.norm(dim=1).numpy(), quantile)
    _, last = stepped(replace(PLAN, quantile=quantile), 60, given, NoiseSource(3))
    assert last == pytest.approx(expected, rel=0.25)


def test_one_step_by_hand():
    given, noise = gradients(1.0), NoiseSource(5)
    after, norm = stepped(PLAN, 1, given, noise)
    stream = noise.stream("step", 0, 1, 0)
    lengths = given.norm(dim=1, keepdim=True)
    clipped = (given / lengths * lengths.clamp(max=1.0)).double().sum(0)
    noised = clipped + gaussian_like(torch.zeros(NUMBERS), PLAN.noise_std, stream)
    torch.testing.assert_close(after.double(), -noised / SIZE, rtol=1e-4, atol=1e-6)
    count = (
        (lengths <= 1.0).sum().item() - SIZE / 2 + PLAN.count_noise_std * standard_normals(1, stream).item()
    )
    assert norm == pytest.approx(np.exp(-0.5 * (count / SIZE + 0.5 - 0.5)))


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 30.0])
def test_sum_and_count_together_cost_what_the_plan_is_charged_for(noise_multiplier):
    """Composed as two mechanisms by the accountant: the count moves by 1/2, so its multiplier is twice its
    noise."""
    plan = replace(PLAN, noise_multiplier=noise_multiplier)
    apart = [Mechanism(plan.sum_noise_multiplier, 1.0, 1), Mechanism(2 * plan.count_noise_std, 1.0, 1)]
    assert epsilon(apart, 1e-5) == pytest.approx(epsilon([plan.of_round(1)], 1e-5), rel=0.01)
    assert plan.sum_noise_multiplier > noise_multiplier
    assert plan.noise_std == plan.sum_noise_multiplier * plan.clip_norm


def test_a_blanked_example_moves_the_count_by_one_half():
    given = [gradients(1.0)]
    for left_out in (0, 7, SIZE - 1):
        others = [torch.cat([given[0][:left_out], given[0][left_out + 1 :]])]
        moved = within_less_half(given, 1.0) - within_less_half(others, 1.0)
        assert abs(moved) == 0.5
    assert within_less_half([torch.zeros(0, 3)], 1.0) == 0.0


def test_gradients_of_nothing_do_not_take_the_norm_to_nothing():
    _, norm = stepped(PLAN, 60, torch.zeros(SIZE, NUMBERS), NoiseSource(1))
    assert norm == pytest.approx(1 / FARTHEST)


def test_a_fixed_clip_norm_stays():
    assert stepped(replace(PLAN, quantile=None), 3, gradients(1.0), NoiseSource(1))[1] == 1.0


def test_auto_begins_at_one_and_follows_the_median():
    auto = PrivacyConfig.model_validate({"epsilon": 3.0, "clip_norm": "auto"})
    assert (auto.clip_norm, auto.quantile) == (1.0, 0.5)
    assert (
        PrivacyConfig.model_validate({"epsilon": 3.0, "clip_norm": "auto", "quantile": 0.7}).quantile == 0.7
    )
