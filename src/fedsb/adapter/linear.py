"""The layers an adapter can sit on: torch's Linear, GPT-2's Conv1D, 4-bit ones."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


def features(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, GPT-2's Conv1D included."""
    if is_conv1d(layer):
        n_in, n_out = weight_of(layer).shape
        return n_out, n_in
    return layer.out_features, layer.in_features  # type: ignore[return-value]


def dense_weight(layer: nn.Module) -> Float[Tensor, "out in"]:
    """W0 in fp32 and in (out, in) order, whatever the layer's kind. 4-bit layers are dequantized."""
    weight = weight_of(layer).detach()
    if is_quantized(layer):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight, layer.weight.quant_state).float()  # type: ignore[union-attr]
    return weight.float().T if is_conv1d(layer) else weight.float()


def weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def like_base(base: nn.Module, weight: Float[Tensor, "out in"]) -> nn.Parameter:
    """A weight in the base layer's own order and dtype."""
    ordered = weight.T.contiguous() if is_conv1d(base) else weight
    return nn.Parameter(ordered.to(weight_of(base).dtype), requires_grad=False)


def is_linear(layer: nn.Module) -> bool:
    """Whether the adapter can sit on this layer."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def is_quantized(layer: nn.Module) -> bool:
    """Whether the weight is stored packed (bitsandbytes 4-bit)."""
    return hasattr(getattr(layer, "weight", None), "quant_state")


def is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")
