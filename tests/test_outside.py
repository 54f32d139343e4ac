"""A method and a task of another package work from the command line; broken ones are refused by its name."""

import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import pytest
import yaml
from outside_package import write_package
from run_helpers import (
    changed,
    classification_config,
    main_status,
    metrics_of,
    shell,
    tiny_bert,
    write_config,
    write_data,
)

import fedsb
from fedsb.common.registry import Registry
from fedsb.config import RunConfig
from fedsb.config.method import method_of
from fedsb.config.sections.task import FAMILIES
from fedsb.errors import InputError
from fedsb.methods import ALL, METHODS, Method, by_name, fed_sb, register
from fedsb.tasks import TaskFamily, TaskSection, make_task

SOURCE = str(Path(fedsb.__file__).parents[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    tiny_bert(folder / "model")
    write_data(folder, train=30, test=12)
    config = classification_config(
        folder / "model",
        folder,
        task={"kind": "keyword", "words": ["good", "bad", "dull"]},
        method={"name": "damped", "rank": 2, "options": {"damping": 0.25}, "init": {"kind": "orthonormal"}},
        federation={"clients": 2, "rounds": 1},
    )
    write_config(folder / "toy.yaml", config)
    write_package(folder / "package")
    return folder


def fedsb_with(world: Path, *arguments: object):
    path = os.pathsep.join([SOURCE, str(world / "package")])
    return shell(*arguments, cwd=world, PYTHONPATH=path)


def test_a_run_of_a_method_and_a_task_of_another_package(world):
    done = fedsb_with(world, "run", "toy.yaml", "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    config = (world / "runs/one/config.yaml").read_text()
    assert "kind: keyword" in config
    assert "damping: 0.25" in config
    assert "accuracy" in str(metrics_of(world / "runs/one")[-1])


def test_a_comparison_with_a_method_of_another_package(world):
    """One rate an arm, so that nothing is tuned; the option is one arm's alone."""
    config = yaml.safe_load((world / "toy.yaml").read_text())
    arms = {"damped": {"method.options.damping": 0.25}}
    compare = {"learning_rates": 0.02, "arms": arms}
    write_config(world / "both.yaml", changed(config, method__options=..., compare=compare))
    done = fedsb_with(
        world, "compare", "both.yaml", "--methods", "damped,fedit", "--seeds", "0", "--out", "runs/both"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((world / "runs/both/comparison.json").read_text())
    assert list(found["summary"]) == ["damped", "fedit"]
    assert "damping: 0.25" in (world / "runs/both/runs/damped/seed-0/config.yaml").read_text()


@pytest.fixture
def installed(world, monkeypatch):
    """The package, in this process."""
    monkeypatch.syspath_prepend(world / "package")
    for registry in (METHODS, FAMILIES):
        monkeypatch.setitem(vars(registry), "_entries", list(entry_points(group=registry.group)))
        monkeypatch.setattr(registry, "_values", dict(registry._values))
    return world


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method.options={dumping: 1}", "method.options.dumping: unknown key. Did you mean damping?"),
        ("method.options={damping: much}", "method.options.damping: Input should be a valid number"),
        ("method.options={damping: [1]}", "method.options.damping"),
        ("task.wrods=[a, b]", "task.wrods: unknown key."),
        ("task.words=[a]", "task.words: List should have at least 2 items"),
        ("task.kind=keywords", "causal-lm, chat, keyword, found"),
        ("method.name=fedit", "method.options: fedit has none; leave them out"),
        ("method.name=dumped", "Did you mean damped"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(installed, change, words):
    with pytest.raises(InputError) as refused:
        method_of(RunConfig.from_yaml(installed / "toy.yaml", [change]))
    assert words in str(refused.value)


def test_what_it_costs_beside_the_others(installed, monkeypatch, capsys):
    sizes = ["--clients", 2, "--rank", 2, "--labels", 3]
    assert main_status(monkeypatch, "cost", "--model", installed / "model", *sizes, "--json") == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert (*listed,) == (*(method.name for method in ALL), "damped")
    assert listed["damped"]["bytes_per_round"] == listed["fed-sb"]["bytes_per_round"]


def test_the_doctor_knows_both(installed, monkeypatch, capsys):
    monkeypatch.chdir(installed)
    assert main_status(monkeypatch, "doctor", "toy.yaml") == 0
    assert "damped (inexact average" in capsys.readouterr().out


def test_a_config_with_both_is_written_and_read_back_equal(installed):
    config = RunConfig.from_yaml(installed / "toy.yaml")
    assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
    assert method_of(config).aggregation != by_name("damped").aggregation
    assert [method.name for method in METHODS.all()] == [*(m.name for m in ALL), "damped"]


BROKEN = {
    "its module cannot be imported": ({"toy": "toys_bad:x"}, "import torchy", "No module named 'torchy'"),
    "its value is missing": ({"toy": "toys_bad:x"}, "", "AttributeError"),
    "it is no method": ({"toy": "toys_bad:x"}, "x = 3", "expected a Method, found a int"),
    "it has another name": ({"toy": "damped:method"}, "", "its value is named damped"),
    "it has the name of one of ours": (
        {"fed-sb": "toys_bad:x"},
        "from damped import method\nx = method._replace(name='fed-sb')",
        "the name fed-sb is taken",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_entry_point_that_is_broken_is_refused_with_its_package(case, tmp_path, monkeypatch):
    points, module, words = BROKEN[case]
    monkeypatch.delitem(sys.modules, "toys_bad", raising=False)
    package = write_package(tmp_path, {"a.group": points}, name="acme-methods", toys_bad=module)
    monkeypatch.syspath_prepend(package)
    registry = Registry("a.group", Method, ALL)
    assert registry.get(fed_sb.name) is fed_sb
    with pytest.raises(InputError, match=r"package acme-methods in a.group cannot be used: ") as refused:
        registry.all()
    assert words in str(refused.value)


def test_two_packages_that_offer_one_name_are_refused(tmp_path, monkeypatch):
    point = {"a.group": {"damped": "damped:method"}}
    other = {"a.group": {"damped": "toys_other:x"}}
    module = "from damped import damped\nx = damped(0.1)"
    monkeypatch.syspath_prepend(write_package(tmp_path / "one", point, name="one"))
    monkeypatch.syspath_prepend(write_package(tmp_path / "two", other, name="two", toys_other=module))
    with pytest.raises(InputError, match=r"package (one|two) in a.group .*the name damped is taken"):
        Registry("a.group", Method, ALL).get("damped")


def test_a_program_registers_its_own(monkeypatch):
    monkeypatch.setattr(METHODS, "_values", dict(METHODS._values))
    mine = fed_sb._replace(name="mine")
    assert register(mine) is mine is by_name("mine") is register(mine)
    for taken in (fed_sb._replace(source="me"), mine._replace(source="me")):
        with pytest.raises(InputError, match="is taken; choose another"):
            register(taken)
    with pytest.raises(InputError, match="expected a TaskFamily, found a Method"):
        FAMILIES.register(mine)


class Odd(TaskSection):
    kind: Literal["odd"]


def test_a_task_that_is_not_what_its_section_says_is_refused(monkeypatch):
    monkeypatch.setattr(FAMILIES, "_values", dict(FAMILIES._values))
    FAMILIES.register(TaskFamily(Odd, lambda *_, **__: 3))
    with pytest.raises(InputError, match=r"task\.kind: odd makes int; expected a Task"):
        make_task(Odd(kind="odd"), None, [], source="", max_length=8)
