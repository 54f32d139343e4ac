"""A comparison's files as one frozen value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsb.common.dotted import flat
from fedsb.common.files import read_json
from fedsb.common.strict_yaml import parse_yaml
from fedsb.errors import InputError
from fedsb.report.load import Run, load_run, mapping, sequence
from fedsb.report.units import DASH


@dataclass(frozen=True)
class Compared:
    """A comparison's files as read. `loaded` has the run folder of each record."""

    name: str
    content: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    loaded: dict[str, Run]

    @property
    def metric(self) -> str:
        return str(self.content.get("metric"))

    @property
    def round_metric(self) -> str:
        """What the runs measured after each round: a benchmark is asked at the end alone."""
        return str(self.content.get("round_metric", self.metric))

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [mapping(run) for run in sequence(self.content.get("runs"))]

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: mapping(row) for name, row in mapping(self.content.get("summary")).items()}

    @property
    def best(self) -> list[str]:
        return [str(name) for name in sequence(self.content.get("pareto"))]

    @property
    def baseline(self) -> str:
        return str(self.content.get("baseline"))

    def of(self, method: str) -> list[dict[str, Any]]:
        return [run for run in self.runs if run.get("method") == method]

    def folders(self, method: str) -> list[Run]:
        paths = [str(run.get("run")) for run in self.of(method)]
        return [self.loaded[path] for path in paths if path in self.loaded]


def load_comparison(folder: Path) -> Compared:
    try:
        content = read_json(folder / "comparison.json")
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        config = parse_yaml(text)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{folder}: expected a comparison, found: {error}") from error
    paths = [str(mapping(run).get("run")) for run in sequence(content.get("runs"))]
    loaded = {path: load_run(folder / path) for path in paths}
    return Compared(folder.resolve().name, content, mapping(config), text, loaded)


def settings_apart(comparison: Compared) -> dict[str, dict[str, str]]:
    """Dotted key -> method -> value, for keys whose value is not the same in all of them."""
    settings = {
        name: flat(runs[0].config) for name in comparison.summary if (runs := comparison.folders(name))
    }
    keys = dict.fromkeys(key for values in settings.values() for key in values if key != "seed")
    shown = {key: {name: _text(values.get(key)) for name, values in settings.items()} for key in keys}
    return {key: values for key, values in shown.items() if len(set(values.values())) > 1}


def _text(value: object) -> str:
    return DASH if value is None else str(value)
