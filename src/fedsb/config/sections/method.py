"""The section `method`: the method, its sizes, its start and its experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from fedsb.config.base import NonNegative, Positive, Section

NonEmpty = Annotated[list[str], Field(min_length=1)]


class HeadWarmupConfig(Section):
    rounds: PositiveInt = 3
    """Averaging rounds of the head alone."""
    steps: PositiveInt = 30
    """Full-batch AdamW steps per round on each client's cached features."""
    learning_rate: Positive = 0.01


class InitConfig(Section):
    kind: Literal["gradient", "weights", "orthonormal"] = "gradient"
    """gradient: SVD of the first update (LoRA-SB). weights: SVD of W0 (LoRA-XS), the default with privacy.
    orthonormal: a seed."""
    from_run: str | None = None
    """Folder of a finished run of the same method, rank, targets and base: start with its factors and head as
    they ended; the other keys here are then for `refresh_every` and `refresh_when` alone."""
    public: str | None = None
    """A file (or hub id) of rows that need no protection: gradient and head warm-up look at these alone."""
    private: bool = False
    """gradient, with privacy.unit example: SVD of a clipped and noised sum; no use of `rule` and `upload`."""
    budget_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """private: the epsilon that the start may spend, as a share of privacy.epsilon."""
    samples: PositiveInt = 1024
    """Calibration examples over all clients together, drawn equally from each."""
    rule: Literal["sign", "raw", "moments"] = "sign"
    """sign: AdamW's first step. raw: SGD's. moments: where small-batch gradients move at all; R0 = 0."""
    upload: Literal["factors", "sketch", "whole"] = "factors"
    """sign and raw: what a client sends of its gradient: its best factors of the bases' rank; a sketch, of
    which the server needs only the sum over clients; or all."""
    ranks: Literal["equal", "spectrum"] = "equal"
    """gradient by sign or raw: method.rank for every layer; or more (up to twice) for layers whose singular
    values fall slowly and less (down to a quarter) for others, at no more numbers a round."""
    step_size: NonNegative | None = None
    """Learning rate of the estimated update, so the size of R0; null: training.learning_rate over the
    steps of the run; 0: R0 = 0."""
    frame: Literal["singular", "random"] = "singular"
    """Of a core's bases: singular vectors as they are, or both turned by random rotations from the seed: the
    same subspaces, traffic and exactness, and another path for Adam."""
    singular_values: bool = False
    """kind: weights: let B's columns be as long as W0's singular values over their mean, so that steps of the
    core go further along leading directions (lora-xs has them as they are, in A)."""
    batch_size: PositiveInt = 32
    """Examples per backward pass of the estimate; changes memory and speed, hardly the result."""
    head_warmup: HeadWarmupConfig | None = HeadWarmupConfig()
    """Train a fresh classification head on cached features first; null, the default with privacy: do not."""


class ExpertsConfig(Section):
    """The experts of a method that mixes several cores: whose data each is for, and what chooses."""

    by: str | None = None
    """Column of the rows that names each row's expert; clients hold the experts of their rows."""
    count: Annotated[int, Field(ge=2)] | None = None
    """Find so many groups of clients by their cores, after `warmup_rounds` in which all train one."""
    warmup_rounds: PositiveInt = 1
    """count: rounds before the groups are found; they count as hard rounds."""
    folders: Annotated[dict[str, str], Field(min_length=2)] | None = None
    """Name -> folder of a PEFT LoRA: experts from elsewhere, which stay as they are."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """by, client_experts: the experts in the order of their numbers; null: the training rows' values, sorted,
    or the numbers. Parties that keep their rows to themselves must agree on them here."""
    hard_rounds: NonNegativeInt | None = None
    """Rounds in which each example trains its own expert alone, before the gate; null: all but two."""
    train: Literal["router", "both"] = "router"
    """In the rounds after: the gate, or the gate and the experts."""
    route: Literal["sequence", "token", "request"] = "sequence"
    """Each layer's gate chooses by a sequence's mean (of a prompt, where there is one) or by each token;
    request: one gate over the base's states chooses one expert for all layers, as servers of LoRAs do."""
    start: Literal["statistics", "zero"] = "statistics"
    """The gate after the hard rounds: a linear discriminant made of sums over the clients' rows, or zero."""
    top_k: PositiveInt | None = None
    """Outside training: mix only so many experts; null: all."""
    entropy: float = 0.0
    """Weight of the routes' entropy in the loss: above 0 sharpens them, below 0 flattens them."""
    balance: NonNegative = 0.0
    """Weight of a loss against experts that the federation used much in the last round."""
    keep: NonNegative = 0.0
    """train: both: weight of the squared distance from the cores of the hard rounds."""

    @field_validator("names", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        return [str(name) for name in value] if isinstance(value, list) else value

    @property
    def terms(self) -> dict[str, float]:
        """What the gate rounds add to the loss."""
        return {"entropy": self.entropy, "balance": self.balance, "keep": self.keep}


class RefreshWhenConfig(Section):
    """New bases once the averaged core has nearly stopped: after a round whose change of it, over the sum of
    a client's learning rates in that round, is small."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Below this share of the largest such change since the bases began, they are replaced."""
    least_rounds: PositiveInt = 3
    """So many rounds are played over the same bases at least."""


class MethodConfig(Section):
    name: str = "fed-sb"
    rank: PositiveInt = 64
    """Rank of the factors; with several heads, of one head."""
    heads: PositiveInt | None = None
    """Blocks of the core, each rank x rank, over bases of rank heads * rank; null: the method's own."""
    refresh_every: PositiveInt | None = None
    """Fold B R A into the base after so many rounds and start new bases from a new estimate; null: never."""
    refresh_when: RefreshWhenConfig | None = None
    """The same when the core has nearly stopped moving, e.g. {share: 0.5}, in place of a period."""
    residual_rank: PositiveInt | None = None
    """Rank kept of the residual, for a method that sends one; null: all of it, which is exact."""
    alpha: Positive | None = None
    """LoRA's alpha of the baselines (scale alpha / rank; null: scale 1). Fed-SB has none."""
    targets: Literal["all-linear", "attention", "mlp"] | NonEmpty | None = None
    """Names of layers to adapt (endings will do); null: the model family's default; all-linear: every linear
    layer of the repeated blocks; attention, mlp: those of one kind."""
    options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Keys that this method alone has, where it has any."""
    personal: bool = False
    """Give each client a core of its own besides the shared one: it trains in the same steps, never leaves
    the client, and goes on there in its next round. Of methods that train one core."""
    experts: ExpertsConfig | None = None
    """Several cores and what chooses between them; null: one core."""
    init: InitConfig = InitConfig()

    @property
    def refreshes(self) -> str | None:
        """The key by which bases are replaced during the run; None if they stay."""
        keys = ("refresh_every", "refresh_when")
        return next((f"method.{key}" for key in keys if getattr(self, key) is not None), None)
