"""Every family of models that people fine-tune: layers found, doctor content, one round moves what trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, config_of
from run_helpers import classification_config
from torch import Tensor, nn

from fedsb.adapter import LowRankLinear
from fedsb.adapter.linear import features
from fedsb.cli.doctor import examine
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.errors import InputError
from fedsb.federation.server import broadcast
from fedsb.models.shapes import build_on_meta
from fedsb.models.targets import chosen_targets
from fedsb.report.progress import Silent
from fedsb.runner.clients import local_client
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import local_model_of, prepare_base
from fedsb.runner.round_zero import begin

NAMES = list(FAMILIES)


def layers_of(family: Family, model: nn.Module, endings: tuple[str, ...]) -> set[str]:
    """Layers in the model's blocks whose names end so, spelled out without our own search."""
    numbered = [n for n, _ in model.named_modules() if any(part.isdigit() for part in n.split("."))]
    return {n for n in numbered if any(n.endswith("." + ending) for ending in endings)}


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_of_a_family(saved: dict[str, Path], name: str) -> None:
    family = FAMILIES[name]
    model = build_on_meta(str(saved[name]), num_labels=None if family.causal else 3)
    found = chosen_targets(model, None)
    assert set(found) == layers_of(family, model, family.default)
    assert len(found) == family.blocks * len(family.default)
    assert features(next(iter(found.values()))) == family.width
    for group in ("attention", "mlp"):
        wanted = layers_of(family, model, getattr(family, group))
        assert set(chosen_targets(model, group)) == wanted - (
            layers_of(family, model, family.attention) if group == "mlp" else set()
        )
    everything = set(chosen_targets(model, "attention")) | set(chosen_targets(model, "mlp"))
    assert set(chosen_targets(model, "all-linear")) == everything


def test_a_head_is_never_a_target(saved: dict[str, Path]) -> None:
    model = build_on_meta(str(saved["roberta"]), num_labels=3)
    assert not [n for n in chosen_targets(model, ["dense"]) if n.startswith("classifier")]
    with pytest.raises(InputError, match=r"classifier\.out_proj belongs to the task head"):
        chosen_targets(model, ["out_proj"])


# ---------------------------------------------------------------- doctor


@pytest.mark.parametrize("name", NAMES)
def test_doctor_is_content(saved: dict[str, Path], name: str) -> None:
    findings = list(examine(config_of(saved, name)))
    assert all(finding.ok for finding in findings), [f.detail for f in findings if not f.ok]
    assert {"target layers", "traffic", "memory"} <= {finding.what for finding in findings}


# ---------------------------------------------------------------- one round


def state_of(model: nn.Module) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def round_of(config: RunConfig, folder: Path) -> tuple[nn.Module, set[str], set[str]]:
    """(model, names that train, names that moved) after one client's round."""
    data = prepare_data(config)
    base = prepare_base(config, data)
    start = begin(config, folder, method_of(config), data, base, None, Silent(), None)
    local_model = local_model_of(config, data, base, start.factors)
    before = state_of(base.model)
    message = broadcast(start.state, local_model.exchange, 0, local_model.exchange.whole)
    local_client(config, data, local_model, None, 0).answer(message)
    moved = {name for name, tensor in state_of(base.model).items() if not torch.equal(tensor, before[name])}
    return base.model, set(base.task_head), moved


def expected(family: Family, model: nn.Module, factors: str) -> set[str]:
    layers = layers_of(family, model, family.default)
    return {f"{layer}.{factor}" for layer in layers for factor in factors} | set(family.head)


@pytest.mark.parametrize("factors", [("fed-sb", "R"), ("fedit", "AB"), ("ffa-lora", "B")], ids=lambda p: p[0])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_moves_what_trains_and_nothing_else(
    saved: dict[str, Path], tmp_path: Path, name: str, factors: tuple[str, str]
) -> None:
    model, head, moved = round_of(config_of(saved, name, method__name=factors[0]), tmp_path)
    assert head == set(FAMILIES[name].head)
    assert moved == expected(FAMILIES[name], model, factors[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_bf16_base_keeps_cores_and_head_in_fp32(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    config = config_of(saved, name, model__dtype="bfloat16", method__targets="all-linear")
    model, head, moved = round_of(config, tmp_path)
    factors = {f"{n}.{f}" for n, m in model.named_modules() if isinstance(m, LowRankLinear) for f in "BRA"}
    for parameter_name, parameter in model.named_parameters():
        fp32 = parameter_name in factors or parameter_name in head
        assert parameter.dtype == (torch.float32 if fp32 else torch.bfloat16), parameter_name
    assert moved == {n for n in factors if n.endswith(".R")} | head


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_and_not_the_update(
    saved: dict[str, Path], tmp_path: Path, name: str
) -> None:
    plain = partial(config_of, saved, name, method__targets="all-linear")
    one, _, moved = round_of(plain(), tmp_path / "plain")
    two, _, moved_too = round_of(plain(training__gradient_checkpointing=True), tmp_path / "checkpointed")
    assert moved == moved_too
    for (parameter_name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), parameter_name


def test_a_decoder_classifies(saved: dict[str, Path], tmp_path: Path) -> None:
    encoder = classification_config(saved["bert"], saved["data"])
    values = encoder | {"model": {"path": str(saved["llama"])}}
    values["federation"] = {"clients": 1, "rounds": 1}
    values["training"]["batch_size"] = 6
    model, head, moved = round_of(RunConfig.from_dict(values), tmp_path)
    layers = layers_of(FAMILIES["llama"], model, FAMILIES["llama"].default)
    assert head == {"score.weight"}
    assert moved == {f"{layer}.R" for layer in layers} | head
