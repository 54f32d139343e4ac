"""How a run starts: who gives calibration examples, what the head learns, what is booked as sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import example_losses
from torch import nn

from fedsb.adapter.attached import find_targets
from fedsb.config import RunConfig
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import draw_calibration, start_factors
from fedsb.federation.start.settings import Start, Warmup
from fedsb.methods import fed_sb, fedit, fr_lora
from fedsb.models.head import head_parameters
from fedsb.models.load import enable_checkpointing
from fedsb.runner.arguments import start_of, step_size

PARTS = [list(range(0, 10)), list(range(10, 40)), [40, 41, 42]]


def test_each_client_gives_the_same_number_of_examples_as_far_as_it_has_them() -> None:
    draw = draw_calibration(PARTS, 15, seed=0)
    assert {client: len(indices) for client, indices in draw.items()} == {0: 5, 1: 5, 2: 3}
    assert all(set(indices) <= set(PARTS[client]) for client, indices in draw.items())
    assert all(len(set(indices)) == len(indices) for indices in draw.values())


def test_with_more_clients_than_samples_some_give_one_each() -> None:
    draw = draw_calibration([[i] for i in range(50)], 8, seed=0)
    assert len(draw) == 8
    assert all(indices == [client] for client, indices in draw.items())


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert draw_calibration(PARTS, 9, seed=3) == draw_calibration(PARTS, 9, seed=3)
    assert draw_calibration(PARTS, 9, seed=3) != draw_calibration(PARTS, 9, seed=4)


def _examples(count: int) -> list[dict[str, Any]]:
    """The label is the first token's remainder, so a head has something to learn."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 40, (count, 6), generator=generator)
    return [{"input_ids": row.tolist(), "labels": int(row[0]) % 3} for row in rows]


def _batches(examples: Any, size: int) -> list[dict[str, torch.Tensor]]:
    groups = [examples[i : i + size] for i in range(0, len(examples), size)]
    return [
        {
            "input_ids": torch.tensor([e["input_ids"] for e in group]),
            "attention_mask": torch.ones(len(group), 6, dtype=torch.long),
            "labels": torch.tensor([e["labels"] for e in group]),
        }
        for group in groups
    ]


def _started(model: nn.Module, method: Any = fed_sb, **changes: Any) -> Any:
    defaults: dict[str, Any] = {
        "kind": "gradient",
        "rule": "sign",
        "samples": 24,
        "batch_size": 8,
        "head_warmup": None,
        "rank": 4,
        "step_size": 1e-3,
        "seed": 0,
    }
    start = Start(**defaults | changes)
    parts = [list(range(0, 20)), list(range(20, 43))]
    draw = draw_calibration(parts, start.samples, seed=start.seed)
    calibration = Calibration(draw, _examples(43), _batches, example_losses)
    targets = find_targets(model, ["query", "value"])
    return start_factors(model, targets, head_parameters(model), method, start, calibration, num_clients=5)


@pytest.mark.parametrize("kind", ["weights", "orthonormal"])
def test_starts_without_data_send_nothing_and_start_at_the_base_model(make_bert: Any, kind: str) -> None:
    started = _started(make_bert(), kind=kind)
    assert started.traffic == []
    assert all(float(part.R.abs().max()) == 0.0 for part in started.factors.values())


def test_lora_starts_at_the_base_model_and_gives_each_layer_its_own_factors(make_bert: Any) -> None:
    started = _started(make_bert(), method=fedit)
    parts = list(started.factors.values())
    assert started.traffic == []
    assert all(float(part.B.abs().max()) == 0.0 and part.R is None for part in parts)
    assert not any(torch.equal(parts[0].A, part.A) for part in parts[1:])


def test_fr_lora_starts_at_a_pair_that_times_the_scale_approximates_the_base(make_bert: Any) -> None:
    one = _started(make_bert(), method=fr_lora).factors
    halved = _started(make_bert(), method=fr_lora, scale=2.0).factors
    for name, part in one.items():
        torch.testing.assert_close(2.0 * halved[name].B @ halved[name].A, part.B @ part.A)


def test_random_bases_differ_between_layers_and_repeat_for_a_seed(make_bert: Any) -> None:
    one, again = (_started(make_bert(), kind="orthonormal").factors for _ in range(2))
    names = list(one)
    assert all(torch.equal(one[n].B, again[n].B) for n in names)
    assert not any(torch.equal(one[names[0]].B, one[n].B) for n in names[1:])


