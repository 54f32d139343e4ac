"""One model over several devices. Placing is accelerate's; here its hooks run on the CPU, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from families import config_of
from test_families import round_of

from fedsb.errors import InputError
from fedsb.models import load as models
from fedsb.runner import prepare_model
from fedsb.runner.prepare_data import prepare_data

GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]
BLOCKS = {
    "bert": ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier"),
    "llama": ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"),
}


def place(model: Any, blocks: tuple[str, ...]) -> Any:
    """As transformers does for a device_map: every block gets hooks that bring its inputs to its device."""
    rest = {"model.rotary_emb": "cpu"} if "lm_head" in blocks else {}
    device_map = dict.fromkeys(blocks, "cpu") | rest
    model = dispatch_model(model, device_map, main_device="cpu", force_hooks=True)
    model.hf_device_map = dict.fromkeys(device_map, 0)
    return model


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs that nobody looks at closely, with memory enough."""
    monkeypatch.setattr(models, "visible_gpus", lambda: GPUS)
    monkeypatch.setattr(prepare_model, "free_memory", lambda config: 1 << 40)


def with_hooks(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Let models be placed block by block; what from_pretrained was asked for."""
    asked: list[Any] = []
    real = models._from_pretrained

    def load(path: str, model_class: str, options: dict[str, Any]) -> Any:
        asked.append(options.pop("device_map"))
        return place(real(path, model_class, options), BLOCKS[name])

    monkeypatch.setattr(models, "_from_pretrained", load)
    return asked


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_placed_model_trains_as_a_whole_one(
    saved: dict[str, Path], tmp_path: Path, gpus: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, _, moved = round_of(config_of(saved, name), tmp_path / "whole")
    asked = with_hooks(monkeypatch, name)
    placed, _, moved_too = round_of(config_of(saved, name, model__device_map="auto"), tmp_path / "placed")
    assert asked == ["auto"]
    assert moved == moved_too
    for (parameter_name, a), b in zip(whole.named_parameters(), placed.parameters(), strict=True):
        assert torch.equal(a, b), parameter_name


@pytest.mark.parametrize("last", ["cpu", "disk"])
def test_parts_that_do_not_fit_on_the_gpus_are_refused(
    saved: dict[str, Path], gpus: None, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    config = config_of(saved, "llama", model__device_map="auto")
    monkeypatch.setattr(models, "_from_pretrained", lambda path, *rest: _mapped(path, last))
    with pytest.raises(InputError, match=r"1 parts, such as lm_head, do not fit on the 2 visible GPUs"):
        prepare_model.prepare_base(config, prepare_data(config))


def _mapped(path: str, last: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    model.hf_device_map = {"model": 0, "lm_head": last}
    return model


def test_without_a_gpu_there_is_nothing_to_spread_over(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "visible_gpus", list)
    config = config_of(saved, "bert", model__device_map="auto")
    with pytest.raises(InputError, match=r"model\.device_map: auto spreads a model over GPUs, and none"):
        prepare_model.prepare_base(config, prepare_data(config))


def test_a_device_and_a_map_exclude_each_other(saved: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="device_map takes all visible GPUs; leave device at auto"):
        config_of(saved, "bert", model__device_map="auto", model__device="cpu")
