"""What the commands do between parsing and printing: pick folders, show bars, print tables."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fedsb.cli.common import refuse_unused
from fedsb.cli.options import check_run_overrides, evaluation_config
from fedsb.common.printable import site_name
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.report.console import LiveBars, PlainLines
from fedsb.report.progress import Progress, Silent
from fedsb.report.result import scores_table
from fedsb.report.screen import say, shown
from fedsb.report.units import count, duration, human_bytes, human_count, plural

if TYPE_CHECKING:  # slow to import, and only one command needs each
    from fedsb.cli.cost import CostTable, MethodCost
    from fedsb.cli.doctor import Finding
    from fedsb.runner.exported_config import Merged


def default_folder(config: Path | None, *, resume: bool) -> Path:
    """runs/NAME, or the first free runs/NAME-2, -3, ...; with `resume` the newest that exists."""
    name = config.stem if config else "quickstart"
    candidates = [Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000)]
    free = next(i for i, folder in enumerate(candidates) if not folder.exists())
    return candidates[max(0, free - 1)] if resume else candidates[free]


def run_in_terminal(
    config_file: Path | None, overrides: Sequence[str], folder: Path, *, resume: bool, console: Console
) -> dict[str, Any]:
    """Do the run with bars on a terminal, plain lines elsewhere; its summary."""
    config = _config_of(config_file, overrides, folder, resume=resume)
    with watching(console) as progress:
        return _run_and_score(config, folder, resume=resume, progress=progress)


def watching(console: Console | None) -> AbstractContextManager[Progress]:
    """Bars on a terminal, plain lines elsewhere, nothing without a console."""
    if console is None:
        return nullcontext(Silent())
    return LiveBars(console) if console.is_terminal else nullcontext(PlainLines(console))


def _run_and_score(config: RunConfig, folder: Path, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """The run, then its benchmarks if the config has any."""
    from fedsb.runner import run
    from fedsb.runner.evaluate import check_evaluation, evaluate_run
    from fedsb.runner.folder import check_free

    if not config.evaluation.benchmarks:
        return run(config, folder, resume=resume, progress=progress).summary
    check_free(folder, config.with_absolute_paths(), resume=resume)
    for warning in check_evaluation(config):
        progress.stage(f"warning: {warning}")
    summary = run(config, folder, resume=resume, progress=progress).summary
    gc.collect()  # the run's model, before another is loaded
    return summary | {"scores": evaluate_run(folder, progress)["scores"]}


def _config_of(
    config_file: Path | None, overrides: Sequence[str], folder: Path, *, resume: bool
) -> RunConfig:
    check_run_overrides(overrides)
    if config_file is not None:
        return RunConfig.from_yaml(config_file, overrides)
    if resume:
        if not (folder / "config.yaml").is_file():
            raise InputError(f"--resume: {folder} holds no run (no config.yaml); name it with --out")
        return RunConfig.from_yaml(folder / "config.yaml", overrides)
    from fedsb.cli.quickstart.recipe import quickstart_config
    from fedsb.runner.folder import check_new

    if not (folder / "config.yaml").is_file():  # else the run itself refuses, and the notes stay as they are
        check_new(folder)
    return quickstart_config(folder, overrides)


def how_to_resume(folder: Path, files: Sequence[Path] = ()) -> str:
    """What to say after Ctrl-C. files: of --with."""
    if not (folder / "config.yaml").is_file():
        return "stopped before the run began"
    return f"stopped; resume with: fedsb run --out {folder} --resume" + "".join(f" --with {f}" for f in files)


def show_status(status: dict[str, Any], console: Console) -> None:
    """A few lines about a run."""
    done, age = status["round"], status["seconds_since"]
    ends = "finished" if status["finished"] else "not finished"
    began = "not begun" if done is None else f"round {done}"
    rows = {
        "run": f"{status['method']}, {began} of {status['rounds']}, {ends}",
        "last round": "-" if age is None else f"{duration(age)} ago",
        "scores": "  ".join(f"{n.replace('_', ' ')} {value:.4f}" for n, value in status["eval"].items()),
        "epsilon": _spent(status),
        "sent": f"up {human_bytes(status['upload_bytes'])}, down {human_bytes(status['download_bytes'])}",
        "left out": "; ".join(
            f"{site_name(status['sites'], r['client'])}: {r['reason']}" for r in status["rejected"]
        ),
    }
    for name, text in rows.items():
        if text:
            console.print(f"{name:<11}{text}", highlight=False, markup=False)


def _spent(status: dict[str, Any]) -> str:
    if status["epsilon"] is None:
        return ""
    ahead = f", with {status['paid_ahead']} releases of an unfinished round" if status["paid_ahead"] else ""
    return f"{status['epsilon']:.3g}{ahead}"


def evaluate_in_terminal(
    run: Path | None,
    model: str | None,
    adapter: Path | None,
    config: Path | None,
    overrides: Sequence[str],
    out: Path | None,
    console: Console | None,
) -> dict[str, Any]:
    """Resolve what `fedsb evaluate` was asked for, and score it: a run on its own config into its folder."""
    from fedsb.runner.chosen_lora import model_folder
    from fedsb.runner.evaluate import evaluate, evaluate_run
    from fedsb.runner.split_record import kept_split

    if (run is None) == (model is None):
        raise InputError("evaluate: give either --run DIR or --model ID_OR_DIR")
    if run is not None and not (run / "summary.json").is_file():
        raise InputError(f"--run: {run} holds no finished run (no summary.json)")
    if config is None and run is None:
        raise InputError("evaluate: --model needs --config, which says what task and data to score on")
    if run is not None:
        refuse_unused({"--adapter": adapter}, "--run scores the run's own")
    if run is not None and config is None and not overrides and out is None:
        with watching(console) as progress:
            return evaluate_run(run, progress)
    loaded = evaluation_config(run, config, overrides)
    if run is not None:
        model, adapter = loaded.model.path, model_folder(run)
    kept = kept_split(run, loaded) if run is not None else None
    with watching(console) as progress:
        return evaluate(loaded, model=str(model), adapter=adapter, out=out, progress=progress, kept=kept)


def show_merged(merged: Merged, console: Console) -> None:
    """What 16 bits cost; float32 costs nothing worth a word."""
    if merged.dtype != "float32":
        console.print(f"{merged}. --dtype float32 keeps all of it", highlight=False, markup=False)


ROUTINGS = {
    "oracle": "each row's own expert chosen for it",
    "static": "the mean of the experts in their place",
}
"""The other ways to route a mixture, in words."""


def show_scores(result: dict[str, Any], console: Console) -> None:
    """The scores with their intervals as a small table."""
    console.print(scores_table(result["scores"], f"{result['examples']} examples"))
    for routing, scores in result.get("other_routings", {}).items():
        if scores is not None:
            console.print(scores_table(scores, f"with {ROUTINGS[routing]}, which the model does not have"))


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """One line per finding."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    marks = {True: "[green]ok[/]", False: "[red]wrong[/]", None: "[yellow]skipped[/]"}
    for finding in findings:
        table.add_row(marks[finding.ok], shown(finding.what), shown(finding.detail, None))
    console.print(table)


