"""LoRA-FAIR: A and B averaged apart, and B corrected by what brings B A nearest to the mean product.

Source: Bian et al. 2024, arXiv 2411.14961. Trains A and B. With A and B the means, the server adds to B

    dB = argmin ||mean(B_i A_i) - (B + dB) A||_F^2 + penalty ||dB||_F^2
       = (mean(B_i A_i) - B A) A^T (A A^T + penalty I)^-1

and broadcasts A and B + dB, from which everybody goes on. The paper's code finds dB by gradient descent on
a cosine similarity, a form that has no closed solution; the Frobenius form, which is its equation read
plainly, has this one: r x r systems and nothing of out x in. The penalty of 0.01 is the paper's. Up and
down: (out + in) * r numbers per layer (and the head). Sent once: nothing. Not exact: what of the mean
product lies outside the rows of A is left out, and is measured each round. Scale alpha / r.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fedsb.adapter import LoraPair
from fedsb.methods.averaging.covariance import Covariance, MeansAndCovariances
from fedsb.methods.fedit import fedit
from fedsb.methods.method import Aggregation, Averaged, Method, check_option


def correction(covariance: Covariance, A: Float[Tensor, "r in"], penalty: float) -> Float[Tensor, "out r"]:
    """dB of one layer, in fp64."""
    residual = covariance.residual(1.0)
    if isinstance(residual, LoraPair):
        on_A = residual.B.double() @ (residual.A.double() @ A.T)
    else:
        on_A = residual.double() @ A.T
    gram = A @ A.T + penalty * torch.eye(len(A), dtype=A.dtype)
    found: Tensor = torch.linalg.solve(gram, on_A.T).T
    return found


def lora_fair(penalty: float = 0.01) -> Method:
    """The method with this penalty on the correction's squared norm."""
    check_option("penalty", penalty, 1e-9, math.inf)

    def finish(sums: MeansAndCovariances) -> Averaged:
        tensors, left, whole = sums.sums.mean(), 0.0, 0.0
        for layer, covariance in sums.covariances.items():
            A = tensors[f"{layer}.A"].double()
            dB = correction(covariance, A, penalty)
            left += covariance.squared_norm(LoraPair(-dB, A))
            whole += covariance.squared_norms()[1]
            tensors[f"{layer}.B"] = (tensors[f"{layer}.B"].double() + dB).float()
        return Averaged(tensors, deviation=math.sqrt(left / whole) if whole > 0 else 0.0)

    return fedit._replace(
        name="lora-fair",
        source="Bian et al. 2024, arXiv 2411.14961",
        aggregation=Aggregation(MeansAndCovariances, MeansAndCovariances.add, finish),
        averages=False,
        options=lora_fair,
    )


method = lora_fair()
