"""LoRAs made apart as cores over shared bases: exact at full rank, cut to what matters most at a lower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fedsb.adapter.layer import LoraPair


class SharedCores(NamedTuple):
    """The LoRAs of one layer as B R_e A.

    Attributes:
        whole: the squared Frobenius norm of each LoRA's update.
        kept: that of what the rank keeps of it.
    """

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in"]
    R: Float[Tensor, "experts r r"]
    whole: Float[Tensor, "experts"]
    kept: Float[Tensor, "experts"]


def full_rank(pairs: Sequence[LoraPair | None]) -> int:
    """The rank at which `cores_from_pairs` loses nothing of these LoRAs of one layer."""
    present = [pair for pair in pairs if pair is not None]
    widest = max((max(pair.B.shape[0], pair.A.shape[1]) for pair in present), default=0)
    return min(sum(pair.A.shape[0] for pair in present), widest)


def cores_from_pairs(pairs: Sequence[LoraPair | None], rank: int) -> SharedCores:
    """Orthonormal B and A that span the LoRAs of one layer, and of each its core; None has a core of zeros.

    R_e = S_B[:, e] S_A[:, e]', where S_B and S_A are the triangles of the QR of [B_1 ... B_E] and of
    [A_1; ...; A_E]'. A lower rank keeps the leading singular vectors of the cores beside and below each other
    (HOSVD, De Lathauwer et al. 2000); a higher one is filled with zeros.

    Raises:
        ValueError: all are None.
    """
    present = [pair for pair in pairs if pair is not None]
    if not present:
        raise ValueError("expected at least one LoRA of this layer")
    B, S_B = torch.linalg.qr(torch.cat([pair.B for pair in present], 1).double())
    A, S_A = torch.linalg.qr(torch.cat([pair.A for pair in present]).double().T)
    whole = _cores(pairs, S_B, S_A)
    U, V = _leading(whole, rank)
    R = U.T @ whole @ V
    short_B, short_A = rank - R.shape[1], rank - R.shape[2]
    return SharedCores(
        F.pad(B @ U, (0, short_B)).float(),
        F.pad((A @ V).T, (0, 0, 0, short_A)).float(),
        F.pad(R, (0, short_A, 0, short_B)).float(),
        whole.square().sum((1, 2)),
        R.square().sum((1, 2)),
    )


def share_lost(cores: Iterable[SharedCores]) -> Float[Tensor, "experts"]:
    """The share of each LoRA's update, over these layers, that the rank leaves out, in Frobenius norm."""
    layers = list(cores)
    whole = torch.stack([layer.whole for layer in layers]).sum(0)
    kept = torch.stack([layer.kept for layer in layers]).sum(0)
    return (1 - kept / whole.clamp(min=1e-300)).clamp(0, 1).sqrt() * (whole > 0)


def _cores(pairs: Sequence[LoraPair | None], S_B: Tensor, S_A: Tensor) -> Float[Tensor, "experts kB kA"]:
    """Each pair's product of its own columns of the two triangles."""
    cores, at = [], 0
    for pair in pairs:
        here = slice(at, at + (0 if pair is None else pair.A.shape[0]))
        cores.append(S_B[:, here] @ S_A[:, here].T)
        at = here.stop
    return torch.stack(cores)


def _leading(cores: Float[Tensor, "experts kB kA"], rank: int) -> tuple[Tensor, Tensor]:
    """Columns that map to the most of the cores at this rank, on either side."""
    _, k_B, k_A = cores.shape
    U = torch.eye(k_B).double() if rank >= k_B else torch.linalg.svd(cores.transpose(0, 1).flatten(1)).U
    V = torch.eye(k_A).double() if rank >= k_A else torch.linalg.svd(cores.flatten(0, 1)).Vh.T
    return U[:, :rank], V[:, :rank]