COST_NOTES = (
    "Counts of numbers, head included. Bytes: 4 per number, up and down (16 bits: 2 up), all clients.",
    "paper: as in the tables of Singhal et al. 2025, which count the head once, one client's upload (all",
    "clients' for FLoRA and FedEx-LoRA) and half of LoRA's numbers for FFA-LoRA (B has rank x outputs), and",
    "leave out what is sent once, before the first round.",
)
RANKS_NOTE = "--ranks spectrum: the most that rounds and bases can cost; the run finds the layers' ranks."
GRADIENT_NOTE = (
    "once: clients send {what} (at most method.init.samples; here all)",
    "and get the bases. With --init weights or orthonormal they derive the bases themselves. A head's",
    "warm-up is not counted.",
)
SENT = {
    "factors": "the best factors of their gradient",
    "sketch": "a sketch of their gradient",
    "whole": "their whole gradient in 4 bytes a number",
}
COST_COLUMNS = ("method", "rank", "trained", "up per client", "down per client", "once up", "once down")


def show_costs(table: CostTable, console: Console) -> None:
    """One row per method, and below it what the columns count."""
    sums = ["paper per round", "bytes per round"]
    if table.rounds is not None:
        sums.append(f"bytes of {plural(table.rounds, 'round')}")
    gap = 2 if console.width >= 90 else 1
    grid = Table(
        title=_cost_title(table), title_justify="left", box=None, pad_edge=False, padding=(0, gap, 0, 0)
    )
    for column in (*COST_COLUMNS, *sums):
        first = column == "method"
        grid.add_column(column, justify="left" if first else "right", no_wrap=first, vertical="bottom")
    for name, cost in table.methods.items():
        grid.add_row(name, *_cost_cells(cost))
    console.print(grid)
    say(_cost_notes(table), console)