def test_the_gradient_start_books_the_gradient_up_and_the_bases_down(make_bert: Any) -> None:
    model = make_bert()
    started = _started(model, upload="whole")
    gradient, bases = started.traffic
    numbers = sum(module.weight.numel() for module in find_targets(model, ["query", "value"]).values())
    assert (gradient.direction, gradient.clients, gradient.measured) == ("up", 2, False)
    assert (gradient.parameters, gradient.bytes) == (2 * numbers, 8 * numbers)
    assert (bases.direction, bases.clients, bases.measured) == ("down", 5, True)
    assert bases.parameters == 5 * sum(p.A.numel() + p.B.numel() for p in started.factors.values())
    assert bases.bytes >= 2 * bases.parameters


def test_the_batch_size_of_the_estimate_does_not_change_the_bases(make_bert: Any) -> None:
    model = make_bert()
    one, many = (_started(model, batch_size=size, rule="raw").factors for size in (24, 5))
    for name in one:
        torch.testing.assert_close(
            one[name].B @ one[name].R[0] @ one[name].A,
            many[name].B @ many[name].R[0] @ many[name].A,
            rtol=1e-3,
            atol=1e-7,
        )


def test_the_warm_up_trains_the_head_only_and_lowers_the_loss(make_bert: Any) -> None:
    model = make_bert()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = _batches(_examples(43), 43)[0]
    loss_before = example_losses(model, batch).mean().item()
    started = _started(model, head_warmup=Warmup(rounds=3, steps=30, learning_rate=0.05))
    assert example_losses(model, batch).mean().item() < loss_before - 0.05
    head = head_parameters(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(head)
    down, up = started.traffic[:2]
    size = sum(p.numel() for p in head.values())
    assert (down.direction, up.direction) == ("down", "up")
    assert up.parameters == down.parameters == 3 * 2 * size


def test_the_start_leaves_gradient_flags_as_they_were(make_bert: Any) -> None:
    model = make_bert()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    _started(model, head_warmup=Warmup(rounds=1, steps=2, learning_rate=0.01))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())


def test_gradient_checkpointing_recomputes_in_the_estimate_and_does_not_change_it(make_bert: Any) -> None:
    plain = _started(make_bert(), rule="raw", upload="whole").factors
    model, calls = make_bert(), []
    enable_checkpointing(model)
    model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = _started(model, rule="raw", upload="whole").factors
    assert len(calls) == 2 * 3  # three batches, each run forward twice
    assert not any(module.training for module in model.modules())
    for name, part in plain.items():
        torch.testing.assert_close(checkpointed[name].R, part.R, rtol=1e-4, atol=1e-9)


def test_the_step_size_scales_R0_and_leaves_the_bases_alone(make_bert: Any) -> None:
    model = make_bert()
    none, small, large = (_started(model, step_size=size).factors for size in (0.0, 1e-4, 1e-2))
    for name in small:
        assert torch.equal(none[name].B, large[name].B)
        assert torch.equal(none[name].A, large[name].A)
        assert float(none[name].R.abs().max()) == 0.0
        torch.testing.assert_close(100 * small[name].R, large[name].R)


@pytest.mark.parametrize(
    "schedule", [{}, {"schedule": "cosine", "warmup_ratio": 0.1}, {"schedule": "linear", "warmup_ratio": 0.5}]
)
def test_by_default_R0_is_one_steps_share_of_the_rate_whatever_the_schedule(schedule: Any) -> None:
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "task": {"kind": "classification", "text": ["a"]},
        "data": {"train": "a", "test": "b"},
        "federation": {"rounds": 4},
        "training": {"learning_rate": 0.01, "batch_size": 8, "epochs": 2} | schedule,
    }
    parts = [list(range(40)), list(range(40, 60))]  # 5 batches an epoch, 10 steps a round, 40 in the run
    assert step_size(RunConfig.from_dict(values), parts) == pytest.approx(0.01 / 40)
    values["method"] = {"init": {"step_size": 0.0}}
    assert step_size(RunConfig.from_dict(values), parts) == 0.0


def test_the_config_tells_the_start_its_methods_scale() -> None:
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "task": {"kind": "classification", "text": ["a"]},
        "data": {"train": "a", "test": "b"},
        "method": {"name": "fr-lora", "rank": 4, "alpha": 8.0},
    }
    assert start_of(RunConfig.from_dict(values), [[0]]).scale == 2.0
    values["method"] |= {"name": "fed-sb", "alpha": None}
    assert start_of(RunConfig.from_dict(values), [[0]]).scale == 1.0
