"""How B, A and R start: from the first update, from W0, from a seed, or as LoRA does.

Guarantees of the first three: fp32, B^T B = A A^T = I to 1e-5 (but see `bases_from_weight`), deterministic
for a generator's state, the global generator untouched, and a fixed sign (the largest entry of each column
of B is positive).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter.layer import Factors

EXACT_SVD_UP_TO = 512
"""Matrices whose smaller side is at most this get LAPACK's full SVD; larger ones the randomized one."""

OVERSAMPLING = 16
POWER_ITERATIONS = 8
QUICK_POWER_ITERATIONS = 2


def bases_from_update(
    update: Float[Tensor, "out in"], rank: int, *, heads: int = 1, generator: torch.Generator
) -> Factors:
    """The best rank heads*rank approximation of `update`: B = U, R = diag(S), A = V^T.

    LoRA-SB's start (Ponkshe et al. 2024, arXiv 2411.19557), s = 1. Head h gets singular directions
    h*rank .. (h+1)*rank.

    >>> update = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> f = bases_from_update(update, 2, generator=torch.Generator())
    >>> (f.B @ f.R[0] @ f.A).diagonal().round(decimals=3)
    tensor([3., 2., 0.])
    """
    U, S, Vh = truncated_svd(update, heads * rank, generator=generator)
    return Factors(B=U, A=Vh, R=torch.diag_embed(S.reshape(heads, rank)))


def cut_to_rank(factors: Factors, rank: int) -> Factors:
    """Of bases from an update those of a lower rank: `bases_from_update(update, rank)`."""
    assert factors.R is not None
    heads = len(factors.R)
    S, k = factors.R.diagonal(dim1=1, dim2=2).flatten(), heads * rank
    core = torch.diag_embed(S[:k].reshape(heads, rank))
    return factors._replace(B=factors.B[:, :k].clone(), A=factors.A[:k].clone(), R=core)


def bases_from_weight(
    weight: Float[Tensor, "out in"],
    rank: int,
    *,
    heads: int = 1,
    singular_values: bool = False,
    generator: torch.Generator,
) -> Factors:
    """The leading singular vectors of W0, R = 0. No data is used and every party that has W0 can derive them.

    singular_values: multiply A's rows by them, as LoRA-XS does (Bałazy et al. 2024, arXiv 2405.17604);
        A is then not orthonormal.
    """
    U, S, Vh = truncated_svd(weight, heads * rank, generator=generator)
    A = S[:, None] * Vh if singular_values else Vh
    return Factors(B=U, A=A, R=_zero_core(heads, rank, weight.device))


def turned(factors: Factors, *, generator: torch.Generator) -> Factors:
    """The same update over B U and V A, with random rotations U and V for each head: the same subspaces, seen
    from another frame. Adam, which goes number by number, takes another path there."""
    assert factors.R is not None
    heads, rank, _ = factors.R.shape
    B, A = factors.B.unflatten(1, (heads, rank)), factors.A.unflatten(0, (heads, rank))
    U, V = (
        torch.stack([orthonormal_columns(rank, rank, generator) for _ in range(heads)]).to(B) for _ in "UV"
    )
    return factors._replace(
        B=torch.einsum("ohr,hrk->ohk", B, U).flatten(1).contiguous(),
        A=torch.einsum("hkr,hri->hki", V, A).flatten(0, 1).contiguous(),
        R=U.transpose(1, 2) @ factors.R @ V.transpose(1, 2),
    )


def weighted_directions(factors: Factors, S: Float[Tensor, "k"]) -> Factors:
    """The same update over a B whose columns are as long as these singular values, over their mean.

    A step in R then moves the update more along the leading directions: a fixed preconditioner.
    """
    assert factors.R is not None
    lengths = S / S.mean()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0).reshape(factors.R.shape[:2])
    return factors._replace(B=factors.B * lengths, R=inverse[:, :, None] * factors.R)


