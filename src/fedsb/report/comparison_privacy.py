"""What a comparison may say of privacy: each run's guarantee alone, and that all together spend more."""

from collections.abc import Mapping
from typing import Any

from fedsb.report.load import mapping, number, sequence
from fedsb.report.units import plural, rounded_up

UNITS = {"example": "one example of a client", "client": "one whole client"}


def privacy_sentence(content: Mapping[str, Any]) -> str:
    """Of the document in comparison.json; empty if no run asked for privacy."""
    runs = [mapping(run) for run in sequence(content.get("runs"))]
    stated = [mapping(run.get("privacy")) for run in runs]
    if not any(stated):
        return ""
    private = [claim for claim in stated if claim.get("private")]
    if not private:
        return "No run is private: the noise came from a fixed seed."
    who = "Each run alone is"
    if len(private) < len(runs):
        who = f"Of {plural(len(runs), 'run')}, {len(private)} alone {'is' if len(private) == 1 else 'are'}"
    together = " All of them together, on the same data, spend more." if len(private) > 1 else ""
    return f"{who} differentially private, {_bound(private)}.{together}"


def _bound(claims: list[dict[str, Any]]) -> str:
    spent = [rounded_up(number(claim.get("epsilon")) or 0.0) for claim in claims]
    deltas = [number(claim.get("delta")) or 0.0 for claim in claims]
    units = sorted({UNITS.get(str(claim.get("unit")), "one unit") for claim in claims})
    return f"with {_range('epsilon', spent)} and {_range('delta', deltas)} for {' or '.join(units)}"


def _range(name: str, values: list[float]) -> str:
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return f"{name} {most}" if least == most else f"{name} {least} to {most}"


def stopped_early(content: Mapping[str, Any]) -> list[str]:
    """Runs whose budget was used up before their last round."""
    runs = [mapping(run) for run in sequence(content.get("runs"))]
    return [
        f"{run.get('method')} seed {run.get('seed')}"
        for run in runs
        if mapping(run.get("privacy")).get("stopped_early")
    ]
