"""examples/fed_sb.py is what `fedsb run` does, on one screen."""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedsb import run
from fedsb.cli.quickstart.recipe import quickstart_config

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "fed_sb.py"
FEW = ["federation.rounds=2", "data.limit.train=120", "data.limit.test=30", "method.init.samples=40"]


def test_the_example_gives_the_adapter_of_a_run(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fed_sb_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    config = quickstart_config(tmp_path, FEW)
    metrics = example.fed_sb(config, tmp_path / "example")
    summary = run(config, tmp_path / "run").summary
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "example", tmp_path / "run" / "adapter")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics == summary["final"]


def test_the_example_fits_on_a_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 120
