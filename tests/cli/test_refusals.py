"""One clear message for each wrong input, and nothing written."""

import json
import shutil

import pytest
from run_helpers import (
    changed,
    classification_config,
    snapshot,
    write_config,
)


def assert_refused(answer, parts):
    """Exit status 2 and one message on stderr that holds all the parts."""
    status, _, err = answer
    assert status == 2, err
    assert err.count("error:") == 1
    assert err.startswith("error:")
    assert "Traceback" not in err
    assert "not expected" not in err
    for part in parts:
        assert part in err, f"{part!r} is not in: {err}"


# Wrong configs: what is changed, and what the message must hold

WRONG = {
    "unknown key": (
        {"training__learning_rat": 1},
        ["bad.yaml", "training.learning_rat: unknown key", "learning_rate"],
    ),
    "unknown section": ({"trainig": {}}, ["bad.yaml", "trainig: unknown key", "Did you mean training"]),
    "wrong type": ({"method__rank": "many"}, ["bad.yaml", "method.rank", "integer", "'many'"]),
    "out of range": ({"training__learning_rate": -1}, ["training.learning_rate", "greater than 0", "-1"]),
    "zero clients": ({"federation__clients": 0}, ["federation.clients", "greater than 0", "found 0"]),
    "no model": ({"model": ...}, ["model: this key is needed and missing"]),
    "two faults": ({"seed": "x", "method__rank": 0}, ["2 wrong", "seed", "method.rank"]),
    "privacy": (
        {"privacy": {"epsilon": 3}, "method__init": {"kind": "gradient"}},
        ["raw gradients", "method.init.kind"],
    ),
    "missing text column": (
        {"task__text": ["txt"]},
        ["train.jsonl", "task.text", "'txt'", "did you mean 'text'"],
    ),
    "missing label column": ({"task__label": "lable"}, ["train.jsonl", "task.label", "did you mean 'label'"]),
    "missing partition column": (
        {"federation__partition": {"kind": "by-column", "column": "sight"}},
        ["train.jsonl", "federation.partition.column", "'sight'", "'site'"],
    ),
    "no such file": ({"data__train": "DATA/trian.jsonl"}, ["trian.jsonl: no such file", "'train.jsonl'"]),
    "unknown label in test": (
        {"data__test": "DATA/strange.jsonl"},
        ["strange.jsonl", "row 5", "'label'", "none of the training rows' 3 classes", "fix"],
    ),
    "too many clients": (
        {"federation__clients": 37},
        ["federation.clients", "36", "37", "Lower federation.clients"],
    ),
    "too large a cohort": (
        {"federation__clients_per_round": 4},
        ["federation.clients_per_round", "at most 3", "found 4"],
    ),
    "unknown method": ({"method__name": "fedsb"}, ["method.name", "'fedsb'", "Did you mean fed-sb"]),
    "almost a method": ({"method__name": "fedex"}, ["method.name", "'fedex'", "Did you mean fedex-lora"]),
    "a method's name in capitals": ({"method__name": "FLORA"}, ["'FLORA'", "fed-sb, fedit, ffa-lora, flora"]),
    "heads that do not divide": (
        {"method__heads": 3},
        ["method.heads", "divisor of method.rank = 4 (1, 2, 4)", "found 3"],
    ),
    "heads without a core": (
        {"method__name": "fedit", "method__heads": 2},
        ["method.heads", "fedit has no core", "found 2", "fed-sb, lora-xs, ravan"],
    ),
    "no heads": ({"method__heads": 0}, ["method.heads", "greater than 0", "found 0"]),
    "too few ranks": (
        {"federation__client_ranks": [4, 2]},
        ["federation.client_ranks", "expected 3 numbers", "federation.clients", "found 2"],
    ),
    "no ranks": ({"federation__client_ranks": []}, ["federation.client_ranks", "expected 3", "found 0"]),
    "too large a rank": (
        {"federation__client_ranks": [4, 5, 1]},
        ["federation.client_ranks", "at most 4 (method.rank)", "found 5"],
    ),
    "a rank of zero": ({"federation__client_ranks": [4, 0, 1]}, ["client_ranks.1", "greater than 0"]),
    **{
        f"mixed ranks with {name}": (
            {"method__name": name, "federation__client_ranks": [4, 2, 1]},
            ["federation.client_ranks", f"{name} needs one rank", "fed-sb, flora, lora-xs, flexlora"],
        )
        for name in ("ffa-lora", "fedit", "fedex-lora", "fedsvd", "rolora")
    },
    "clients' heads and one head": (
        {"federation__client_heads": [1, 1, 1]},
        ["federation.client_heads", "one head", "method.heads"],
    ),
    "more heads than there are": (
        {"method__name": "ravan", "federation__client_heads": [4, 5, 1]},
        ["federation.client_heads", "at most 4", "found 5"],
    ),
    "too few clients' heads": (
        {"method__name": "ravan", "federation__client_heads": [4]},
        ["federation.client_heads", "expected 3 numbers", "found 1"],
    ),
    "clients' heads and weight decay": (
        {"method__heads": 2, "federation__client_heads": [2, 1, 1], "training__weight_decay": 0.1},
        ["federation.client_heads", "training.weight_decay", "set it to 0"],
    ),
    **{
        f"refresh with {name}": (
            {"method__name": name, "method__refresh_every": 1},
            ["method.refresh_every", "only fed-sb, lora-xs", name, "leave it out"],
        )
        for name in ("flora", "fedit", "ravan")
    },
    "refresh with mixed ranks": (
        {"method__refresh_every": 1, "federation__client_ranks": [4, 2, 1]},
        ["method.refresh_every", "federation.client_ranks", "leave one of the two out"],
    ),
    "a residual of fedit": (
        {"method__name": "fedit", "method__residual_rank": 2},
        ["method.residual_rank", "only fedex-lora", "fedit"],
    ),
    **{
        f"4 bits and {what}": (
            {"model__load_in_4bit": True, **changes},
            [what, "base weights", "4 bits", "model.load_in_4bit: false"],
        )
        for what, changes in {
            "method.name: flora": {"method__name": "flora"},
            "method.name: fedex-lora": {"method__name": "fedex-lora"},
            "method.refresh_every": {"method__refresh_every": 2},
        }.items()
    },
    "heads over a layer": (
        {"method__rank": 16, "method__heads": 4},
        ["method.rank", "1 to 8", "found 16", "4 heads", "32 x 32", "method.heads"],
    ),
    "the method's own heads over a layer": (
        {"method__rank": 9, "method__name": "ravan"},
        ["method.rank", "1 to 8", "found 9", "4 heads"],
    ),
    "more heads than a layer has directions": (
        {"method__rank": 40, "method__heads": 40},
        ["method.rank", "40 heads", "32 x 32", "Lower method.heads"],
    ),
    "padding": ({"federation__padding": "none"}, ["federation.padding", "'all' or 'owners'", "'none'"]),
    "rank over a layer": (
        {"method__rank": 33},
        ["method.rank", "1 to 32", "found 33", "32 x 32", "Lower method.rank"],
    ),
    "no such layer": (
        {"method__targets": ["quer"]},
        ["method.targets", "'quer'", "Did you mean query", "dense, key, query, value"],
    ),
    "no target at all": ({"method__targets": []}, ["method.targets", "at least 1", "found []"]),
    "max_length": ({"training__max_length": 65}, ["training.max_length", "at most 64", "found 65"]),
    "device": ({"model__device": "tpu9"}, ["model.device", "'tpu9'"]),
    "no model folder": ({"model__path": "ROOT/nowhere"}, ["model.path", "nowhere", "does not exist"]),
    "no config.json": ({"model__path": "ROOT/folder-without-config"}, ["model.path", "no config.json"]),
    "no weights": ({"model__path": "ROOT/empty"}, ["model.path", "no weights", "*.safetensors", "copy"]),
    "cut weights": ({"model__path": "ROOT/cut"}, ["model.path", "cut", "corrupt", "fetch them again"]),
    "garbage weights": ({"model__path": "ROOT/garbage"}, ["model.path", "garbage", "corrupt", "again"]),
    "weights of another shape": ({"model__path": "ROOT/other"}, ["model.path", "other"]),
    "weights of something else": ({"model__path": "ROOT/foreign"}, ["model.path", "foreign", "weights"]),
    "no tokenizer": ({"model__path": "ROOT/no-tokenizer"}, ["model.path", "no tokenizer", "no-tokenizer"]),
    "Dirichlet without labels": (
        {
            "task": {"kind": "causal-lm", "prompt": "say {key} :", "response": "label"},
            "model__path": "ROOT/llama",
            "federation__partition": {"kind": "dirichlet"},
        },
        ["federation.partition.column", "dirichlet", "column: topic", "kind: iid"],
    ),
    "prompt of a missing column": (
        {
            "task": {"kind": "causal-lm", "prompt": "say {kye} :", "response": "label"},
            "model__path": "ROOT/llama",
        },
        ["train.jsonl", "task.prompt", "'kye'", "'key'"],
    ),
}


