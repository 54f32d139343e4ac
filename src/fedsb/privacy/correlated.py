"""Gaussian noise of a run's steps that is correlated by a banded matrix, drawn again from a secret where a
run was stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fedsb.privacy.banded import BandedNoise
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import gaussian_like


class Correlated:
    """The noise C^-1 z of consecutive steps, of a standard deviation of z.

    Args:
        column: of C. first: the step that comes next; those before it are drawn again at the first call.
        stream: step -> its z, the same whenever it is asked for.
    """

    def __init__(self, column: Sequence[float], first: int, stream: Callable[[int], Keystream]):
        self._noise, self._first, self._stream = BandedNoise(column), first, stream

    def next(self, like: Sequence[Tensor], std: float) -> list[Tensor]:
        """The next step's noise of these shapes, in fp64."""
        while self._noise.step < self._first:
            self._noise.next(self._independent(like))
        self._first += 1
        return [std * tensor for tensor in self._noise.next(self._independent(like))]

    def _independent(self, like: Sequence[Tensor]) -> list[Tensor]:
        stream = self._stream(self._noise.step)
        return [gaussian_like(tensor, 1.0, stream) for tensor in like]
