"""A run that holds its test rows out: resumed, scored, compared on the same rows, trained on none of them."""

import json

import pytest
from run_helpers import (
    Config,
    classification_config,
    main_status,
    rows,
    timeless,
    tiny_bert,
    write_config,
    write_rows,
)

from fedsb import RunConfig, run
from fedsb.compare.arms import Job, make_arms
from fedsb.compare.config import settings_from_dict
from fedsb.compare.inputs import check_inputs
from fedsb.errors import InputError
from fedsb.runner.evaluate import evaluate_run
from fedsb.runner.prepare_data import check_can_deploy, prepare_data

TOTAL = 60


def number(i: int) -> str:
    """A text of words that no other row has."""
    return " ".join(f"w{digit}" for digit in (i % 16, i // 16, i % 7))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("share")
    tiny_bert(folder / "bert")
    made = [row | {"text": f"{number(i)} {row['key']}"} for i, row in enumerate(rows(TOTAL, seed=1))]
    write_rows(folder / "train.jsonl", made)
    return folder


def config(world, **changes) -> Config:
    few = {"federation__rounds": 1, "method__init__head_warmup": None, "data__test": 0.2}
    by_rows = {"training__max_length": "auto"}  # which a run's config.yaml has as a number
    return classification_config(world / "bert", world, **few | by_rows | changes)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("share-run") / "run"
    run(RunConfig.from_dict(config(world)), folder)
    return folder


def test_the_split_is_kept_and_no_row_is_on_both_sides(world, done):
    split = json.loads((done / "split.json").read_text())
    assert sorted(split["train"] + split["test"]) == list(range(TOTAL))
    assert (len(split["train"]), len(split["test"])) == (48, 12)
    data = prepare_data(RunConfig.from_dict(config(world)))
    ids = [{tuple(example["input_ids"]) for example in side} for side in (data.train, data.test)]
    assert not ids[0] & ids[1]
    parts = json.loads((done / "partition.json").read_text())["clients"]
    assert sorted(i for part in parts.values() for i in part) == list(range(48))
    assert "data.test: 12 of 60 rows are held out (share 0.2)" in data.notes


def test_what_resumes_and_scores_uses_the_kept_split(world, done, monkeypatch, tmp_path):
    """Also where the draw would be another by now."""
    before = json.loads((done / "summary.json").read_text())["final"]
    monkeypatch.setattr("fedsb.tasks.sources.hold_out", lambda *rest: pytest.fail("drawn again"))
    scored = evaluate_run(done)
    assert scored["examples"] == 12
    assert scored["metrics"]["accuracy"] == before["accuracy"]
    longer = RunConfig.from_dict(config(world, federation__rounds=2))
    assert run(longer, done, resume=True).summary["rounds"] == 2
    assert RunConfig.from_yaml(done / "config.yaml").training.max_length == 8
    arms = make_arms(longer, settings_from_dict({"learning_rates": [0.02]}), ["fed-sb"])
    assert Job("the run", arms[0].config, done).finished()
    assert len(timeless(done)) == 3


def test_a_share_of_other_rows_than_the_run_s_is_refused(world, done, monkeypatch, capsys):
    for change in ("data.limit.train=30", "data.test=0.3", "data.split_seed=2"):
        assert main_status(monkeypatch, "evaluate", "--run", done, "-s", change) == 2
        assert "a share of other rows than the run's own" in " ".join(capsys.readouterr().err.split())
    (done / "split.json").rename(done / "elsewhere.json")
    with pytest.raises(InputError, match=r"held out test rows, and the file that says which is gone"):
        evaluate_run(done)
    (done / "split.json").write_text('{"train": [0, 1], "test": [1]}')
    with pytest.raises(InputError, match=r"each row in one of them"):
        evaluate_run(done)
    (done / "elsewhere.json").replace(done / "split.json")


def test_a_comparison_tunes_on_no_row_that_is_held_out(world, done):
    settings = settings_from_dict({"learning_rates": [0.01, 0.02], "validation": 0.2})
    arms = make_arms(RunConfig.from_dict(config(world)), settings, ["fed-sb"])
    (train, validation), _ = check_inputs(arms, settings, [1, 2], tuning_seed=1)
    lines = (world / "train.jsonl").read_text().splitlines()
    held = json.loads((done / "split.json").read_text())["test"]
    texts = {row["text"] for row in (*train, *validation)}
    assert len(texts) == 48
    assert not texts & {json.loads(lines[i])["text"] for i in held}


def test_a_comparison_s_own_split_keeps_groups_whole_too(world):
    settings = settings_from_dict({"learning_rates": [0.01, 0.02], "validation": 0.25})
    by_key = config(world, data__group="group", data__train=str(world / "grouped.jsonl"))
    lines = (world / "train.jsonl").read_text().splitlines()
    grouped = [json.loads(line) | {"group": f"g{i // 5}"} for i, line in enumerate(lines)]
    write_rows(world / "grouped.jsonl", grouped)
    arms = make_arms(RunConfig.from_dict(by_key), settings, ["fed-sb"])
    (train, validation), _ = check_inputs(arms, settings, [1], tuning_seed=1)
    groups = [{row["group"] for row in side} for side in (train, validation)]
    assert groups[0]
    assert groups[1]
    assert not groups[0] & groups[1]


def test_a_private_run_keeps_who_is_held_out_to_its_owner_and_trains_on_none(world, tmp_path):
    pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")
    private = {"privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-3}}
    made = RunConfig.from_dict(config(world, method__init={"kind": "weights"}, **private))
    summary = run(made, tmp_path / "run").summary
    assert not (tmp_path / "run/split.json").exists()
    split = json.loads((tmp_path / "run/private/split.json").read_text())
    assert (len(split["train"]), summary["num_test_examples"]) == (48, 12)
    parts = json.loads((tmp_path / "run/private/partition.json").read_text())["clients"]
    assert sorted(i for part in parts.values() for i in part) == list(range(48))
    assert evaluate_run(tmp_path / "run")["examples"] == 12


def test_a_server_holds_nothing_out_of_rows_that_it_does_not_have(world):
    labels = {"task__labels": ["pos", "neg", "flat"]}
    with pytest.raises(InputError, match=r"data\.test: parties keep their rows.*evaluation\.every: null"):
        check_can_deploy(RunConfig.from_dict(config(world, **labels)))
    check_can_deploy(RunConfig.from_dict(config(world, evaluation__every=None, **labels)))


def test_the_commands_say_what_is_held_out(world, tmp_path, monkeypatch, capsys):
    file = write_config(tmp_path / "c.yaml", config(world, data__test=...))
    assert main_status(monkeypatch, "doctor", file) == 0
    assert "data.test: 6 of 60 rows are held out (share 0.1)" in capsys.readouterr().out
