"""The settings of a start: one record, of which every step takes what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedsb.adapter.update_estimate import Rule
from fedsb.federation.secure.terms import Rules
from fedsb.federation.start.robust import Robust
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.plan import StartPlan


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Head warm-up: fields as in the config's `method.init.head_warmup`."""

    rounds: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class PrivateStart:
    """How clients protect what they send: a plan for each, noise, and who is told before a sum leaves.

    Attributes:
        repeats: how often each client's sum was charged before; every time has a sample of its own.
        samples: (purpose, ...) -> the secret stream behind a Poisson sample.
        max_length: tokens of every row, where batches must have one shape.
    """

    plans: Mapping[int, StartPlan]
    noise: NoiseSource
    charge: Callable[[int], None]
    repeats: Mapping[int, int]
    samples: Callable[..., Keystream]
    max_length: int

    def sample(self, client: int) -> list[int]:
        """Which of the client's own examples are looked at."""
        return self.plans[client].sample(self.samples("private start", client, self.repeats[client]))


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the factors start: fields as in the config's `method` and `method.init`."""

    kind: str = "gradient"
    rule: Rule | Literal["moments"]
    samples: int = 1024
    batch_size: int
    upload: Literal["factors", "sketch", "whole"] = "factors"
    head_warmup: Warmup | None = None
    rank: int
    heads: int = 1
    ranks: Literal["equal", "spectrum"] = "equal"
    """Whether every layer has this rank, or one of its own from its singular values."""
    step_size: float
    """Learning rate of the estimated update: the size of R0."""
    seed: int
    scale: float = 1.0
    """s of the update s B A, by which factors of W0 are divided."""
    frame: Literal["singular", "random"] = "singular"
    """In which frame of their subspaces B and A are."""
    singular_values: bool = False
    """Whether B's columns are as long as singular values, over their mean."""
    private: PrivateStart | None = None
    robust: Robust | None = None
    """What is done against clients that want to spoil the start; None: nothing."""
    secure: Rules | None = None
    """How what clients send is added up under masks; None: the server adds it as it is."""
