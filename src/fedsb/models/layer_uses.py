"""What a model does with its linear layers, seen in one forward and backward pass without its weights.

The model is built once more from its config, on the meta device: tensors with shapes and no numbers. Where
the model's code looks at numbers, the pass is repeated on the CPU with zeros that take no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedsb.adapter.attached import linear_layers
from fedsb.models.blank import blank_inputs
from fedsb.models.load import quiet_loading

NUM_TEXTS, NUM_TOKENS = 2, 7
"""Rows and tokens of the pass."""


@dataclass(frozen=True)
class LayerUses:
    """Names of linear layers.

    Attributes:
        reached: called, and a gradient of the output comes back to them.
        read: their weight is used by code that does not call them.
        compound: they give something else than one tensor.
        rank_experts: their outputs are what a top-k is taken of, as routers' are.
        pooled: they see one position of a text, not every token.
        regrouped: they see other rows than the batch has, such as windows of images.
    """

    reached: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    compound: set[str] = field(default_factory=set)
    rank_experts: set[str] = field(default_factory=set)
    pooled: set[str] = field(default_factory=set)
    regrouped: set[str] = field(default_factory=set)


_seen: dict[tuple[type[nn.Module], str], LayerUses | None] = {}


def uses_of_layers(model: nn.Module) -> LayerUses | None:
    """How the model's linear layers are used; None where no pass could be made of its config alone."""
    config: Any = model.config
    key = type(model), config.to_json_string(use_diff=False)
    if key not in _seen:
        _seen[key] = None
        for device in ("meta", "cpu"):
            with (
                suppress(Exception),
                quiet_loading(),
            ):  # the code of any model: what it cannot do on a device is its own affair
                _seen[key] = _observed(_without_weights(type(model), config, device), device)
                break
    return _seen[key]


def _without_weights(kind: Any, config: Any, device: str) -> nn.Module:
    """The model from its config; on the CPU each parameter is a zero, repeated, and buffers are zeros."""
    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    text = config.get_text_config()
    text.pad_token_id = getattr(text, "pad_token_id", None) or 0  # a decoder that classifies looks for it
    with torch.device("meta"):
        model: Any = kind(config).requires_grad_(False).eval()
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):  # looks at numbers, only to warn
            module.warn_if_padding_and_no_attention_mask = lambda *args: None
    if device == "meta":
        return model.to(torch.bfloat16)  # the dtype that grouped products of experts are checked for there
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            one = torch.zeros(1, *parameter.shape[1:], dtype=parameter.dtype)
            zeros = one.expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return model


def _observed(model: Any, device: str) -> LayerUses:
    uses = LayerUses()
    inputs = blank_inputs(model, NUM_TEXTS, NUM_TOKENS, device)
    with torch.enable_grad(), _watched(linear_layers(model), uses):
        model(**inputs)[0].sum().backward()
    return uses


@contextmanager
def _watched(layers: Mapping[str, nn.Module], uses: LayerUses) -> Iterator[None]:
    watch = _Watch(layers, uses)
    handles = [layer.register_forward_hook(watch.after(name)) for name, layer in layers.items()]
    try:
        with watch:
            yield
        watch.end()
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Sees every call of torch's functions, and the outputs of the layers."""

    def __init__(self, layers: Mapping[str, nn.Module], uses: LayerUses):
        super().__init__()
        self.uses = uses
        self._weights = {id(layer.weight): name for name, layer in layers.items()}
        self._outputs: dict[Any, tuple[str, int]] = {}
        """Node of the graph -> the layer whose output it made, and the output's width."""
        self._rows: dict[str, int] = {}
        """Layer -> most rows that it saw in a call."""

    def end(self) -> None:
        """Note the layers that saw one row of each text at most."""
        self.uses.pooled.update(name for name, rows in self._rows.items() if rows <= NUM_TEXTS)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.uses.read.update(self._weights[id(a)] for a in args if id(a) in self._weights)
        if function in (torch.topk, Tensor.topk):
            self.uses.rank_experts.update(self._behind(args[0]))
        return result

    def after(self, name: str) -> Any:
        def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            self.uses.read.discard(name)  # its own forward read it
            if not isinstance(output, Tensor):
                self.uses.compound.add(name)
            if not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return output
            if len(inputs[0]) != NUM_TEXTS:
                self.uses.regrouped.add(name)
            self._rows[name] = max(self._rows.get(name, 0), inputs[0].shape[:-1].numel())
            if not output.requires_grad:
                output.requires_grad_(True)
            seen = output.clone()  # a leaf could not be changed in place
            seen.register_hook(lambda gradient: self.uses.reached.add(name))
            self._outputs[seen.grad_fn] = name, seen.shape[-1]
            return seen

        return after_forward

    def _behind(self, scores: Tensor) -> Iterator[str]:
        """The layers that these scores are made of without another layer in between, and as wide."""
        nodes, visited = [scores.grad_fn], set[Any]()
        while nodes:
            node = nodes.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node in self._outputs:
                name, width = self._outputs[node]
                if width == scores.shape[-1]:
                    yield name
            else:
                nodes.extend(parent for parent, _ in node.next_functions)
