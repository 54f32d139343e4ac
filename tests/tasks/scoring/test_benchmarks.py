"""Benchmarks of whole runs: right answers known beforehand, a kill in the midst, wrong input, the report."""

import contextlib
import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_models import save_family
from run_helpers import main_status, metrics_of, write_config

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_tokenizer
from fedsb.models.load import load_base
from fedsb.runner import evaluate as evaluate_module
from fedsb.runner import run
from fedsb.runner.evaluate import evaluate, evaluate_run
from fedsb.runner.prepare_data import task_of
from fedsb.tasks.generate import transformers_engine
from fedsb.tasks.scoring.benchmark import likeliest, questions_of

TRAIN = [{"question": f"{i} + 1 =", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(8)]
TEST = [{"question": f"{i} + 2 =", "answer": f"#### {i + 2}"} for i in range(5)]
CHOICES = [
    {
        "question": f"Is {i} even?\n\nAnswer format: true/false",
        "answer": f"the correct answer is {str(i % 2 == 0).lower()}",
    }
    for i in range(6)
]
TEXTS = [{"question": f"name[{i // 2}]", "answer": ["A pub.", "It is a pub."][i % 2]} for i in range(6)]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    save_family(folder / "llama", "llama")
    for name, rows in {"train": TRAIN, "test": TEST, "choices": CHOICES, "texts": TEXTS}.items():
        write(folder / f"{name}.jsonl", rows)
    return folder


def config(world, benchmarks=None, generation=None, **more) -> dict:
    found = {
        "sums": {"data": str(world / "test.jsonl"), "score": "gsm8k"},
        "boolq": {"data": str(world / "choices.jsonl"), "score": "choice"},
    }
    return {
        "model": {"path": str(world / "llama")},
        "task": {"kind": "causal-lm", "prompt": "{question}\n", "response": "answer", "max_new_tokens": 4},
        "data": {"train": str(world / "train.jsonl"), "test": str(world / "test.jsonl")},
        "method": {"rank": 2, "init": {"kind": "orthonormal"}},
        "federation": {"clients": 2, "rounds": 1},
        "training": {"max_length": 128, "batch_size": 4},
        "evaluation": {
            "batch_size": 2,
            "benchmarks": found if benchmarks is None else benchmarks,
            "generation": generation or {},
        },
        **more,
    }


@pytest.fixture
def says(monkeypatch):
    """Put words into the model's mouth: prompt text -> output."""

    def put(answers, asked=None):
        def engine_of(model, tokenizer, decoding):
            def engine(prompts, number):
                texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
                if asked is not None:
                    asked.append(texts)
                return [answers(text) for text in texts]

            return engine

        monkeypatch.setattr(evaluate_module, "transformers_engine", engine_of)

    return put


def test_accuracies_of_known_answers(world, tmp_path, says):
    says(lambda text: "#### 3" if "+" in text else "the correct answer is true")
    loaded = RunConfig.from_dict(config(world))
    found = evaluate(loaded, model=loaded.model.path, out=tmp_path / "e")
    assert found["examples"] == 5
    sums, choices = found["scores"]["sums_accuracy"], found["scores"]["boolq_accuracy"]
    assert (sums["value"], sums["count"], sums["interval"]) == (0.2, 5, "wilson")
    assert (choices["value"], choices["count"]) == (0.5, 6)
    mean = found["scores"]["mean_accuracy"]
    assert (mean["value"], mean["count"]) == (pytest.approx(0.35), 11)
    assert 0 < mean["low"] < 0.35 < mean["high"] < 0.8
    lines = [json.loads(line) for line in (tmp_path / "e/sums.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "prompt": "1 + 2 =\n",
        "output": "#### 3",
        "extracted": "3",
        "expected": "3",
        "correct": True,
    }
    assert [line["correct"] for line in lines] == [False, True, False, False, False]
    assert json.loads((tmp_path / "e/scores.json").read_text()) == found


LETTERS = [
    {"question": f"Which is even?\n(A) {2 * i + 1}\n(B) {2 * i}\n(C) none", "answer": "(B)"} for i in range(4)
]


def test_letters_and_the_texts_of_options_are_answers(world, tmp_path, says):
    outputs = {"(B) 0": "B.", "(B) 2": "2", "(B) 4": "(A) 5 or (B) 4", "(B) 6": "The answer is 7"}
    says(lambda text: next(output for option, output in outputs.items() if option in text))
    benchmark = {"data": write(tmp_path / "letters.jsonl", LETTERS), "score": "choice"}
    loaded = RunConfig.from_dict(config(world, {"even": benchmark}))
    evaluate(loaded, model=loaded.model.path, out=tmp_path / "e")
    lines = [json.loads(line) for line in (tmp_path / "e/even.jsonl").read_text().splitlines()]
    assert [line["extracted"] for line in lines] == ["B", "B", None, "A"]
    assert [line["correct"] for line in lines] == [True, True, False, False]


def test_likelihood_compares_the_letters_that_are_listed(world, tmp_path):
    asked = []
    benchmark = {"data": write(tmp_path / "letters.jsonl", LETTERS), "score": "likelihood"}
    loaded = RunConfig.from_dict(config(world, {"even": benchmark}))
    task = task_of(loaded, load_tokenizer(loaded.model.path), [])
    encode = task.encode
    task = replace(task, encode=lambda rows, source: asked.extend(rows) or encode(rows, source))
    with contextlib.ExitStack() as stack:
        questions = questions_of("even", loaded, task, stack)
    model = load_base(loaded.model.path, tokenizer=load_tokenizer(loaded.model.path), num_labels=None, seed=0)
    prompts = [row["question"] for row in LETTERS]
    del asked[:]
    likeliest(questions, loaded, task, model, prompts, lambda done: None)
    assert [row["answer"] for row in asked[:3]] == ["(A)", "(B)", "(C)"]
    assert len(asked) == 3 * len(LETTERS)


def test_questions_that_are_cut_are_told_before_the_run(world, tmp_path, monkeypatch, capsys):
    rows = [{"question": "what is " + "1 + " * n + "1", "answer": "#### 2"} for n in (1, 2, 40)]
    benchmark = {"data": write(tmp_path / "long.jsonl", rows), "score": "gsm8k"}
    path = write_config(tmp_path / "c.yaml", config(world, {"long": benchmark}))
    assert main_status(monkeypatch, "doctor", path, "--json") == 0
    details = {f["what"]: f["detail"] for f in json.loads(capsys.readouterr().out)["findings"]}
    warning = "training.max_length 128 cuts the beginning of 1 of the 3 questions of long; raise it"
    assert details["benchmarks"] == f"3 questions of long; {warning}"
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(i for i, line in enumerate(lines) if warning in line) < lines.index(
        "· evaluating the base model"
    )


def test_texts_are_asked_once_and_held_against_all_references(world, tmp_path, says):
    pytest.importorskip("sacrebleu", reason="needs the extra: pip install 'fedsb[eval]'")
    asked = []
    says(lambda text: "It is a pub.\n", asked)
    benchmarks = {"e2e": {"data": str(world / "texts.jsonl"), "score": "text"}}
    loaded = RunConfig.from_dict(config(world, benchmarks))
    found = evaluate(loaded, model=loaded.model.path, out=tmp_path / "e")["scores"]
    assert sum(map(len, asked)) == 3
    assert found["e2e_bleu"]["value"] == pytest.approx(100)
    assert found["e2e_rouge_l"]["value"] == pytest.approx(1)
    assert found["e2e_bleu"]["count"] == 3
    first = json.loads((tmp_path / "e/e2e.jsonl").read_text().splitlines()[0])
    assert first["expected"] == ["A pub.", "It is a pub."]


def test_likelihood_takes_the_choice_that_the_model_finds_likeliest(world, tmp_path):
    benchmarks = {"boolq": {"data": str(world / "choices.jsonl"), "score": "likelihood"}}
    loaded = RunConfig.from_dict(config(world, benchmarks))
    found = evaluate(loaded, model=loaded.model.path, out=tmp_path / "e")
    lines = [json.loads(line) for line in (tmp_path / "e/boolq.jsonl").read_text().splitlines()]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / "llama").eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "llama")

    def log_likelihood(prompt: str, response: str) -> float:
        start = tokenizer(prompt)["input_ids"]
        rest = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logs = model(torch.tensor([start + rest])).logits[0].log_softmax(-1)
        return sum(logs[len(start) + i - 1, token].item() for i, token in enumerate(rest))

    for row, line in zip(CHOICES, lines, strict=True):
        likes = {
            c: log_likelihood(row["question"] + "\n", f"the correct answer is {c}") for c in ("true", "false")
        }
        assert line["extracted"] == max(likes, key=likes.__getitem__)
        assert line["correct"] == (line["extracted"] == row["answer"].split()[-1])
    assert found["metrics"]["boolq_accuracy"] == pytest.approx(np.mean([line["correct"] for line in lines]))


