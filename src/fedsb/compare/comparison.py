"""The comparison itself: check everything, choose the rates, do the runs, leave the numbers and a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsb.common.files import write_json
from fedsb.common.registry import WITH
from fedsb.compare import tuning
from fedsb.compare.arms import Arm, check_seeds, final_jobs, make_arms
from fedsb.compare.config import CompareConfig, settings_from_dict
from fedsb.compare.execute import Problems, execute
from fedsb.compare.folder import check_folder, write_config
from fedsb.compare.frames import history_frame, runs_frame, summary_frame
from fedsb.compare.hooks import named
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
from fedsb.methods import Method, register
from fedsb.runner.folder import held
from fedsb.runner.given import given
from fedsb.runner.hooks import Hooks, Metric, OnRound, OnStep

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """What a comparison gives back: comparison.json's content, and its folder."""

    document: dict[str, Any]
    folder: Path

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Runs that failed: name and problem."""
        return list(self.document["failed"])

    @property
    def summary(self) -> DataFrame:
        """A pandas frame with a line for each arm: mean and deviation over the seeds, bytes, rate, and the
        paired difference to the first arm as `difference`, its interval as `low` and `high`."""
        return summary_frame(self.document)

    @property
    def runs(self) -> DataFrame:
        """A pandas frame with a line for each run: arm, seed, value, every metric, bytes, rate, seconds."""
        return runs_frame(self.document)

    @property
    def history(self) -> DataFrame:
        """A pandas frame with a line for each round of each run: `method` and `seed`, then as
        `RunResult.history`."""
        return history_frame(self.document, self.folder)


def compare(
    config: RunConfig | Mapping[str, Any],
    settings: CompareConfig | Mapping[str, Any] | None = None,
    methods: Sequence[str | Method] = (),
    seeds: Sequence[int] = (0, 1, 2),
    out: str | Path = "runs/compare",
    *,
    train: Any = None,
    test: Any = None,
    model: Any = None,
    tokenizer: Any = None,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    metrics: Mapping[str, Metric] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare arms on one config, or resume a comparison that was stopped or is to grow.

    Args:
        config: of a run, checked or a nested mapping. settings: its section `compare`, where it has none.
        methods: names of methods or arms, the first being the reference; or methods, which are registered.
        train, test, model, tokenizer: objects, as for `fedsb.run`.
        on_round, on_step, metrics: functions, as for `fedsb.run`: lines have the run's name as `run`, on_step
            gets it as its first argument, and a metric may be `compare.metric` (higher is better then). What
            one raises makes its run a failed one. Not with several jobs.
        jobs: runs at a time, in processes of their own.

    Raises:
        InputError: the config, the lists, the data, the model or the folder is wrong; nothing was started.
        RunFailed: not one run could be finished, or another process works on the folder.
    """
    hooks = Hooks(on_round, on_step, metrics or {})
    hooks.check()
    _check_jobs(jobs, hooks, methods)
    run_config, objects = given(config, Path(out), train=train, test=test, model=model, tokenizer=tokenizer)
    config, settings = run_config.with_absolute_paths(), _settings(config, settings)
    check_seeds(seeds)
    names = [method if isinstance(method, str) else register(method).name for method in methods]
    arms = make_arms(config, settings, names)
    progress = progress or Silent()
    with held(Path(out)):
        root = Path(out).resolve()
        kept = check_folder(Path(out), config, settings)
        objects.write()
        tuning_seed = recorded_seed(root / "tuning")
        tuning_seed = seeds[0] if tuning_seed is None else tuning_seed
        if _something_left(root, arms, seeds):
            progress.stage("checking data, partitions and model")
            _prepare(root, config, kept, arms, seeds, tuning_seed, hooks.metrics)
        of_run = partial(named, hooks)
        after = len(arms) * len(seeds)
        choices, hopeless = tuning.tune(
            root, arms, tuning_seed, settings, jobs, progress, of_run, after=after
        )
        rates = {arm: choice.learning_rate for arm, choice in choices.items()}
        problems = execute(final_jobs(root, arms, rates, seeds), jobs, progress, of_run)
        document = _document(root, names, settings.metric, {**hopeless, **problems})
        write_json(root / "comparison.json", document)
        write_comparison(root)
    return Comparison(document, Path(out))


def _check_jobs(jobs: int, hooks: Hooks, methods: Sequence[str | Method]) -> None:
    """Refuse what other processes could not call."""
    if jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, found {jobs}")
    if jobs > 1 and hooks != Hooks():
        raise InputError("jobs: functions are not called from other processes; take jobs=1")
    if jobs > 1 and not all(isinstance(method, str) for method in methods):
        raise InputError(
            "jobs: other processes do not know a method of this one; take jobs=1, or put the method into a "
            f"file that the environment variable {WITH} names"
        )


def _settings(
    config: RunConfig | Mapping[str, Any], settings: CompareConfig | Mapping[str, Any] | None
) -> CompareConfig:
    """What was given apart, or the config's section."""
    if isinstance(settings, CompareConfig):
        return settings
    section = config.get("compare") if settings is None and isinstance(config, Mapping) else settings
    return settings_from_dict(section)


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
    own_metrics: Collection[str],
) -> None:
    """Check all input, then write what the runs need."""
    held_out, digests = check_inputs(arms, settings, seeds, tuning_seed, own_metrics)
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
