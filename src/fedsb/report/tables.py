"""The tables of one run."""

from collections.abc import Iterable
from typing import Any

from fedsb.report import facts
from fedsb.report.load import Round, Run, mapping, number, sequence, whole
from fedsb.report.markup import details, numbers, pairs, paragraph, table, texts, yaml
from fedsb.report.metrics import describe, show
from fedsb.report.units import DASH, count, decimal, duration, human_bytes, percent, plural

SHOWN_ELSEWHERE = {"method", "primary_metric", "rounds", "seconds", "peak_memory_bytes"}


def rounds(run: Run) -> str:
    names = facts.metric_names(run)
    private = any(entry.epsilon is not None for entry in run.rounds)
    titles = ["round", "train loss", *(describe(name).title.lower() for name in names)]
    inexact = any(entry.deviation is not None for entry in run.rounds)
    titles += ["up", "down", "parameters up", "clients", "left out", "time", *(["ε"] if private else [])]
    rows = [_round(entry, names, private) for entry in run.rounds]
    if inexact:
        titles.append("deviation*")
        rows = [[*row, percent(entry.deviation)] for row, entry in zip(rows, run.rounds, strict=True)]
    note = (
        "* Of factors averaged apart from the mean of the clients' updates, as a share of that mean's norm."
    )
    return table("Rounds", numbers(*titles), rows) + (paragraph(note, "note") if inexact else "")


def _round(entry: Round, names: list[str], private: bool) -> list[str]:
    if entry.number == 0:  # nothing was trained, so there is nothing to count
        traffic = [DASH] * 5
    else:
        sizes = [human_bytes(entry.upload_bytes), human_bytes(entry.download_bytes)]
        traffic = [*sizes, count(entry.upload_parameters), str(len(entry.clients)), str(len(entry.rejected))]
    scores = [show(name, entry.eval.get(name)) for name in names]
    spent = [decimal(entry.epsilon)] if private else []
    return [str(entry.number), decimal(entry.train_loss), *scores, *traffic, duration(entry.seconds), *spent]


def ledger(run: Run) -> str:
    """Every byte: once, up, down, total. Human units and exact numbers side by side."""
    columns = texts("what", "direction") + numbers("clients", "parameters", "size", "bytes, exact")
    rows = [
        [o.what, o.direction or DASH, count(o.clients), count(o.parameters), *_size(o.size)]
        for o in facts.one_time(run)
    ]
    done = plural(facts.rounds_done(run), "round")
    sent = [entry.upload_parameters for entry in run.rounds if entry.upload_parameters is not None]
    people = count(len(facts.clients(run)) or None)
    rows.append(
        [
            f"updates, {done}",
            "up",
            people,
            count(sum(sent)) if sent else DASH,
            *_size(facts.upload_bytes(run)),
        ]
    )
    rows.append([f"averages, {done}", "down", people, DASH, *_size(facts.download_bytes(run))])
    rows.append(["total", "", "", "", *_size(facts.total_bytes(run))])
    return table("Traffic ledger", columns, rows, strong=True)


def _size(size: int) -> list[str]:
    return [human_bytes(size), count(size)]


def ledger_doubt(run: Run) -> str | None:
    """A sentence if the summary and the rounds do not add up to the same bytes."""
    stated = mapping(facts.summary(run).get("communication"))
    for direction, counted in (("up", facts.upload_bytes(run)), ("down", facts.download_bytes(run))):
        said = whole(stated.get(f"{direction}load_bytes"))
        if said is not None and said not in (counted, counted + facts.one_time_bytes(run, direction)):
            return (
                f"The ledger is in doubt: metrics.jsonl adds up to {count(counted)} bytes {direction} "
                f"in the rounds, summary.json says {count(said)}. The page shows the former."
            )
    return None


def rejected(run: Run) -> str:
    found = facts.rejections(run)
    if not found:
        return paragraph("No client's update was left out.")
    rows = [[str(at), client, reason] for at, client, reason in found]
    text = paragraph("Updates that were left out of their round's average:")
    return text + table("Updates left out", texts("round", "client", "reason"), rows)


def scores(run: Run) -> str:
    """Each score of `fedsb evaluate` with its interval and the number of examples; empty without any."""
    columns = texts("score") + numbers("value", "95 % interval", "examples")
    rows = []
    for name, score in run.scores.items():
        value, low, high = (number(mapping(score).get(key)) for key in ("value", "low", "high"))
        ends = f"{show(name, low)} to {show(name, high)}"
        rows.append(
            [describe(name).title, show(name, value), ends, count(whole(mapping(score).get("count")))]
        )
    text = paragraph(
        "The final model on the test data and benchmarks. Intervals (Wilson's for shares, the bootstrap's "
        "for all else) are over test examples: they do not cover other seeds or training data.",
        "note",
    )
    return table("Scores", columns, rows) + text if rows else ""


