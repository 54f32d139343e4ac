"""The command line: one clear message for each wrong input, exit statuses, clean JSON, help with examples."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_helpers import (
    causal_config,
    changed,
    classification_config,
    command,
    environment,
    main_status,
    rows,
    shell,
    snapshot,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
    write_rows,
)
from safetensors.torch import save_file

from fedsb import RunConfig, run
from fedsb.report.console import LiveBars, PlainLines, round_line

COMMANDS = ["run", "compare", "evaluate", "export", "report", "doctor", "cost", "version"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    write_data(folder / "data", train=36, test=12)
    strange = [{**row, "label": "odd"} if i == 4 else row for i, row in enumerate(rows(12, seed=2))]
    write_rows(folder / "data" / "strange.jsonl", strange)
    _broken_models(folder)
    config = classification_config(
        folder / "bert", folder / "data", federation__rounds=1, method__init__head_warmup=None
    )
    write_config(folder / "good.yaml", config)
    run(RunConfig.from_dict(config), folder / "done")
    return folder


def _broken_models(folder):
    for name in ("empty", "cut", "garbage", "other"):
        shutil.copytree(folder / "bert", folder / name)
    (folder / "empty" / "model.safetensors").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "garbage" / "model.safetensors").write_bytes(b"not weights at all " * 50)
    config = json.loads((folder / "other" / "config.json").read_text())
    (folder / "other" / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    (folder / "folder-without-config").mkdir()
    shutil.copytree(folder / "bert", folder / "foreign")
    save_file({"something.else": torch.zeros(3)}, folder / "foreign" / "model.safetensors", {"format": "pt"})
    shutil.copytree(folder / "bert", folder / "no-tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no-tokenizer" / name).unlink()


@pytest.fixture
def fedsb(monkeypatch, capsys):
    """Call the command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        status = main_status(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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
    "privacy": ({"privacy": {"epsilon": 3}}, ["raw gradients", "method.init.kind"]),
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
        ["strange.jsonl", "row 5", "'odd'", "flat, neg, pos", "Mend"],
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
            ["method.refresh_every", "only fed-sb and lora-xs", name, "leave it out"],
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
        ["federation.partition.kind", "dirichlet", "iid or by-column"],
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
    assert [finding["ok"] for finding in document["findings"]].count(False) == 1
    last = document["findings"][-1]
    assert all(part in last["detail"] for part in parts)
    wanted = {"missing text column": "data", "unknown method": "method"}
    assert last["what"] == wanted.get(case, "model")


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
    assert_refused(answer, [str(file), "checkpoint", "start anew"])


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


# What works


def test_run_prints_plain_lines_into_a_pipe(world, tmp_path, fedsb):
    status, out, err = fedsb("run", world / "good.yaml", "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == "· reading data"
    assert any(re.match(r"base model +accuracy 0\.\d{4} .* loss \d\.\d{4}", line) for line in lines)
    assert any(re.match(r"  client 2: 12 examples, \d+/s$", line) for line in lines)
    assert any(re.match(r"round 1 of 1 .*train loss \d\.\d{4}  up .*  3 clients  \d", line) for line in lines)
    assert f"report   {tmp_path / 'run' / 'report.html'}" in out
    assert f"fedsb export {tmp_path / 'run'} --format merged" in out
    assert all(len(line) < 200 for line in lines)


def test_a_run_that_failed_exits_with_1_and_says_how_to_go_on(world, tmp_path, fedsb):
    slow = "federation.client_timeout_seconds=1e-6"
    status, out, err = fedsb("run", world / "good.yaml", "--out", tmp_path / "run", "-s", slow)
    assert status == 1
    assert err.startswith("error: round 1: no client's update could be used (client 0: timed out")
    assert "client 1 left out: timed out" in out
    assert not (tmp_path / "run" / "summary.json").exists()


def test_default_folders_are_numbered(world, tmp_path, fedsb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert fedsb("run", world / "good.yaml")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["good", "good-2"]
    assert fedsb("run", world / "good.yaml", "--resume")[0] == 0  # the newest: nothing to do
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_relative_paths_in_a_config_work_from_anywhere_afterwards(world, tmp_path, fedsb, monkeypatch):
    monkeypatch.chdir(world)
    config = classification_config(
        Path("bert"), Path("data"), federation__rounds=1, method__init__head_warmup=None
    )
    path = write_config(tmp_path / "relative.yaml", config)
    assert fedsb("run", path, "--out", tmp_path / "run")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert fedsb("evaluate", "--run", "run")[0] == 0
    assert fedsb("run", "--out", "run", "--resume")[0] == 0


def test_evaluate_gives_the_run_s_final_metrics(world, fedsb):
    status, out, err = fedsb("evaluate", "--run", world / "done", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    final = json.loads((world / "done" / "summary.json").read_text())["final"]
    scores = document.pop("scores")
    assert document == {"metrics": pytest.approx(final, abs=1e-6), "examples": 12}
    assert scores.keys() == final.keys()
    assert scores["accuracy"]["low"] < final["accuracy"] < scores["accuracy"]["high"]
    assert {score["count"] for score in scores.values()} == {12}
    assert json.loads((world / "done/evaluation/scores.json").read_text())["scores"] == scores
    assert "95 % interval" in (world / "done/report.html").read_text()


def test_evaluate_model_with_and_without_adapter(world, fedsb):
    summary = json.loads((world / "done" / "summary.json").read_text())
    shared = ("evaluate", "--model", world / "bert", "--config", world / "good.yaml", "--json")
    base = json.loads(fedsb(*shared)[1])
    assert base["metrics"] == pytest.approx(summary["base"], abs=1e-6)
    adapted = json.loads(fedsb(*shared, "--adapter", world / "done" / "adapter")[1])
    assert adapted["metrics"] == pytest.approx(summary["final"], abs=1e-6)


def test_evaluate_prints_a_table(world, fedsb):
    status, out, _ = fedsb("evaluate", "--run", world / "done", "-s", "data.limit.test=6")
    assert status == 0
    assert "6 examples" in out
    assert re.search(r"accuracy\W+\d\.\d{4}", out)


def test_causal_lm_scores_of_evaluate(world, tmp_path, fedsb):
    config = causal_config(world / "llama", world / "data", federation__rounds=1)
    path = write_config(tmp_path / "c.yaml", config)
    assert fedsb("run", path, "--out", tmp_path / "run")[0] == 0
    found = json.loads(fedsb("evaluate", "--run", tmp_path / "run", "--json")[1])["metrics"]
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert found == pytest.approx(final, rel=1e-5)
    assert found["exact_match"] == final["exact_match"]


def test_doctor_with_a_good_config(world, fedsb):
    status, out, err = fedsb("doctor", world / "good.yaml", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    found = {finding["what"]: finding["detail"] for finding in document["findings"]}
    assert document["ok"] is True
    assert "36 train and 12 test examples, 3 clients with 12 to 12 each" in found["data"]
    assert "flat, neg, pos" in found["data"]
    assert found["target layers"] == "4 layers (query, value)"
    size = json.loads((world / "done" / "summary.json").read_text())["communication"]
    assert found["update"].startswith(f"{size['upload_parameters_per_client_per_round']:,} numbers")


def test_doctor_without_a_config_looks_at_the_machine_only(fedsb):
    status, out, _ = fedsb("doctor", "--json")
    assert status == 0
    assert [f["what"] for f in json.loads(out)["findings"]] == ["versions", "device", "disk"]


def test_doctor_prints_a_table(world, fedsb):
    status, out, _ = fedsb("doctor", world / "good.yaml", "-s", "method.rank=99")
    assert status == 2
    assert re.search(r"ok +data +36 train", out)
    assert re.search(r"wrong +model +method\.rank: expected 1 to 32, found 99", out)


def test_report_again_and_over_several_runs(world, tmp_path, fedsb):
    page = (world / "done" / "report.html").read_bytes()
    (world / "done" / "report.html").unlink()
    assert fedsb("report", world / "done")[0] == 0
    assert (world / "done" / "report.html").read_bytes() == page
    other = shutil.copytree(world / "done", tmp_path / "other")
    status, out, _ = fedsb("report", world / "done", other, "--out", tmp_path / "both.html")
    assert status == 0
    assert str(tmp_path / "both.html") in out
    assert (tmp_path / "both.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["version", "--version"])
def test_version(fedsb, name):
    status, out, _ = fedsb(name)
    assert status == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(fedsb, name):
    status, out, _ = fedsb(name, "--help")
    assert status == 0
    assert "Usage" in out
    if name != "version":
        assert "Examples:" in out
        assert f"fedsb {name}" in out


def test_help_lists_every_command_and_where_to_start(fedsb):
    status, out, _ = fedsb("--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert "fedsb run" in out
    assert "--debug" in out


def test_help_says_what_an_argument_is(fedsb):
    assert "YAML file; without it the built-in quickstart." in fedsb("run", "--help")[1]


def test_a_misspelt_command_is_told_the_near_one_once(fedsb):
    assert fedsb("rnu")[2].count("Did you mean 'run'?") == 1


def test_python_m_fedsb_is_the_command():
    assert shell("--version").stdout == shell("version").stdout != ""


def test_debug_raises_the_error_itself(tmp_path, monkeypatch):
    from fedsb.errors import InputError

    with pytest.raises(InputError, match="cannot read"):
        main_status(monkeypatch, "run", tmp_path / "no.yaml", "--debug")


def test_an_error_nobody_expected_exits_with_1(tmp_path, fedsb, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("[odd] place")

    monkeypatch.setattr("fedsb.cli.terminal.run_in_terminal", broken)
    status, _, err = fedsb("run", tmp_path / "x.yaml")
    assert status == 1
    assert "KeyError: '[odd] place'" in err
    assert "--debug" in err


# In processes of their own


@pytest.mark.slow
def test_json_is_alone_on_stdout(world):
    """Whatever the libraries say while they load goes to stderr, if anywhere."""
    done = shell("evaluate", "--run", world / "done", "--json", TRANSFORMERS_VERBOSITY="info")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"metrics", "examples", "scores"}
    assert done.stdout.startswith("{\n")
    assert done.stdout.endswith("}\n")


@pytest.mark.slow
def test_wrong_input_in_a_process(world, tmp_path):
    """Only the message on stderr: no notice of a library beside it."""
    done = shell(
        "run", world / "good.yaml", "--out", tmp_path / "run", "-s", "model.path=" + str(world / "cut")
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.path")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_stops_with_130_and_a_word_on_resume(world, tmp_path):
    arguments = command("run", world / "good.yaml", "--out", tmp_path / "run", "-s", "federation.rounds=5000")
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )
    try:
        while not (tmp_path / "run" / "checkpoint" / "state.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err == f"stopped; go on with: fedsb run --out {tmp_path / 'run'} --resume\n"


def _hear_ctrl_c():
    """Tests started in the background inherit that SIGINT is ignored, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# On a terminal

RECORD = {
    "round": 2,
    "train_loss": 0.25,
    "eval": {"accuracy": 0.9, "macro_f1": 0.8, "matthews": 0.7, "loss": 0.3},
    "upload_bytes": 2650,
    "clients": [0, 2],
    "rejected": [],
    "seconds": 1.25,
}


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (None, []),
        (140, []),
        (110, ["macro f1"]),
        (95, ["macro f1", "matthews"]),
        (80, ["macro f1", "matthews", "clients"]),
    ],
)
def test_round_lines_fit_the_terminal(width, gone):
    line = re.sub(r"\[.*?\]", "", round_line(RECORD, 3, width=width))
    assert line.startswith("round 2 of 3  accuracy 0.9000  ")
    assert line.endswith("  1.2 s")
    assert len(line) <= (width or 200)
    assert [word for word in ("macro f1", "matthews", "clients") if word not in line] == gone
    assert "loss 0.3000  train loss 0.2500  up 2.65" in line


def test_round_lines_without_scores_or_with_a_score_that_was_not_finite():
    assert "accuracy" not in round_line({**RECORD, "eval": {}}, 3, width=10)
    assert "loss not finite  train loss" in round_line({**RECORD, "eval": {"loss": None}}, 3)


def drive(progress):
    """The events of a round in which one client fails with brackets in its reason."""
    progress.stage("loading [odd] name")
    progress.evaluating(5, 10)
    progress.evaluating(10, 10)
    progress.round_ends({**RECORD, "round": 0, "train_loss": None, "clients": []})
    progress.round_begins(1, 3, [0, 2])
    for client, problem in ((0, None), (2, "KeyError: '[/b]'")):
        progress.client_begins(client, 30)
        progress.step(20)
        progress.step(10)
        progress.client_ends(client, problem)
    progress.evaluating(10, 10)
    progress.round_ends(RECORD)


def test_live_bars_leave_only_their_lines():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with LiveBars(console) as bars:
        drive(bars)
        assert not bars._bars.tasks
    text = console.file.getvalue()
    assert "loading [odd] name" in text
    assert "client 2 left out: KeyError: '[/b]'" in text
    assert "round 2 of 3  accuracy" in text


def test_plain_lines_are_one_per_event():
    console = Console(file=io.StringIO(), soft_wrap=True)
    drive(PlainLines(console))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["·", "base", "client", "client", "round"]
    assert lines[0] == "· loading [odd] name"
    assert lines[3] == "client 2 left out: KeyError: '[/b]'"
