"""The tables of one run."""

from fedsb.report import facts
from fedsb.report.load import Round, Run, mapping, number, sequence, whole
from fedsb.report.markup import details, numbers, pairs, paragraph, table, texts, yaml
from fedsb.report.metrics import describe, show
from fedsb.report.names import said, text_of
from fedsb.report.units import DASH, count, decimal, duration, human_bytes, percent, plural

SHOWN_ELSEWHERE = {"method", "primary_metric", "higher_is_better", "rounds", "seconds", "peak_memory_bytes"}


def rounds(run: Run) -> str:
    names = facts.metric_names(run)
    private = facts.epsilon_spent(run) is not None
    titles = ["round", "train loss", *(describe(name).title.lower() for name in names)]
    titles += ["up", "down", "parameters up", "clients", "left out", "time", *(["ε"] if private else [])]
    rows = [_round(entry, names, private) for entry in run.rounds]
    notes = []
    if any(entry.deviation is not None for entry in run.rounds):
        titles.append("deviation*")
        rows = [[*row, percent(entry.deviation)] for row, entry in zip(rows, run.rounds, strict=True)]
        notes.append(DEVIATION)
    if any(entry.core_change is not None for entry in run.rounds):
        titles.append("core change†")
        rows = [[*row, decimal(entry.core_change)] for row, entry in zip(rows, run.rounds, strict=True)]
        notes.append(CORE_CHANGE)
    if after := _refreshed(run):
        notes.append(f"New bases after {after}: their traffic is in those rounds, beside that of updates.")
    return table("Rounds", numbers(*titles), rows) + (paragraph(" ".join(notes), "note") if notes else "")


DEVIATION = (
    "* Of factors averaged apart from the mean of the clients' updates, as a share of that mean's norm."
)
CORE_CHANGE = "† How far the averaged core moved, over the sum of a client's learning rates in the round."


def _refreshed(run: Run) -> str:
    """`rounds 2, 4`: after which bases were replaced; empty where they stayed."""
    after = sequence(facts.stated(run, "initialization").get("refreshed_after"))
    return f"round{'s' * (len(after) > 1)} {', '.join(map(str, after))}" if after else ""


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
    people, parameters = count(len(facts.clients(run)) or None), count(sum(sent) if sent else None)
    up = down = ""
    if _refreshed(run):
        up, down, parameters = ", and gradients for new bases", ", and new bases", DASH
    rows += [
        [f"updates, {done}{up}", "up", people, parameters, *_size(facts.upload_bytes(run))],
        [f"averages, {done}{down}", "down", people, DASH, *_size(facts.download_bytes(run))],
        ["total", "", "", "", *_size(facts.total_bytes(run))],
    ]
    return table("Traffic ledger", columns, rows, strong=True)


def _size(size: int) -> list[str]:
    return [human_bytes(size), count(size)]


def ledger_doubt(run: Run) -> str | None:
    """A sentence if the summary and the rounds do not add up to the same bytes."""
    stated = facts.stated(run, "communication")
    for direction, counted in (("up", facts.upload_bytes(run)), ("down", facts.download_bytes(run))):
        total = whole(stated.get(f"{direction}load_bytes"))
        if total is not None and total not in (counted, counted + facts.one_time_bytes(run, direction)):
            return (
                f"The ledger is in doubt: metrics.jsonl adds up to {count(counted)} bytes {direction} "
                f"in the rounds, summary.json says {count(total)}. The page shows the former."
            )
    return None


def rejected(run: Run) -> str:
    rows = [[str(at), facts.named(run, client), reason] for at, client, reason in facts.rejections(run)]
    if not rows:
        return paragraph("No client's update was left out.")
    text = paragraph("Updates that were left out of their round's average:")
    return text + table("Updates left out", texts("round", "client", "reason"), rows)


def scores(run: Run) -> str:
    """Each score of `fedsb evaluate` with its interval and the number of examples; empty without any."""
    columns = texts("score") + numbers("value", "95 % interval", "examples")
    rows = []
    for name, score in run.scores.items():
        value, low, high = (show(name, number(mapping(score).get(key))) for key in ("value", "low", "high"))
        examples = count(whole(mapping(score).get("count")))
        rows.append([describe(name).title, value, f"{low} to {high}", examples])
    text = paragraph(
        "The final model on the test data and benchmarks. Intervals (Wilson's for shares, the bootstrap's "
        "for all else) are over test examples: they do not cover other seeds or training data.",
        "note",
    )
    return table("Scores", columns, rows) + text if rows else ""


def samples(run: Run) -> str:
    """A language model's answers beside the expected ones; empty where there are none."""
    columns = ("prompt", "answer", "expected")
    rows = [[sample.get(name, DASH) for name in columns] for sample in run.samples]
    text = paragraph("Greedy answers of the final model to the first test rows:")
    return text + table("Answers", texts(*columns), rows) if rows else ""


def initialization(run: Run) -> str:
    stated = facts.stated(run, "initialization") or mapping(facts.setting(run, "method.init"))
    samples = stated.get("samples")
    plain = {name: value for name, value in stated.items() if name not in ("samples", "ranks")}
    rows = said(plain)
    if samples is not None and not isinstance(samples, dict):
        rows.append(("samples", text_of(samples)))
    used = facts.sizes(samples)
    if not rows and not used:
        return paragraph("Nothing is recorded about the initialization.")
    samples_used = _samples({facts.named(run, c): size for c, size in used.items()}) if used else ""
    return pairs(rows) + _ranks(facts.sizes(stated.get("ranks"))) + samples_used


def _ranks(of_layers: dict[str, int]) -> str:
    """Of layers with ranks of their own."""
    if not of_layers:
        return ""
    cells = [[layer, count(rank)] for layer, rank in of_layers.items()]
    low, high = min(of_layers.values()), max(of_layers.values())
    text = f"Layers have ranks of their own, by the spectrum of the start: {low} to {high}."
    return paragraph(text) + details(
        "Ranks, by layer", table("Ranks", texts("layer") + numbers("rank"), cells)
    )


def _samples(used: dict[str, int]) -> str:
    low, high = min(used.values()), max(used.values())
    sizes = f"{plural(low, 'example')} each" if low == high else f"{low:,} to {plural(high, 'example')}"
    text = f"Bases estimated from {sizes} of {plural(len(used), 'client')}, {sum(used.values()):,} in all."
    columns = texts("client") + numbers("examples used")
    rows = [[client, count(size)] for client, size in used.items()]
    return paragraph(text) + details("Examples used, by client", table("Examples used", columns, rows))


def configuration(run: Run) -> str:
    but = ", but for its batches and its noise" if facts.setting(run, "privacy") else ""
    return details(f"config.yaml, as resolved: running it again repeats the run{but}", yaml(run.config_text))


def machine(run: Run) -> str:
    summary = facts.summary(run)
    memory = number(summary.get("peak_memory_bytes"))
    rows = [("time", duration(facts.seconds(run))), ("peak memory", human_bytes(memory))]
    plain = {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    rows += said({name: value for name, value in plain.items() if name not in SHOWN_ELSEWHERE})
    for part in ("machine", "versions"):
        rows += [(name, text_of(value)) for name, value in facts.stated(run, part).items()]
    return pairs(rows)
