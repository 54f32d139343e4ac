"""The section `federation`: who has which rows, who takes part, and what the server does with updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from fedsb.common.printable import LONGEST_SITE, is_site_name, printable
from fedsb.config.base import Positive, Section


class IidPartition(Section):
    kind: Literal["iid"] = "iid"


class DirichletPartition(Section):
    kind: Literal["dirichlet"]
    column: str | None = None
    """The column whose values are dealt; null: the class label."""
    alpha: Annotated[float, Field(gt=0, le=1e9)] = 0.5
    """Smaller is more skewed."""
    min_size: PositiveInt = 8
    """Every client gets at least so many examples."""


class ColumnPartition(Section):
    kind: Literal["by-column"]
    column: str
    """Each client has the rows of one value, or of several; with more clients than values, the clients of a
    value share its rows."""


class ShardsPartition(Section):
    kind: Literal["shards"]
    column: str | None = None
    """The column by whose values rows are sorted; null: the class label."""
    shards_per_client: PositiveInt = 2


PartitionConfig = Annotated[
    IidPartition | DirichletPartition | ColumnPartition | ShardsPartition, Field(discriminator="kind")
]


class RayEngine(Section):
    kind: Literal["ray"]
    workers: PositiveInt
    """Processes with a base model of their own, which they keep; clients go to them in turn."""
    address: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """null: a Ray of its own on this machine, for the length of the run. auto, or HOST:PORT: a cluster whose
    machines have fedsb and see the model, the data and the run folder under the same paths."""


class RobustConfig(Section):
    """Against poisoned clients, in the start too. Needs `weighting: uniform`: how many examples a client has
    is its own claim."""

    average: Literal["mean", "median", "trimmed-mean"] = "mean"
    """In place of the mean, number by number (Yin et al. 2018, arXiv 1803.01498), for methods that average
    factors. The server then holds all updates of a round: cohort x numbers x 4 bytes."""
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """trimmed-mean: share of the updates left out at each end, one at least."""
    norm_bound: Positive | None = None
    """Largest L2 norm of update minus broadcast, over all its numbers; null: any. In the start's head warm-up
    what lies further off is scaled back."""
    over_bound: Literal["reject", "scale"] = "reject"
    """What is done with a larger one: left out with the reason, or scaled back to the bound."""


class ServerConfig(Section):
    """What the server does with the averaged update d (Reddi et al. 2021, arXiv 2003.00295), for methods that
    need nothing but the mean. `{momentum: 0}` is plain averaging."""

    optimizer: Literal["sgd", "adam", "yogi"] = "sgd"
    """sgd: a step along the momentum of d. adam, yogi: each number over the root of its d^2 so far."""
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adaptivity: Positive = 1.0e-3
    """tau of adam and yogi, beside that root: as large as the numbers' own steps, or they all move alike."""


class SecureAggregationConfig(Section):
    """The server learns the sum of a round's updates and nothing else of any one (Bonawitz et al. 2017), for
    methods that average factors. A round then has four exchanges in place of one."""

    threshold: Annotated[float, Field(gt=0.5, le=100_000)] = 0.67
    """Share of a round's clients that must stay to its end, or (above 1) how many; with fewer the round
    fails. Always more than half of them."""
    largest_change: Positive = 8.0
    """A number of an update, less what was broadcast, is cut to this magnitude and rounded to a whole
    number of steps of largest_change x clients / 2^31."""

    @field_validator("threshold")
    @classmethod
    def _a_share_or_a_count(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"expected a share of at most 1 or a whole number of clients, found {value:g}")
        return value


class SequentialEngine(Section):
    kind: Literal["sequential"] = "sequential"
    """One client after another."""


class StackedEngine(Section):
    kind: Literal["stacked"]
    """Several clients' batches go through the base model in one pass."""
    clients: PositiveInt = 16
    """The most that train together."""


class AutoEngine(Section):
    kind: Literal["auto"]
    """The faster of the two, as a few batches at the start of the run show; engine.json keeps the choice."""
    clients: PositiveInt = 16
    """The most that train together; half as many, and so on, where that does not fit into memory."""


