"""A comparison from a program: objects, a method of its own, functions, results as frames."""

import pytest
from run_helpers import rows

import fedsb
from fedsb.errors import InputError
from fedsb.methods import METHODS, fedit

MINE = fedit._replace(name="mine", source="this test")


@pytest.fixture(scope="module")
def plain(config):
    """The config without its data, one rate an arm."""
    section = {"learning_rates": 0.02, "metric": "share"}
    return {key: value for key, value in config.items() if key != "data"} | {"compare": section}


@pytest.fixture(scope="module")
def told():
    return {"rounds": [], "steps": []}


@pytest.fixture(scope="module")
def result(plain, told, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_values", dict(METHODS._values))
        return fedsb.compare(
            plain,
            methods=["fed-sb", MINE],
            seeds=[0, 1],
            out=tmp_path_factory.mktemp("objects") / "out",
            train=rows(24, seed=1),
            test=rows(12, seed=2),
            on_round=told["rounds"].append,
            on_step=lambda run, step: told["steps"].append((run, step.round)),
            metrics={"share": lambda said, asked: sum(s["label"] == "pos" for s in said) / len(said)},
        )


def test_the_comparison_is_about_the_metric_of_the_program(result):
    assert result.document["metric"] == "share"
    assert list(result.summary["method"]) == ["fed-sb", "mine"]
    assert list(result.runs["value"]) == list(result.runs["share"])
    means = result.runs.groupby("method")["value"].mean()
    assert result.summary.set_index("method")["mean"].to_dict() == pytest.approx(means.to_dict())
    assert result.summary["difference"][1] == pytest.approx(means["mine"] - means["fed-sb"])
    assert not result.failed


def test_the_history_has_every_round_of_every_run(result):
    history = result.history
    assert len(history) == 2 * 2 * 3
    last = history[history["round"] == 2].set_index(["method", "seed"])["share"]
    values = result.runs.set_index(["method", "seed"])["value"]
    assert last.to_dict() == pytest.approx(values.to_dict())


def test_functions_hear_which_run_it_is(result, told):
    names = {f"{arm} seed {seed}" for arm in ("fed-sb", "mine") for seed in (0, 1)}
    assert {line["run"] for line in told["rounds"]} == {run for run, _ in told["steps"]} == names
    assert {line["round"] for line in told["rounds"]} == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": [MINE]}, "other processes do not know a method of this one"),
        ({"methods": ["fedit"], "on_round": print}, "functions are not called from other processes"),
        ({"methods": []}, "--methods: the list is empty"),
        ({"methods": ["fedit"], "settings": {"arm": {}}}, "compare.arm: unknown key"),
    ],
)
def test_what_other_processes_cannot_do_is_refused(plain, tmp_path, change, words):
    jobs = 2 if "--" not in words and "key" not in words else 1
    with pytest.raises(InputError) as refused:
        fedsb.compare(plain, **change, train=rows(24, seed=1), out=tmp_path / "out", jobs=jobs)
    assert words in str(refused.value)