def test_a_killed_evaluation_goes_on_and_asks_only_the_rest(world, tmp_path, monkeypatch):
    run(RunConfig.from_dict(config(world)), tmp_path / "run")
    whole = evaluate_run(tmp_path / "run")
    outputs = (tmp_path / "run/evaluation/sums.jsonl").read_text()
    for file in (tmp_path / "run/evaluation").iterdir():
        file.unlink()
    batches, real = [], transformers_engine

    def dies_after(most):
        def engine_of(*arguments):
            engine = real(*arguments)

            def answer(prompts, number):
                if len(batches) == most:
                    raise KeyboardInterrupt
                batches.append(number)
                return engine(prompts, number)

            return answer

        monkeypatch.setattr(evaluate_module, "transformers_engine", engine_of)

    dies_after(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(tmp_path / "run")
    assert not (tmp_path / "run/evaluation/sums.jsonl").exists()
    assert not (tmp_path / "run/evaluation/scores.json").exists()
    dies_after(99)
    assert evaluate_run(tmp_path / "run") == whole
    assert len(batches) == 3 + 3  # of 5 and 6 questions, two at a time
    assert (tmp_path / "run/evaluation/sums.jsonl").read_text() == outputs
    batches.clear()
    assert evaluate_run(tmp_path / "run") == whole
    assert batches == []  # the same model and questions: only marked again


def test_outputs_of_another_model_are_not_taken(world, tmp_path, says):
    asked = []
    says(lambda text: "#### 2", asked)
    loaded = RunConfig.from_dict(config(world))
    evaluate(loaded, model=loaded.model.path, out=tmp_path / "e")
    first = sum(map(len, asked))
    other = save_family(tmp_path / "other", "llama")
    evaluate(loaded, model=str(other), out=tmp_path / "e")
    assert sum(map(len, asked)) == 2 * first


def test_the_command_runs_scores_and_reports(world, tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "c.yaml", config(world))
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "sums accuracy" in said
    assert "95 % interval" in said
    page = (tmp_path / "run/report.html").read_text()
    assert "sums: Accuracy" in page
    assert "95 % interval" in page
    assert main_status(monkeypatch, "evaluate", "--run", tmp_path / "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"].keys() >= {
        "loss",
        "perplexity",
        "sums_accuracy",
        "boolq_accuracy",
        "mean_accuracy",
    }
    assert all(math.isfinite(score["low"]) for score in found["scores"].values())
    before = (tmp_path / "run/evaluation/scores.json").read_bytes()
    narrowed = ("evaluate", "--run", tmp_path / "run", "-s", "data.limit.test=2", "--json")
    assert main_status(monkeypatch, *narrowed) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 2
    assert (tmp_path / "run/evaluation/scores.json").read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "benchmark", "message"),
    [
        (
            [{"question": "1 +", "answer": "It is 2."}],
            {"score": "gsm8k"},
            r"row 1 has no answer: expected a number",
        ),
        (
            [{"problem": "1 +", "answer": "#### 2"}],
            {"score": "gsm8k"},
            r"task\.prompt names the column 'question'",
        ),
        ([{"question": "1 +"}], {"score": "gsm8k"}, r"task\.response names the column 'answer'"),
        (
            [{"problem": "1 +", "answer": "2"}],
            {"score": "exact", "columns": {"question": "query"}},
            r"evaluation\.benchmarks\.it\.columns names the column 'query'",
        ),
        (
            [{"question": "?", "answer": "yes"}],
            {"score": "choice"},
            r"row 1 has no answer: expected one of true/false",
        ),
        ([{"a": 1}], {"score": "choice", "prepare": "boolq"}, r"row 1 is not one of boolq"),
    ],
)
def test_wrong_benchmarks_are_refused_before_the_run(
    world, tmp_path, monkeypatch, capsys, rows, benchmark, message
):
    benchmarks = {"it": {"data": write(tmp_path / "it.jsonl", rows), **benchmark}}
    path = write_config(tmp_path / "c.yaml", config(world, benchmarks))
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": {"a/b": {"data": "x", "score": "exact"}}}, "cannot name a benchmark"),
        ({"benchmarks": {"a": {"data": "x", "score": "bleu"}}}, "score"),
        (
            {"generation": {"beams": 2, "temperature": 0.5}},
            "beams are searched by transformers without sampling",
        ),
        ({"generation": {"beams": 2, "engine": "vllm"}}, "beams are searched"),
        ({"generation": {"stop": [""]}}, "stop"),
    ],
)
def test_wrong_settings(world, change, message):
    values = config(world)
    values["evaluation"] |= change
    with pytest.raises(InputError, match=message):
        RunConfig.from_dict(values)


