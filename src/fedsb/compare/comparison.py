"""The comparison itself: check everything, choose the rates, do the runs, leave the numbers and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsb.common.files import write_json
from fedsb.compare import tuning
from fedsb.compare.arms import Arm, check_seeds, final_jobs, make_arms
from fedsb.compare.config import CompareConfig
from fedsb.compare.execute import Problems, execute
from fedsb.compare.folder import check_folder, write_config
from fedsb.compare.inputs import INPUTS, check_inputs, check_same_inputs
from fedsb.compare.page import write_comparison
from fedsb.compare.progress import Progress, Silent
from fedsb.compare.results import (
    better_than,
    collect,
    pareto,
    privacy_sentence,
    privacy_together,
    summarize,
)
from fedsb.compare.split import recorded_seed, recorded_split, write_split
from fedsb.config import RunConfig
from fedsb.errors import InputError, RunFailed
from fedsb.runner.folder import held


@dataclass(frozen=True)
class Comparison:
    """What a comparison gives back: comparison.json's content, and its folder."""

    document: dict[str, Any]
    folder: Path

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Runs that failed: name and problem."""
        return list(self.document["failed"])


def compare(
    config: RunConfig,
    settings: CompareConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare arms on one config, or resume a comparison that was stopped or is to grow.

    Raises:
        InputError: the config, the lists, the data, the model or the folder is wrong; nothing was started.
        RunFailed: not one run could be finished, or another process works on the folder.
    """
    config = config.with_absolute_paths()
    if jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, found {jobs}")
    check_seeds(seeds)
    arms = make_arms(config, settings, methods)
    progress = progress or Silent()
    with held(Path(out)):
        root = Path(out).resolve()
        kept = check_folder(Path(out), config, settings)
        tuning_seed = recorded_seed(root / "tuning")
        tuning_seed = seeds[0] if tuning_seed is None else tuning_seed
        if _something_left(root, arms, seeds):
            progress.stage("checking data, partitions and model")
            _prepare(root, config, kept, arms, seeds, tuning_seed)
        choices, hopeless = tuning.tune(root, arms, tuning_seed, settings, jobs, progress)
        rates = {arm: choice.learning_rate for arm, choice in choices.items()}
        problems = execute(final_jobs(root, arms, rates, seeds), jobs, progress)
        document = _document(root, methods, settings.metric, {**hopeless, **problems})
        write_json(root / "comparison.json", document)
        write_comparison(root)
    return Comparison(document, Path(out))


def _something_left(root: Path, arms: Sequence[Arm], seeds: Sequence[int]) -> bool:
    """Whether a run is not done. Every folder that is there is checked to be of the same config."""
    choices = {arm.name: tuning.known_choice(root, arm) for arm in arms}
    rates = {name: choice.learning_rate for name, choice in choices.items() if choice}
    done = [job.finished() for job in final_jobs(root, arms, rates, seeds)]
    return len(rates) < len(arms) or not all(done)


def _prepare(
    root: Path,
    config: RunConfig,
    settings: CompareConfig,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    tuning_seed: int,
) -> None:
    """Check all input, then write what the runs need."""
    held_out, digests = check_inputs(arms, settings, seeds, tuning_seed)
    check_same_inputs(root, digests)
    write_config(root, config, settings)
    write_json(root / INPUTS, digests)
    if held_out is not None and recorded_seed(root / "tuning") is None:
        write_split(root / "tuning", *held_out, tuning_seed)


def _document(root: Path, methods: Sequence[str], metric: str | None, problems: Problems) -> dict[str, Any]:
    """What comparison.json holds."""
    runs = collect(root, methods, metric)
    if not runs:
        listed = "\n  ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise RunFailed(f"not one run was finished:\n  {listed}")
    summary, better = summarize(runs), bool(runs[0]["higher_is_better"])
    choices = {method: tuning.recorded_choice(root, method) for method in summary}
    for method, choice in choices.items():
        summary[method] |= {"tuned": choice is not None, "edge": bool(choice and choice.edge)}
    together = privacy_together(root, runs)
    return {
        "metric": runs[0]["metric"],
        "round_metric": runs[0]["round_metric"],
        "higher_is_better": better,
        "baseline": next(iter(summary)),
        "runs": runs,
        "summary": summary,
        "pareto": pareto(summary, higher_is_better=better),
        "better_than": better_than(runs, higher_is_better=better),
        "split": recorded_split(root / "tuning"),
        "tuning": [line for m, choice in choices.items() if choice for line in tuning.as_json(m, choice)],
        "privacy": privacy_sentence(runs, together),
        "privacy_together": together,
        "failed": [{"run": name, "problem": problem} for name, problem in problems.items()],
    }
