"""Local training under example-level DP: Poisson batches, gradients clipped per example, noise on their sum.

Data flow, for each of the plan's steps:
    Poisson batch of units -> physical batches -> one loss per example -> per-example gradients (Opacus)
    -> summed by unit -> clipped, summed -> noise -> / expected units -> optimizer step

A unit is one example, or all examples of one owner.

The head is clipped and noised together with the factors. What leaves is the trained factors alone: no loss,
no count of a batch, no failure that depends on one example.

What bounds the sensitivity is that an example's gradient does not depend on the others of its batch. So
nothing is dropped, and with 16-bit numbers, of which the rounding depends on a batch's shape (one long row
moved the others by more than the clip norm together), every physical batch has one shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsb.federation.canaries import Canaries, GradientsOf, RowCanaries
from fedsb.federation.dropout import check_repeatable, without_dropout
from fedsb.federation.fixed_shape import computes_in_16_bits, of_shape
from fedsb.federation.local_model import Example, LocalModel
from fedsb.federation.moments import Moments
from fedsb.federation.training import (
    ClientFailed,
    LocalTraining,
    OnStep,
    Pull,
    autocast,
    make_optimizer,
    resting,
    set_learning_rate,
    to_device,
)
from fedsb.privacy.correlated import Correlated
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource, add_noise, standard_normals
from fedsb.privacy.per_example import per_example_gradients
from fedsb.privacy.plan import ExamplePlan
from fedsb.tasks.task import length_of

Unit = list[Example]
MakeGradients = Callable[[], dict[str, Tensor]]
"""Each parameter's gradients of some units, units first."""
T = TypeVar("T")


def train_privately(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    training: LocalTraining,
    plan: ExamplePlan,
    *,
    noise: NoiseSource,
    coins: Keystream,
    masks: Mapping[str, Tensor],
    round_number: int,
    client: int,
    seed: int = 0,
    on_step: OnStep = lambda num_examples: None,
    moments: Moments | None = None,
    canaries: Canaries | RowCanaries | None = None,
    correlated: Correlated | None = None,
) -> None:
    """Train the parameters in place by the plan's steps of one round.

    Guarantees: one unit, present or blanked, moves each step's sum of gradients by at most
    `plan.sensitivity` in L2, and the sum gets noise of `plan.noise_std` from a stream of its own. Where the
    clip norm follows a quantile, both follow it, and a noised count is released besides.

    Args:
        coins: of the Poisson batches; of this call alone, since what is composed as independent samples must
            be independent.
        masks: by parameter, 0 where it must not change (heads of the core this client does not train).
        moments: what AdamW starts from, and leaves: made of noised gradients alone.
        seed: plays no part: whoever sees the results may know it.
        canaries: take part in every step, for an audit.
        correlated: the steps' noise where it is not independent.

    Raises:
        ClientFailed: the time is up.
        RunFailed: the model drops or draws something by itself.
    """
    units = units_of(examples, plan)
    deadline = None if training.timeout_seconds is None else time.monotonic() + training.timeout_seconds
    total = training.rounds * plan.steps_per_round
    done = (round_number - 1) * plan.steps_per_round
    with without_dropout(local_model.model):
        if examples:
            check_examples(local_model, examples, training)
        path = ("step", client, round_number)
        optimizer = clipping_optimizer(parameters, training, plan, noise, path, correlated)
        pulled = Pull.of(local_model, parameters, training, round_number)
        if moments is not None:
            moments.put(optimizer.original_optimizer, parameters, plan.steps_per_round)
        with per_example_gradients(local_model.model):
            for number, batch in enumerate(plan.batches(coins, round_number)):
                set_learning_rate(optimizer, done + number, total, training)
                chosen = [units[i] for i in batch]
                with resting(local_model, parameters, number) as filter_gradients:
                    trained = {name: p for name, p in parameters.items() if p.requires_grad}
                    of = partial(_gradients, local_model, trained, training=training, masks=masks)
                    joining, see = _with_canaries(canaries, trained, plan, optimizer.max_grad_norm, of)
                    hooks = (see, partial(pulled.finish, filter_gradients))
                    private_step(
                        local_model, trained, optimizer, chosen, training, masks, joining=joining, hooks=hooks
                    )
                on_step(plan.expected_batch_size)
                if deadline is not None and time.monotonic() > deadline:
                    raise ClientFailed(f"timed out after {training.timeout_seconds:g} s")
        if moments is not None:
            moments.take(optimizer.original_optimizer, parameters)