def samples(run: Run) -> str:
    """A language model's answers beside the expected ones; empty where there are none."""
    asked = ("prompt", "answer", "expected")
    rows = [[sample.get(name, DASH) for name in asked] for sample in run.samples]
    text = paragraph("Greedy answers of the final model to the first test rows:")
    return text + table("Answers", texts(*asked), rows) if rows else ""


def initialization(run: Run) -> str:
    stated = mapping(facts.summary(run).get("initialization")) or mapping(facts.setting(run, "method.init"))
    samples = stated.get("samples")
    rows = [(name, _value(value)) for name, value in stated.items() if name != "samples"]
    if samples is not None and not isinstance(samples, dict):
        rows.append(("samples", _value(samples)))
    used = {client: _size_of(value) for client, value in mapping(samples).items()}
    if not rows and not used:
        return paragraph("Nothing is recorded about the initialization.")
    return pairs(rows) + (_samples(used) if used else "")


def _samples(used: dict[str, int]) -> str:
    low, high = min(used.values()), max(used.values())
    each = f"{plural(low, 'example')} each" if low == high else f"{low:,} to {plural(high, 'example')}"
    text = f"Bases estimated from {each} of {plural(len(used), 'client')}, {sum(used.values()):,} in all."
    columns = texts("client") + numbers("examples used")
    rows = [[client, count(used[client])] for client in sorted(used, key=facts.natural)]
    return paragraph(text) + details("Examples used, by client", table("Examples used", columns, rows))


def _size_of(value: object) -> int:
    return whole(value) or len(sequence(value))


def privacy(run: Run) -> str:
    """The guarantee as the run states it. A run without noise says so in plain words."""
    stated = mapping(facts.summary(run).get("privacy"))
    wanted = mapping(facts.setting(run, "privacy"))
    if not stated and not wanted:
        return paragraph(
            "No differential privacy: no noise was added to what the clients sent, "
            "and nothing is guaranteed about what it reveals of their data."
        )
    if not stated:
        return _asked_for(run, wanted)
    text = paragraph(str(stated["statement"]), "statement") if stated.get("statement") else ""
    per_client = stated.get("per_client")
    rows = [(_name(key), _value(stated[key])) for key in stated if key not in ("statement", "per_client")]
    if isinstance(per_client, dict | list):
        return text + pairs(rows) + _per_client(per_client)
    return text + pairs([*rows, ("per client", _value(per_client))])


def _asked_for(run: Run, wanted: dict[str, Any]) -> str:
    spent = next((entry.epsilon for entry in reversed(run.rounds) if entry.epsilon is not None), None)
    text = f"The run states no guarantee. Asked for was what follows; spent so far: ε = {decimal(spent)}."
    return paragraph(text, "notice") + pairs((_name(name), _value(value)) for name, value in wanted.items())


def _per_client(entries: dict[str, Any] | list[Any]) -> str:
    found = mapping(entries) or {str(at): entry for at, entry in enumerate(sequence(entries))}
    if not found:
        return ""
    rows = {
        client: mapping(found[client]) or {"ε": found[client]} for client in sorted(found, key=facts.natural)
    }
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = texts("client") + numbers(*map(_name, names))
    body = [[client, *(_value(row.get(name)) for name in names)] for client, row in rows.items()]
    return details("Privacy of each client", table("Privacy of each client", columns, body))


def configuration(run: Run) -> str:
    but = ", but for its batches and its noise" if facts.setting(run, "privacy") else ""
    return details(f"config.yaml, as resolved: running it again repeats the run{but}", yaml(run.config_text))


def machine(run: Run) -> str:
    stated = facts.summary(run)
    rows = [
        ("time", duration(facts.seconds(run))),
        ("peak memory", human_bytes(number(stated.get("peak_memory_bytes")))),
    ]
    rows += [(_name(k), _value(v)) for k, v in stated.items() if k not in SHOWN_ELSEWHERE and _is_plain(v)]
    for part in ("machine", "versions"):
        rows += [(name, _value(value)) for name, value in mapping(stated.get(part)).items()]
    return pairs(rows)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


NAMES = {
    "epsilon": "ε",
    "delta": "δ",
    "epsilon_rdp": "ε by Renyi accounting",
    "epsilon_start": "ε of the start alone",
    "epsilon_rounds": "ε of the rounds alone",
}


def _name(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def _value(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, int):
        return count(value)
    return ", ".join(_listed(value)) if isinstance(value, dict | list) else str(value)


def _listed(value: dict[Any, Any] | list[Any]) -> Iterable[str]:
    if isinstance(value, list):
        return (_value(item) for item in value)
    return (f"{name}: {_value(item)}" for name, item in value.items())