def principal_pair(
    weight: Float[Tensor, "out in"], rank: int, *, scale: float = 1.0, generator: torch.Generator
) -> Factors:
    """scale B A is the best rank-`rank` approximation of W0, singular values shared evenly by both; no R.

    PiSSA's start (Meng et al. 2024, arXiv 2404.02948), for a layer whose update counts from there.
    """
    U, S, Vh = truncated_svd(weight, rank, generator=generator)
    root = (S / scale).sqrt()
    return Factors(B=U * root, A=root[:, None] * Vh, R=None)


def orthonormal_bases(
    out: int, n_in: int, rank: int, *, heads: int = 1, generator: torch.Generator
) -> Factors:
    """Random orthonormal bases from a seed, R = 0. Nothing is sent: the seed is enough."""
    B = orthonormal_columns(out, heads * rank, generator).contiguous()
    A = orthonormal_rows(heads * rank, n_in, generator=generator)
    return Factors(B=B, A=A, R=_zero_core(heads, rank, B.device))


def orthonormal_rows(rank: int, n_in: int, *, generator: torch.Generator) -> Float[Tensor, "rank in"]:
    """A random A with A A^T = I."""
    return orthonormal_columns(n_in, rank, generator).T.contiguous()


def orthonormal_columns(size: int, width: int, generator: torch.Generator) -> Float[Tensor, "size width"]:
    """A random Q with Q^T Q = I."""
    return _orthonormal(torch.randn(size, width, generator=generator))


def lora_factors(out: int, n_in: int, rank: int, *, generator: torch.Generator) -> Factors:
    """LoRA's start (Hu et al. 2021, arXiv 2106.09685): A Kaiming-uniform with a = sqrt(5), B = 0, no R."""
    bound = 1.0 / math.sqrt(n_in)
    A = (torch.rand(rank, n_in, generator=generator) * 2 - 1) * bound
    return Factors(B=torch.zeros(out, rank), A=A, R=None)


def truncated_svd(
    matrix: Float[Tensor, "m n"], rank: int, *, generator: torch.Generator
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k"], Float[Tensor, "k n"]]:
    """The leading `rank` singular triplets in fp32, singular values descending, signs fixed.

    Small matrices (see EXACT_SVD_UP_TO) by full SVD; large ones by randomized subspace iteration
    (Halko, Martinsson, Tropp 2011, arXiv 0909.4061) with its own generator: torch.svd_lowrank takes none.
    """
    matrix = matrix.detach().float()
    small = min(matrix.shape)
    if small <= EXACT_SVD_UP_TO or 4 * (rank + OVERSAMPLING) >= 3 * small:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        U, S, Vh = _randomized_svd(matrix, rank + OVERSAMPLING, POWER_ITERATIONS, generator)
    U, Vh = U[:, :rank], Vh[:rank]
    signs = column_signs(U)
    return (U * signs).contiguous(), S[:rank].clone(), (Vh * signs.T).contiguous()


def quick_svd(
    matrix: Float[Tensor, "m n"], rank: int, *, generator: torch.Generator
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k"], Float[Tensor, "k n"]]:
    """As `truncated_svd`, always randomized and with few iterations: for sums that are cut again later."""
    matrix = matrix.detach().float()
    width = min(rank + OVERSAMPLING, *matrix.shape)
    U, S, Vh = _randomized_svd(matrix, width, QUICK_POWER_ITERATIONS, generator)
    return U[:, :rank], S[:rank], Vh[:rank]


def _randomized_svd(
    matrix: Float[Tensor, "m n"], width: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    probe = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    Q = _orthonormal(matrix @ probe)
    for _ in range(iterations):
        Q = _orthonormal(matrix.T @ Q)
        Q = _orthonormal(matrix @ Q)
    U, S, Vh = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
    return Q @ U, S, Vh


def column_signs(U: Float[Tensor, "m k"]) -> Float[Tensor, "1 k"]:
    """The signs that make each column's largest entry positive, so that two machines agree."""
    return torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)


def _orthonormal(matrix: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    Q: Tensor = torch.linalg.qr(matrix).Q
    return Q


def _zero_core(heads: int, rank: int, device: torch.device) -> Tensor:
    return torch.zeros(heads, rank, rank, device=device)
