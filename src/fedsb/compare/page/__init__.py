"""The page of a comparison, from its folder alone: comparison.json, config.yaml and the run folders."""

from collections.abc import Sequence
from pathlib import Path

from fedsb.common.dotted import at
from fedsb.common.files import write_bytes
from fedsb.compare.page.figures import figures, plots_of
from fedsb.compare.page.load import Compared, load_comparison, settings_apart
from fedsb.compare.page.sites import sites
from fedsb.compare.page.tables import config, differences, listed, result, runs, settings, tuning
from fedsb.errors import InputError
from fedsb.report.load import mapping, number, sequence, whole
from fedsb.report.markup import document, header, joined, paragraph, section
from fedsb.report.metrics import describe
from fedsb.report.paper import write_files
from fedsb.report.units import count, plural, short_name

TRAINING = ("epochs", "batch_size", "accumulation", "max_length")
BUDGET = ("federation", *(f"training.{key}" for key in TRAINING), "privacy")
RULES = ("federation.server", "federation.proximal", "federation.control_variates")
"""How an arm learns: part of what is compared."""


def comparison_page(folder: Path) -> str:
    """The whole HTML document. Raises InputError if the folder holds no comparison."""
    comparison = load_comparison(folder)
    title = _title(comparison)
    sections = (
        ("differences", f"Seed by seed, against {comparison.baseline}", differences(comparison)),
        ("sites", "At the sites", sites(comparison)),
        ("tuning", "Learning rates", tuning(comparison)),
        ("settings", "What sets the methods apart", settings(comparison)),
        ("runs", "Every run", runs(comparison)),
        ("config", "Configuration", config(comparison)),
    )
    body = joined(
        header(f"fedsb comparison · {comparison.name}", title, lead(comparison), _setup(comparison)),
        *(paragraph(text, "notice") for text in notices(comparison)),
        section("result", 2, "Result", result(comparison), figures(comparison)),
        *(section(anchor, 2, heading, part) for anchor, heading, part in sections if part),
    )
    return document(title, body)