def _placed(value, world):
    """ROOT and DATA in a value stand for the folders of this test run."""
    if isinstance(value, str):
        return value.replace("ROOT", str(world)).replace("DATA", str(world / "data"))
    return value


@pytest.mark.parametrize("case", WRONG)
def test_wrong_config_gives_one_message_and_no_folder(world, tmp_path, fedsb, case):
    changes, parts = WRONG[case]
    values = {key: _placed(value, world) for key, value in changes.items()}
    config = changed(classification_config(world / "bert", world / "data"), **values)
    path = write_config(tmp_path / "bad.yaml", config)
    assert_refused(fedsb("run", path, "--out", tmp_path / "run"), parts)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("case", ["missing text column", "no weights", "unknown method", "no such layer"])
def test_doctor_finds_the_same_fault(world, tmp_path, fedsb, case):
    changes, parts = WRONG[case]
    values = {key: _placed(value, world) for key, value in changes.items()}
    config = changed(classification_config(world / "bert", world / "data"), **values)
    status, out, _ = fedsb("doctor", write_config(tmp_path / "bad.yaml", config), "--json")
    document = json.loads(out)
    assert status == 2
    assert document["ok"] is False
    (wrong,) = [finding for finding in document["findings"] if finding["ok"] is False]
    assert all(part in wrong["detail"] for part in parts)
    expected = {"missing text column": "data", "unknown method": "method"}
    assert wrong["what"] == expected.get(case, "model")
    skipped = [finding["what"] for finding in document["findings"] if finding["ok"] is None]
    assert skipped[-2:] == ["training", "traffic"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("model: [", ["bad.yaml", "not valid YAML"]),
        ("", ["bad.yaml", "expected keys", "NoneType"]),
        ("- a\n- b\n", ["bad.yaml", "expected keys", "list"]),
    ],
)
def test_files_that_are_no_config(tmp_path, fedsb, content, parts):
    (tmp_path / "bad.yaml").write_text(content)
    assert_refused(fedsb("run", tmp_path / "bad.yaml", "--out", tmp_path / "run"), parts)


