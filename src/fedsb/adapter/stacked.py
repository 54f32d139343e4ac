"""Several clients' factors over one frozen base: their rows pass through the model together.

A batch of n clients has as many rows of each, all of one client's after all of another's:

    x: (n * rows, *, in)     z = A x, the stacked cores in one batched product, then B

A stacked factor has its clients first, `(clients, ...)`; one that they share keeps its own shape. Which of
the clients a batch is of is told before each pass (`Passing`). A client of a smaller rank has zeros where it
holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedsb.adapter.layer import LowRankLinear


class OtherRows(ValueError):
    """A layer that is not given a batch's rows: the model uses it for something else, too."""


@dataclass
class Passing:
    """What a batch holds.

    Attributes:
        places: of the clients in their stack, in the order of their rows.
        rows: how many there are, of all of them.
        copies: where each row is to have a gradient of its own: by the stacked parameter's id, the rows' own
            copies of it, as far as they were asked for. None: it need not.
    """

    places: list[int] = field(default_factory=list)
    rows: int = 0
    copies: dict[int, Tensor] | None = None
    _indices: dict[torch.device, Tensor] = field(default_factory=dict)

    def tell(self, places: list[int], rows: int, *, own_gradients: bool = False) -> None:
        """Before a pass, what it is of."""
        self.places, self.rows, self._indices = places, rows, {}
        self.copies = {} if own_gradients else None

    @property
    def count(self) -> int:
        """How many clients they are."""
        return len(self.places)

    def apart(self, x: Tensor) -> Float[Tensor, "n rows_t in"]:
        """The rows of each client, or parts of them in the same order, whatever their other dimensions.

        Raises:
            OtherRows: these are not the batch's rows.
        """
        if len(x) % self.rows:
            raise OtherRows(f"a layer is given {tuple(x.shape)} where the batch has {self.rows} rows")
        return x.reshape(self.count, -1, x.shape[-1])

    def of(self, stacked: Float[Tensor, "clients *shape"]) -> Float[Tensor, "n *shape"]:
        """These clients' slices."""
        if self.copies is not None:
            return self._copy_of(stacked)
        if self.places == list(range(len(stacked))):
            return stacked
        return stacked.index_select(0, self._index(stacked.device))

    def _index(self, device: torch.device) -> Tensor:
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.places, device=device)
        return self._indices[device]

    def _copy_of(self, stacked: Tensor) -> Tensor:
        assert self.copies is not None
        if id(stacked) not in self.copies:
            own = stacked.detach().index_select(0, self._index(stacked.device))
            own.requires_grad_(stacked.requires_grad)
            self.copies[id(stacked)] = own
        return self.copies[id(stacked)]


class StackedLinear(nn.Module):
    """A layer of which each client has some factors of its own.

    Args:
        layer: has the base, and the factors that all share, at the largest rank of the stack. No mixture's.
        factors: the others by name, clients first.
    """

    def __init__(self, layer: LowRankLinear, factors: Mapping[str, Tensor], passing: Passing):
        super().__init__()
        assert layer.routing is None, "a mixture's layers are not stacked"
        self.layer, self.passing, self._own = layer, passing, dict(factors)

    @property
    def weight(self) -> Tensor:
        """The base layer's own weight, for model code that looks at it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own bias."""
        return self.layer.bias

    def forward(self, x: Float[Tensor, "rows *t in"]) -> Float[Tensor, "rows *t out"]:
        y: Tensor = self.layer.base(x)
        z = _through(self.passing.apart(x), self._factor("A", x.dtype))
        if self.layer.R is not None:
            z = _through_cores(z, self._core(z.dtype))
        elif self.layer.F is not None:
            gram = self._factor("F", z.dtype)
            z = _through(_through(z, gram), gram.transpose(1, 2))
        update = _through(z, self._factor("B", z.dtype)).reshape(*x.shape[:-1], -1)
        return self.layer.plus(y, x, update)

    def _factor(self, name: str, dtype: torch.dtype) -> Float[Tensor, "n1 *shape"]:
        """Of each client that passes, or (1, ...) of all."""
        own = self._own.get(name)
        value: Tensor = getattr(self.layer, name)[None] if own is None else self.passing.of(own)
        return value.to(dtype)

    def _core(self, dtype: torch.dtype) -> Float[Tensor, "n1 heads r r"]:
        core = self._factor("R", dtype)
        if self.layer.P is not None:
            core = core + self._factor("P", dtype)
        return core if self.layer.s is None else self._factor("s", dtype)[..., None, None] * core


def _through(z: Float[Tensor, "n t i"], factor: Float[Tensor, "n1 o i"]) -> Float[Tensor, "n t o"]:
    """z factor^T, of each client by its own, or of all by one."""
    if len(factor) == 1:
        return F.linear(z, factor[0])
    return torch.bmm(z, factor.transpose(1, 2))


def _through_cores(z: Float[Tensor, "n t k"], R: Float[Tensor, "n1 heads r r"]) -> Float[Tensor, "n t k"]:
    """z R^T, block by block."""
    heads, r = R.shape[1:3]
    if heads == 1:
        return _through(z, R[:, 0])
    blocks = z.unflatten(-1, (heads, r))
    return torch.einsum("nthi,nhoi->ntho", blocks, R.expand(len(z), -1, -1, -1)).flatten(-2)


class StackedModule(nn.Module):
    """A module without modules in it, of whose parameters each client has its own.

    Args:
        own: its parameters by name, clients first.
    """

    def __init__(self, module: nn.Module, own: Mapping[str, Tensor], passing: Passing):
        super().__init__()
        self.module, self.passing, self._own = module, passing, dict(own)

    def forward(self, x: Float[Tensor, "rows *shape"]) -> Tensor:
        own = {name: self.passing.of(value) for name, value in self._own.items()}
        if isinstance(self.module, nn.Linear):
            product = _linear(self.passing.apart(x), own["weight"], own.get("bias"))
            return product.reshape(*x.shape[:-1], -1)
        parts = x.chunk(self.passing.count)
        return torch.cat(
            [
                functional_call(self.module, {name: value[place] for name, value in own.items()}, (part,))
                for place, part in enumerate(parts)
            ]
        )


def _linear(
    x: Float[Tensor, "n t in"], weight: Float[Tensor, "n out in"], bias: Float[Tensor, "n out"] | None
) -> Float[Tensor, "n t out"]:
    product = torch.bmm(x.to(weight.dtype), weight.transpose(1, 2))
    return product if bias is None else product + bias[:, None]


@contextmanager
def in_place_of(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block these modules are in the model, by name; afterwards those that were."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
