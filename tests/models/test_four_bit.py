"""The adapter over bitsandbytes' 4-bit layers. Skipped where bitsandbytes is not installed (extra `4bit`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import example_losses

from fedsb.adapter.attached import attach, find_targets, merge
from fedsb.adapter.bases import bases_from_update
from fedsb.adapter.linear import dense_weight, is_quantized
from fedsb.adapter.update_estimate import estimate_update
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_base
from fedsb.models.targets import default_targets
from fedsb.runner.memory import Longest, estimate_memory


class _Tokenizer:
    pad_token_id = 0


def _llama() -> Any:
    """Wide enough for bitsandbytes' blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def test_a_four_bit_base_starts_from_its_gradient_and_trains_its_cores(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit layers need the extra fedsb[4bit]")
    original = _llama()
    original.save_pretrained(tmp_path)
    model = load_base(str(tmp_path), tokenizer=_Tokenizer(), num_labels=None, load_in_4bit=True)
    targets = find_targets(model, default_targets(model))
    name, layer = next(iter(targets.items()))
    assert is_quantized(layer)
    error = (dense_weight(layer) - original.get_submodule(name).weight).abs().mean()
    assert 0 < float(error) < 0.003  # weights are drawn with deviation 0.02

    ids = torch.randint(1, 40, (4, 10), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def reduce(name: str, update: torch.Tensor) -> Any:
        return bases_from_update(update, 4, generator=torch.Generator().manual_seed(0))

    attached = attach(
        model, estimate_update(model, targets, [batch], example_losses, reduce, learning_rate=1e-3)
    )
    example_losses(model, batch).mean().backward()
    for layer in attached.layers.values():
        assert layer.R is not None
        assert layer.R.grad is not None
        assert float(layer.R.grad.abs().sum()) > 0
    with pytest.raises(InputError, match="4 bits"):
        merge(attached)


def test_the_memory_estimate_knows_packed_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit layers need the extra fedsb[4bit]")
    _llama().save_pretrained(tmp_path)
    model = load_base(str(tmp_path), tokenizer=_Tokenizer(), num_labels=None, load_in_4bit=True)
    packed = [p for p in model.parameters() if hasattr(p, "quant_state")]
    scales = sum(p.quant_state.absmax.numel() * 4 for p in packed)
    real = sum(p.numel() * p.element_size() for p in model.parameters()) + scales
    values = {"model": {"path": str(tmp_path), "load_in_4bit": True}, "data": {"train": "-", "test": "-"}}
    task = {"task": {"kind": "causal-lm", "prompt": "{a}", "response": "b"}}
    estimate = estimate_memory(RunConfig.from_dict(values | task), None, Longest(8, 4))
    assert estimate is not None
    assert estimate.weights == real