def test_benchmarks_need_a_model_that_writes(world):
    values = config(world)
    values["task"] = {"kind": "classification", "text": ["question"], "label": "answer"}
    with pytest.raises(InputError, match=r"evaluation\.benchmarks are for task\.kind: causal-lm"):
        RunConfig.from_dict(values)


def test_vllm_is_asked_of_the_merged_model(world, tmp_path, monkeypatch):
    run(RunConfig.from_dict(config(world, generation={"engine": "vllm"})), tmp_path / "run")
    seen = []

    def engines(path, *, dtype):
        seen.append(sorted(file.name for file in Path(path).iterdir()))
        return lambda decoding: lambda prompts, number: ["#### 2"] * len(prompts)

    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(InputError, match=r"evaluation\.generation\.engine: vllm is not installed here"):
            evaluate_run(tmp_path / "run")
    monkeypatch.setattr(evaluate_module, "check_vllm", lambda: None)
    monkeypatch.setattr(evaluate_module, "vllm_engines", engines)
    assert evaluate_run(tmp_path / "run")["metrics"]["sums_accuracy"] == 0.2
    assert len(seen) == 1  # one model for all benchmarks
    assert {"config.json", "model.safetensors"} <= set(seen[0])


# In comparisons


@pytest.fixture
def compared(world, tmp_path, says, monkeypatch):
    """Compare fed-sb and fedit, two rates each, with these settings: (status, folder)."""
    says(lambda text: "#### 3" if "+" in text else "the correct answer is true")
    folder = tmp_path / "compared"

    def call(**section):
        section = {"learning_rates": [1e-3, 3e-3], "tuning_budget": 2, "validation": 0.25} | section
        path = write_config(tmp_path / "c.yaml", config(world) | {"compare": section})
        command = ("compare", path, "--methods", "fed-sb,fedit", "--seeds", "0", "--out", folder)
        return main_status(monkeypatch, *command), folder

    return call


