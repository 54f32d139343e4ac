"""A round's average under client-level DP: updates clipped, summed, noised once, divided by a fixed number.

    upload - broadcast -> clipped -> sum over the cohort -> + noise -> / expected cohort -> + broadcast

Clients that drop out or are rejected add nothing: the sum's sensitivity, the noise and the divisor stay, and
so does epsilon. Weights are equal. Works for methods that average their factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsb.methods.method import (
    Aggregation,
    AggregationInputs,
    Averaged,
    Upload,
    aggregate_one,
    current_vector,
)
from fedsb.privacy.clipping import ClippedSum
from fedsb.privacy.noise import NoiseSource, gaussian_like, standard_normals
from fedsb.privacy.plan import ClientPlan


@dataclass
class ClientRelease:
    """One round's release.

    Attributes:
        next_clip_norm: of the round after this one, known when the release is made.
    """

    plan: ClientPlan
    clip_norm: float
    noise: NoiseSource
    round: int
    next_clip_norm: float = 0.0

    def wrap(self, aggregation: Aggregation) -> Aggregation:
        """The method's aggregation, fed the one noised mean in place of the uploads."""

        def start(frame: AggregationInputs) -> _Sum:
            current = current_vector(frame).double()
            return _Sum(frame, current, ClippedSum(current.numel(), self.clip_norm))

        def add(total: _Sum, upload: Upload) -> _Sum:
            total.clipped.add(upload.vector.double() - total.current)
            return total

        def finish(total: _Sum) -> Averaged:
            vector = (total.current + self.noised_mean(total.clipped)).float()
            return aggregate_one(aggregation, vector, total.frame)

        return Aggregation(start, add, finish)

    def noised_mean(self, clipped: ClippedSum) -> Tensor:
        """The release; it sets the next round's clip norm."""
        plan, stream = self.plan, self.noise.stream("clients", self.round)
        std = plan.update_noise_multiplier * clipped.sensitivity if plan.update_noise_multiplier else 0.0
        noised = clipped.total + gaussian_like(clipped.total, std, stream)
        count_noise = plan.count_noise_std * standard_normals(1, stream).item()
        count = clipped.count_within - clipped.count / 2 + count_noise
        share = count / plan.expected_cohort + 0.5
        self.next_clip_norm = plan.next_clip_norm(self.clip_norm, share)
        return noised / plan.expected_cohort


@dataclass
class _Sum:
    frame: AggregationInputs
    current: Tensor
    clipped: ClippedSum
