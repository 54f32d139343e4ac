"""LA-LoRA: local steps train B and A in turns, and each gets its gradient smoothed.

Source: Liu et al. 2026, arXiv 2602.19926. Trains A and B: B in a client's first, third, ... step of a
round, A in the others, so that no step has the product of two noises. What the optimizer gets is the
gradient, under privacy clipped and noised before, through the low-pass filter

    [1, 4, 6, 4, 1] / 16,    along A's inputs and along B's outputs, mirrored at both ends,

which takes more of independent noise than of a gradient that is smooth in the order of features; the order
of features means nothing in most models, and `smooth: false` leaves it out. What is done at the ends is our
choice. Smoothing what was noised costs no privacy, and a step clips and noises the factor that trains
alone. (The authors' code has no accountant, and sets its clip norm from medians of raw gradients: its
epsilon does not hold. Here both are the run's own.) Up and down: (out + in) * r numbers per layer (and the
head). Sent once: nothing. Not exact, as A and B are averaged apart: the deviation is measured each round.
Scale alpha / r.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsb.methods.fedit import fedit
from fedsb.methods.method import Method

WEIGHTS = (1.0, 4.0, 6.0, 4.0, 1.0)


def smoothed(factor: str, gradient: Tensor) -> Tensor:
    """The gradient of A (r, in) through the filter along its rows, or of B (out, r) along its columns."""
    rows = gradient if factor == "A" else gradient.T
    if rows.shape[1] < 2:
        return gradient
    weights = torch.tensor(WEIGHTS, dtype=rows.dtype, device=rows.device) / sum(WEIGHTS)
    mirrored = torch.cat([rows[:, :2].flip(1), rows, rows[:, -2:].flip(1)], 1)
    found = F.conv1d(mirrored[:, None], weights[None, None])[:, 0]
    return found if factor == "A" else found.T


def la_lora(smooth: bool = True) -> Method:
    """The method with the filter, or with steps in turns alone."""
    return fedit._replace(
        name="la-lora",
        source="Liu et al. 2026, arXiv 2602.19926",
        trains_in_step=lambda step: ("B",) if step % 2 == 0 else ("A",),
        filter_gradient=smoothed if smooth else None,
        options=la_lora,
    )


method = la_lora()
