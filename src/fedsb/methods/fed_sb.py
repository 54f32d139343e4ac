"""Fed-SB: frozen bases B and A, clients train the core R, the server averages R.

Source: Singhal, Ponkshe, Vartak, Varshney, Vepakomma 2025, arXiv 2502.15436. Trains R. Up and down:
heads * r * r numbers per layer (and the head). Sent once: B, A, R0, unless derived by each client.
Exact for any weights and any cohort: mean(B R_i A) = B mean(R_i) A. No scale (s = 1). Several heads:
block-diagonal R over bases of rank heads * r, the shape of RAVAN with Fed-SB's bases. A client of rank r_i
owns the leading r_i x r_i block of each head. With cores of the clients' own, client i trains R and P_i at
R + P_i, sends R and keeps P_i: mean(B R_i A) = B mean(R_i) A as before, and its model is B (R + P_i) A.
"""

from __future__ import annotations

from fedsb.methods.averaging.mean import weighted_mean
from fedsb.methods.method import Counts, Method, Shape, always, no_scale


def core_cost(shape: Shape, rank: int, heads: int, cohort: int) -> Counts:
    """heads * rank^2, whatever the layer and the cohort."""
    numbers = heads * rank * rank
    return Counts(numbers, numbers, numbers, numbers)


fed_sb = Method(
    name="fed-sb",
    source="Singhal et al. 2025, arXiv 2502.15436",
    exact=True,
    trains=always("R"),
    sends=("R",),
    scale=no_scale,
    aggregation=weighted_mean(),
    cost=core_cost,
    mixed_ranks=True,
    personal=True,
)
