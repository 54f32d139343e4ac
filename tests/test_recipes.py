"""Every recipe is a config that loads; every method has one of its own."""

from pathlib import Path

import pytest

from fedsb.compare.arms import make_arms
from fedsb.compare.config import settings_from_yaml
from fedsb.config import RunConfig
from fedsb.config.checks import check_settings
from fedsb.methods import ALL

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_loads_and_its_settings_belong_together(path: Path) -> None:
    config = RunConfig.from_yaml(path)
    check_settings(config)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_arms_of_a_recipe_are_runs_too(path: Path) -> None:
    settings = settings_from_yaml(path)
    for arm in make_arms(RunConfig.from_yaml(path), settings, list(settings.arms) or ["fed-sb"]):
        check_settings(arm.config)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_each_method_has_a_recipe(method) -> None:
    assert RunConfig.from_yaml(RECIPES / "methods" / f"{method.name}.yaml").method.name == method.name
