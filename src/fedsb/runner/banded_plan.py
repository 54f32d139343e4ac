"""How the noise of a config with `privacy.mechanism: banded` is correlated over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from fedsb.config import RunConfig
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.errors import InputError
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.banded import chosen_column
from fedsb.privacy.calibration import rough_noise
from fedsb.privacy.plan import ClientPlan, ExamplePlan

Plan = TypeVar("Plan", ExamplePlan, ClientPlan)


def banded_column(
    config: RunConfig,
    settings: PrivacyConfig,
    plan: ExamplePlan | ClientPlan,
    steps: int,
    delta: float,
    beside: Sequence[Mechanism] = (),
) -> tuple[float, ...]:
    """The first column of the plan's matrix.

    Args:
        steps: noisy ones of the whole run. beside: what else is charged to the same budget.

    Raises:
        InputError: more bands than steps, or so many that a unit would be in every batch that it may be in.
    """
    most = max(1, int(1 / plan.sampling_probability))
    bands = None if settings.bands == "auto" else settings.bands
    if bands is not None and bands > steps:
        raise InputError(
            f"privacy.bands: {bands} is more than the {steps} noisy steps of the run; take at most "
            f"{steps}, or auto"
        )
    if bands is not None and bands > most:
        raise InputError(
            f"privacy.bands: with {bands} a unit would be in every batch that it may be in; batches this "
            "large "
            f"allow {most} at most; take fewer, or auto"
        )

    def noise_of(count: int) -> float:
        if settings.epsilon is None or settings.noise_multiplier:
            return settings.noise_multiplier or 1.0
        of_bands = replace(plan, column=(1.0,) + (0.0,) * (count - 1))
        spent = settings.epsilon

        def at(noise: float) -> list[Mechanism]:
            return [*beside, replace(of_bands, noise_multiplier=noise).whole]

        return rough_noise(spent, delta, at)

    return chosen_column(steps, most, noise_of, bands)