def test_config_that_is_not_there(tmp_path, fedsb):
    assert_refused(fedsb("run", tmp_path / "no.yaml"), ["no.yaml", "cannot read", "No such file"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("method.rank", ["-s method.rank", "key.path=value", "-s method.rank=32"]),
        ("method.rnk=3", ["method.rnk: unknown key", "rank"]),
        ("=3", ["-s =3", "key.path=value"]),
        ("method.rank=[", ["method.rank=["]),
    ],
)
def test_wrong_overrides(world, tmp_path, fedsb, text, parts):
    assert_refused(fedsb("run", world / "good.yaml", "--out", tmp_path / "run", "-s", text), parts)
    assert list(tmp_path.iterdir()) == []


# Run folders in the way


def test_output_folder_with_another_run(world, fedsb):
    before = snapshot(world / "done")
    answer = fedsb("run", world / "good.yaml", "--out", world / "done")
    assert_refused(answer, ["--out", str(world / "done"), "already holds a run", "--resume"])
    assert snapshot(world / "done") == before


def test_output_folder_with_something_else(world, tmp_path, fedsb):
    (tmp_path / "mine.txt").write_text("keep")
    answer = fedsb("run", world / "good.yaml", "--out", tmp_path)
    assert_refused(answer, ["--out", str(tmp_path), "not empty", "name a new folder"])
    assert snapshot(tmp_path) == {"mine.txt": b"keep"}