def show_privacy(result: dict[str, Any], console: Console) -> None:
    """The noise and the epsilon of a private training, with what they rest on."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "noise multiplier": f"{result['noise_multiplier']:.4g}  (standard deviation / clip norm)",
        "epsilon": f"{result['epsilon']:.4g}  ({result['accountant']}; Renyi: {result['epsilon_rdp']:.4g})",
        "delta": f"{result['delta']:.3g}",
        "steps": f"{result['steps']:,}, each on a Poisson sample",
        "sample rate": f"{result['sample_rate']:.4g} of the {result['unit']}s a step, on average",
        "protects": f"one {result['unit']}: present or blanked",
    }
    for name, value in rows.items():
        grid.add_row(name, shown(value))
    console.print(grid, highlight=False)


def show_audit(result: dict[str, Any], console: Console) -> None:
    """What an audit found, in words."""
    say([result["statement"]], console)


def show_ledger(report: dict[str, Any], console: Console) -> None:
    """What rows have spent: each run alone, and all together in words."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "releases", "epsilon alone", "first", "last"):
        table.add_column(name, justify="right" if name in ("releases", "epsilon alone") else "left")
    for run in report["runs"]:
        cells = run["run"], str(run["releases"]), f"{run['epsilon']:.4g}", run["first"], run["last"]
        table.add_row(*map(shown, cells))
    if report["runs"]:
        console.print(table, highlight=False)
    say([report["statement"], f"The ledger is whole: {report['ledger']}"], console)


def _cost_title(table: CostTable) -> str:
    head = f", head of {plural(table.head_parameters, 'number')}" if table.head_parameters else ""
    layers = plural(table.target_layers, "target layer")
    return shown(f"{table.model}: {layers}{head}; {plural(table.clients, 'client')}")


def _cost_cells(cost: MethodCost) -> list[str]:
    numbers = (
        cost.trained_parameters,
        cost.upload_parameters_per_client,
        cost.download_parameters_per_client,
        cost.once_upload_parameters_per_client,
        cost.once_parameters_per_client,
        cost.paper_parameters_per_round,
    )
    sizes = [cost.bytes_per_round] + ([] if cost.total_bytes is None else [cost.total_bytes])
    rank = count(cost.rank) if cost.heads == 1 else f"{cost.heads}x{count(cost.rank)}"
    return [rank, *map(human_count, numbers), *map(human_bytes, sizes)]


def _cost_notes(table: CostTable) -> list[str]:
    sends = any(cost.once_bytes for cost in table.methods.values())
    left_out = [f"left out: {reason}" for reason in table.left_out.values()]
    once = [line.format(what=SENT[table.upload]) for line in GRADIENT_NOTE] if sends else []
    most = [RANKS_NOTE] if table.ranks == "spectrum" else []
    return ["", *COST_NOTES, *once, *most, *_cost_parts(table), *left_out]


def _cost_parts(table: CostTable) -> Iterator[str]:
    """Bytes that no column has: of masks, and of what happens an unknown number of times."""
    masks = {name: cost.mask_bytes_per_round for name, cost in table.methods.items()}
    if any(masks.values()):
        yield "of these for masks, each round: " + _by_method(masks)
        if any(cost.once_upload_parameters_per_client for cost in table.methods.values()):
            yield "what is summed under masks before the first has 8 bytes a number"
    new = {n: cost.refresh_bytes for n, cost in table.methods.items() if cost.refresh_bytes is not None}
    if new:
        yield "new bases in the middle of a run: " + _by_method(new) + ", each time"


def _by_method(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {human_bytes(size)}" for name, size in sizes.items())