def write_comparison(folder: Path, out: Path | None = None) -> Path:
    """Write the page to `out`, by default report.html in the folder; returns where it is.

    Raises:
        InputError: the folder holds no comparison, or `out` is a folder.
    """
    out = out or folder / "report.html"
    if out.is_dir():
        raise InputError(f"{out}: expected a file name for the page, found a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, comparison_page(folder).encode("utf-8", errors="replace"))
    return out


def write_comparison_figures(folder: Path, out: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the comparison's plots and tables as files of `kinds` into `out`.

    Raises:
        InputError: the folder holds no comparison, or `out` is a file.
    """
    comparison = load_comparison(folder)
    tables = joined(*(of(comparison) for of in (result, differences, sites, tuning, settings, runs)))
    return write_files(plots_of(comparison), tables, out, kinds)


def _title(comparison: Compared) -> str:
    names = list(comparison.summary)
    if len(names) == 1:
        return f"{names[0]}, over seeds"
    return f"{listed(names) if len(names) < 4 else f'{len(names)} methods'} compared"


def lead(comparison: Compared) -> str:
    """What was compared on what, how rates were chosen, who is not dominated."""
    title, seeds = describe(comparison.metric).title, sorted({run["seed"] for run in comparison.runs})
    privacy = str(comparison.content.get("privacy") or "")  # private runs draw batches from their own secrets
    better = "" if comparison.content.get("higher_is_better", True) else ", where less is better"
    names = {key: short_name(at(comparison.config, key)) for key in ("model.path", "data.train", "data.test")}
    share = at(comparison.config, "data.test")
    test = f"{share:g} of its rows, held out" if isinstance(share, float) else names["data.test"]
    if share is None:
        test = "rows of each client's own, each client counting once"
    what_was_done = (
        f"{title} of {plural(len(comparison.summary), 'method')} on {test}{better}, with "
        f"{names['model.path']} fine-tuned on {names['data.train']}: "
        f"{_plural_of(comparison, 'federation.rounds', 'round')}, "
        f"{_plural_of(comparison, 'federation.clients', 'client')}, {plural(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds[:10]))}{', ...' if len(seeds) > 10 else ''}). "
        f"Under one seed every method has the same data, partition{'' if privacy else ' and batches'}."
    )
    sentences = (what_was_done, _how_tuned(comparison), _who_is_best(comparison), privacy)
    return " ".join(filter(None, sentences))


def _plural_of(comparison: Compared, dotted: str, word: str) -> str:
    value = whole(at(comparison.config, dotted))
    return f"an unknown number of {word}s" if value is None else plural(value, word)


def _how_tuned(comparison: Compared) -> str:
    split = mapping(comparison.content.get("split"))
    tuned = [name for name, row in comparison.summary.items() if row.get("tuned")]
    if not tuned:
        return "Learning rates were given, not tuned."
    tried = whole(at(comparison.config, "compare.tuning_seeds")) or 1
    each = f", each tried under {tried} seeds" if tried > 1 else ""
    all_tuned = len(tuned) == len(comparison.summary)
    exceptions = "" if all_tuned else f" for {listed(tuned)}; the others' rates were given"
    return (
        f"Learning rates were chosen on {count(number(split.get('validation')))} training rows held out for "
        f"that (seed {split.get('seed')}){each}{exceptions}; the test data chose nothing."
    )


def _who_is_best(comparison: Compared) -> str:
    if len(comparison.summary) < 2 or not comparison.best:
        return ""
    if len(comparison.best) == 1:
        return _of_one(comparison, comparison.best[0])
    return f"Not dominated, no other method being both better and cheaper: {listed(comparison.best)}."


def _of_one(comparison: Compared, best: str) -> str:
    """It dominates only where the seeds show that it is better than every other."""
    beaten = {str(name) for name in sequence(mapping(comparison.content.get("better_than")).get(best))}
    level = [name for name in comparison.summary if name != best and name not in beaten]
    if not level:
        return f"{best} dominates: no other method is better or cheaper, beyond the spread of the seeds."
    return (
        f"{best} has the best mean and the least traffic, and over these seeds cannot be told apart from "
        f"{listed(level)} in {describe(comparison.metric).title.lower()}."
    )


def _setup(comparison: Compared) -> list[tuple[str, str]]:
    keys = {
        "model": "model.path",
        "training rows": "data.limit.train",
        "partition": "federation.partition.kind",
        "optimizer": "training.optimizer",
        "batch": "training.batch_size",
    }
    values = [(name, at(comparison.config, dotted)) for name, dotted in keys.items()]
    return [(name, short_name(value)) for name, value in values if value is not None]


def notices(comparison: Compared) -> list[str]:
    """What a reader must know before believing the table."""
    texts = []
    if edge := [name for name, row in comparison.summary.items() if row.get("edge")]:
        texts.append(
            f"The learning rate of {listed(edge)} is the smallest or largest that was tried: a better one "
            "may lie beyond. Widen compare.learning_rates."
        )
    apart = {key for key in settings_apart(comparison) if not key.startswith(RULES)}
    if unequal := sorted(key for key in apart if key.startswith(BUDGET)):
        texts.append(
            f"The methods differ in {listed(unequal)}: partition, batches or budget are not the same."
        )
    if len({whole(row.get("seeds")) for row in comparison.summary.values()}) > 1:
        texts.append("Not every method has every seed: compare the differences seed by seed, not the means.")
    early = [
        f"{run.get('method')} seed {run.get('seed')}"
        for run in comparison.runs
        if mapping(run.get("privacy")).get("stopped_early")
    ]
    if early:
        texts.append(f"Stopped early, the privacy budget used up: {listed(early)}; less was trained there.")
    for failure in sequence(comparison.content.get("failed")):
        texts.append(f"Failed and left out: {mapping(failure).get('run')}: {mapping(failure).get('problem')}")
    return texts
