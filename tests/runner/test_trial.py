"""The trial on two rows: what it tries, what it finds before a run, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of
from run_helpers import causal_config, write_data
from tiny_models import FAMILIES
from torch import nn

from fedsb.adapter.attached import find_targets
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.runner.prepare_data import Data, prepare_data
from fedsb.runner.prepare_model import BaseModel, prepare_base
from fedsb.runner.trial import try_rows, two_rows

Saved = dict[str, Path]


def prepared(saved: Saved, name: str, **changes: Any) -> tuple[RunConfig, Data, BaseModel]:
    config = config_of(saved, name, **changes)
    data = prepare_data(config)
    return config, data, prepare_base(config, data)


def example(*ids: int) -> dict[str, Any]:
    return {"input_ids": list(ids)}


def test_the_rows_are_the_longest_and_the_one_with_the_largest_token() -> None:
    short, long, high = example(5, 6), example(1, 2, 3, 4), example(9)
    assert two_rows([short, long, high]) == [long, high]
    assert two_rows([example(9, 1), short, example(7)]) == [example(9, 1), example(7)]
    assert two_rows([short]) == [short]
    assert two_rows([]) == []


@pytest.mark.parametrize(
    "changes", [{}, {"training__gradient_checkpointing": True}, {"model__dtype": "bfloat16"}]
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_nothing_is_changed(saved: Saved, name: str, changes: dict[str, Any]) -> None:
    init = {"samples": 6, "head_warmup": {"rounds": 1, "steps": 1}}
    config, data, base = prepared(saved, name, method__init=init, evaluation__generate=2, **changes)
    tensors = {n: t.clone() for n, t in base.model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in base.model.named_parameters()}
    modes = [module.training for module in base.model.modules()]
    torch.manual_seed(3)
    drawn = torch.get_rng_state()
    assert try_rows(config, data, base) == 2
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in base.model.modules()] == modes
    assert {n: p.requires_grad for n, p in base.model.named_parameters()} == flags
    assert all(p.grad is None for p in base.model.parameters())
    assert all(torch.equal(t, tensors[n]) for n, t in base.model.state_dict().items())
    assert set(base.model.state_dict()) == set(tensors)


def test_a_buffer_that_the_model_replaces_comes_back(saved: Saved) -> None:
    """CTRL's code moves its table of positions, in evaluation to a tensor that no training can use."""
    config, data, base = prepared(saved, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.register_buffer("counted", torch.zeros(1))
    before, forward = mlp.counted, mlp.forward

    def counting(x: torch.Tensor) -> torch.Tensor:
        mlp.counted = mlp.counted + 1
        return forward(x)

    mlp.forward = counting
    try_rows(config, data, base)
    assert mlp.counted is before
    assert mlp.counted == 0


def test_there_may_be_no_rows_to_try(saved: Saved) -> None:
    config, data, base = prepared(saved, "bert")
    assert try_rows(config, replace(data, train=[], test=[]), base) == 0
    assert try_rows(config, replace(data, train=data.train[:1], test=[]), base) == 1


# ---------------------------------------------------------------- layers without a gradient


def bypass(name: str) -> Callable[[nn.Module], None]:
    """Take a layer off the model's path: its weight is read by the code around it, or nobody calls it."""

    def change(model: nn.Module) -> None:
        layer = model.get_submodule(name)
        owner = model.get_submodule(name.rpartition(".")[0])
        weight = layer.weight

        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.nn.functional.linear(hidden, weight)[..., : hidden.shape[-1]]

        owner.forward = forward  # type: ignore[method-assign]

    return change


def test_a_layer_whose_weight_is_read_past_the_adapter_is_named(saved: Saved) -> None:
    config, data, base = prepared(saved, "llama", method__init={"kind": "orthonormal"})
    bypass("model.layers.1.mlp.up_proj")(base.model)
    with pytest.raises(InputError, match=r"method\.targets: no gradient reaches 3 of 14 layers") as error:
        try_rows(config, data, base)
    names = [f"1.mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")]  # those of layer 0 are used
    assert f"Leave out {', '.join(names)}" in str(error.value)


