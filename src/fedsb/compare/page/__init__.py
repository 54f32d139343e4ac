"""The page of a comparison, from its folder alone: comparison.json, config.yaml and the run folders."""

from pathlib import Path

from fedsb.common.dotted import at
from fedsb.compare.page.figures import figures
from fedsb.compare.page.load import Compared, load_comparison, settings_apart
from fedsb.compare.page.tables import config, differences, listed, result, runs, settings, tuning
from fedsb.report.load import mapping, number, sequence, whole
from fedsb.report.markup import document, header, joined, paragraph, section
from fedsb.report.metrics import describe
from fedsb.report.units import count, plural, short_name

BUDGET = (
    "federation",
    "training.epochs",
    "training.batch_size",
    "training.accumulation",
    "training.max_length",
    "privacy",
)


def comparison_page(folder: Path) -> str:
    """The whole HTML document.

    Raises InputError if the folder holds no comparison.
    """
    found = load_comparison(folder)
    sections = (
        ("differences", f"Seed by seed, against {found.baseline}", differences(found)),
        ("tuning", "Learning rates", tuning(found)),
        ("settings", "What sets the methods apart", settings(found)),
        ("runs", "Every run", runs(found)),
        ("config", "Configuration", config(found)),
    )
    body = joined(
        header(f"fedsb comparison · {found.name}", _title(found), lead(found), _setup(found)),
        *(paragraph(text, "notice") for text in notices(found)),
        section("result", 2, "Result", result(found), figures(found)),
        *(section(anchor, 2, title, part) for anchor, title, part in sections if part),
    )
    return document(_title(found), body)


def _title(found: Compared) -> str:
    names = list(found.summary)
    if len(names) == 1:
        return f"{names[0]}, over seeds"
    return (
        f"{', '.join(names[:-1])} and {names[-1]} compared"
        if len(names) < 4
        else f"{len(names)} methods compared"
    )


def lead(found: Compared) -> str:
    """What was compared on what, how rates were chosen, who is not dominated."""
    title, seeds = describe(found.metric).title, sorted({run["seed"] for run in found.runs})
    better = "" if found.content.get("higher_is_better", True) else ", where less is better"
    what = {key: short_name(at(found.config, key)) for key in ("model.path", "data.train", "data.test")}
    said = [
        f"{title} of {plural(len(found.summary), 'method')} on {what['data.test']}{better}, with "
        f"{what['model.path']} fine-tuned on {what['data.train']}: "
        f"{_plural_of(found, 'federation.rounds', 'round')}, "
        f"{_plural_of(found, 'federation.clients', 'client')}, {plural(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds[:10]))}{', ...' if len(seeds) > 10 else ''}). "
        f"Under one seed every method has the same data, partition{_batches(found)}."
    ]
    rest = [_how_tuned(found), _who_is_best(found), str(found.content.get("privacy") or "")]
    return " ".join(filter(None, [*said, *rest]))


def _batches(found: Compared) -> str:
    """Those of private runs come from a secret of each run."""
    return "" if found.content.get("privacy") else " and batches"


def _plural_of(found: Compared, dotted: str, word: str) -> str:
    value = whole(at(found.config, dotted))
    return f"an unknown number of {word}s" if value is None else plural(value, word)


def _how_tuned(found: Compared) -> str:
    held, seed = mapping(found.content.get("split")), mapping(found.content.get("split")).get("seed")
    tuned = [name for name, row in found.summary.items() if row.get("tuned")]
    if not tuned:
        return "Learning rates were given, not tuned."
    rest = "" if len(tuned) == len(found.summary) else f" for {listed(tuned)}; the others' rates were given"
    return (
        f"Learning rates were chosen on {count(number(held.get('validation')))} training rows held out for "
        f"that (seed {seed}){rest}; the test data chose nothing."
    )


def _who_is_best(found: Compared) -> str:
    if len(found.summary) < 2 or not found.best:
        return ""
    if len(found.best) == 1:
        return f"{found.best[0]} dominates: no other method is better or cheaper."
    return f"Not dominated, no other method being both better and cheaper: {listed(found.best)}."


def _setup(found: Compared) -> list[tuple[str, str]]:
    asked = {
        "model": "model.path",
        "training rows": "data.limit.train",
        "partition": "federation.partition.kind",
        "optimizer": "training.optimizer",
        "batch": "training.batch_size",
    }
    values = [(name, at(found.config, dotted)) for name, dotted in asked.items()]
    return [(name, short_name(value)) for name, value in values if value is not None]


def notices(found: Compared) -> list[str]:
    """What a reader must know before believing the table."""
    said = []
    edge = [name for name, row in found.summary.items() if row.get("edge")]
    if edge:
        said.append(
            f"The learning rate of {listed(edge)} is the smallest or largest that was tried: a better one "
            "may lie beyond. Widen compare.learning_rates."
        )
    unequal = sorted({key for key in settings_apart(found) if key.startswith(BUDGET)})
    if unequal:
        said.append(
            f"The methods differ in {listed(unequal)}: partition, batches or budget are not the same."
        )
    if len({whole(row.get("seeds")) for row in found.summary.values()}) > 1:
        said.append("Not every method has every seed: compare the differences seed by seed, not the means.")
    early = [
        f"{run.get('method')} seed {run.get('seed')}"
        for run in found.runs
        if mapping(run.get("privacy")).get("stopped_early")
    ]
    if early:
        said.append(f"Stopped early, the privacy budget used up: {listed(early)}; less was trained there.")
    for failure in sequence(found.content.get("failed")):
        said.append(f"Failed and left out: {mapping(failure).get('run')}: {mapping(failure).get('problem')}")
    return said
