"""LoRA-XS, federated: Fed-SB over the leading singular vectors of W0, R = 0.

Source: Bałazy et al. 2024, arXiv 2405.17604 (centralized; averaging R is exact as in Fed-SB). Trains R. Up
and down: r * r numbers per layer (and the head). Sent once: nothing, every party that has W0 derives the
bases. LoRA-XS keeps W0's singular values in one factor; here both are orthonormal, as Fed-SB's are.
"""

from __future__ import annotations

from fedsb.methods.fed_sb import fed_sb

lora_xs = fed_sb._replace(name="lora-xs", source="Bałazy et al. 2024, arXiv 2405.17604", bases="weights")
