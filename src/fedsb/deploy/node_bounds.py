"""Sizes beyond which a node takes no part: a config from elsewhere must not keep it busy for ever."""

from __future__ import annotations

from fedsb.config.run_config import RunConfig, flat_settings
from fedsb.config.sections.task import CausalLmConfig
from fedsb.deploy.node_config import Refused
from fedsb.runner.arguments import local_training

MOST = {
    "federation.clients": 100_000,
    "federation.rounds": 20_000,
    "method.rank": 65_536,
    "method.heads": 1_024,
    "method.experts.count": 1_024,
    "method.init.samples": 10_000_000,
    "method.init.batch_size": 1_000_000,
    "method.init.head_warmup.rounds": 1_000,
    "method.init.head_warmup.steps": 100_000,
    "training.epochs": 1_000,
    "training.batch_size": 1_000_000,
    "training.accumulation": 1_000_000,
    "training.max_length": 262_144,
    "training.threads": 4_096,
    "privacy.clip_norm": 1_000_000,
}
"""The largest value of each."""
MOST_CLIENT_ROUNDS = 10_000_000
"""Rounds x clients: cohorts are drawn for every round where not all take part."""
MOST_STEPS = 10_000_000
MOST_PRIVATE_STEPS = 250_000
"""Rounds x optimizer steps of one round; with privacy, noise for all of them is sought before the first."""
MOST_LABELS = 10_000
MOST_EXPERTS = 1_024
LONGEST_PROMPT = 100_000
"""Characters of a prompt's template, which every row fills."""


def check_bounds(config: RunConfig) -> None:
    """Refuse absurd sizes, before anything is read.

    Raises:
        Refused: with the key, its bound and what was found.
    """
    settings = flat_settings(config)
    for key, most in MOST.items():
        _check(key, None if settings.get(key) == "auto" else settings.get(key), most)
    federation, task = config.federation, config.task
    _check("federation.rounds x clients", federation.rounds * federation.clients, MOST_CLIENT_ROUNDS)
    if isinstance(task, CausalLmConfig):
        _check("task.prompt (characters)", len(task.prompt), LONGEST_PROMPT)
    _check("task.labels (classes)", len(getattr(task, "labels", None) or []), MOST_LABELS)
    _check("task.label (columns)", len(task.columns or []), MOST_LABELS)
    experts = config.method.experts
    _check("method.experts.names", len(experts.names or []) if experts else 0, MOST_EXPERTS)
    _check("federation.client_experts", max(federation.client_experts or [0]), MOST_EXPERTS)


def check_steps(config: RunConfig, num_examples: int) -> None:
    """As `check_bounds`, once it is known how many examples there are."""
    steps = config.federation.rounds * local_training(config).steps_per_round(num_examples)
    most = MOST_STEPS if config.privacy is None else MOST_PRIVATE_STEPS
    _check("federation.rounds x training.epochs (optimizer steps)", steps, most)


def _check(what: str, value: float | None, most: float) -> None:
    if value is not None and not value <= most:
        raise Refused(
            f"{what}: a node takes at most {most:,}, the run has {str(value)[:20]}; lower it at the server"
        )
