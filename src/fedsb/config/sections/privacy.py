"""The section `privacy`: the unit, the budget and the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from fedsb.config.base import Positive, Section

Unit = Literal["example", "owner", "client"]
"""What is present or blanked in neighbouring data sets: a row, all rows of an owner, a client."""


class PrivacyConfig(Section):
    unit: Literal["example", "client"] = "example"
    """Whose presence is hidden: one example of a client (noise by the client), or a whole client (noise by
    the server)."""
    owner: str | None = None
    """unit: example: a column that says whose a row is, such as a patient's id. All rows of one owner at a
    client are then one unit: drawn, clipped and accounted for together. Owners that occur at several
    clients are refused where all rows are in one place; nodes cannot know, and each protects its own rows
    of such an owner.
    null: a row is a unit."""
    epsilon: Positive | None = None
    """The budget: noise is chosen for it, and a run ends where it is used up."""
    noise_multiplier: Positive | None = None
    """Noise over sensitivity; null: calibrated to epsilon."""
    delta: Positive | None = None
    """null: 1e-5, or a tenth of one over the number of units if that is less."""
    noise: Literal["each", "shared"] | None = None
    """With federation.secure_aggregation, who adds it. each: a client all that its own rows need, as without;
    the masks then hide what is noised. shared: each client a share, and a round is one step of plain SGD over
    all clients' rows, drawn by a coin of probability training.epochs each; training.optimizer: sgd. null:
    each with unit: example, shared with unit: client."""
    mechanism: Literal["independent", "banded"] = "independent"
    """Noise of each step by itself, or correlated over steps so that it cancels in their sum (banded matrix
    factorization); a unit is then drawn in every so many-th step alone. Simulated runs with
    training.optimizer: sgd and a constant or linear rate. unit: example: each client's steps; unit: client:
    the server's rounds."""
    bands: PositiveInt | Literal["auto"] | None = None
    """mechanism: banded: over how many steps noise cancels; auto, the default: what leaves the least noise in
    the sums of all steps at this budget."""
    clip_norm: Positive = 1.0
    """Largest L2 norm of one example's gradient, or of one client's update. auto: begins at 1 and follows the
    median, as `quantile: 0.5` does."""
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Let the clip norm follow this quantile of the gradients' norms in a round's steps, or of the updates'
    norms over rounds; a noised count pays for it out of the same budget. null: fixed."""
    score_noise_multiplier: Positive | None = None
    """evaluation.at_clients: noise on the counts that a client gives, over their sensitivity (the square root
    of 3); each score is one more release of the same budget. null: no client is scored."""
    honest: Annotated[float, Field(gt=0, le=1)] | None = None
    """Where clients share the noise (unit: client with federation.secure_aggregation, or noise: shared): this
    share of a round's clients, at least, stay and do not collude with the server; with fewer the round stops.
    null: as many as secure_aggregation.threshold asks for."""
    insecure_seed: int | None = None
    """For tests alone: noise that repeats. The run is then marked as not private."""
    ledger: str | None = None
    """Simulated runs: a .jsonl file that all private runs on these rows share; each is charged there too, and
    `fedsb privacy --ledger FILE` says what they cost together. null: the run's own ledger alone."""

    @model_validator(mode="before")
    @classmethod
    def _auto_is_the_median(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("clip_norm") != "auto":
            return values
        begins = {key: value for key, value in values.items() if key != "clip_norm"}
        return {**begins, "quantile": values.get("quantile") or 0.5}

    @model_validator(mode="after")
    def _some_noise(self) -> PrivacyConfig:
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("set epsilon (the noise is then calibrated) or noise_multiplier")
        return self

    @model_validator(mode="after")
    def _owners_have_rows(self) -> PrivacyConfig:
        if self.owner is not None and self.unit == "client":
            raise ValueError("owner is about the rows of a client; set unit: example, or leave owner out")
        return self

    @model_validator(mode="after")
    def _bands_of_a_band(self) -> PrivacyConfig:
        if self.mechanism == "banded":
            if self.quantile is not None:
                raise ValueError(
                    "mechanism: banded needs one clip norm for all steps; leave quantile and auto out"
                )
            return self if self.bands else self.model_copy(update={"bands": "auto"})
        if self.bands is not None:
            raise ValueError("bands are for mechanism: banded; set it, or leave bands out")
        return self

    @property
    def protects(self) -> Unit:
        """Whose presence is hidden, in a word."""
        return "owner" if self.owner is not None else self.unit

    @property
    def account_unit(self) -> str:
        """The same as ledgers have it, which keep the owners by one column apart from those by another."""
        return self.protects if self.owner is None else f"owner ({self.owner})"
