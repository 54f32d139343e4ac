"""Sections of the config as the flat arguments of what does the work."""

from __future__ import annotations

from fedsb.common.seeding import numpy_generator
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.federation import partition
from fedsb.federation.cohort import trained_heads
from fedsb.federation.exchange import Part
from fedsb.federation.start.initialize import Start, Warmup, bases_kind
from fedsb.federation.start.robust import Robust
from fedsb.federation.training import LocalTraining
from fedsb.methods import Aggregation
from fedsb.methods.averaging.robust import NormBound, robust


def heads_of(config: RunConfig) -> int:
    """Heads of the core: the config's, or the method's own number."""
    return method_of(config).heads_of(config.method.heads)


def part_of(config: RunConfig, client: int, round_number: int) -> Part:
    """The client's rank, and the heads it trains in this round."""
    ranks, trained = config.federation.client_ranks, config.federation.client_heads
    rank = config.method.rank if ranks is None else ranks[client]
    if trained is None:
        return Part(rank)
    rng = numpy_generator(config.seed, "heads", round_number, client)
    return Part(rank, trained_heads(heads_of(config), trained[client], rng))


def robust_average(config: RunConfig) -> Aggregation:
    """The method's aggregation, over the average that federation.robust asks for."""
    own, wanted = method_of(config).aggregation, config.federation.robust
    return own if wanted is None else robust(own, wanted.average, wanted.trim)


def norm_bound(config: RunConfig) -> NormBound | None:
    """How far an update may lie from the broadcast."""
    wanted = config.federation.robust
    if wanted is None or wanted.norm_bound is None:
        return None
    return NormBound(wanted.norm_bound, wanted.over_bound)


def local_training(config: RunConfig) -> LocalTraining:
    """The config's training section as the client's flat arguments."""
    return LocalTraining(
        **config.training.model_dump(exclude={"gradient_checkpointing"}),
        rounds=config.federation.rounds,
        timeout_seconds=config.federation.client_timeout_seconds,
    )


def start_of(config: RunConfig, parts: partition.Parts) -> Start:
    """The config's method.init section as flat arguments."""
    init = config.method.init
    return Start(
        kind=init.kind,
        rule=init.rule,
        samples=init.samples,
        batch_size=init.batch_size,
        upload=init.upload,
        head_warmup=Warmup(**init.head_warmup.model_dump()) if init.head_warmup else None,
        rank=config.method.rank,
        heads=heads_of(config),
        step_size=step_size(config, parts),
        seed=config.seed,
        robust=_robust_start(config),
    )


def _robust_start(config: RunConfig) -> Robust | None:
    wanted = config.federation.robust
    return None if wanted is None else Robust(wanted.average, wanted.trim, norm_bound(config))


def step_size(config: RunConfig, parts: partition.Parts) -> float:
    """Size of the estimated first update; by default that of one step among all of a client's in the run."""
    given = config.method.init.step_size
    training, largest = local_training(config), max(len(part) for part in parts)
    steps = training.rounds * training.steps_per_round(largest)
    return training.first_learning_rate(largest) / steps if given is None else given


def needs_weights_at_server(config: RunConfig) -> bool:
    """Whether a server of clients elsewhere computes with the base model: to evaluate it, to add to its
    weights, to take bases from them, or to look at public examples through it."""
    method, init = method_of(config), config.method.init
    from_weights = method.draw is None and bases_kind(start_of(config, [[0]]), method) == "weights"
    return config.evaluation.every is not None or method.changes_base or from_weights or bool(init.public)
