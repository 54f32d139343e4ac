"""What a comparison may say of privacy: each run's guarantee alone, and that all together spend more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsb.privacy.statement import rounded_up
from fedsb.report.units import plural

UNITS = {"example": "one example of a client", "client": "one whole client"}


def privacy_sentence(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the records of runs; None if no run asked for privacy."""
    stated = [run["privacy"] for run in runs if run["privacy"]]
    if not stated:
        return None
    private = [claim for claim in stated if claim["private"]]
    if not private:
        return "No run is private: the noise came from a fixed seed."
    who = "Each run alone is"
    if len(private) < len(runs):
        who = f"Of {plural(len(runs), 'run')}, {len(private)} alone {'is' if len(private) == 1 else 'are'}"
    together = " All of them together, on the same data, spend more." if len(private) > 1 else ""
    return f"{who} differentially private, {_bound(private)}.{together}"


def _bound(claims: Sequence[Mapping[str, Any]]) -> str:
    spent = _range("epsilon", [rounded_up(claim["epsilon"]) for claim in claims])
    deltas = _range("delta", [claim["delta"] for claim in claims])
    return f"with {spent} and {deltas} for {' or '.join(sorted({UNITS[claim['unit']] for claim in claims}))}"


def _range(name: str, values: Sequence[float]) -> str:
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return f"{name} {most}" if least == most else f"{name} {least} to {most}"
