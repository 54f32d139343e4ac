"""What a run says of its privacy: the statement, its numbers, each client's, and what an audit found."""

from __future__ import annotations

from typing import Any

from fedsb.report import facts
from fedsb.report.load import Run, mapping, sequence
from fedsb.report.markup import details, numbers, pairs, paragraph, table, texts
from fedsb.report.names import name_of, said, tells, text_of
from fedsb.report.units import decimal


def privacy(run: Run) -> str:
    """The guarantee as the run states it. A run without noise says so in plain words."""
    stated, settings = facts.stated(run, "privacy"), mapping(facts.setting(run, "privacy"))
    if not stated and not settings:
        return paragraph(
            "No differential privacy: no noise was added to what the clients sent, "
            "and nothing is guaranteed about what it reveals of their data."
        )
    if not stated:
        spent = decimal(facts.epsilon_spent(run))
        text = f"The run states no guarantee. Asked for was what follows; spent so far: ε = {spent}."
        return paragraph(text, "notice") + pairs(said(settings))
    text = paragraph(str(stated["statement"]), "statement") if stated.get("statement") else ""
    per_client = stated.get("per_client")
    rows = {key: value for key, value in stated.items() if key not in ("statement", "per_client")}
    if isinstance(per_client, dict | list):
        return text + pairs(said(rows)) + _per_client(run, per_client)
    return text + pairs(said({**rows, "per client": per_client}))


def audit(run: Run) -> str:
    """What `fedsb audit` found of this run; empty if it was not asked."""
    found = run.audit.get("statement")
    return paragraph(f"Audit: {found}", "statement" if run.audit.get("holds") else "notice") if found else ""


def _per_client(run: Run, entries: dict[str, Any] | list[Any]) -> str:
    """A table of what is set and other than usual of any client."""
    clients = mapping(entries) or {str(at): entry for at, entry in enumerate(sequence(entries))}
    if not clients:
        return ""
    rows = {
        name: mapping(clients[name]) or {"epsilon": clients[name]}
        for name in sorted(clients, key=facts.natural)
    }
    keys = dict.fromkeys(key for row in rows.values() for key, value in row.items() if tells(key, value))
    columns = texts("client") + numbers(*map(name_of, keys))
    body = [
        [facts.named(run, client), *(text_of(row.get(key)) for key in keys)] for client, row in rows.items()
    ]
    return details("Privacy of each client", table("Privacy of each client", columns, body))
