"""The one adapter layer, W0 x + s B R A x, over one linear layer.

Shapes, for a layer with `in` inputs and `out` outputs:

    A: (heads * r, in)     R: (heads, r, r) or absent     B: (out, heads * r)     s: (heads,) or absent

R is block-diagonal: head h maps rows h*r..(h+1)*r of A x to the same columns of B. One head is Fed-SB
(Singhal et al. 2025, arXiv 2502.15436), several are RAVAN's layout (arXiv 2506.05568), no R is LoRA
(Hu et al. 2021, arXiv 2106.09685). s scales the heads one by one (RAVAN). Factors are fp32 whatever the base
layer's dtype.

P, where there is one, is a core of one client's own, shaped as R: the core is then R + P.

F (r, k), where there is one, makes the core F^T F (Meng et al. 2026, arXiv 2602.17095), over bases of k
directions.

Where the update counts from the start, it is s (B A - B0 A0), with the factors B0, A0 as they were given.

With a routing, R holds experts instead: (E, r, r) over bases of rank r, mixed by the gate G (E, r + 1) as
`routing` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fedsb.adapter.linear import dense_weight, features, is_quantized, like_base, weight_of
from fedsb.adapter.routing import Gate, Routing
from fedsb.errors import InputError

FACTOR_NAMES = ("A", "R", "B", "s", "G", "P", "F")


class Factors(NamedTuple):
    """The factors of one layer; `R` is None for plain LoRA, `s` where heads have no scale of their own, `G`
    where there is one core or one gate for all layers, `P` where clients have no cores of their own, `F`
    where the core is no Gram matrix."""

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]
    R: Float[Tensor, "heads r r"] | None
    s: Float[Tensor, "heads"] | None = None
    G: Float[Tensor, "experts r1"] | None = None
    P: Float[Tensor, "heads r r"] | None = None
    F: Float[Tensor, "r k"] | None = None


class LoraPair(NamedTuple):
    """An ordinary LoRA with its scale folded in: the weight update is `B @ A`."""

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]


class LowRankLinear(nn.Module):
    """`base(x) + scale * B R A x` over a frozen linear layer `base`.

    Args:
        base: nn.Linear, GPT-2's Conv1D, or any layer with `in_features` and `out_features` (4-bit ones).
        factors: start values, copied to fp32 parameters on the base's device.
        trains: which of "A", "R", "B", "s", "G", "P", "F" get gradients.
        scale: s, a plain number (LoRA's alpha / r; 1 for Fed-SB).
        routing: what chooses between experts; None: R's blocks are heads of one core.
        less_start: whether the update counts from these factors, so that it begins at zero.
    """

    A: nn.Parameter
    B: nn.Parameter
    R: nn.Parameter | None
    s: nn.Parameter | None
    P: nn.Parameter | None
    F: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        factors: Factors,
        *,
        trains: Sequence[str] = ("R",),
        scale: float = 1.0,
        routing: Routing | None = None,
        less_start: bool = False,
    ):
        super().__init__()
        _check_factors(base, factors, mixes=routing is not None)
        self.base = base
        self.routing = routing
        self.scale = float(scale)
        self.base_update: Float[Tensor, "out in"] | None = None
        self._beside: Float[Tensor, "out in"] | None = None  # base_update in the base's own 16-bit dtype
        self._W0: list[Tensor] = []  # W0 while base.weight is another; in a list, so that it is no parameter
        device = next(base.parameters()).device
        device = factors.B.device if device.type == "meta" else device  # a base without weights
        for name in FACTOR_NAMES:
            start = getattr(factors, name)
            value = None if start is None else start.detach().to(device, torch.float32, copy=True)
            parameter = None if value is None else nn.Parameter(value, requires_grad=name in trains)
            if name != "G":
                self.register_parameter(name, parameter)
            else:
                self.gate = None if parameter is None else Gate(parameter)
        self._less = self._pair() if less_start else None

    @property
    def G(self) -> nn.Parameter | None:
        """The gate's weight."""
        return None if self.gate is None else self.gate.weight

    @property
    def weight(self) -> Tensor:
        """The base layer's own weight, for model code that looks at it."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y: Tensor = self.base(x)
        if self.routing is not None and self.routing.off:
            return y
        z = F.linear(x, self.A.to(x.dtype))
        if self.routing is not None:
            z = self.routing.through(self, z)
        elif (core := self.core()) is not None:
            z = through_core(z, core.to(z.dtype))
        elif self.F is not None:
            gram = self.F.to(z.dtype)
            z = F.linear(F.linear(z, gram), gram.T)
        return self.plus(y, x, F.linear(z, self.B.to(z.dtype)))

    def plus(self, y: Tensor, x: Tensor, update: Tensor) -> Tensor:
        """The layer's output, of the base's y at x and of B R A x there."""
        if self._less is not None:
            update = update - F.linear(F.linear(x, self._less.A.to(x.dtype)), self._less.B.to(x.dtype))
        if self._beside is not None:
            return y + torch.add(F.linear(x, self._beside), update, alpha=self.scale)
        return y + update if self.scale == 1.0 else torch.add(y, update, alpha=self.scale)

    def core(self) -> Float[Tensor, "heads r r"] | None:
        """R and P, each head times its s; of experts their static mean, (1, r, r)."""
        if self.routing is not None and self.R is not None and len(self.R) > 1:
            return torch.einsum("e,eoi->oi", self.routing.shares().to(self.R), self.R)[None]
        R: Tensor | None = self.R if self.R is None or self.P is None else self.R + self.P
        return R if R is None or self.s is None else self.s[:, None, None] * R

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
        fresh = nn.Parameter(
            value.detach().to(old.device, torch.float32, copy=True), requires_grad=old.requires_grad
        )
        if name == "G":
            self.gate = Gate(fresh)
        else:
            setattr(self, name, fresh)

    def set_base_update(self, update: Float[Tensor, "out in"] | None) -> None:
        """Make the base weight W0 + update; None brings W0 itself back.

        A 16-bit weight cannot hold a small update (bfloat16 keeps 8 bits): over one the update stays beside
        W0 and is added in `forward`.

        Raises:
            InputError: the base is stored in 4 bits and cannot take an update.
        """
        if update is None and self.base_update is None:
            return
        if is_quantized(self.base):
            raise InputError(
                "this method changes base weights, and the base is stored in 4 bits: set model.load_in_4bit "
                "to false, or take a method that leaves base weights alone"
            )
        W0 = self._W0.pop() if self._W0 else weight_of(self.base)
        self.base.weight, self.base_update, self._beside = W0, update, None
        if update is None:
            return
        if W0.dtype == torch.float32:
            self._W0.append(W0)
            self.base.weight = like_base(self.base, dense_weight(self.base) + update.to(self.A.device))
        else:
            self._beside = update.to(self.A.device, W0.dtype)

    def lora(self) -> LoraPair:
        """The layer as an ordinary LoRA whose product is the whole update, exact to fp32.

        With untouched base weights: `B' = s B R`, `A' = A`. Else: the SVD of the whole, at its own rank.
        """
        return self._own_pair() if self.base_update is None else _svd_pair(self.update())

    def _own_pair(self) -> LoraPair:
        B, A = self._pair()
        if self._less is not None:
            B, A = torch.cat([B, -self._less.B], 1), torch.cat([A, self._less.A], 0)
        return LoraPair(self.scale * B, A)

    def _pair(self) -> LoraPair:
        """B R and A, or B F^T and F A, copied; neither scale nor start."""
        B, A = self.B.detach().clone(), self.A.detach().clone()
        if (core := self.core()) is not None:
            B = through_core(B, core.detach().transpose(1, 2))
        if self.F is not None:
            B, A = B @ self.F.detach().T, self.F.detach() @ A
        return LoraPair(B, A)

    def update(self) -> Float[Tensor, "out in"]:
        """The dense weight update s B R A, with what was added to the base, if anything was."""
        pair = self._own_pair()
        product = pair.B @ pair.A
        return product if self.base_update is None else product + self.base_update.to(product.device)


def through_core(z: Float[Tensor, "*batch k"], R: Float[Tensor, "heads r r"]) -> Float[Tensor, "*batch k"]:
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


def _check_factors(base: nn.Module, factors: Factors, *, mixes: bool) -> None:
    out, n_in = features(base)
    k = factors.A.shape[0]
    expected: dict[str, tuple[int, ...]] = {"A": (k, n_in), "B": (out, k)}
    if mixes:
        assert factors.R is not None, "a mixture has cores"
        expected |= {"R": (len(factors.R), k, k)}
        if factors.G is not None:
            expected["G"] = (len(factors.R), k + 1)
    elif factors.R is not None:
        heads, r = factors.R.shape[:2]
        expected["R"] = (heads, r, r)
        expected["A"], expected["B"] = (heads * r, n_in), (out, heads * r)
        if factors.s is not None:
            expected["s"] = (heads,)
        if factors.P is not None:
            expected["P"] = (heads, r, r)
    elif factors.F is not None:
        expected["F"] = (len(factors.F), k)
    for name, shape in expected.items():
        actual = tuple(getattr(factors, name).shape)
        if actual != shape:
            raise ValueError(
                f"factor {name}: expected shape {shape} over a {out} x {n_in} layer, found {actual}"
            )


def leading(factors: Factors, rank: int) -> Factors:
    """The first `rank` directions of each head, or rows of F: what a client of that rank holds."""
    if factors.F is not None:
        return factors._replace(F=factors.F[:rank])
    heads, full = (1, factors.A.shape[0]) if factors.R is None else factors.R.shape[:2]
    if rank == full:
        return factors
    A = factors.A.unflatten(0, (heads, full))[:, :rank].flatten(0, 1)
    B = factors.B.unflatten(1, (heads, full))[:, :, :rank].flatten(1, 2)
    R, P = (core if core is None else core[:, :rank, :rank] for core in (factors.R, factors.P))
    return Factors(B, A, R, factors.s, P=P)