def check_examples(local_model: LocalModel, examples: Sequence[Example], training: LocalTraining) -> None:
    """Refuse a model of which one example's gradient is another each time.

    Raises:
        RunFailed: the model drops or draws something by itself.
    """
    check_repeatable(local_model.model, lambda: _losses(local_model, examples[:2], training))


def _with_canaries(
    canaries: Canaries | RowCanaries | None,
    parameters: Mapping[str, nn.Parameter],
    plan: ExamplePlan,
    clip_norm: float,
    gradients_of: GradientsOf,
) -> tuple[Sequence[MakeGradients], Callable[[], None]]:
    """The canaries that join this step, and what looks at it."""
    if canaries is None:
        return (), lambda: None
    joining = canaries.joining(parameters, plan.sampling_probability, clip_norm, gradients_of)
    return joining, partial(canaries.see, parameters, plan.expected_units / clip_norm)


def units_of(examples: Sequence[Example], plan: ExamplePlan) -> list[Unit]:
    """What is drawn, clipped and protected as one: each example, or the examples of each owner."""
    if plan.owners is None:
        return [[example] for example in examples]
    by_owner: dict[int, Unit] = {}
    for example in examples:
        by_owner.setdefault(example["owner"], []).append(example)
    if len(by_owner) != plan.owners:
        raise RuntimeError(f"expected rows of {plan.owners} owners, found {len(by_owner)}")
    return list(by_owner.values())


def clipping_optimizer(
    parameters: Mapping[str, nn.Parameter],
    training: LocalTraining,
    plan: ExamplePlan,
    noise: NoiseSource,
    path: tuple[str | int, ...],
    correlated: Correlated | None = None,
) -> Any:
    """Opacus' clipping optimizer around AdamW or SGD, with our noise in place of its own."""
    from opacus.optimizers import DPOptimizer

    class NoisedByUs(DPOptimizer):
        max_grad_norm: float
        steps, within = 0, 0.0  # of this step's units, those within the clip norm, less half of all

        def clip_and_accumulate(self) -> None:
            if plan.quantile is not None:
                self.within += within_less_half(self.grad_samples, self.max_grad_norm)
            super().clip_and_accumulate()

        def add_noise(self) -> None:
            stream = noise.stream(*path, self.steps)
            self.steps += 1
            std = plan.sum_noise_multiplier * self.max_grad_norm if plan.noise_multiplier else 0.0
            if correlated is not None:
                sums = [parameter.summed_grad for parameter in self.params]
                for parameter, noised in zip(self.params, correlated.next(sums, std), strict=True):
                    exact = parameter.summed_grad.double() + noised
                    parameter.grad = exact.to(parameter.dtype).view_as(parameter)
                return
            for parameter in self.params:
                parameter.grad = add_noise(parameter.summed_grad, std, stream).view_as(parameter)
            if plan.quantile is not None:
                noised = self.within + plan.count_noise_std * standard_normals(1, stream).item()
                self.max_grad_norm, self.within = plan.next_clip_norm(self.max_grad_norm, noised), 0.0

    return NoisedByUs(
        make_optimizer(parameters.values(), training),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip_norm,
        expected_batch_size=plan.expected_units,
    )


def within_less_half(gradients: Sequence[Tensor], clip_norm: float) -> float:
    """How many units' gradients are no longer than the clip norm, less half of all: a unit that is blanked
    moves it by 1/2. gradients: of each parameter, units first."""
    if not len(gradients[0]):
        return 0.0
    norms = torch.stack([g.reshape(len(g), -1).norm(2, dim=-1) for g in gradients], dim=1).norm(2, dim=1)
    return float((norms <= clip_norm).sum()) - len(norms) / 2


