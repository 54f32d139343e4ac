"""What follows from a run's files: totals, base and final values, who its clients are."""

import re
from collections import Counter
from typing import Any, NamedTuple

from fedsb.common.dotted import at
from fedsb.report.load import Run, mapping, number, sequence, whole
from fedsb.report.metrics import describe, guess_primary, show
from fedsb.report.units import human_bytes, plural


class OneTime(NamedTuple):
    """Traffic that happens once per run, not per round. `size` is the bytes of all clients together."""

    what: str
    direction: str  # "up", "down" or ""
    clients: int | None
    size: int
    parameters: int | None


def setting(run: Run, dotted: str) -> Any:
    """The config value at a dotted key, None where there is none."""
    return at(run.config, dotted)


def summary(run: Run) -> dict[str, Any]:
    return run.summary or {}


def stated(run: Run, part: str) -> dict[str, Any]:
    """What the summary says under this key."""
    return mapping(summary(run).get(part))


def method(run: Run) -> str:
    return str(summary(run).get("method") or setting(run, "method.name") or "unknown method")


def metric_names(run: Run) -> list[str]:
    """Every metric the run measured, the primary one first."""
    measured = [name for entry in run.rounds for name in entry.eval]
    measured += [name for part in ("base", "final") for name in stated(run, part)]
    names = list(dict.fromkeys(measured))
    lead = str(summary(run).get("primary_metric") or guess_primary(names))
    return [lead, *(name for name in names if name != lead)] if lead in names else names


def primary(run: Run) -> str | None:
    return next(iter(metric_names(run)), None)


def curve(run: Run, name: str) -> list[tuple[int, float]]:
    return [(entry.number, entry.eval[name]) for entry in run.rounds if name in entry.eval]


def base(run: Run, name: str) -> float | None:
    """The value before any training."""
    value = number(stated(run, "base").get(name))
    return value if value is not None else next((v for at, v in curve(run, name) if at == 0), None)


def final(run: Run, name: str) -> float | None:
    """The value at the end; the last one measured if the run did not finish."""
    value = number(stated(run, "final").get(name))
    return value if value is not None else next((v for at, v in reversed(curve(run, name)) if at > 0), None)


def rounds_done(run: Run) -> int:
    return max((entry.number for entry in run.rounds), default=0)


def rounds_planned(run: Run) -> int | None:
    return whole(setting(run, "federation.rounds"))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts client 2 before client 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]


def clients(run: Run) -> list[str]:
    """All client ids: the partition's, else as many as the config says; and any that a round names."""
    planned = map(str, range(whole(setting(run, "federation.clients")) or 0))
    names = set(mapping(run.partition.get("clients")) or planned)
    for entry in run.rounds:
        names.update(entry.clients, (client for client, _ in entry.rejected))
    return sorted(names, key=natural)


def named(run: Run, client: str) -> str:
    """What a client is called: its site's name, or its number."""
    return str(mapping(run.partition.get("names")).get(client, client))


def site_scores(run: Run) -> dict[str, dict[str, float]]:
    """Client -> its scores in the last round that has any."""
    return next((entry.sites for entry in reversed(run.rounds) if entry.sites), {})


def test_rows(run: Run, client: str) -> int | None:
    """How many rows a client is scored on."""
    said = mapping(stated(run, "sites").get("rows")).get(client)
    return whole(said) if said is not None else sizes(run.partition.get("tests")).get(client)


def examples(run: Run) -> dict[str, int]:
    """Number of training examples per client."""
    return sizes(run.partition.get("clients"))


def sizes(parts: object) -> dict[str, int]:
    """Client -> number of examples, in order of the clients, from numbers or from lists of as many."""
    by_client = sorted(mapping(parts).items(), key=lambda part: natural(part[0]))
    return {client: whole(part) or len(sequence(part)) for client, part in by_client}


def labels(run: Run) -> dict[str, Counter[str]]:
    """Per client, number of examples per label; empty if the partition does not say."""
    by_client = mapping(run.partition.get("labels"))
    return {c: Counter({k: whole(n) or 0 for k, n in mapping(by_client[c]).items()}) for c in by_client}


def one_time(run: Run) -> list[OneTime]:
    """Traffic outside the rounds, as the summary lists it; else its sum; else what round 0 recorded."""
    communication = stated(run, "communication")
    listed = [_one_time(mapping(item)) for item in sequence(communication.get("one_time"))]
    if listed:
        return listed
    first = sum(entry.upload_bytes + entry.download_bytes for entry in run.rounds if entry.number == 0)
    size = whole(communication.get("init_bytes")) or first
    return [OneTime("initialization", "", None, size, None)] if size else []


def _one_time(item: dict[str, Any]) -> OneTime:
    what, direction = str(item.get("what") or "once"), str(item.get("direction") or "")
    if item.get("measured") is False:
        what += " (computed from shapes)"
    size, parameters = whole(item.get("bytes")) or 0, whole(item.get("parameters"))
    return OneTime(what, direction, whole(item.get("clients")), size, parameters)


def one_time_bytes(run: Run, direction: str | None = None) -> int:
    return sum(item.size for item in one_time(run) if direction in (None, item.direction))


def upload_bytes(run: Run) -> int:
    return sum(entry.upload_bytes for entry in run.rounds if entry.number > 0)


def download_bytes(run: Run) -> int:
    return sum(entry.download_bytes for entry in run.rounds if entry.number > 0)


def total_bytes(run: Run) -> int:
    return one_time_bytes(run) + upload_bytes(run) + download_bytes(run)


def running_total(run: Run) -> dict[int, int]:
    """Round number -> bytes sent by anyone until the end of that round, one-time traffic included."""
    total = one_time_bytes(run)
    totals = {0: total}
    for entry in run.rounds:
        if entry.number > 0:
            total += entry.upload_bytes + entry.download_bytes
            totals[entry.number] = total
    return totals


def sent_per_client(run: Run) -> float | None:
    """Bytes up in the whole run, one-time traffic included, averaged over all clients."""
    num_clients = len(clients(run))
    return (upload_bytes(run) + one_time_bytes(run, "up")) / num_clients if num_clients else None


def seconds(run: Run) -> float | None:
    measured = [entry.seconds for entry in run.rounds if entry.seconds is not None]
    total = number(summary(run).get("seconds"))
    return sum(measured) if total is None and measured else total


def epsilon_spent(run: Run) -> float | None:
    """The last one that a round recorded."""
    return next((entry.epsilon for entry in reversed(run.rounds) if entry.epsilon is not None), None)


def rejections(run: Run) -> list[tuple[int, str, str]]:
    """(round, client, reason) of each update that was left out."""
    return [(entry.number, client, reason) for entry in run.rounds for client, reason in entry.rejected]


def result(run: Run) -> str:
    """The run in one sentence, without its full stop."""
    done, planned = rounds_done(run), rounds_planned(run)
    when = f"in {plural(done, 'round')}"
    if run.summary is None:
        when = f"after {done} of {plural(planned, 'round')}" if planned else f"after {plural(done, 'round')}"
    people = f"{plural(len(clients(run)), 'client')}, {human_bytes(sent_per_client(run))} sent per client"
    return f"{_progress(run)} {when}, {people}"


def _progress(run: Run) -> str:
    name = primary(run)
    if name is None:
        return "No evaluation"
    before, after, title = base(run, name), final(run, name), describe(name).title
    if before is None or after is None:
        return f"{title} {show(name, before if after is None else after)}"
    return f"{title} {show(name, before)} → {show(name, after)}"
