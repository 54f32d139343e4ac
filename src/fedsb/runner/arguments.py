"""Sections of the config as the flat arguments of what does the work."""

from __future__ import annotations

from dataclasses import dataclass

from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.config.sections.federation import AutoEngine, StackedEngine
from fedsb.federation import partition
from fedsb.federation.secure.terms import Rules
from fedsb.federation.server import Weighting
from fedsb.federation.start.initialize import bases_kind
from fedsb.federation.start.robust import Robust
from fedsb.federation.start.saturation import Saturation
from fedsb.federation.start.settings import Start, Warmup
from fedsb.federation.training import LocalTraining
from fedsb.methods import Aggregation
from fedsb.methods.averaging.robust import NormBound, robust
from fedsb.methods.averaging.server_optimizer import ServerOptimizer, stepped

ALL = 2**31
"""Batches to a step: more than a round has, so that it is one step."""


def heads_of(config: RunConfig) -> int:
    """Heads of the core: the config's, or the method's own number."""
    return method_of(config).heads_of(config.method.heads)


@dataclass(frozen=True, kw_only=True)
class RoundRules:
    """What every round of a run follows.

    Attributes:
        aggregation: the method's, over the average that federation.robust asks for and the server's own step.
        norm_bound: how far an update may lie from the broadcast; None: anywhere.
        refresh_every: rounds between new bases; None: no fixed number.
        refresh_when: when new bases follow a core that has stopped moving; None: not.
        scored_after: rounds after which the model is scored; 0 is before the first.
        at_clients: whether each client is scored on rows of its own.
        on_test_rows: whether the model is scored on test rows in one place.
        secure: how updates are added up under masks; None: they are not.
    """

    rounds: int
    weighting: Weighting
    aggregation: Aggregation
    norm_bound: NormBound | None
    min_updates: int
    refresh_every: int | None
    refresh_when: Saturation | None
    scored_after: frozenset[int]
    at_clients: bool
    on_test_rows: bool
    secure: Rules | None = None


def round_rules(config: RunConfig) -> RoundRules:
    """The rules, looked up once."""
    federation, checks, method = config.federation, robust_of(config), method_of(config)
    saturation = config.method.refresh_when
    aggregation = stepped(method.aggregation, server_optimizer(config))
    if checks is not None:
        aggregation = robust(aggregation, checks.average, checks.trim)
    return RoundRules(
        rounds=federation.rounds,
        weighting=federation.weighting,
        aggregation=aggregation,
        norm_bound=checks.bound if checks else None,
        min_updates=federation.min_updates,
        refresh_every=config.method.refresh_every,
        refresh_when=Saturation(**saturation.model_dump()) if saturation else None,
        scored_after=frozenset(n for n in range(federation.rounds + 1) if config.scored_after(n)),
        at_clients=config.scores_at_clients,
        on_test_rows=config.scores_test_rows,
    )


def why_not_stacked(config: RunConfig) -> str | None:
    """What of this config makes clients train one after another, in words; None: nothing."""
    federation, method = config.federation, method_of(config)
    example = config.privacy is not None and config.privacy.unit == "example"
    owner = config.privacy is not None and config.privacy.owner is not None
    in_16_bits = config.model.dtype != "float32" or config.training.autocast is not None
    bases_train = {"A", "B"} & set(method.trains(1) + method.trains(2))
    reasons = {
        "method.experts: each row of a mixture goes to experts of its own": method.experts is not None,
        "training.packing: a packed row would hold several clients' examples": config.training.packing,
        "privacy.owner: an owner's rows are clipped as one": example and owner,
        "privacy.unit example in 16 bits: all batches must have one shape": example and in_16_bits,
        "privacy.noise shared: a client gives a sum and takes no step": config.sums_gradients,
        "privacy.unit example: the clock may not choose; take kind: stacked": (
            example and federation.engine.kind == "auto"
        ),
        "federation.client_timeout_seconds: the time of one client is not known": (
            federation.client_timeout_seconds is not None
        ),
        "federation.client_ranks: bases of several heads train": (
            federation.client_ranks is not None and heads_of(config) > 1 and bool(bases_train)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def most_in_one_pass(config: RunConfig) -> int:
    """How many clients may train together; 1: one after another."""
    federation, engine = config.federation, config.federation.engine
    if not isinstance(engine, StackedEngine | AutoEngine) or why_not_stacked(config):
        return 1
    return min(engine.clients, federation.clients_per_round or federation.clients)


def server_optimizer(config: RunConfig) -> ServerOptimizer | None:
    """The config's federation.server as the rule that it is."""
    settings = config.federation.server
    return None if settings is None else ServerOptimizer(**settings.model_dump())


def robust_of(config: RunConfig) -> Robust | None:
    """The config's federation.robust as flat arguments."""
    settings = config.federation.robust
    if settings is None:
        return None
    bound = NormBound(settings.norm_bound, settings.over_bound) if settings.norm_bound is not None else None
    return Robust(settings.average, settings.trim, bound)


def local_training(config: RunConfig) -> LocalTraining:
    """The config's training section as the client's flat arguments."""
    apart = {"gradient_checkpointing", "class_weights", "packing", "moments", "threads"}
    if config.training.max_length == "auto":  # nothing that is asked before rows are read depends on it
        apart.add("max_length")
    one_step = {"accumulation": ALL} if config.sums_gradients else {}
    return LocalTraining(
        **config.training.model_dump(exclude=apart) | one_step,
        rounds=config.federation.rounds,
        timeout_seconds=config.federation.client_timeout_seconds,
        proximal=config.federation.proximal or 0.0,
    )


def start_of(config: RunConfig, parts: partition.Parts) -> Start:
    """The config's method.init section as flat arguments."""
    init = config.method.init
    return Start(
        **init.model_dump(
            include={"kind", "rule", "samples", "batch_size", "upload", "frame", "singular_values", "ranks"}
        ),
        head_warmup=Warmup(**init.head_warmup.model_dump()) if init.head_warmup else None,
        rank=config.method.rank,
        heads=heads_of(config),
        step_size=step_size(config, parts),
        seed=config.seed,
        scale=method_of(config).scale(config.method.rank, config.method.alpha),
        robust=robust_of(config),
    )


def step_size(config: RunConfig, parts: partition.Parts) -> float:
    """Size of the estimated first update: by default the learning rate over all of a client's steps."""
    chosen = config.method.init.step_size
    training, largest = local_training(config), max(len(part) for part in parts)
    steps = training.rounds * training.steps_per_round(largest)
    return training.learning_rate / steps if chosen is None else chosen


def needs_weights_at_server(config: RunConfig) -> bool:
    """Whether a server of clients elsewhere computes with the base model: to evaluate it, to add to its
    weights, to take bases from them, or to look at public examples through it."""
    method, init = method_of(config), config.method.init
    kind = bases_kind(start_of(config, [[0]]), method)
    from_weights = method.draw is None and kind in ("weights", "principal")
    return config.scores_test_rows or method.changes_base or from_weights or bool(init.public)
