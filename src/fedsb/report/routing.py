"""How a mixture's experts were used: scores of other routings, domain by expert, by layer, how decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedsb.report import facts
from fedsb.report.canvas import Plot
from fedsb.report.load import Run, mapping, number, sequence
from fedsb.report.markup import numbers, paragraph, table, texts
from fedsb.report.metrics import describe, show
from fedsb.report.plots import Curve, Span, Ticks, curves, heat
from fedsb.report.units import DASH, THIN, decimal, percent, plural

SAID = {
    "routed": "the model as it is used: the gate chooses",
    "oracle": "each row through its own expert: what a perfect gate would give",
    "static": "one adapter, the mean of the experts (adapter/): not the model that was trained",
}
MOST_CELLS = 4_000
EXACT = 1e-6
"""Share of an update that is nothing but rounding."""


class Use(NamedTuple):
    """routing.json as far as it can be drawn: of each domain and layer the mean weight of each expert."""

    domains: list[str]
    experts: list[str]
    layers: list[str]
    shares: list[list[list[float]]]


def use_of(run: Run) -> Use | None:
    """None where the run has no mixture, or the file is not whole."""
    domains, experts, layers = (
        list(map(str, sequence(run.routing.get(key)))) for key in ("domains", "experts", "layers")
    )
    shares = [[_numbers(layer) for layer in sequence(domain)] for domain in sequence(run.routing.get("use"))]
    widths = [[len(layer) for layer in domain] for domain in shares]
    if not (domains and experts and layers and widths == [[len(experts)] * len(layers)] * len(domains)):
        return None
    return Use(domains, experts, layers, shares)


def _numbers(values: object) -> list[float]:
    return [v for value in sequence(values) if (v := number(value)) is not None and math.isfinite(v)]


def plots_of(run: Run, name: str) -> list[Plot]:
    """Domain by expert over all layers, the same by layer, and how decided each layer's gate is."""
    use = use_of(run)
    if use is None:
        return []
    return [plot for plot in (_domains(use, name), _layers(use, name), _decided(run, use, name)) if plot]


def _domains(use: Use, name: str) -> Plot | None:
    if len(use.domains) * len(use.experts) > MOST_CELLS:
        return None
    mean = [[sum(layer[e] for layer in d) / len(d) for e in range(len(use.experts))] for d in use.shares]
    down, across = Ticks("domain", use.domains), Ticks("expert", use.experts)
    return heat("Experts used, by domain", down, across, mean, name=f"{name}-use")


def _layers(use: Use, name: str) -> Plot | None:
    """Layers down; across, of each domain, the experts side by side."""
    width = len(use.experts)
    rows = [[share for domain in use.shares for share in domain[at]] for at in range(len(use.layers))]
    if len(rows) < 2 or len(rows) * len(rows[0]) > MOST_CELLS:
        return None
    middles = [at * width + (width - 1) / 2 for at in range(len(use.domains))]
    down = Ticks("layer", [str(at) for at in range(len(rows))])
    plot = heat(
        "Experts used, by layer", down, Ticks("domain", use.domains, middles), rows, name=f"{name}-layers"
    )
    order = f"Of each domain, from left to right: {', '.join(use.experts)}."
    return plot._replace(note=f"{order} The deeper the colour, the more weight, from 0 to 100{THIN}%.")


def _decided(run: Run, use: Use, name: str) -> Plot | None:
    """Entropy of the weights over the largest there can be."""
    most = math.log(len(use.experts)) or 1.0
    points = [(at, value / most) for at, value in enumerate(_numbers(run.routing.get("entropy")))]
    note = "0: one expert has all the weight; 1: all experts the same."
    span = Span("layer", "share of the largest", lambda value: decimal(round(value, 4)), zero=True)
    return curves(
        "Entropy of the weights, by layer", [Curve("entropy", points, 4)], span, name=f"{name}-h", note=note
    )


def scores(run: Run) -> str:
    """Routed, oracle and static beside each other; empty without a mixture."""
    measured = mapping(run.routing.get("scores"))
    rows = [_row(run, kind, mapping(measured.get(kind))) for kind in SAID if kind in measured]
    if not rows:
        return ""
    titles = [describe(name).title.lower() for name in facts.metric_names(run)]
    note = paragraph(text, "note") if (text := _sentences(run.routing)) else ""
    return (
        table("Scores by routing", [*texts("routing"), *numbers(*titles), *texts("what it is")], rows) + note
    )


def _row(run: Run, kind: str, measured: Mapping[str, Any]) -> list[str]:
    values = [show(name, number(measured.get(name))) for name in facts.metric_names(run)]
    return [kind, *values, SAID[kind] if measured else f"{DASH} (the test rows do not say whose they are)"]


def _sentences(routing: Mapping[str, Any]) -> str:
    """What else there is to say, in sentences."""
    sentences = []
    if (right := number(routing.get("right"))) is not None:
        sentences.append(f"The gate gave {percent(right)} of the test rows most weight on their own expert.")
    if lost := {
        name: v for name, value in mapping(routing.get("lost")).items() if (v := number(value) or 0) > EXACT
    }:
        each = ", ".join(f"{name} {percent(value)}" for name, value in lost.items())
        sentences.append(f"Imported at a lower rank, the experts lost, of their updates' norm: {each}.")
    if untrained := mapping(routing.get("untrained")):
        sentences.append(f"Without an owner: {_rounds(untrained)}.")
    return " ".join(sentences)


def _rounds(untrained: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} in {plural(len(sequence(rounds)), 'round')}" for name, rounds in untrained.items()
    )
