"""The one adapter layer, W0 x + s B R A x, over one linear layer.

Shapes, for a layer with `in` inputs and `out` outputs:

    A: (heads * r, in)     R: (heads, r, r) or absent     B: (out, heads * r)     s: (heads,) or absent

R is block-diagonal: head h maps rows h*r..(h+1)*r of A x to the same columns of B. One head is Fed-SB
(Singhal et al. 2025, arXiv 2502.15436), several are RAVAN's layout (arXiv 2506.05568), no R is LoRA
(Hu et al. 2021, arXiv 2106.09685). s scales the heads one by one (RAVAN). Factors are fp32 whatever the base
layer's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedsb.adapter.linear import dense_weight, features, is_quantized, like_base, weight_of
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
        device = factors.B.device if device.type == "meta" else device  # a base without weights
        for name in FACTOR_NAMES:
            start = getattr(factors, name)
            value = None if start is None else start.detach().to(device, torch.float32, copy=True)
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

    def set_factor(self, name: str, value: Tensor) -> None:
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
                "to false, or take a method that leaves base weights alone"
            )
        self._own_weight = self._own_weight or [weight_of(self.base)]
        self.base.weight = self._own_weight[0]
        if update is None:
            self._own_weight = []
        else:
            self.base.weight = like_base(self.base, dense_weight(self.base) + update.to(self.A.device))
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
        product = pair.B @ pair.A
        return product if self.base_update is None else product + self.base_update.to(product.device)


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
        actual = tuple(getattr(factors, name).shape)
        if actual != shape:
            raise ValueError(
                f"factor {name}: expected shape {shape} over a {out} x {n_in} layer, found {actual}"
            )


def leading(factors: Factors, rank: int) -> Factors:
    """The first `rank` directions of each head: what a client of that rank holds."""
    heads, full = (1, factors.A.shape[0]) if factors.R is None else factors.R.shape[:2]
    if rank == full:
        return factors
    A = factors.A.unflatten(0, (heads, full))[:, :rank].flatten(0, 1)
    B = factors.B.unflatten(1, (heads, full))[:, :, :rank].flatten(1, 2)
    return Factors(B, A, None if factors.R is None else factors.R[:, :rank, :rank], factors.s)
