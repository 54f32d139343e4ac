"""A whole comparison, its config, its copy; the command in this process."""

import shutil

import pytest
import yaml
from comparison_helpers import RATES, TWO
from run_helpers import (
    classification_config,
    main_status,
    tiny_bert,
    write_config,
    write_data,
)

from fedsb.runner import loop as runner


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=48, test=12)
    config = classification_config(
        folder / "bert",
        folder / "data",
        federation__rounds=2,
        federation__clients_per_round=2,
        method__init__head_warmup=None,
        method__init__samples=12,
    )
    config["compare"] = {
        "arms": {"fedit": {"method.rank": 2}},
        "learning_rates": RATES,
        "tuning_budget": len(RATES),
        "validation": 0.25,
    }
    write_config(folder / "good.yaml", config)
    return folder


@pytest.fixture(scope="session")
def config(world):
    return yaml.safe_load((world / "good.yaml").read_text())


@pytest.fixture(scope="session")
def whole(world):
    """Two methods, two seeds, two rates: four tuning runs and four others."""
    with pytest.MonkeyPatch.context() as patch:
        assert main_status(patch, "compare", world / "good.yaml", *TWO, "--out", world / "whole") == 0
    return world / "whole"


@pytest.fixture
def copy(whole, tmp_path):
    """As if it had been made there: tuning runs name the split's files by their whole path."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    for file in folder.glob("tuning/*/*/config.yaml"):
        file.write_text(file.read_text().replace(str(whole), str(folder)))
    return folder


@pytest.fixture
def fedsb(monkeypatch, capsys):
    """Call the command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        status = main_status(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def runs_done(monkeypatch):
    """The folders of runs done from here on, in this process."""
    done, run = [], runner.run

    def noted(config, out, **options):
        done.append(out.name)
        return run(config, out, **options)

    monkeypatch.setattr(runner, "run", noted)
    return done
