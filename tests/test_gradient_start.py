"""Bases from what clients send: whole gradients, factors, or sketches of moments; and what that costs."""

from typing import Any

import pytest
import torch
from oracles import example_losses, full_gradient, numbers
from safetensors.torch import load
from test_initialize import _batches, _examples

from fedsb import gradient_start
from fedsb.adapter import features, find_targets
from fedsb.gradient_start import Calibration, GradientStart, bases_from_gradients

DRAW = {0: list(range(8)), 1: list(range(8, 20)), 2: list(range(20, 24))}


def start(model: Any, draw: Any = None, *, num_clients: int = 4, **changes: Any) -> Any:
    defaults: dict[str, Any] = {"rule": "sign", "upload": "factors", "batch_size": 8, "rank": 4, "heads": 1}
    how = GradientStart(**defaults | {"step_size": 1e-2, "seed": 0} | changes)
    calibration = Calibration(draw or DRAW, _examples(24), _batches, example_losses)
    targets = find_targets(model, ["query", "value"])
    return bases_from_gradients(model, targets, how, calibration, num_clients=num_clients)


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Smallest cosine of the principal angles between two column spaces."""
    return float(torch.linalg.svdvals(one.T @ other).min())


@pytest.mark.parametrize("rule", ["sign", "raw", "moments"])
@pytest.mark.parametrize("heads", [1, 2])
def test_bases_are_orthonormal_and_repeat(make_bert: Any, rule: str, heads: int) -> None:
    one, again = (start(make_bert(), rule=rule, heads=heads).factors for _ in range(2))
    for name, part in one.items():
        k = heads * 4
        torch.testing.assert_close(part.B.T @ part.B, torch.eye(k), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.A @ part.A.T, torch.eye(k), atol=1e-5, rtol=0)
        assert part.R.shape == (heads, 4, 4)
        assert all(torch.equal(a, b) for a, b in zip(part[:3], again[name][:3], strict=True))


def test_factors_of_full_rank_give_the_bases_of_whole_gradients(make_bert: Any) -> None:
    """A gradient of 32 x 32 has at most rank 32; with rank 15 its factors are still smaller, and cut."""
    model = make_bert()
    size = features(next(iter(find_targets(model, ["query"]).values())))[0]
    whole = start(model, rule="raw", upload="whole", rank=size).factors
    cut = start(model, rule="raw", rank=size).factors
    for name, part in whole.items():
        update = part.B @ part.R[0] @ part.A
        again = cut[name].B @ cut[name].R[0] @ cut[name].A
        torch.testing.assert_close(again, update, atol=1e-2 * float(update.abs().max()), rtol=0)


def test_cut_factors_find_nearly_the_subspace_of_the_whole(make_bert: Any) -> None:
    whole, cut = (start(make_bert(), rule="raw", upload=u, rank=8).factors for u in ("whole", "factors"))
    for name, part in whole.items():
        assert overlap(part.B[:, :2], cut[name].B) > 0.9


def test_clients_weigh_by_their_examples(make_bert: Any) -> None:
    model = make_bert()
    factors = start(model, rule="raw", upload="factors", rank=12).factors
    names = list(factors)
    batches = [_batches([_examples(24)[i] for i in range(24)], 24)[0]]
    expected = full_gradient(model, names, batches, example_losses)
    for name, part in factors.items():
        B, A = numbers(part.B), numbers(part.A)
        found = -numbers(part.B @ part.R[0] @ part.A) / 1e-2
        best = B @ (B.T @ expected[name] @ A.T) @ A
        assert abs(found - best).max() < 0.05 * abs(expected[name]).max()


@pytest.mark.parametrize(("rule", "upload"), [("sign", "factors"), ("moments", "factors"), ("sign", "whole")])
def test_what_goes_up_and_down_is_booked(make_bert: Any, rule: str, upload: str, monkeypatch: Any) -> None:
    messages: list[bytes] = []
    real = gradient_start.save
    monkeypatch.setattr(
        gradient_start, "save", lambda tensors: messages.append(real(tensors)) or messages[-1]
    )
    model = make_bert()
    found = start(model, rule=rule, upload=upload)
    up, down = found.traffic
    shapes = [features(layer) for layer in find_targets(model, ["query", "value"]).values()]
    width = {"sign": 4, "moments": 6}[rule]
    each = sum((m + n) * width if upload == "factors" else m * n for m, n in shapes)
    assert (up.direction, up.clients, up.parameters) == ("up", 3, 3 * each)
    assert (down.direction, down.clients, down.parameters) == (
        "down",
        4,
        4 * sum(4 * (m + n) for m, n in shapes),
    )
    assert up.measured == (upload == "factors")
    assert up.bytes == (sum(map(len, messages[:3])) if up.measured else 4 * up.parameters)
    assert sum(t.numel() for t in load(messages[-1]).values()) * 4 == down.parameters  # four clients
    kinds = {t.dtype for m in messages for t in load(m).values()}
    assert kinds == {torch.bfloat16} | ({torch.float32} if rule == "moments" else set())


def test_one_contributor_takes_the_svd_itself(make_bert: Any) -> None:
    found = start(make_bert(), {2: list(range(24))})
    assert [entry.what for entry in found.traffic] == ["bases from the one contributor", "bases B and A"]
    whole = start(make_bert(), {2: list(range(24))}, upload="whole")
    for name, part in found.factors.items():
        assert torch.equal(part.B, whole.factors[name].B)


@pytest.mark.parametrize("rule", ["sign", "moments"])
def test_the_model_is_as_before(make_bert: Any, rule: str) -> None:
    model = make_bert()
    model.classifier.requires_grad_(True)
    before = {n: (p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}
    start(model, rule=rule)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
