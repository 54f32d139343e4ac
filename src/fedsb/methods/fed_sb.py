"""Fed-SB: frozen bases B and A, clients train the core R, the server averages R.

Source: Singhal, Ponkshe, Vartak, Varshney, Vepakomma 2025, arXiv 2502.15436. Trains R. Up and down:
heads * r * r numbers per layer (and the head). Sent once: B, A, R0, unless derived by each client.
Exact for any weights and any cohort: mean(B R_i A) = B mean(R_i) A. No scale (s = 1).
"""

from __future__ import annotations

from fedsb.methods.mean import weighted_mean
from fedsb.methods.method import Method

fed_sb = Method(
    name="fed-sb",
    source="Singhal et al. 2025, arXiv 2502.15436",
    exact=True,
    trains=("R",),
    scale=lambda rank, alpha: 1.0,
    draw=None,
    aggregation=weighted_mean(),
)
