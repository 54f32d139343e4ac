"""`fedsb privacy --ledger`: what rows have spent, by run and in all, from a ledger that was found whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedsb.config import RunConfig
from fedsb.deploy.node_account import node_place
from fedsb.deploy.node_config import NodeConfig
from fedsb.errors import InputError
from fedsb.privacy.account import epsilon_of
from fedsb.privacy.data_ledger import Charge, DataLedger, Place, place_beside
from fedsb.privacy.ledger import LEDGER, Spend, read_spends
from fedsb.privacy.statement import rounded_up
from fedsb.report.units import plural


def ledger_report(file: Path, delta: float | None = None) -> dict[str, Any]:
    """What `--json` prints.

    Args:
        file: a node's config, a data set's ledger, or the one in a run folder.
        delta: at which epsilon is taken; None: the node's largest_delta, or the largest that a run had.

    Raises:
        InputError: there is no such ledger, or it is not what it was.
    """
    if file.suffix in (".yaml", ".yml"):
        node = NodeConfig.from_yaml(file)
        return _report(node_place(node), delta or node.limits.largest_delta, node.limits.of_all_runs)
    if not file.is_file():
        raise InputError(f"--ledger: found no file {file}; name a node.yaml, or a ledger's .jsonl")
    if file.name == LEDGER:
        charges = [_charge(spend, file, _delta_of(file, delta)) for spend in read_spends(file)]
        return _facts(file, charges, delta, None)
    return _report(_place_of(file), delta, None)


def _report(place: Place, delta: float | None, limit: float | None) -> dict[str, Any]:
    charges = DataLedger(place, only=limit is not None).charges()
    return _facts(place.ledger, charges, delta, limit) | {"id": place.id}


def _place_of(file: Path) -> Place:
    """The place of a node's ledger, whose head has its id; else of a simulated one."""
    head = file.with_name(f".{file.stem}.head")
    return Place(file.stem, file, (head,), ()) if head.exists() else place_beside(file)


def _charge(spend: Spend, file: Path, delta: float) -> Charge:
    """A line of a run folder's ledger as one of a data set's."""
    run, unit = file.parent.name, "client" if spend.client is None else _unit_of(file)
    return Charge("", run, run, "", unit, spend.client, spend.phase, spend.round, spend.mechanism, delta)


def _unit_of(file: Path) -> str:
    config = file.with_name("config.yaml")
    privacy = RunConfig.from_yaml(config).privacy if config.is_file() else None
    return privacy.protects if privacy else "example"


def _delta_of(file: Path, delta: float | None) -> float:
    config = file.with_name("config.yaml")
    if delta is None and config.is_file() and (privacy := RunConfig.from_yaml(config).privacy):
        delta = privacy.delta
    if delta is None:
        raise InputError(f"--delta: needed, since {config} names none")
    return delta


def _facts(
    ledger: Path, charges: Sequence[Charge], delta: float | None, limit: float | None
) -> dict[str, Any]:
    delta = delta or max((charge.delta for charge in charges), default=None)
    spent = epsilon_of(charges, delta)
    by_run: dict[str, list[Charge]] = {}
    for charge in charges:
        by_run.setdefault(charge.run, []).append(charge)
    facts = {
        "ledger": str(ledger),
        "unit": charges[0].unit if charges else "example",
        "releases": len(charges),
        "scores": sum(charge.phase == "score" for charge in charges),
        "epsilon": spent,
        "delta": delta,
        "largest_epsilon": limit,
        "left": None if limit is None else max(0.0, limit - spent),
        "runs": [_run(run, charged, delta) for run, charged in by_run.items()],
    }
    return facts | {"statement": " ".join(_sentences(facts))}


def _run(run: str, charges: Sequence[Charge], delta: float | None) -> dict[str, Any]:
    return {
        "run": run,
        "releases": len(charges),
        "epsilon": epsilon_of(charges, delta),
        "first": charges[0].at,
        "last": charges[-1].at,
    }


def _sentences(facts: dict[str, Any]) -> Iterable[str]:
    runs, spent, limit = len(facts["runs"]), facts["epsilon"], facts["largest_epsilon"]
    if not runs:
        yield "Nothing was released from these rows."
    else:
        scores = f", of them {plural(facts['scores'], 'score')}" if facts["scores"] else ""
        yield (
            f"{plural(runs, 'run')} made {plural(facts['releases'], 'release')} from these rows{scores}. "
            f"Together they cost {_epsilon(spent)} at delta {facts['delta']:.3g} for any one {facts['unit']}."
        )
    if limit is None:
        yield "No limit over all runs is set."
    elif spent < limit:
        yield f"The limit over all runs is epsilon {limit:g}: {limit - spent:.3g} is left."
    else:
        yield f"The limit over all runs is epsilon {limit:g}: it is used up."


def _epsilon(spent: float) -> str:
    if math.isinf(spent):
        return "no bounded epsilon (a run's noise came from a fixed seed)"
    return f"epsilon {rounded_up(spent):.3g}"
