"""The one adapter layer, W0 x + s B R A x, put over linear layers, read, written, folded, merged and removed.

Shapes, for a layer with `in` inputs and `out` outputs:

    A: (heads * r, in)     R: (heads, r, r) or absent     B: (out, heads * r)     s: (heads,) or absent

R is block-diagonal: head h maps rows h*r..(h+1)*r of A x to the same columns of B. One head is Fed-SB
(Singhal et al. 2025, arXiv 2502.15436), several are RAVAN's layout (arXiv 2506.05568), no R is LoRA
(Hu et al. 2021, arXiv 2106.09685). s scales the heads one by one (RAVAN). Factors are fp32 whatever the base
layer's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedsb.errors import InputError

FACTOR_NAMES = ("A", "R", "B", "s")


class Factors(NamedTuple):
    """The factors of one layer; `R` is None for plain LoRA, `s` where heads have no scale of their own."""

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]
    R: Float[Tensor, "heads r r"] | None
    s: Float[Tensor, "heads"] | None = None


class LoraPair(NamedTuple):
    """An ordinary LoRA with its scale folded in: the weight update is `B @ A`."""

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]


class LowRankLinear(nn.Module):
    """`base(x) + scale * B R A x` over a frozen linear layer `base`.

    Args:
        base: nn.Linear, GPT-2's Conv1D, or any layer with `in_features` and `out_features` (4-bit ones).
        factors: start values, copied to fp32 parameters on the base's device.
        trains: which of "A", "R", "B", "s" get gradients.
        scale: s, a plain number (LoRA's alpha / r; 1 for Fed-SB).
    """

    A: nn.Parameter
    B: nn.Parameter
    R: nn.Parameter | None
    s: nn.Parameter | None

    def __init__(
        self, base: nn.Module, factors: Factors, *, trains: Sequence[str] = ("R",), scale: float = 1.0
    ):
        super().__init__()
        _check_factors(base, factors)
        self.base = base
        self.scale = float(scale)
        self.base_update: Float[Tensor, "out in"] | None = None
        self._own_weight: list[Tensor] = []  # in a list, so that it is no parameter of this module
        device = next(base.parameters()).device
        for name in FACTOR_NAMES:
            start = getattr(factors, name)
            value = None
            if (
                start is not None
            ):  # over a base without weights (on the meta device) factors stay where they are
                place = start.device if device.type == "meta" else device
                value = start.detach().to(place, torch.float32, copy=True)
            parameter = None if value is None else nn.Parameter(value, requires_grad=name in trains)
            self.register_parameter(name, parameter)

    @property
    def weight(self) -> Tensor:
        """The base layer's own weight, for model code that looks at it."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own bias."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def heads(self) -> int:
        """Number of blocks of R (1 without R)."""
        return 1 if self.R is None else self.R.shape[0]

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y = self.base(x)
        z = F.linear(x, self.A.to(x.dtype))
        if (core := self.core()) is not None:
            z = _through_core(z, core.to(z.dtype))
        update = F.linear(z, self.B.to(z.dtype))
        return y + update if self.scale == 1.0 else torch.add(y, update, alpha=self.scale)

    def core(self) -> Float[Tensor, "heads r r"] | None:
        """R, each head times its s."""
        return self.R if self.R is None or self.s is None else self.s[:, None, None] * self.R

    def factors(self) -> dict[str, nn.Parameter]:
        """The factors this layer has, by name."""
        return {name: p for name in FACTOR_NAMES if (p := getattr(self, name)) is not None}

    def put(self, name: str, value: Tensor) -> None:
        """Copy a factor's values in; a value of another shape (another rank) replaces the factor."""
        old: nn.Parameter = getattr(self, name)
        if old.shape == value.shape:
            with torch.no_grad():
                old.copy_(value)
            return
        fresh = value.detach().to(old.device, torch.float32, copy=True)
        setattr(self, name, nn.Parameter(fresh, requires_grad=old.requires_grad))

    def set_base_update(self, update: Float[Tensor, "out in"] | None) -> None:
        """Make the base weight W0 + update (summed in fp32, then cast); None brings W0 itself back.

        Raises:
            InputError: the base is stored in 4 bits and cannot take an update.
        """
        if update is None and not self._own_weight:
            return
        if is_quantized(self.base):
            raise InputError(
                "this method changes base weights, and the base is stored in 4 bits: set model.load_in_4bit "
                "to false, or take a method that leaves the base alone (fed-sb, fedit, ffa-lora, ...)"
            )
        self._own_weight = self._own_weight or [_weight(self.base)]
        self.base.weight = self._own_weight[0]
        if update is None:
            self._own_weight = []
        else:
            self.base.weight = _like_base(self.base, dense_weight(self.base) + update.to(self.A.device))
        self.base_update = update

    def lora(self) -> LoraPair:
        """The layer as an ordinary LoRA whose product is the whole update, exact to fp32.

        With untouched base weights: `B' = s B R`, `A' = A`. Else: the SVD of the whole, at its own rank.
        """
        return self._own_pair() if self.base_update is None else _svd_pair(self.update())

    def _own_pair(self) -> LoraPair:
        B, A = self.B.detach(), self.A.detach()
        if (core := self.core()) is not None:
            B = _through_core(B, core.detach().transpose(1, 2))
        return LoraPair(self.scale * B, A.clone())

    def update(self) -> Float[Tensor, "out in"]:
        """The dense weight update s B R A, with what was added to the base, if anything was."""
        pair = self._own_pair()
        own = pair.B @ pair.A
        return own if self.base_update is None else own + self.base_update.to(own.device)


def _through_core(z: Float[Tensor, "*batch k"], R: Float[Tensor, "heads r r"]) -> Float[Tensor, "*batch k"]:
    """z R^T, block by block."""
    heads, r, _ = R.shape
    if heads == 1:
        return F.linear(z, R[0])
    blocks = z.unflatten(-1, (heads, r))
    return torch.einsum("...hi,hoi->...ho", blocks, R).flatten(-2)


def _svd_pair(update: Float[Tensor, "out in"]) -> LoraPair:
    """Factors of a dense update at its numerical rank in fp32 (at least 1)."""
    U, S, Vh = torch.linalg.svd(update.double(), full_matrices=False)
    rank = max(1, int((1e-7 * S[0] < S).sum()))
    root = S[:rank].sqrt()
    return LoraPair((U[:, :rank] * root).float(), (root[:, None] * Vh[:rank]).float())


def _like_base(base: nn.Module, weight: Float[Tensor, "out in"]) -> nn.Parameter:
    """A weight in the base layer's own order and dtype."""
    ordered = weight.T.contiguous() if _is_conv1d(base) else weight
    return nn.Parameter(ordered.to(_weight(base).dtype), requires_grad=False)


def features(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, GPT-2's Conv1D included."""
    if _is_conv1d(layer):
        n_in, n_out = _weight(layer).shape
        return n_out, n_in
    return layer.out_features, layer.in_features  # type: ignore[return-value]


def dense_weight(layer: nn.Module) -> Float[Tensor, "out in"]:
    """W0 in fp32 and in (out, in) order, whatever the layer's kind. 4-bit layers are dequantized."""
    weight = _weight(layer).detach()
    if is_quantized(layer):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight, layer.weight.quant_state).float()  # type: ignore[no-any-return, union-attr]
    return weight.float().T if _is_conv1d(layer) else weight.float()


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def is_linear(layer: nn.Module) -> bool:
    """Whether the adapter can sit on this layer."""
    return isinstance(layer, nn.Linear) or _is_conv1d(layer)


def is_quantized(layer: nn.Module) -> bool:
    """Whether the weight is stored packed (bitsandbytes 4-bit)."""
    return hasattr(getattr(layer, "weight", None), "quant_state")


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _check_factors(base: nn.Module, factors: Factors) -> None:
    out, n_in = features(base)
    k = factors.A.shape[0]
    expected: dict[str, tuple[int, ...]] = {"A": (k, n_in), "B": (out, k)}
    if factors.R is not None:
        heads, r = factors.R.shape[:2]
        expected["R"] = (heads, r, r)
        expected["A"], expected["B"] = (heads * r, n_in), (out, heads * r)
        if factors.s is not None:
            expected["s"] = (heads,)
    for name, shape in expected.items():
        found = tuple(getattr(factors, name).shape)
        if found != shape:
            raise ValueError(
                f"factor {name}: expected shape {shape} over a {out} x {n_in} layer, found {found}"
            )


# ---------------------------------------------------------------- on a whole model


@dataclass(frozen=True)
class Attached:
    """A model with adapter layers in it, and what is needed to take them out again."""

    model: nn.Module
    layers: dict[str, LowRankLinear]
    requires_grad_before: dict[str, bool]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer an adapter could sit on, by name."""
    return {name: module for name, module in model.named_modules() if name and is_linear(module)}


def find_targets(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Module]:
    """The linear layers whose dotted name equals a target or ends in `.target`, in the model's order.

    Raises:
        InputError: a target matches nothing; the message lists the linear layers that exist.
    """
    layers, targets = linear_layers(model), list(targets)
    found: dict[str, nn.Module] = {}
    for target in targets:
        hits = [name for name in layers if name == target or name.endswith("." + target)]
        if not hits:
            raise InputError(_no_such_target(target, layers))
        found.update({name: layers[name] for name in hits})
    return {name: found[name] for name in layers if name in found}


def _no_such_target(target: str, layers: Mapping[str, nn.Module]) -> str:
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = get_close_matches(target, endings, n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return (
        f"method.targets: no linear layer is called {target!r}.{hint} "
        f"The model's linear layers end in: {', '.join(endings)}."
    )


def check_rank(layers: Mapping[str, nn.Module], rank: int, *, heads: int = 1) -> None:
    """Refuse a rank that does not fit the smallest target layer.

    Raises:
        InputError: heads * rank exceeds min(out, in) of some layer.
    """
    smallest = min(layers, key=lambda name: min(features(layers[name])))
    limit = min(features(layers[smallest]))
    if 1 <= heads * rank <= limit:
        return
    shape = " x ".join(map(str, features(layers[smallest])))
    if heads > limit:
        raise InputError(
            f"method.rank: {heads} heads do not fit: layer {smallest!r} is {shape}. Lower method.heads or "
            "leave that layer out of method.targets."
        )
    each, also = (f", and there are {heads} heads", " or method.heads,") if heads > 1 else ("", "")
    raise InputError(
        f"method.rank: expected 1 to {limit // heads}, found {rank}: layer {smallest!r} is {shape}{each}. "
        f"Lower method.rank{also} or leave that layer out of method.targets."
    )


def attach(
    model: nn.Module,
    factors: Mapping[str, Factors],
    *,
    trains: Sequence[str] = ("R",),
    scale: float = 1.0,
) -> Attached:
    """Freeze the model and put a LowRankLinear over each layer named in `factors`.

    The base layers are kept, not copied. `detach` undoes it all, gradient flags included.
    """
    before = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    layers = {
        name: LowRankLinear(model.get_submodule(name), start, trains=trains, scale=scale)
        for name, start in factors.items()
    }
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return Attached(model, layers, before)


def detach(attached: Attached) -> nn.Module:
    """Take the adapter layers out; the model is then bit for bit what it was before `attach`."""
    for name, layer in attached.layers.items():
        layer.set_base_update(None)
        attached.model.set_submodule(name, layer.base)
    for name, parameter in attached.model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(attached.requires_grad_before[name])
    return attached.model


def collect(attached: Attached, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Copies of the factors, keyed `layer.FACTOR`; by default of those that train."""
    return {key: p.detach().clone() for key, p in _factors(attached, names).items()}


def load(attached: Attached, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors made by `collect` (from this or another copy of the model) into the layers.

    Raises:
        KeyError: a key that names no factor here.
        ValueError: a shape that differs.
    """
    parameters = _factors(attached, FACTOR_NAMES)
    for key, tensor in tensors.items():
        if key not in parameters:
            raise KeyError(f"no adapter factor is called {key!r}")
        if parameters[key].shape != tensor.shape:
            raise ValueError(f"{key}: expected {tuple(parameters[key].shape)}, found {tuple(tensor.shape)}")
        with torch.no_grad():
            parameters[key].copy_(tensor)


def fit(attached: Attached, values: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put values, by layer and factor, into the layers, whatever rank the layers had before."""
    for name, factors in values.items():
        for factor, value in factors.items():
            attached.layers[name].put(factor, value)


def set_trained(attached: Attached, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let these factors train and no others; the parameters that train, keyed `layer.FACTOR`."""
    for layer in attached.layers.values():
        for name, parameter in layer.factors().items():
            parameter.requires_grad_(name in names)
    found = {layer: part.factors() for layer, part in attached.layers.items()}
    return {f"{layer}.{name}": parts[name] for layer, parts in found.items() for name in names}


def set_base_updates(attached: Attached, updates: Mapping[str, Tensor]) -> None:
    """Make each base weight W0 + its update; layers that are not named get W0 back."""
    for name, layer in attached.layers.items():
        layer.set_base_update(updates.get(name))


def leading(factors: Factors, rank: int) -> Factors:
    """The first `rank` directions of each head: what a client of that rank holds."""
    heads, full = (1, factors.A.shape[0]) if factors.R is None else factors.R.shape[:2]
    if rank == full:
        return factors
    A = factors.A.unflatten(0, (heads, full))[:, :rank].flatten(0, 1)
    B = factors.B.unflatten(1, (heads, full))[:, :, :rank].flatten(1, 2)
    return Factors(B, A, None if factors.R is None else factors.R[:, :rank, :rank], factors.s)


def _factors(attached: Attached, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    return {
        f"{layer_name}.{name}": parameter
        for layer_name, layer in attached.layers.items()
        for name, parameter in layer.factors().items()
        if (parameter.requires_grad if names is None else name in names)
    }


def fold(attached: Attached) -> dict[str, LoraPair]:
    """Every layer as an ordinary LoRA with scale 1, exact: rank heads * r unless the base was changed too."""
    return {name: layer.lora() for name, layer in attached.layers.items()}


def merge(attached: Attached) -> nn.Module:
    """Add each update to its base weight (in fp32, then cast back) and take the adapter layers out.

    A layer whose weight is tied to another module's gets a weight of its own.

    Raises:
        InputError: a base layer is stored in 4 bits and cannot take the update exactly.
    """
    for name, layer in attached.layers.items():
        if is_quantized(layer.base):
            raise InputError(
                f"layer {name!r} is stored in 4 bits: load the model in bfloat16 or float32 to merge"
            )
    for layer in attached.layers.values():
        update = layer.update()
        layer.set_base_update(None)
        layer.base.weight = _like_base(layer.base, dense_weight(layer.base) + update)
    return detach(attached)
