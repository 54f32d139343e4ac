"""LoRA-XS, federated: Fed-SB over the leading singular triplets of W0, R = 0.

Source: Bałazy et al. 2024, arXiv 2405.17604 (centralized; averaging R is exact as in Fed-SB). The update is
U R (S V^T): W0's singular values stay in the factor that sees the inputs, as in the authors' code. (That code
also has LoRA's scale, and starts R at noise of 1e-5; ours has neither.) Trains R. Up and down: r * r numbers
per layer (and the head). Sent once: nothing, every party that has W0 derives the bases.
"""

from __future__ import annotations

from fedsb.methods.fed_sb import fed_sb

lora_xs = fed_sb._replace(
    name="lora-xs", source="Bałazy et al. 2024, arXiv 2405.17604", bases="weights", singular_values=True
)