def test_layers_are_named_by_ends_that_no_used_layer_has(tmp_path: Path) -> None:
    """A decoder without an encoder has layers that would look at one."""
    family = FAMILIES["bart-decoder"]
    values = causal_config(family.save(tmp_path / "model"), tmp_path, training__max_length=24)
    write_data(tmp_path, train=4, test=2)
    config = RunConfig.from_dict(values | {"method": {"targets": ["k_proj", "v_proj"], "rank": 2}})
    data = prepare_data(config)
    base = prepare_base(config, data)
    assert try_rows(config, data, base) == 2, "their targets are not among those that a name stands for"
    everything = replace(base, targets=find_targets(base.model, ["k_proj", "v_proj"]))
    with pytest.raises(InputError, match=r"Leave out encoder_attn\.k_proj, encoder_attn\.v_proj$"):
        try_rows(config, data, everything)


def test_more_rows_are_asked_before_a_layer_is_given_up(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an expert that sees none of two rows' tokens."""
    config, data, base = prepared(saved, "llama", method__init={"kind": "orthonormal"})
    mlp: Any = base.model.get_submodule("model.layers.1.mlp")
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x) if len(x) > 2 else x)
    assert try_rows(config, data, base) == 2


# ---------------------------------------------------------------- what a library raises


class Broken(nn.Module):
    """Raises as compiled code would, from a given call on."""

    def __init__(self, inner: nn.Module, when: Callable[[], bool]):
        super().__init__()
        self.inner, self.when = inner, when

    @property
    def weight(self) -> torch.Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.when():
            raise RuntimeError("kernel of this family is missing")
        return self.inner(x)


@pytest.mark.parametrize(
    ("when", "key"),
    [
        (lambda: True, "model.path: a forward pass of two rows failed"),
        (torch.is_grad_enabled, "method.targets: a training step on 2 rows failed"),
    ],
)
def test_a_library_error_names_a_key_and_the_cure(saved: Saved, when: Callable[[], bool], key: str) -> None:
    config, data, base = prepared(saved, "bert")
    embeddings: Any = base.model.get_input_embeddings()
    base.model.set_input_embeddings(Broken(embeddings, when))  # type: ignore[operator]
    with pytest.raises(InputError) as error:
        try_rows(config, data, base)
    assert str(error.value).startswith(key)
    assert "RuntimeError: kernel of this family is missing" in str(error.value)


def no_cache(**inputs: Any) -> torch.Tensor:
    raise ValueError("this family has no cache")


def test_generation_is_tried_where_the_run_generates(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data, base = prepared(saved, "llama", evaluation__generate=2)
    monkeypatch.setattr(base.model, "generate", no_cache)
    with pytest.raises(InputError, match=r"evaluation\.generate: generation from two rows failed"):
        try_rows(config, data, base)
    without = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"generate": None})}
    )
    assert try_rows(without, data, base) == 2


def test_a_loss_that_is_not_finite_is_refused(saved: Saved) -> None:
    config, data, base = prepared(saved, "bert")
    with torch.no_grad():
        base.model.get_input_embeddings().weight.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"not finite before any training; take model\.dtype"):
        try_rows(config, data, base)


def test_a_private_run_is_not_refused_over_one_row(saved: Saved) -> None:
    """It would tell of the row; gradients that are not finite count as zero there."""
    privacy = {"unit": "example", "epsilon": 8.0, "clip_norm": 1.0, "delta": 1e-2}
    config, data, base = prepared(saved, "bert", privacy=privacy, method__init={"kind": "orthonormal"})
    with torch.no_grad():
        base.model.get_input_embeddings().weight.fill_(float("nan"))  # type: ignore[operator]
    assert try_rows(config, data, base) == 2
