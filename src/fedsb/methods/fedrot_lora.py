"""FedRot-LoRA: each client turns its pair B_i, A_i to lie like the broadcast one before both are averaged.

Source: Zhang et al. 2026, arXiv 2602.23638. Trains A and B. With Q a rotation of the r directions

    B_i A_i = (B_i Q)(Q^T A_i),    Q = argmin ||Q^T A_i - A||_F in odd rounds, ||B_i Q - B||_F in even ones

(orthogonal Procrustes, Schönemann 1966), and of the way from I to that Q only a share is gone: the rotation
closest to (1 - rotation) I + rotation Q. The client's model stays as it is; what changes is how much the
mean of the factors misses the mean of the products. Up and down: (out + in) * r numbers per layer (and the
head). Sent once: nothing. Not exact: the deviation is measured each round. Scale alpha / r. The paper's
shares are 0.4 to 0.6; ours is 0.5. Where a factor of the broadcast is zero, as B is before the first round,
nothing turns. Rounds count from 1, as in the authors' example; their trainer counts from 0 and turns nothing
in its first round.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.methods.fedit import fedit
from fedsb.methods.method import Method, Named, UploadInputs, check_option


def nearest_rotation(matrix: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """The rotation (determinant 1) closest to a matrix in Frobenius norm; I for a matrix of zeros."""
    if not matrix.any():
        return torch.eye(len(matrix), dtype=matrix.dtype)
    U, _, Vh = torch.linalg.svd(matrix)
    U[:, -1] *= torch.linalg.det(
        U @ Vh
    ).sign()  # else a reflection, of which no part of the way is a rotation
    rotation: Tensor = U @ Vh
    return rotation


def fedrot_lora(rotation: float = 0.5) -> Method:
    """The method with this share of the way to the aligning rotation: 0 is FedIT, 1 all of it."""
    check_option("rotation", rotation, 0.0, 1.0)

    def turned(trained: Named, inputs: UploadInputs) -> Named:
        B, A, before = trained["B"], trained["A"], inputs.before
        overlap = A @ before["A"].T if inputs.round_number % 2 == 1 else B.T @ before["B"]
        Q = nearest_rotation(overlap.double().cpu())
        Q = nearest_rotation((1 - rotation) * torch.eye(len(Q), dtype=Q.dtype) + rotation * Q).to(A)
        return {"A": Q.T @ A, "B": B @ Q}

    return fedit._replace(
        name="fedrot-lora",
        source="Zhang et al. 2026, arXiv 2602.23638",
        finish_upload=turned,
        options=fedrot_lora,
    )


method = fedrot_lora()
