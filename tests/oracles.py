"""Slow and obvious versions of what fedsb does cleverly: dense matrices, plain autograd, loops, full SVDs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsb.adapter import Factors

Losses = Callable[[nn.Module, Any], Tensor]


def numbers(tensor: Tensor) -> np.ndarray:
    """The tensor as fp64 numpy."""
    return tensor.detach().to(torch.float64).cpu().numpy()


def random_factors(
    out: int, n_in: int, rank: int, *, heads: int = 1, core: bool = True, generator: torch.Generator
) -> Factors:
    """Factors with no structure at all."""
    k = heads * rank
    B = torch.randn(out, k, generator=generator)
    A = torch.randn(k, n_in, generator=generator)
    R = torch.randn(heads, rank, rank, generator=generator) if core else None
    return Factors(B=B, A=A, R=R)


def present(factors: Factors) -> list[Tensor]:
    """The factors that there are."""
    return [value for value in factors if value is not None]


def dense_update(factors: Factors, scale: float = 1.0) -> np.ndarray:
    """s B R A, with R written out as one block-diagonal matrix, entry by entry."""
    B, A = numbers(factors.B), numbers(factors.A)
    k = A.shape[0]
    core = np.eye(k)
    if factors.R is not None:
        core = np.zeros((k, k))
        heads, r, _ = factors.R.shape
        for h in range(heads):
            for i in range(r):
                for j in range(r):
                    core[h * r + i, h * r + j] = float(factors.R[h, i, j])
    if factors.F is not None:
        core = numbers(factors.F).T @ numbers(factors.F)
    return scale * (B @ core @ A)


def plain_weight(layer: nn.Module) -> np.ndarray:
    """The weight as the (out, in) matrix W of x -> W x + b, found by pushing unit vectors through."""
    n_in = layer.weight.shape[0] if type(layer).__name__ == "Conv1D" else layer.weight.shape[1]
    with torch.no_grad():
        zero = layer(torch.zeros(1, n_in, dtype=layer.weight.dtype))
        return numbers(layer(torch.eye(n_in, dtype=layer.weight.dtype)) - zero).T


def example_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """One loss per example: of its label for a classifier, the mean over its next tokens otherwise."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch["labels"], reduction="none")
    tokens, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].to(logits.dtype)
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens, reduction="none")
    return (each * mask).sum(1) / mask.sum(1)


def full_gradient(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Any], losses: Losses
) -> dict[str, np.ndarray]:
    """Gradient of the mean loss over all examples at once in the (out, in) weights, by plain autograd."""
    twin = copy.deepcopy(model).requires_grad_(False)
    chosen = {name: twin.get_submodule(name) for name in layers}
    weights = [layer.weight.requires_grad_(True) for layer in chosen.values()]
    mean = torch.cat([losses(twin, batch) for batch in batches]).mean()
    gradients = torch.autograd.grad(mean, weights)
    return {
        name: numbers(g.T if type(layer).__name__ == "Conv1D" else g)
        for (name, layer), g in zip(chosen.items(), gradients, strict=True)
    }


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The closest matrix of that rank (Eckart and Young 1936), by full SVD."""
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def weighted_mean(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """sum(w_i v_i) / sum(w_i), in a loop."""
    total = np.zeros_like(values[0], dtype=np.float64)
    for value, weight in zip(values, weights, strict=True):
        total = total + weight * value.astype(np.float64)
    return total / sum(weights)


def mean_of_updates(factors: Sequence[Factors], weights: Sequence[float]) -> np.ndarray:
    """What an exact method must give: the weighted mean of the clients' dense updates."""
    return weighted_mean([dense_update(f) for f in factors], weights)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest number expected."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


# A mixture of experts, token by token and expert by expert


def mixture_weights(
    z: Tensor, G: Tensor, *, asked: Tensor, route: str, n: int, t: int, top_k: int | None = None
) -> Tensor:
    """(E,) p of row n at token t."""
    tokens = [t] if route == "token" else [i for i in range(z.shape[1]) if asked[n, i]]
    q = sum(z[n, i] for i in tokens) / len(tokens)
    scores = torch.stack([row[:-1] @ q + row[-1] for row in G])
    exponents = torch.exp(scores - scores.max())
    p = exponents / exponents.sum()
    if top_k is None:
        return p
    largest = sorted(range(len(p)), key=lambda e: -float(p[e]))[:top_k]
    chosen = torch.stack([p[e] if e in largest else 0 * p[e] for e in range(len(p))])
    return chosen / chosen.sum()


def mixture_loop(
    x: Tensor,
    weight: Tensor,
    B: Tensor,
    A: Tensor,
    R: Tensor,
    G: Tensor,
    *,
    asked: Tensor,
    route: str = "sequence",
    experts: Sequence[int] | None = None,
    top_k: int | None = None,
) -> Tensor:
    """W0 x + B sum_e p_e R_e A x, every product written out; `experts`: of each row, in place of the gate."""
    z = x @ A.T
    rows = []
    for n in range(len(x)):
        tokens = []
        for t in range(x.shape[1]):
            if experts is None:
                p = mixture_weights(z, G, asked=asked, route=route, n=n, t=t, top_k=top_k)
            else:
                p = torch.eye(len(R), dtype=x.dtype)[experts[n]]
            mixed = sum(p[e] * (R[e] @ z[n, t]) for e in range(len(R)))
            tokens.append(weight @ x[n, t] + B @ mixed)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


# Secret sharing


def dense_secret(shares: dict[int, bytes], prime: int) -> bytes:
    """The polynomial's value at 0, its coefficients found by Gauss' elimination over the field."""
    size = len(shares)
    rows = [
        [pow(holder + 1, power, prime) for power in range(size)] + [int.from_bytes(share, "big")]
        for holder, share in shares.items()
    ]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], prime - 2, prime)
        rows[column] = [value * inverse % prime for value in rows[column]]
        for i in set(range(size)) - {column}:
            factor = rows[i][column]
            rows[i] = [(a - factor * b) % prime for a, b in zip(rows[i], rows[column], strict=True)]
    return rows[0][-1].to_bytes(32, "big")