EngineConfig = Annotated[
    SequentialEngine | StackedEngine | AutoEngine | RayEngine, Field(discriminator="kind")
]


class FederationConfig(Section):
    clients: PositiveInt = 3
    sites: list[str] | None = None
    """A name for each client, for people to read; null: the column's values where kind: by-column deals the
    rows of a run without privacy, else their numbers. Names that are that column's values get their rows."""
    clients_per_round: PositiveInt | None = None
    """How many take part in a round; null: all."""
    rounds: PositiveInt = 3
    partition: PartitionConfig = IidPartition()
    client_ranks: list[PositiveInt] | None = None
    """A rank for each client, at most method.rank; null: method.rank for all."""
    client_experts: list[NonNegativeInt] | None = None
    """The number of each client's expert, in a method with experts; null: as method.experts has it."""
    client_heads: list[PositiveInt] | None = None
    """How many heads of the core each client trains in a round (which ones is drawn again); null: all."""
    padding: Literal["all", "owners"] = "all"
    """Mixed ranks or heads: average each entry over all clients (exact), or over those that trained it."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's update in the mean; with privacy.unit: client the default is uniform."""
    processes: PositiveInt = 1
    """Simulated runs: train the clients of a round side by side in so many processes, each with a base model
    of its own: on the GPUs in turn (model.device: auto), or on a share of the cores."""
    engine: EngineConfig = SequentialEngine()
    """Simulated runs: what trains the clients of a round. sequential: this process or `processes`, one after
    another. stacked, auto: several in one pass; equal up to rounding (dropout's masks aside), and the same to
    the bit for the same engine. ray: workers of Ray (pip install 'fedsb[ray]'), on this machine or on a
    cluster; the same result as sequential."""
    proximal: Positive | None = None
    """mu of FedProx (Li et al. 2020, arXiv 1812.06127): every step of a client's is drawn back to where its
    round began by mu times the distance, beside the loss's clipped gradient; null: not."""
    control_variates: bool = False
    """SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, option II): clients correct each step by how their
    mean gradients of former rounds differ from all clients'. It doubles what travels of trained numbers, and
    each client keeps as many; training.optimizer: sgd."""
    server: ServerConfig | None = None
    """A server's step of its own along the averaged update; null: all of it."""
    upload_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the numbers of an update travel as; broadcasts are float32. 16 bits halve the upload: float16
    has 11 binary digits and ends at 65504 (more is an error), bfloat16 has 8 digits and float32's range."""
    robust: RobustConfig | None = None
    """Checks against poisoned updates; null: none."""
    secure_aggregation: SecureAggregationConfig | None = None
    """Masks that hide each client's update from the server, e.g. {threshold: 0.67}; null: none."""
    client_timeout_seconds: Positive | None = None
    """A client whose local training takes longer is left out of the round; null: no limit of its own."""
    deadline_seconds: Positive | None = 3600.0
    """Clients on other machines or in other processes: a round waits no longer than this for an answer; null:
    an hour for other machines, no limit for processes here."""
    min_updates: PositiveInt = 1
    """With fewer usable updates in a round the run stops, and can be resumed."""

    @property
    def side_by_side(self) -> int:
        """How many processes train clients at the same time; 1: this one."""
        return self.engine.workers if isinstance(self.engine, RayEngine) else self.processes

    @property
    def apart(self) -> str | None:
        """The key by which clients train in other processes than this one; None if they do not."""
        if isinstance(self.engine, RayEngine):
            return "federation.engine"
        return "federation.processes" if self.processes > 1 else None

    @field_validator("sites")
    @classmethod
    def _sites_can_be_read(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if wrong := next((name for name in value if not is_site_name(name)), None):
            raise ValueError(
                f"expected names of 1 to {LONGEST_SITE} printable characters, found {printable(wrong, 80)!r}"
            )
        if len({name.lower() for name in value}) < len(value) or "" in value:
            raise ValueError("expected a name of its own for each client, no two alike and none empty")
        return value
