"""Which settings of a mixture of experts do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from fedsb.config.method import able_names, hard_rounds
from fedsb.config.run_config import RunConfig
from fedsb.config.sections.method import ExpertsConfig
from fedsb.methods import by_name


def expert_faults(config: RunConfig) -> Iterator[str]:
    """What is wrong with `method.experts` and `federation.client_experts`.

    Raises:
        InputError: the method is unknown.
    """
    method, experts = by_name(config.method.name), config.method.experts
    if method.experts is None:
        yield from _without_experts(config)
    elif experts is None:
        yield (
            f"method.experts: {method.name} must know whose data each expert is for; set by: COLUMN, count "
            "or folders there, or federation.client_experts with experts: {}"
        )
    else:
        if config.task.model_class == "ImageClassification":
            yield "method.experts: a gate chooses by tokens, of which images have none; take another method"
        for faults in (_sources, _of_clients, _names, _stages, _request, _losses, _not_with, _privacy):
            yield from faults(config, experts)


def _without_experts(config: RunConfig) -> Iterator[str]:
    for key in ("method.experts", "federation.client_experts"):
        if attrgetter(key)(config) is not None:
            able = able_names(lambda m: m.experts is not None)
            yield f"{key}: {config.method.name} has one core; leave it out, or take one of {able}"


def _sources(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    """Experts are named by rows, by clients, or found; folders may say what they are beside the first two."""
    named = {
        "method.experts.by": experts.by,
        "method.experts.count": experts.count,
        "federation.client_experts": config.federation.client_experts,
    }
    given = [key for key, value in named.items() if value is not None]
    if len(given) > 1:
        yield f"{' and '.join(given)}: each says which expert is whose; leave one of them"
    if not given and experts.folders is None:
        yield (
            "method.experts: nothing says which expert is whose; set by: COLUMN, count or folders, or "
            "federation.client_experts"
        )
    if experts.folders is not None and config.method.targets is not None:
        yield "method.targets: with experts from folders the layers are those they adapt; leave targets out"
    if experts.count is not None and experts.folders is not None:
        yield "method.experts.count: the folders are the experts already; leave count out"
    if experts.folders is not None and not given and experts.start == "statistics":
        yield (
            "method.experts.start: statistics need to know which rows are whose; set method.experts.by or "
            "federation.client_experts, or start: zero"
        )


def _of_clients(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    clients, assigned = config.federation.clients, config.federation.client_experts
    if experts.count is not None and experts.count > clients:
        yield f"method.experts.count: expected at most {clients}, the clients, found {experts.count}"
    if assigned is None:
        return
    if len(assigned) != clients:
        yield (
            f"federation.client_experts: expected {clients} numbers, one for each of federation.clients, "
            f"found {len(assigned)}"
        )
    count = _known_count(config, experts) or max(assigned) + 1
    if count < 2:
        yield (
            "federation.client_experts: one expert is one core; give clients two or more, or take a method "
            "without experts"
        )
    held = set(assigned)
    idle = next((expert for expert in range(count) if expert not in held), None)
    if idle is not None:
        yield f"federation.client_experts: nobody holds expert {idle} of {count}; each needs a client"
    if beyond := [expert for expert in assigned if expert >= count]:
        yield f"federation.client_experts: expected numbers from 0 to {count - 1}, found {max(beyond)}"


def _known_count(config: RunConfig, experts: ExpertsConfig) -> int | None:
    """How many experts there are, if the config alone says."""
    if experts.folders is not None:
        return len(experts.folders)
    if experts.names is not None:
        return len(experts.names)
    return experts.count


def _names(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    names = experts.names
    if names is None:
        return
    if len(set(names)) < len(names):
        yield f"method.experts.names: expected every expert once, found {names}"
    if experts.count is not None or experts.folders is not None:
        yield "method.experts.names: groups that are found are numbered, folders are named; leave names out"


def _stages(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    rounds, number = config.federation.rounds, experts.hard_rounds
    if number is not None and number > rounds:
        yield f"method.experts.hard_rounds: expected at most {rounds}, federation.rounds, found {number}"
    if experts.folders is not None and number:
        yield "method.experts.hard_rounds: experts from folders stay as they are; leave hard_rounds out"
    if experts.folders is not None and experts.train == "both":
        yield "method.experts.train: experts from folders stay as they are; set train: router"
    if experts.count is not None and experts.warmup_rounds > hard_rounds(config):
        yield (
            f"method.experts.warmup_rounds: expected at most {hard_rounds(config)}, the hard rounds, found "
            f"{experts.warmup_rounds}"
        )
    count = _known_count(config, experts)
    if count is not None and experts.top_k is not None and experts.top_k > count:
        yield f"method.experts.top_k: expected at most {count}, the experts, found {experts.top_k}"


def _request(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    if experts.route != "request":
        return
    for key, needed in (("start", "statistics"), ("train", "router"), ("hard_rounds", None), ("top_k", None)):
        if getattr(experts, key) != needed:
            word = "null" if needed is None else needed
            yield (
                f"method.experts.{key}: with route: request one expert works for all layers, and its gate is "
                f"made of sums and not trained; set {key}: {word}"
            )
    if experts.folders is not None:
        yield "method.experts.route: request would train nothing with folders; take sequence or token"


def _losses(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    for key, weight in experts.terms.items():
        if weight and experts.route == "request":
            yield f"method.experts.{key}: with route: request no gate is trained; leave it at 0"
        if weight and key != "keep" and config.training.gradient_checkpointing:
            yield (
                f"method.experts.{key}: its gradient is lost in training.gradient_checkpointing; leave one "
                "of the two out"
            )
    if experts.keep and experts.train == "router":
        yield "method.experts.keep: with train: router the cores stay as they are; leave it at 0"


def _not_with(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    federation = config.federation
    others = {
        "method.heads": (config.method.heads or 1) > 1,
        config.method.refreshes or "": config.method.refreshes is not None,
        "federation.client_ranks": federation.client_ranks is not None,
        "federation.client_heads": federation.client_heads is not None,
    }
    for key, given in others.items():
        if given:
            yield f"{key}: not with method.experts, of which not every client has every one; leave it out"
    if federation.apart:
        yield f"{federation.apart}: with method.experts clients train in one process; leave it out"


def _privacy(config: RunConfig, experts: ExpertsConfig) -> Iterator[str]:
    privacy = config.privacy
    if privacy is None:
        return
    if privacy.unit == "client":
        return  # refused with every method that is no plain mean
    if experts.start == "statistics":
        yield "method.experts.start: statistics are sums over private rows without noise; set start: zero"
    if experts.count is not None:
        yield (
            "method.experts.count: groups are found by looking at single clients' cores; set "
            "method.experts.by or federation.client_experts"
        )
    for key in ("balance", "keep"):
        if getattr(experts, key):
            why = (
                "tell how private rows were routed"
                if key == "balance"
                else "go past the clipping of examples"
            )
            yield f"method.experts.{key}: it would {why}; leave it at 0 with privacy"
