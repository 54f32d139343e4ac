"""A mixture of experts on its base model. Needs torch and safetensors alone; a copy lies beside each mixture.

    model = AutoModelForCausalLM.from_pretrained(BASE)
    mixture = load_mixture(model, FOLDER)
    model.generate(**tokenizer(prompt, return_tensors="pt"))

A layer W0 x becomes W0 x + B sum_e p_e R_e A x. The gate gives the weights p of each token or of each row: of
a row those tokens decide that are there when it is first seen, and what is generated after them keeps p.
With route: request one gate over the base's own last states chooses one expert of a row for all layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "mixture"
FOR_THE_BASE = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")


class LoadedMixture:
    """What routes the layers of one model.

    Attributes:
        experts: names; expert e is at place e of every R, gate and weight.
        asked: (rows, tokens) bool, which tokens decide for their row; None: all that the attention mask has.
            Where it is narrower than the batch, what follows does not decide.
        chosen: (rows,) the place of each row's only expert; None: the gate decides.
        weights: by layer those of the last pass, (rows, 1 or tokens, experts).
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.experts: list[str] = config["experts"]
        self.route, self.top_k = config["route"], config["top_k"]
        self.asked: Tensor | None = None
        self.chosen: Tensor | None = None
        self.weights: dict[str, Tensor] = {}
        self._gate = tensors.get("gate")
        self._requested: Tensor | None = None
        self._valid = torch.ones(0, 0)
        self._goes_on = self._off = False
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name in config["layers"]:
            parts = {part: tensors[key] for part in "BARG" if (key := f"{name}.{part}") in tensors}
            self._handles.append(_layer(model, name, parts).register_forward_hook(self._added(name, parts)))

    def remove(self) -> None:
        """Leave the model as it was, but for its head."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Before a pass: which tokens are real, and whether its rows continue those of the pass before."""
        if self._off:
            return
        past = named.get("past_key_values")
        self._goes_on = past is not None and past.get_seq_length() > 0
        if self._goes_on:
            return
        self.weights = {}
        tokens = inputs[0] if inputs else named.get("input_ids")
        tokens = named["inputs_embeds"] if tokens is None else tokens
        mask = named.get("attention_mask")
        self._valid = torch.ones(tokens.shape[:2]).bool() if mask is None else mask.bool()
        if self._gate is not None and self.chosen is None:
            here = {"input_ids": inputs[0]} if inputs else {}
            self._requested = self._asked_base(model, here | named, self._gate)

    def _asked_base(self, model: Any, named: dict[str, Any], gate: Tensor) -> Tensor:
        """(rows,) each row's expert, by the base alone."""
        self._off = True
        try:
            with torch.no_grad():
                states = model.base_model(**{key: named[key] for key in FOR_THE_BASE if key in named})[0]
        finally:
            self._off = False
        q = self._mean(states.float())[:, 0]
        return F.linear(q, gate[:, :-1].to(q), gate[:, -1].to(q)).argmax(-1)

    def _added(self, name: str, parts: dict[str, Tensor]) -> Any:
        def after(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if self._off:
                return output
            x = inputs[0]
            B, A, R = (parts[part].to(x) for part in "BAR")
            z = (x if x.dim() == 3 else x[:, None]) @ A.T
            p = self._weights(name, z, parts.get("G"))
            weighted = (p.to(z.dtype)[..., None] * z[..., None, :]).flatten(-2)
            return output + (weighted @ R.transpose(1, 2).flatten(0, 1) @ B.T).view_as(output)

        return after

    def _weights(self, name: str, z: Tensor, G: Tensor | None) -> Tensor:
        places = self._requested if self.chosen is None else self.chosen
        if places is not None:
            rows = _for_rows(torch.as_tensor(places, device=z.device), len(z))
            self.weights[name] = F.one_hot(rows, len(self.experts))[:, None].float()
        elif G is not None and not (self._goes_on and self.route == "sequence"):
            self.weights[name] = self._soft(z.float(), G.to(z.device))
        return self.weights[name]

    def _soft(self, z: Tensor, G: Tensor) -> Tensor:
        q = z if self.route == "token" else self._mean(z)
        p = F.linear(q, G[:, :-1], G[:, -1]).softmax(-1)
        if self.top_k is None:
            return p
        values, places = p.topk(self.top_k, dim=-1)
        return torch.zeros_like(p).scatter(-1, places, values / values.sum(-1, keepdim=True))

    def _mean(self, z: Tensor) -> Tensor:
        """Each row's mean over the tokens that decide, (rows, 1, r); over all of a layer of whole rows."""
        tokens = self._deciding().to(z)
        tokens = _for_rows(tokens, len(z)) if tokens.shape[1] == z.shape[1] else z.new_ones(z.shape[:2])
        return (tokens[:, None] @ z) / tokens.sum(1).clamp(min=1)[:, None, None]

    def _deciding(self) -> Tensor:
        if self.asked is None:
            return self._valid
        asked = self.asked.to(self._valid.device).bool()
        asked = _for_rows(F.pad(asked, (0, self._valid.shape[1] - asked.shape[1])), len(self._valid))
        return torch.where(asked.any(1, keepdim=True), asked, self._valid)


def load_mixture(model: nn.Module, folder: str | Path) -> LoadedMixture:
    """Put the mixture in the folder on its base model, with the head that was trained beside it.

    Raises:
        ValueError: a layer is not there, or has another shape.
    """
    config = json.loads((Path(folder) / f"{NAME}.json").read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / f"{NAME}.safetensors")
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("head."):
            _check(key, parameters.get(key.removeprefix("head.")), tuple(value.shape))
            parameters[key.removeprefix("head.")].data.copy_(value)
    return LoadedMixture(model, config, tensors)


def _for_rows(values: Tensor, rows: int) -> Tensor:
    """Each row's values, repeated for its beams where there are more rows."""
    return values.repeat_interleave(rows // len(values), 0)


def _layer(model: nn.Module, name: str, parts: dict[str, Tensor]) -> nn.Module:
    layer = dict(model.named_modules()).get(name)
    shape = (parts["B"].shape[0], parts["A"].shape[1])
    _check(name, getattr(layer, "weight", None), shape[::-1] if type(layer).__name__ == "Conv1D" else shape)
    assert layer is not None
    return layer


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    here = "nothing" if tensor is None else tuple(tensor.shape)
    if here != shape:
        raise ValueError(f"{name}: expected {shape}, the model has {here}: is it the base of this mixture?")
