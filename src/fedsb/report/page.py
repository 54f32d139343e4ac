"""The page: one run in full, or several side by side and then each in full."""

from collections.abc import Sequence

from markupsafe import Markup

from fedsb.report import facts, figures, privacy, routing, sites, tables
from fedsb.report import side_by_side as compare
from fedsb.report.canvas import Plot
from fedsb.report.cuts import cut_notes, cut_table
from fedsb.report.load import Run, number, whole
from fedsb.report.markup import Card, cards, document, folded_run, header, joined, paragraph, plots, section
from fedsb.report.metrics import describe, show, show_change
from fedsb.report.units import DASH, count, decimal, duration, human_bytes, plural, short_name


def build_page(runs: Sequence[Run], *, refresh: int | None = None) -> str:
    """The whole HTML document, of a run in progress if a browser is to reload it every `refresh` seconds."""
    if len(runs) == 1:
        run = runs[0]
        title, body = f"{facts.method(run)}: {facts.result(run)}", one_run(run, "run", 1, refresh)
    else:
        title = f"{plural(len(runs), 'run')} compared"
        body = several_runs(title, runs)
    return document(title, body, refresh)


def several_runs(title: str, runs: Sequence[Run]) -> Markup:
    folded = [
        folded_run(f"run-{n}", label, facts.result(run), one_run(run, f"run-{n}", 3))
        for n, (run, label) in enumerate(zip(runs, compare.labels(runs), strict=True))
    ]
    return joined(
        header("fedsb report", title, compare.lead(runs)),
        section("overview", 2, "All runs", compare.overview(runs), plots(compare.figures(runs))),
        section("runs", 2, "Each run", *folded),
    )


def one_run(run: Run, anchor: str, level: int, refresh: int | None = None) -> Markup:
    """Header, cards, plots and tables; headings start at `level`."""
    drawn = {title: plots(items) if items else "" for title, items in plots_of(run, anchor).items()}
    sections = [
        ("Results", drawn["Results"], tables.rounds(run)),
        ("Scores", tables.scores(run)),
        ("Sites", sites.scores(run), drawn["Sites"]),
        ("Routing", routing.scores(run), drawn["Routing"]),
        ("Answers", tables.samples(run)),
        ("Traffic", drawn["Traffic"], tables.ledger(run)),
        ("Clients", drawn["Clients"], tables.rejected(run)),
        ("Tokens", cut_table(facts.stated(run, "tokens"))),
        ("Initialization", tables.initialization(run)),
        ("Privacy", privacy.privacy(run), privacy.audit(run)),
        ("Configuration", tables.configuration(run)),
        ("Machine and versions", tables.machine(run)),
    ]
    body = [
        section(f"{anchor}-{title.split()[0].lower()}", level + 1, title, *parts)
        for title, *parts in sections
        if any(parts)
    ]
    eyebrow, lead = f"fedsb report · {run.name}", f"{facts.result(run)}."
    return joined(
        header(eyebrow, facts.method(run), lead, _setup(run), level, "title"),
        *(paragraph(text, "notice") for text in _notices(run, refresh)),
        cards([*_quality(run), *_traffic(run), *_effort(run)]),
        *body,
    )


def plots_of(run: Run, anchor: str) -> dict[str, list[Plot]]:
    """The plots of a run, by section."""
    return {
        "Results": figures.quality(run, anchor),
        "Sites": sites.plots_of(run, anchor) if facts.site_scores(run) else [],
        "Routing": routing.plots_of(run, anchor),
        "Traffic": figures.traffic(run, anchor),
        "Clients": figures.people(run, anchor),
    }


def _setup(run: Run) -> list[tuple[str, str]]:
    keys = {
        "model": "model.path",
        "task": "task.kind",
        "data": "data.train",
        "rank": "method.rank",
        "partition": "federation.partition.kind",
        "seed": "seed",
    }
    values = {name: facts.setting(run, dotted) for name, dotted in keys.items()}
    return [(name, short_name(value)) for name, value in values.items() if value is not None]


def _notices(run: Run, refresh: int | None) -> list[str]:
    notices = []
    if refresh is not None:
        done, total = facts.rounds_done(run), facts.setting(run, "federation.rounds")
        rounds = f": {done} of {plural(total, 'round')} done" if isinstance(total, int) else ""
        notices.append(
            f"This run is in progress{rounds}. This page loads itself again every {refresh} seconds until "
            "the run ends."
        )
    elif run.summary is None:
        notices.append(
            "This run did not finish: it has no summary.json. Below is what it had measured until then. "
            "One-time traffic, versions and memory are not recorded."
        )
    if left_out := len(facts.rejections(run)):
        notices.append(f"{plural(left_out, 'update')} left out of an average: the reasons are under Clients.")
    notices += [f"{note}." for note in cut_notes(facts.stated(run, "tokens"))]
    doubt = tables.ledger_doubt(run)
    return [*notices, doubt] if doubt else notices


def _quality(run: Run) -> list[Card]:
    name = facts.primary(run)
    if name is None:
        return []
    before, after = facts.base(run, name), facts.final(run, name)
    note = f"from {show(name, before)}, {show_change(name, before, after)}" if before is not None else ""
    return [Card(describe(name).title, show(name, after), note if after is not None else "not yet measured")]


def _traffic(run: Run) -> list[Card]:
    parameters = whole(facts.stated(run, "communication").get("upload_parameters_per_client_per_round"))
    once = facts.one_time_bytes(run)
    note = f"up and down, {human_bytes(once)} of it once" if once else "up and down"
    sent = human_bytes(facts.sent_per_client(run))
    totals = [
        Card("Sent per client", sent, "whole run, average over all clients"),
        Card("All traffic", human_bytes(facts.total_bytes(run)), note),
    ]
    if parameters is None:
        return totals
    return [*totals, Card("Parameters sent", count(parameters), "per client and round")]


def _effort(run: Run) -> list[Card]:
    memory = number(facts.summary(run).get("peak_memory_bytes"))
    note = "" if memory is None else f"peak memory {human_bytes(memory)}"
    return [_privacy(run), Card("Time", duration(facts.seconds(run)), note)]


def _privacy(run: Run) -> Card:
    stated = facts.stated(run, "privacy")
    if stated.get("private") is False:
        return Card("Privacy", "NOT private", "noise from a fixed seed")
    if stated:
        unit, delta = stated.get("unit") or DASH, decimal(number(stated.get("delta")))
        return Card("Privacy", f"ε = {decimal(number(stated.get('epsilon')))}", f"δ = {delta}, per {unit}")
    spent = facts.epsilon_spent(run)
    if spent is not None:
        return Card("Privacy", f"ε = {decimal(spent)}", "spent so far")
    if facts.setting(run, "privacy"):
        return Card("Privacy", DASH)
    return Card("Privacy", "none", "no noise added")
