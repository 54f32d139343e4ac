"""The study's script asks for comparisons that the recipes can answer."""

import argparse
import runpy
from itertools import pairwise
from pathlib import Path

import pytest

from fedsb import RunConfig
from fedsb.compare.config import settings_from_yaml
from fedsb.methods import ALL

SCRIPT = Path(__file__).parents[2] / "studies" / "private-study"
STUDY = runpy.run_path(str(SCRIPT))
ASKED = argparse.Namespace(
    model="m", data=Path("data"), out=Path("out"), only=None, jobs=2, seeds="0,1,2", dry_run=True
)


def given(command, flag):
    return [value for key, value in pairwise(command) if key == flag]


@pytest.mark.parametrize("name", list(STUDY["ARMS"]))
def test_each_comparison_is_a_valid_one_of_arms_the_recipe_has(name):
    command = STUDY["comparison"](ASKED, name, 1, {"fed-sb": 0.1, "fed-sb-public": 0.03})
    recipe, overrides = Path(command[2]), given(command, "-s")
    config, settings = RunConfig.from_yaml(recipe, overrides), settings_from_yaml(recipe, overrides)
    assert config.privacy.epsilon == 1
    assert settings.rates("fed-sb", 1.0) == (0.1,)
    public = settings.arms["fed-sb-public"]["method.init.public"]
    assert Path(public).parent == Path(config.data.train).parent == Path("out/data") / name.split("-")[0]
    (methods,) = given(command, "--methods")
    assert set(methods.split(",")) <= set(settings.arms) | {m.name for m in ALL}


def test_rates_are_chosen_before_other_budgets_are_run():
    commands = list(STUDY["steps"](ASKED))
    for name in STUDY["ARMS"]:
        budgets = [given(c, "--out")[0] for c in commands if c[1] == "compare" and f"/{name}.yaml" in c[2]]
        assert budgets == [f"out/{name}-3", f"out/{name}-1", f"out/{name}-10"]
    assert len([c for c in commands if "public_rows.py" in c[1]]) == 2


ROWS = {
    "sst2": 67_349 // 3,
    "sst2-central": 67_349,
    "sst2-banded": 67_349,
    "sst2-clients": 2000,
    "snli": 20_000 // 3,
    "snli-central": 20_000,
    "snli-bert": 549_367 // 3,
}
"""Examples of each recipe's smallest client, or its number of clients."""


RECIPES = sorted((SCRIPT.parents[1] / "recipes/private").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_private_recipe_s_delta_is_below_a_tenth_of_one_over_n(recipe):
    assert RunConfig.from_yaml(recipe).privacy.delta <= 0.1 / ROWS[recipe.stem]
