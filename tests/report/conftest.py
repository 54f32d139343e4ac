"""Made-up run folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import CONFIG, SUMMARY, Make, metrics, partition


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run folder; a file given as None is left out."""

    def write(name: str = "one", **files: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        content = {
            "config": CONFIG,
            "metrics": metrics(),
            "summary": SUMMARY,
            "partition": partition(),
            **files,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(content["config"], allow_unicode=True))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content["metrics"]))
        for part in ("summary", "partition"):
            if content[part] is not None:
                (folder / f"{part}.json").write_text(json.dumps(content[part]))
        return folder

    return write
