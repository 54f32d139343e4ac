"""A run from a program: rows, data sets, a model and functions in place of files; results as frames."""

import json
import math
import os
import shutil

import datasets
import pandas
import pytest
from run_helpers import classification_config, metrics_of, rows, tiny_bert, write_data
from transformers import AutoModel, AutoTokenizer

from fedsb import RunConfig, run
from fedsb.errors import InputError
from fedsb.runner.folder import check_new
from fedsb.runner.given import given

TRAIN, TEST = rows(36, seed=1), rows(12, seed=2)
DONE = []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    tiny_bert(folder / "bert")
    write_data(folder, train=36, test=12)
    return folder


@pytest.fixture(scope="module")
def config(world):
    start = {"samples": 12, "head_warmup": None}
    return classification_config(
        world / "bert", world, method={"rank": 4, "init": start}, federation={"clients": 2, "rounds": 2}
    )


@pytest.fixture(scope="module")
def plain(config):
    """Without what is given as an object."""
    return {key: value for key, value in config.items() if key not in ("model", "data")}


@pytest.fixture(scope="module")
def objects(world):
    return {
        "model": AutoModel.from_pretrained(world / "bert"),
        "tokenizer": AutoTokenizer.from_pretrained(world / "bert"),
    }


def right(said, asked):
    return sum(s["label"] == row["label"] for s, row in zip(said, asked, strict=True)) / len(said)


@pytest.fixture(scope="module")
def result(plain, objects, world):
    steps, lines = [], []
    done = run(
        plain,
        world / "one",
        train=TRAIN,
        test=datasets.Dataset.from_list(TEST),
        **objects,
        on_round=lines.append,
        on_step=steps.append,
        metrics={"right": right, "mean_row": lambda said, asked: sum(r["score"] for r in asked) / len(asked)},
    )
    DONE.extend((steps, lines))
    return done


def test_objects_give_the_run_that_files_give(result, config, world):
    files = run(config, world / "files")
    losses = [[line["train_loss"] for line in metrics_of(r.folder)] for r in (result, files)]
    assert losses[0] == losses[1]
    assert files.summary["final"] == {k: result.summary["final"][k] for k in files.summary["final"]}


def test_what_was_given_is_in_the_folder_and_the_run_resumes_without_it(result, world):
    named = RunConfig.from_yaml(result.folder / "config.yaml")
    given = sorted(path.name.split("-")[0] for path in (result.folder / "given").iterdir())
    assert given == ["model", "test", "train"]
    assert named.data.train.startswith(str(result.folder / "given"))
    assert os.stat(named.data.train).st_mode & 0o077 == 0
    shutil.copytree(result.folder, world / "more")
    more = RunConfig.from_yaml(world / "more" / "config.yaml", ["federation.rounds=3"])
    assert run(more, world / "more", resume=True).summary["rounds"] == 3


def test_functions_are_called_and_their_scores_kept(result):
    steps, lines = DONE
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert {(step.round, step.client) for step in steps} == {(r, c) for r in (1, 2) for c in (0, 1)}
    assert max(step.examples for step in steps) == 18
    for line in lines:
        assert line["eval"]["right"] == pytest.approx(line["eval"]["accuracy"], abs=1e-12)
        assert line["eval"]["mean_row"] == pytest.approx(sum(row["score"] for row in TEST) / 12)


def test_results_are_frames(result):
    history, ledger = result.history, result.ledger
    assert list(history["round"]) == [0, 1, 2]
    assert history["accuracy"][2] == metrics_of(result.folder)[2]["eval"]["accuracy"]
    assert math.isnan(history["train_loss"][0])
    sent = ledger[ledger["what"] == "updates"]
    assert list(sent["bytes"]) == [line["upload_bytes"] for line in metrics_of(result.folder)][1:]
    assert result.privacy_ledger.empty
    assert result.tokenizer("good")["input_ids"]


def test_predictions_are_those_of_the_command(result, world):
    said = result.predict([{"text": row["text"]} for row in TEST])
    assert said == result.predict(pandas.DataFrame(TEST)) == result.predict(world / "test.jsonl")
    assert [record["row"] for record in said] == list(range(1, 13))
    assert right(said, TEST) == pytest.approx(result.history["accuracy"].iloc[-1])


def test_sources_by_name_and_names_of_classes(plain, objects, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "one", "two"])}
    )
    labels = {"neg": 0, "flat": 1, "pos": 2}
    named = [{"text": row["text"], "label": labels[row["label"]]} for row in TRAIN]
    halves = [datasets.Dataset.from_list(named[i::2], features=features) for i in (0, 1)]
    by_source = {"north": halves[0], "south": halves[1]}
    federation = {"clients": 2, "rounds": 1, "partition": {"kind": "by-column", "column": "source"}}
    done = run({**plain, "federation": federation}, tmp_path / "run", train=by_source, test=0.2, **objects)
    assert done.summary["label_names"] == ["zero", "one", "two"]
    parts = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert sorted(parts["names"].values()) == ["north", "south"]


def test_an_error_of_a_function_ends_the_run_and_it_resumes(config, tmp_path):
    def stop(step):
        if step.round == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run(config, tmp_path / "run", on_step=stop)
    assert run(config, tmp_path / "run", resume=True).summary["rounds"] == 2


def test_private_rows_stay_in_the_private_folder(plain, objects, tmp_path):
    config = {**plain, "privacy": {"unit": "example", "epsilon": 3.0, "clip_norm": 1.0}}
    config["method"] = {"rank": 4, "init": {"kind": "weights"}}
    given(config, tmp_path / "run", train=TRAIN, test=TEST, **objects)[1].write()
    assert not (tmp_path / "run" / "given").exists()
    assert len([*(tmp_path / "run" / "private" / "given").iterdir()]) == 3
    check_new(tmp_path / "run")  # what a start that was killed then leaves is no obstacle
    (tmp_path / "run" / "private" / "other").touch()
    with pytest.raises(InputError, match="is not empty"):
        check_new(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": 3}, "train: expected rows"),
        ({"train": [{"text": "a"}, 3]}, "train: row 2: expected a dict of columns, found int"),
        ({"train": [{"text": object()}]}, "a cell is of type object"),
        ({"train": datasets.DatasetDict(train=datasets.Dataset.from_list(TEST))}, "give one of its splits"),
        ({"tokenizer": None}, "model= and tokenizer= go together"),
        ({"model": None}, "model: expected an object of transformers"),
        ({"metrics": {"accuracy": right}}, "the name 'accuracy' is taken"),
        ({"on_round": 3}, "on_round: expected a function, found int"),
        ({"train": None}, "data.train: this key is needed and missing"),
    ],
)
def test_what_is_no_object_for_it_is_refused(plain, objects, tmp_path, change, words):
    with pytest.raises(InputError) as refused:
        run(plain, tmp_path / "run", **({"train": TRAIN, "test": TEST, **objects} | change))
    assert words in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_gives_no_number_is_refused_by_its_name(config, tmp_path):
    with pytest.raises(InputError, match="metrics: odd gave None; expected a finite number"):
        run(config, tmp_path / "run", metrics={"odd": lambda said, asked: None})


def test_other_rows_do_not_go_on_with_a_run(result, plain, objects):
    with pytest.raises(InputError, match=r"data\.train"):
        run(plain, result.folder, train=TRAIN[:-1], test=TEST, resume=True, **objects)
    with pytest.raises(InputError, match="expected a RunConfig, or a dict"):
        run(3, result.folder)