def test_a_comparison_is_about_the_benchmarks_and_tuned_on_held_out_rows(compared, monkeypatch):
    status, folder = compared()
    found = json.loads((folder / "comparison.json").read_text())
    assert status == 0
    assert (found["metric"], found["round_metric"], found["higher_is_better"]) == (
        "mean_accuracy",
        "loss",
        True,
    )
    assert found["summary"]["fed-sb"]["mean"] == pytest.approx(0.35)
    assert found["runs"][0]["metrics"]["sums_accuracy"] == 0.2
    assert {trial["metric"] for trial in found["tuning"]} == {"loss"}
    assert not list(folder.glob("tuning/**/evaluation"))
    page = (folder / "report.html").read_text()
    assert "Mean accuracy by traffic" in page
    assert "Loss by round" in page
    assert "loss on the held-out rows" in page
    rounds = metrics_of(folder / "runs/fed-sb/seed-0")
    assert "sums_accuracy" not in rounds[-1]["eval"]


def test_another_metric_is_a_matter_of_reading_the_same_runs_anew(compared, monkeypatch):
    assert compared()[0] == 0
    monkeypatch.setattr("fedsb.runner.run", lambda *a, **k: pytest.fail("a run was repeated"))
    monkeypatch.setattr("fedsb.runner.evaluate.evaluate_run", lambda *a: pytest.fail("asked again"))
    status, folder = compared(metric="sums_accuracy")
    found = json.loads((folder / "comparison.json").read_text())
    assert (status, found["metric"]) == (0, "sums_accuracy")
    assert found["summary"]["fedit"]["mean"] == 0.2


def test_only_the_benchmarks_are_left_of_a_comparison_stopped_while_asking(compared, monkeypatch):
    done, real = [], evaluate_module.evaluate_run

    def stopped(folder, progress=None):
        done.append(folder)
        raise InputError("the power went")

    monkeypatch.setattr("fedsb.runner.evaluate.evaluate_run", stopped)
    assert compared()[0] == 1
    assert len(done) == 2
    monkeypatch.setattr("fedsb.runner.evaluate.evaluate_run", real)
    monkeypatch.setattr("fedsb.runner.run", lambda *a, **k: pytest.fail("a run was repeated"))
    status, folder = compared()
    assert status == 0
    assert json.loads((folder / "comparison.json").read_text())["summary"]["fed-sb"]["seeds"] == 1


@pytest.mark.parametrize("metric", ["blue", "gsm8k_accuracy", "mean"])
def test_a_metric_that_nothing_measures_is_refused_before_any_run(compared, metric, capsys):
    status, folder = compared(metric=metric)
    assert status == 2
    assert f"compare.metric: found {metric!r}" in capsys.readouterr().err
    assert not folder.exists()
