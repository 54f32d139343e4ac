"""What a comparison may say of privacy: each run's guarantee alone, and what all cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsb.config import RunConfig
from fedsb.privacy.accounting import Mechanism
from fedsb.privacy.composition import Releases, epsilon_over_runs
from fedsb.privacy.ledger import LEDGER, Spend, read_spends
from fedsb.privacy.statement import rounded_up
from fedsb.report.units import plural

UNITS = {"example": "one example of a client", "client": "one whole client"}


def privacy_together(root: Path, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By unit: how many runs of the comparison in this folder released something, with those that chose rates
    and those that were stopped, and what they cost together, at the largest delta of the runs named."""
    deltas = [claim["delta"] for run in runs if (claim := run["privacy"]) and claim["private"]]
    files = [file for part in ("tuning", "runs") for file in (root / part).glob(f"*/*/{LEDGER}")]
    ledgers = [read_spends(file) for file in files if deltas and _noise_is_secret(file.parent)]
    found = []
    for unit in ("example", "client"):
        of_unit = [releases for spends in ledgers if (releases := _releases(spends, unit))]
        if of_unit:
            spent = epsilon_over_runs(of_unit, max(deltas))
            found.append({"unit": unit, "runs": len(of_unit), "epsilon": spent, "delta": max(deltas)})
    return found


def _noise_is_secret(run: Path) -> bool:
    privacy = RunConfig.from_yaml(run / "config.yaml").privacy
    return privacy is not None and privacy.insecure_seed is None


def _releases(spends: Sequence[Spend], unit: str) -> Releases:
    """Those of one run that are about this unit, by client."""
    found: dict[int | None, list[Mechanism]] = {}
    for spend in spends:
        if (spend.client is None) == (unit == "client"):
            found.setdefault(spend.client, []).append(spend.mechanism)
    return found


def privacy_sentence(
    runs: Sequence[Mapping[str, Any]], together: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """Of the records of runs, and what they cost together; None if no run asked for privacy."""
    stated = [run["privacy"] for run in runs if run["privacy"]]
    if not stated:
        return None
    private = [claim for claim in stated if claim["private"]]
    if not private:
        return "No run is private: the noise came from a fixed seed."
    who = "Each run alone is"
    if len(private) < len(runs):
        who = f"Of {plural(len(runs), 'run')}, {len(private)} alone {'is' if len(private) == 1 else 'are'}"
    said = [f"{who} differentially private, {_bound(private)}."]
    said += [_total(total) for total in together if total["runs"] > 1]
    if not together and len(private) > 1:
        said.append("All of them together, on the same data, spend more.")
    return " ".join(said)


def _total(found: Mapping[str, Any]) -> str:
    """One sentence. Client numbers mean other rows in other runs, so that no client is named."""
    who = "any one example" if found["unit"] == "example" else "a client that is the same in all of them"
    return (
        f"{plural(found['runs'], 'private run')} on the same rows, with those that chose learning rates or "
        f"were stopped, together cost epsilon {rounded_up(found['epsilon']):.3g} at delta "
        f"{found['delta']:.3g} for {who}."
    )


def _bound(claims: Sequence[Mapping[str, Any]]) -> str:
    spent = _range("epsilon", [rounded_up(claim["epsilon"]) for claim in claims])
    deltas = _range("delta", [claim["delta"] for claim in claims])
    return f"with {spent} and {deltas} for {' or '.join(sorted({UNITS[claim['unit']] for claim in claims}))}"


def _range(name: str, values: Sequence[float]) -> str:
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return f"{name} {most}" if least == most else f"{name} {least} to {most}"