def test_output_folder_that_is_a_file(world, tmp_path, fedsb):
    (tmp_path / "file").write_text("keep")
    answer = fedsb("run", world / "good.yaml", "--out", tmp_path / "file")
    assert_refused(answer, ["--out", "is a file", "name a folder"])
    assert (tmp_path / "file").read_text() == "keep"


def test_output_folder_under_a_file(world, tmp_path, fedsb):
    (tmp_path / "file").write_text("keep")
    answer = fedsb("run", world / "good.yaml", "--out", tmp_path / "file" / "run")
    assert_refused(
        answer, ["--out", str(tmp_path / "file" / "run"), f"{tmp_path / 'file'} is a file", "name a folder"]
    )


@pytest.mark.parametrize("given", [True, False])
def test_resume_where_there_is_no_run(world, tmp_path, fedsb, given):
    config = [world / "good.yaml"] if given else []
    answer = fedsb("run", *config, "--out", tmp_path / "run", "--resume")
    assert_refused(answer, ["--resume", str(tmp_path / "run"), "holds no run", "config.yaml"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.json", "round-00001.safetensors", "factors-00000.safetensors"])
def test_resume_from_an_unreadable_checkpoint(world, tmp_path, fedsb, name):
    copy = shutil.copytree(world / "done", tmp_path / "run")
    file = copy / "checkpoint" / name
    file.write_bytes(file.read_bytes()[:-9])
    answer = fedsb("run", "--out", copy, "--resume")
    assert_refused(answer, [str(file), "checkpoint", "start again"])


# Wrong uses of the other commands


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--run DIR", "--model ID_OR_DIR"]),
        (["--run", "ROOT/done", "--model", "ROOT/bert"], ["either --run", "or --model"]),
        (["--model", "ROOT/bert"], ["--model needs --config"]),
        (["--run", "ROOT/data"], ["--run", "no finished run", "summary.json"]),
        (
            ["--model", "ROOT/bert", "--adapter", "ROOT/data", "--config", "ROOT/good.yaml"],
            ["--adapter", "no adapter_config.json", "PEFT LoRA folder"],
        ),
        (
            ["--model", "ROOT/llama", "--adapter", "ROOT/done/adapter", "--config", "ROOT/good.yaml"],
            ["--adapter", "made for another model", "no such layer"],
        ),
        (["--run", "ROOT/done", "-s", "data.test=ROOT/none.jsonl"], ["none.jsonl", "no such file"]),
    ],
)
def test_wrong_uses_of_evaluate(world, fedsb, arguments, parts):
    assert_refused(fedsb("evaluate", *[_placed(word, world) for word in arguments]), parts)


def test_evaluate_with_an_adapter_whose_weights_are_cut(world, tmp_path, fedsb):
    copy = shutil.copytree(world / "done" / "adapter", tmp_path / "adapter")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    answer = fedsb("evaluate", "--model", world / "bert", "--adapter", copy, "--config", world / "good.yaml")
    assert_refused(answer, ["--adapter", str(copy)])


def test_evaluate_with_an_adapter_without_weights(world, tmp_path, fedsb):
    copy = shutil.copytree(world / "done" / "adapter", tmp_path / "adapter")
    (copy / "adapter_model.safetensors").unlink()
    answer = fedsb("evaluate", "--model", world / "bert", "--adapter", copy, "--config", world / "good.yaml")
    assert_refused(answer, ["--adapter", str(copy)])


def test_report_of_a_folder_that_is_no_run(world, tmp_path, fedsb):
    assert_refused(fedsb("report", tmp_path), [str(tmp_path), "metrics.jsonl", "name the folder"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["run", "--nope"], ["nope"], ["export"], ["run", "a", "b"]])
def test_wrong_arguments_exit_with_2(fedsb, arguments):
    status, out, err = fedsb(*arguments)
    assert status == 2
    assert out == ""
    assert "Error" in err
    assert "Traceback" not in err
