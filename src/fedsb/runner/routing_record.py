"""How a finished mixture routes the test examples: routing.json, and the scores of other ways to route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from fedsb.adapter.attached import Attached, fold
from fedsb.adapter.layer import Factors, LowRankLinear
from fedsb.adapter.routing import Routing, entropies, mean_routes, noting, routing_of
from fedsb.federation.local_model import Collate
from fedsb.tasks.task import Example, batches_by_length, evaluating, length_of, model_logits

ROUTING = "routing.json"
"""In a run folder."""
UNKNOWN = "all rows"
"""Stands for the domain where examples do not say whose they are."""

Metrics = Mapping[str, float]


def knows_experts(examples: Sequence[Example]) -> bool:
    """Whether each example says which expert is its own."""
    return bool(examples) and all("expert" in example for example in examples)


def other_routings(
    attached: Attached, examples: Sequence[Example], evaluate: Callable[[nn.Module], Any]
) -> dict[str, Any]:
    """What `evaluate` gives with each example through its own expert (`oracle`; None where nobody knows
    which), and with one adapter that is the mean of all experts (`static`)."""
    scores: dict[str, Any] = {"oracle": None}
    if knows_experts(examples):
        with own_experts_alone(attached.model):
            scores["oracle"] = evaluate(attached.model)
    with mean_of_experts(attached):
        scores["static"] = evaluate(attached.model)
    return scores


@contextmanager
def own_experts_alone(model: nn.Module) -> Iterator[None]:
    """Inside the block each example goes through its own expert, whatever the gate says."""
    routing = _routing(model)
    before, routing.hard = routing.hard, True
    try:
        yield
    finally:
        routing.hard = before


@contextmanager
def mean_of_experts(attached: Attached) -> Iterator[None]:
    """Inside the block the model has, in place of its experts, the one LoRA that is their mean."""
    model, routing = attached.model, _routing(attached.model)
    for name, pair in fold(attached).items():
        base = attached.layers[name].base
        model.set_submodule(name, LowRankLinear(base, Factors(*pair, R=None), trains=()))
    del model.routing
    try:
        yield
    finally:
        for name, layer in attached.layers.items():
            model.set_submodule(name, layer)
        model.routing = routing  # type: ignore[assignment]


def _routing(model: nn.Module) -> Routing:
    routing = routing_of(model)
    if routing is None:
        raise ValueError("expected a model with a mixture on it")
    return routing


def routing_record(
    attached: Attached, examples: Sequence[Example], collate: Collate, *, batch_size: int
) -> dict[str, Any]:
    """What the gate did on these examples, as JSON values.

    experts, domains, layers: names. examples: how many of each domain. use: (domains, layers, experts) mean
    weights. entropy: of each layer, in nats. Where examples say whose they are, and else None:
    mutual_information between domain and expert, of each layer, in nats; right, the share of examples with
    most weight, over all layers, on their own expert, and right_by_layer.
    """
    routing, layers = _routing(attached.model), list(attached.layers)
    use, entropy = _measured(attached, examples, collate, batch_size)
    known = knows_experts(examples)
    expert = np.array([example["expert"] if known else 0 for example in examples])
    domains = sorted(set(expert.tolist()))
    by_domain = np.stack([use[expert == domain].mean(0) for domain in domains])
    shares = np.array([(expert == domain).mean() for domain in domains])
    return {
        "route": routing.route,
        "experts": list(routing.names),
        "domains": [routing.names[domain] if known else UNKNOWN for domain in domains],
        "layers": layers,
        "examples": [int((expert == domain).sum()) for domain in domains],
        "use": by_domain.tolist(),
        "entropy": entropy.mean(0).tolist(),
        "mutual_information": mutual_information(by_domain, shares).tolist() if known else None,
        "right": float((use.mean(1).argmax(-1) == expert).mean()) if known else None,
        "right_by_layer": (use.argmax(-1) == expert[:, None]).mean(0).tolist() if known else None,
    }


def mutual_information(use: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """I(domain; expert) of each layer, in nats.

    Args:
        use: (domains, layers, experts), what the experts' weights are in each domain.
        shares: (domains,) of the examples.
    """
    together = np.einsum("d,dle->le", shares, use)
    return _entropy(together) - np.einsum("d,dl->l", shares, _entropy(use))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.clip(p, 1e-30, None))).sum(-1)


def _measured(
    attached: Attached, examples: Sequence[Example], collate: Collate, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(examples, layers, experts) mean weights over what is routed, and (examples, layers) mean entropies."""
    model, routing = attached.model, _routing(attached.model)
    place: dict[nn.Module, int] = {layer: at for at, layer in enumerate(attached.layers.values())}
    use = np.zeros((len(examples), len(place), len(routing.names)))
    entropy, passes = np.zeros(use.shape[:2]), np.zeros(len(place))
    with evaluating(model), noting(model) as notes:
        for indices in batches_by_length([length_of(example) for example in examples], batch_size):
            notes.clear()
            passes[:] = 0
            model_logits(model, collate([examples[i] for i in indices]))
            for note in notes:
                assert routing.valid is not None
                layer, p = place[note.layer], note.p.float()
                passes[layer] += 1
                use[indices, layer] += mean_routes(p, routing.valid).cpu().numpy()
                entropy[indices, layer] += entropies(p, routing.valid).cpu().numpy()
    often = np.maximum(passes, 1)  # a layer that is shared is passed several times
    return use / often[:, None], entropy / often


def untrained_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Expert -> the rounds of metrics.jsonl in which nobody trained it."""
    rounds: dict[str, list[int]] = {}
    for line in lines:
        for name in line.get("untrained", []):
            rounds.setdefault(name, []).append(line["round"])
    return rounds
