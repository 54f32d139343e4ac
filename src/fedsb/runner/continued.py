"""Resuming under a changed config: more rounds, or the base model elsewhere; all else is as it was."""

from __future__ import annotations

from collections.abc import Iterator

from fedsb.config.method import method_of
from fedsb.config.run_config import RunConfig, differences
from fedsb.errors import InputError
from fedsb.federation.start.initialize import bases_kind
from fedsb.runner.arguments import start_of


def check_continues(before: RunConfig, now: RunConfig, problem: str, *, deployed: bool = False) -> None:
    """Refuse to resume under another config. The base may be elsewhere, its weights being compared when they
    are loaded; rounds may be added where each finished one is what it would have been in the longer run.

    Args:
        problem: how the message begins where other keys differ.
        deployed: clients are on other machines.

    Raises:
        InputError: with every key that differs, or why this run takes no more rounds.
    """
    same = {"tracking": now.tracking, "federation": _rounds_of(before, now)}
    now = as_chosen(before, now)
    allowed = before.model_copy(
        update=same | {"model": before.model.model_copy(update={"path": now.model.path})}
    )
    if changed := differences(allowed, now):
        raise InputError(f"--resume: {problem}:\n  " + "\n  ".join(changed))
    asked, begun = now.federation.rounds, before.federation.rounds
    if asked < begun:
        raise InputError(
            f"--resume: federation.rounds: {begun} -> {asked}: a run can be given more rounds, not fewer; "
            f"name {begun} or more, or start again with another --out"
        )
    if asked > begun and (fault := next(_faults(now, deployed=deployed), None)):
        raise InputError(f"--resume: federation.rounds: {begun} -> {asked}: {fault}")


def as_chosen(before: RunConfig, now: RunConfig) -> RunConfig:
    """The config with the length that the run's rows chose and the threads that were free, where it leaves
    them to those."""
    chosen = {
        key: getattr(before.training, key)
        for key in ("max_length", "threads")
        if getattr(now.training, key) == "auto"
    }
    return now.model_copy(update={"training": now.training.model_copy(update=chosen)})


def _rounds_of(before: RunConfig, now: RunConfig) -> object:
    return before.federation.model_copy(update={"rounds": now.federation.rounds})


def _faults(config: RunConfig, *, deployed: bool) -> Iterator[str]:
    """Why finished rounds are not those of a longer run."""
    new_run = "start a new run from this one's adapter with method.init.from_run, under another --out"
    if config.privacy is not None:
        yield "privacy: the noise was chosen for all rounds together; start a new run under another --out"
    if deployed:
        yield "every node agreed to a run of so many; start a new one under another --out"
    if config.training.schedule != "constant":
        yield (
            f"training.schedule: {config.training.schedule} runs over all rounds, so the finished ones would "
            f"have had other rates; {new_run}"
        )
    if config.method.experts is not None and config.method.experts.hard_rounds is None:
        yield (
            "method.experts.hard_rounds: null is all rounds but two, so the gate would have come later; "
            "start a new run under another --out"
        )
    if config.training.warmup_ratio:
        yield (
            "training.warmup_ratio is a share of all rounds, so the finished ones would have had other "
            f"rates; {new_run}"
        )


def notes(first: RunConfig, now: RunConfig) -> Iterator[str]:
    """What a run with added rounds has that one of so many from the start would not have."""
    if now.federation.rounds == first.federation.rounds or now.method.init.step_size is not None:
        return
    start = start_of(now, [[0]])
    if (
        method_of(now).draw is None
        and bases_kind(start, method_of(now)) == "gradient"
        and start.rule != "moments"
    ):
        yield (
            f"more rounds than at the start ({first.federation.rounds} -> {now.federation.rounds}): R0 keeps "
            "the size that the first number gave it (method.init.step_size)"
        )
