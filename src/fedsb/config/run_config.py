"""The typed run config: read from YAML, checked at once, written back resolved. Unknown keys are errors."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedsb.common.dotted import flat
from fedsb.common.strict_yaml import written_yaml
from fedsb.config.base import Section, checked
from fedsb.config.private_defaults import with_private_defaults, with_secure_defaults
from fedsb.config.sections.data import DEFAULT_SHARE, DataConfig
from fedsb.config.sections.evaluation import EvaluationConfig
from fedsb.config.sections.federation import FederationConfig
from fedsb.config.sections.method import MethodConfig
from fedsb.config.sections.model import ModelConfig
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.config.sections.task import AnswerSection, ChatConfig, TaskConfig
from fedsb.config.sections.training import TrainingConfig
from fedsb.config.yaml_file import override, read_yaml

Tracking = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class RunConfig(Section):
    """One run. See the contract of the keys in README.md and recipes/ for examples."""

    seed: int = 0
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    method: MethodConfig = MethodConfig()
    federation: FederationConfig = FederationConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: list[Tracking] = Field(default_factory=list)
    """Trackers that get the numbers of metrics.jsonl too; files in `tracking/` of the run folder."""

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_tracker_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _where_scored(cls, values: Any) -> Any:
        """Where no test rows are named: a share of the training rows, or none in one place if clients are
        scored."""
        data = values.get("data") if isinstance(values, Mapping) else None
        if not isinstance(data, Mapping) or data.get("test") is not None:
            return values
        evaluation = values.get("evaluation")
        alone = isinstance(evaluation, Mapping) and evaluation.get("at_clients") is True
        return {**values, "data": {**data, "test": None if alone else DEFAULT_SHARE}}

    @model_validator(mode="before")
    @classmethod
    def _private_defaults(cls, values: Any) -> Any:
        return with_secure_defaults(with_private_defaults(values)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _benchmarks_are_written(self) -> RunConfig:
        benchmarks = self.evaluation.benchmarks
        if benchmarks and not isinstance(self.task, AnswerSection):
            raise ValueError(
                "evaluation.benchmarks are for task.kind: causal-lm or chat; leave them out, data.test is "
                "scored"
            )
        by_likelihood = [name for name, of in benchmarks.items() if of.score == "likelihood"]
        if by_likelihood and isinstance(self.task, ChatConfig):
            raise ValueError(
                f"evaluation.benchmarks.{by_likelihood[0]}.score: likelihood is for task.kind: causal-lm; "
                "take choice"
            )
        return self

    @property
    def grouped_by(self) -> str | None:
        """The column whose rows stay together on one side of a share of test rows."""
        return self.data.group or self.owner

    @property
    def owner(self) -> str | None:
        """The column that says whose a row is, where owners are what privacy protects."""
        return None if self.privacy is None else self.privacy.owner

    @property
    def shares_noise(self) -> bool:
        """Whether each client adds some of the noise of a round's sum, and nobody all of it."""
        privacy, secure = self.privacy, self.federation.secure_aggregation is not None
        return secure and privacy is not None and (privacy.unit == "client" or privacy.noise == "shared")

    @property
    def sums_gradients(self) -> bool:
        """Whether a round is one step of all clients together: each sends the sum of its clipped gradients
        under masks, in place of an update."""
        return self.shares_noise and self.privacy is not None and self.privacy.unit == "example"

    @property
    def scores_at_clients(self) -> bool:
        """Whether each client is scored on rows of its own."""
        asked, share = self.evaluation.at_clients, self.data.client_test
        return bool(share) if asked is None else asked

    def scored_after(self, number: int) -> bool:
        """Whether the model is scored after this round; 0 is before the first."""
        every = self.evaluation.every
        return every is not None and (number % every == 0 or number == self.federation.rounds)

    @property
    def times_scored(self) -> int:
        """How often the model is scored in the whole run."""
        return sum(self.scored_after(number) for number in range(self.federation.rounds + 1))

    @property
    def scored_at_clients_alone(self) -> bool:
        """Whether there are no test rows in one place."""
        return self.data.test is None

    @property
    def scores_test_rows(self) -> bool:
        """Whether there are test rows in one place, and the model is scored on them in the rounds."""
        return self.evaluation.every is not None and not self.scored_at_clients_alone

    @staticmethod
    def from_yaml(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
        """Read a YAML file and apply `key.path=value` overrides. The section `compare` is not a run's.

        Raises:
            InputError: the file, its YAML, a key or a value is wrong; one line per fault.
        """
        values = override(read_yaml(Path(path)), overrides)
        values.pop("compare", None)
        return RunConfig.from_dict(values, source=str(path))

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, source: str = "config") -> RunConfig:
        """Check a nested mapping.

        Raises:
            InputError: as `from_yaml`.
        """
        return checked(RunConfig, values, source)

    def to_yaml(self) -> str:
        """Every key with its value; reading it back gives an equal config."""
        return written_yaml(self.model_dump(mode="json"))

    def with_absolute_paths(self) -> RunConfig:
        """Paths that exist here made absolute, so that the config works from any folder."""
        values = self.model_dump(mode="json")
        data, init, privacy = values["data"], values["method"]["init"], values["privacy"]
        for section, key in (
            (values["model"], "path"),
            (data, "train"),
            (data, "test"),
            *((init, name) for name in ("public", "from_run")),
        ):
            section[key] = _absolute(section[key])
        if (experts := values["method"]["experts"]) is not None:
            experts["folders"] = _absolute(experts["folders"])
        for benchmark in values["evaluation"]["benchmarks"].values():
            benchmark["data"] = _absolute(benchmark["data"])
        if privacy and privacy["ledger"] is not None:  # it may be made by this run
            privacy["ledger"] = str(Path(privacy["ledger"]).resolve())
        return RunConfig.from_dict(values)


def _absolute(source: Any) -> Any:
    """A path or pattern as an absolute one if there are such files, else as it is; of several, each."""
    if isinstance(source, dict):
        return {name: _absolute(path) for name, path in source.items()}
    if isinstance(source, list):
        return [_absolute(path) for path in source]
    if not isinstance(source, str):
        return source
    if source and os.path.exists(source):  # False also of a name too long for any file
        return str(Path(source).resolve())
    fits = source and not Path(source).is_absolute() and glob.glob(source, recursive=True)
    return str(Path(glob.escape(str(Path.cwd())), source)) if fits else source


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """`key: a -> b` for every value that differs."""
    a, b = flat_settings(before), flat_settings(after)
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return flat(config.model_dump(mode="json"))