def private_step(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Any,
    batch: Sequence[Unit],
    training: LocalTraining,
    masks: Mapping[str, Tensor],
    *,
    joining: Sequence[MakeGradients] = (),
    hooks: Sequence[Callable[[], None]] = (),
) -> None:
    """One noisy step over a Poisson batch, in physical batches of the config's size.

    Args:
        parameters: those that are clipped and noised.
        joining: make gradients of more units, which are clipped and summed with the batch's.
        hooks: are called in turn when the parameters have the step's noised gradient.
    """
    optimizer.zero_grad()

    def finished(_: Any) -> None:
        _mask_gradients(parameters, masks)
        for hook in hooks:
            hook()

    optimizer.attach_step_hook(finished)
    groups = unit_batches(batch, training)
    batches = [partial(unit_gradients, local_model, parameters, units, training, masks) for units in groups]
    makes: list[MakeGradients] = [*batches, *joining]
    for number, make in enumerate(makes, start=1):
        for name, gradients in make().items():
            parameters[name].grad_sample = gradients  # type: ignore[attr-defined]
        optimizer.signal_skip_step(do_skip=number < len(makes))
        optimizer.step()
        optimizer.zero_grad()


def physical_batches(batch: Sequence[T], most: int, length: Callable[[T], int]) -> list[list[T]]:
    """The batch cut into runs of like length, of equal size as nearly as can be; one empty run if empty."""
    ordered = sorted(batch, key=length)
    count = max(1, -(-len(ordered) // most))
    bounds = [len(ordered) * i // count for i in range(count + 1)]
    return [ordered[start:end] for start, end in pairwise(bounds)]


def unit_batches(batch: Sequence[Unit], training: LocalTraining) -> list[list[Unit]]:
    """As `physical_batches`, of units, by the length of each one's longest example."""
    return physical_batches(batch, training.batch_size, lambda unit: max(map(length_of, unit)))


def unit_gradients(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    units: Sequence[Unit],
    training: LocalTraining,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Each parameter's gradients of these units, units first: the sums of their examples'."""
    placed = [(place, example) for place, unit in enumerate(units) for example in unit]
    if len(placed) == len(units):
        return _gradients(local_model, parameters, [unit[0] for unit in units], training, masks)
    sums = {name: p.new_zeros((len(units), *p.shape)).float() for name, p in parameters.items()}
    for group in physical_batches(placed, training.batch_size, lambda pair: length_of(pair[1])):
        places = torch.tensor([place for place, _ in group], device=local_model.device)
        examples = [example for _, example in group]
        for name, found in _gradients(local_model, parameters, examples, training, masks).items():
            sums[name].index_add_(0, places, found)
    return {name: torch.where(torch.isfinite(total), total, 0.0) for name, total in sums.items()}


def _gradients(
    local_model: LocalModel,
    parameters: Mapping[str, nn.Parameter],
    group: Sequence[Example],
    training: LocalTraining,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Each parameter's gradients of these examples, from one pass."""
    fixed = computes_in_16_bits(local_model.model, training.autocast)
    rows = training.batch_size if fixed else len(group)
    if group:
        _losses(local_model, group, training).sum().backward()
    found = {name: _usable(p, len(group), rows, masks.get(name)) for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    return found


def _losses(local_model: LocalModel, group: Sequence[Example], training: LocalTraining) -> Tensor:
    """One for each example, from a batch that has more rows where its shape is fixed."""
    model, collate = local_model.model, local_model.collate
    if computes_in_16_bits(model, training.autocast):
        batch = of_shape(collate, group, training.batch_size, training.max_length)
    else:
        batch = collate(group)
    with autocast(training, local_model.device):
        return local_model.losses(model, to_device(batch, local_model.device))[: len(group)]


def _usable(parameter: Any, num_examples: int, rows: int, mask: Tensor | None) -> Tensor:
    """The parameter's gradients of so many examples in fp32; what is not finite in them counts as zero.

    A run must not fail over one example: that would tell of it.

    Args:
        rows: of the batch, those that fill it up included.
    """
    gradients = getattr(parameter, "grad_sample", None)
    if num_examples == 0:
        return parameter.new_zeros((0, *parameter.shape))
    if gradients is None or len(gradients) != rows:
        shape = None if gradients is None else tuple(gradients.shape)
        raise RuntimeError(
            f"expected {rows} per-example gradients of a parameter {tuple(parameter.shape)}, found "
            f"{shape}: the model uses a trained layer in a way that hides the examples"
        )
    sample = gradients[:num_examples].float()
    sample = sample if mask is None else sample * mask
    return torch.where(torch.isfinite(sample), sample, 0.0)


def _mask_gradients(parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
    for name, mask in ((name, mask) for name, mask in masks.items() if name in parameters):
        gradient = parameters[name].grad
        assert gradient is not None
        gradient.mul_(mask)
