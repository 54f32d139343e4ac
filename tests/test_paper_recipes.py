"""Every recipe of a paper validates and dry-runs on a tiny random model of its own family, without a network.

Local files of a few rows in the shape of the hub's data sets stand in for them; everything else of a recipe,
its prompt, column maps, preparation, targets, optimizer, precision and benchmarks, is used as it stands.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_images
import yaml
from recipe_models import save_family
from tiny_images import picture, png

from fedsb.cli.doctor import examine
from fedsb.config import RunConfig
from fedsb.models import load_tokenizer
from fedsb.runner import evaluate as evaluate_module
from fedsb.runner import run
from fedsb.runner.evaluate import evaluate_run
from fedsb.runner.prepare_data import task_of
from fedsb.tasks.pictures import Picture
from fedsb.tasks.prompts import fill, parse_template
from fedsb.tasks.sources import train_rows

RECIPES = Path(__file__).parents[1] / "recipes"
PAPERS = sorted((RECIPES / "paper").glob("*.yaml"))
FAMILY = {
    "mistralai/Mistral-7B-v0.1": "mistral",
    "google/gemma-2-9b": "gemma2",
    "meta-llama/Llama-3.2-3B": "llama",
    "openai-community/gpt2": "gpt2",
    "FacebookAI/roberta-base": "roberta",
    "meta-llama/Meta-Llama-3-8B": "llama",
    "google/vit-base-patch16-224-in21k": "vit",
}
RUN_WHOLE = {
    "arithmetic-mistral",
    "arithmetic-gemma",
    "commonsense-by-format",
    "e2e-gpt2",
    "glue-cola",
    "glue-stsb",
    "lora-mixer",
    "ravan-cifar100",
}
"""The others, which differ from one of these by numbers alone, are not scored."""


def _instructions(i: int) -> dict[str, Any]:
    choices = ["true/false", "solution1/solution2", "answer1/answer2", "ending1/ending2", "option1/option2"][
        i % 5
    ]
    answer = choices.split("/")[i // 5 % 2]
    asked = f"Please choose, question {i}\n\nAnswer format: {choices}"
    return {"instruction": asked, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def _choices(count: int) -> dict[str, Any]:
    return {"text": [f"thing {i}" for i in range(count)], "label": list("ABCDE"[:count])}


def _pair(one: str, two: str, label: Any) -> Any:
    return lambda i: {one: f"a text {i}", two: f"another text {i % 3}", "label": label(i)}


def _whole(i: int) -> int:
    return i % 2


SEVEN = ("medqa", "cola", "sst2", "gsm8k", "arc-easy", "arc-challenge", "code")


def _of_seven(i: int) -> dict[str, Any]:
    return {"question": f"What is {i} + 1?", "answer": f"#### {i + 1}", "source": SEVEN[i % 7]}


ROWS: dict[str, Any] = {
    **{f"mixture/{part}.jsonl": _of_seven for part in ("train", "test", *(f"test-{n}" for n in SEVEN))},
    "meta-math/MetaMathQA": lambda i: {
        "query": f"What is {i} + 1?",
        "response": f"{i} + 1 = {i + 1}.\nThe answer is: {i + 1}",
        "type": "GSM_AnsAug",
        "original_question": "?",
    },
    "openai/gsm8k": lambda i: {
        "question": f"Tom has {i} cats.",
        "answer": f"He has <<{i}={i}>>{i}.\n#### {i}",
    },
    "DigitalLearningGmbH/MATH-lighteval": lambda i: {
        "problem": f"Find $x$ in $x = {i}$.",
        "solution": f"So $x = \\boxed{{{i}}}$.",
        "level": "Level 1",
        "type": "Algebra",
    },
    "zwhe99/commonsense_170k": _instructions,
    "google/boolq": lambda i: {"question": f"is {i} even", "answer": i % 2 == 0, "passage": "Numbers."},
    "ybisk/piqa": lambda i: {"goal": f"Open tin {i}.", "sol1": "Spoon.", "sol2": "Opener.", "label": i % 2},
    "allenai/social_i_qa": lambda i: {
        "context": f"Kim fell {i} times.",
        "question": "How is Kim?",
        **{f"answer{letter}": f"feeling {letter}" for letter in "ABC"},
        "label": str(i % 3 + 1),
    },
    "Rowan/hellaswag": lambda i: {
        "activity_label": "Baking",
        "ctx_a": f"A woman stirs {i} times.",
        "ctx_b": "she",
        "endings": ["sings.", "stirs.", "flies.", "sleeps."],
        "label": str(i % 4),
    },
    "allenai/winogrande": lambda i: {
        "sentence": f"Ian ate {i}, _ was full.",
        "option1": "Ian",
        "option2": "Dennis",
        "answer": str(i % 2 + 1),
    },
    "allenai/ai2_arc": lambda i: {
        "question": f"Warm {i}?",
        "choices": _choices(4),
        "answerKey": "ABCD"[i % 4],
    },
    "allenai/openbookqa": lambda i: {
        "question_stem": f"Fire {i} is",
        "choices": _choices(4),
        "answerKey": "ABCD"[i % 4],
    },
    "tuetschek/e2e_nlg": lambda i: {
        "meaning_representation": f"name[Cotto {i // 2}]",
        "human_reference": ["Cotto is a pub.", "There is a pub, Cotto."][i % 2],
    },
    "uoft-cs/cifar100": lambda i: {
        "img": Picture(held=png(picture(["red", "blue"][i % 2], i))).data_uri,
        "fine_label": i % 2,
    },
    "nyu-mll/glue:cola": lambda i: {"sentence": f"a sentence {i}", "label": i % 2, "idx": i},
    "nyu-mll/glue:sst2": lambda i: {"sentence": f"a sentence {i}", "label": i % 2},
    "nyu-mll/glue:rte": _pair("sentence1", "sentence2", _whole),
    "nyu-mll/glue:mrpc": _pair("sentence1", "sentence2", _whole),
    "nyu-mll/glue:qnli": _pair("question", "sentence", _whole),
    "nyu-mll/glue:stsb": _pair("sentence1", "sentence2", lambda i: i % 11 / 2 + 0.1),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A file of rows for each data set of the hub that a recipe names, and a model of each family."""
    folder = tmp_path_factory.mktemp("papers")
    for name, row in ROWS.items():
        path = folder / f"{name.replace('/', '--').replace(':', '-')}.jsonl"
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    for family in FAMILY.values():
        (tiny_images.save_family if family == "vit" else save_family)(folder / family, family)
    return folder


def _file(world: Path, source: str) -> str:
    """The local file in place of owner/name:config@split."""
    name = source.partition("@")[0]
    found = name if name in ROWS else name.partition(":")[0]
    assert found in ROWS, f"{source}: no rows stand in for it"
    return str(world / f"{found.replace('/', '--').replace(':', '-')}.jsonl")


def localized(world: Path, path: Path) -> RunConfig:
    """The recipe with local data and a tiny model; ranks, rows and tokens cut to what that takes."""
    values = yaml.safe_load(path.read_text())
    values.pop("compare", None)
    values["model"]["path"] = str(world / FAMILY[values["model"]["path"]])
    data = values["data"]
    data["train"], data["test"] = _file(world, data["train"]), _file(world, data["test"])
    data["limit"] = {"train": max(12, values["federation"]["clients"]), "test": 4}
    values["method"]["rank"] = 2
    values["federation"]["rounds"] = 1
    if "heads" in values["method"]:
        values["method"]["heads"] = 2
    if values["federation"].get("partition", {}).get("kind") == "dirichlet":
        values["federation"]["clients"] = 3
        values["federation"]["partition"] |= {"alpha": 100, "min_size": 1}
    if "experts" in values["method"]:
        values["method"]["experts"] |= {"hard_rounds": 1}
    values["training"] |= {"epochs": 1, "batch_size": min(values["training"]["batch_size"], 8)}
    if values["task"]["kind"] == "causal-lm":
        values["task"]["max_new_tokens"] = 3
    for benchmark in values["evaluation"].get("benchmarks", {}).values():
        benchmark |= {"data": _file(world, benchmark["data"]), "limit": 4, "max_new_tokens": 3}
    return RunConfig.from_dict(values, source=path.name)


def test_there_is_a_recipe_for_every_table():
    names = {path.stem for path in PAPERS}
    assert names >= RUN_WHOLE
    assert names >= {f"glue-{task}" for task in ("cola", "rte", "mrpc", "sst2", "qnli", "stsb")}
    assert names >= {"commonsense-iid", "commonsense-lora-sb", "arithmetic-mistral-lora-sb"}


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_a_recipe_states_its_source_and_what_is_not_known(path):
    said = path.read_text().split("seed: 0")[0]
    assert "arXiv" in said
    assert f"fedsb run recipes/paper/{path.name}" in said
    assert "ot known" in said


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_a_recipe_passes_the_doctor_and_runs(path, world, tmp_path):
    pytest.importorskip("math_verify", reason="needs the extra: pip install 'fedsb[eval]'")
    config = localized(world, path)
    findings = list(examine(config))
    assert all(finding.ok for finding in findings), findings
    assert {"target layers", "memory", "work"} <= {finding.what for finding in findings}
    if path.stem not in RUN_WHOLE:
        assert run(config, tmp_path / "run").summary["rounds"] == 1


@pytest.mark.parametrize("path", [p for p in PAPERS if p.stem in RUN_WHOLE], ids=lambda p: p.stem)
def test_a_recipe_runs_and_is_scored(path, world, tmp_path):
    pytest.importorskip("math_verify", reason="needs the extra: pip install 'fedsb[eval]'")
    config = localized(world, path)
    summary = run(config, tmp_path / "run").summary
    assert summary["rounds"] == 1
    result = evaluate_run(tmp_path / "run")
    for name, benchmark in config.evaluation.benchmarks.items():
        metric = "bleu" if benchmark.score == "text" else "accuracy"
        score = result["scores"][f"{name}_{metric}"]
        assert score["count"] == (2 if benchmark.score == "text" else 4)
        assert score["low"] <= score["value"] <= score["high"]
        assert len((tmp_path / "run/evaluation" / f"{name}.jsonl").read_text().splitlines()) == score["count"]
    assert summary["primary_metric"] in result["metrics"]


CAUSAL = [path for path in PAPERS if "causal-lm" in path.read_text()]


@pytest.mark.parametrize("path", CAUSAL, ids=lambda p: p.stem)
def test_prompts_are_asked_with_the_tokens_that_are_trained(path, world, monkeypatch):
    """The benchmark's rows as training rows: up to the response their tokens are those that the model is
    asked with, and they say what the template says; the response is trained from its first token on."""
    config = localized(world, path)
    tokenizer = load_tokenizer(config.model.path)
    for name, benchmark in config.evaluation.benchmarks.items():
        data = config.data.model_copy(
            update={
                "train": benchmark.data,
                "limit": config.data.limit.model_copy(update={"train": 4}),
                "prepare": config.data.prepare.model_copy(update={"train": benchmark.prepare}),
                "columns": config.data.columns.model_copy(update={"train": benchmark.columns}),
            }
        )
        rows = train_rows(config.model_copy(update={"data": data}))
        task = task_of(config, tokenizer, rows)
        trained = task.encode(rows, "train")
        asked = _asked(config, name, task, monkeypatch)
        for row, example in zip(rows, trained, strict=True):
            border = next(i for i, label in enumerate(example["labels"]) if label != -100)
            assert example["input_ids"][:border] in asked
            assert all(label != -100 for label in example["labels"][border:])
            template = parse_template(config.task.prompt)
            expected = tokenizer(fill(template, row, "x", 1))["input_ids"]
            assert example["input_ids"][:border] == expected[:border] == expected
            response = tokenizer.decode(example["input_ids"][border:], skip_special_tokens=True)
            assert response.strip() == str(row[config.task.response]).strip()


def _asked(config: RunConfig, name: str, task: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that an evaluation hands to its engine."""
    import contextlib

    from fedsb.report.progress import Silent

    seen: list[list[int]] = []
    monkeypatch.setattr(evaluate_module, "answered", lambda ids, *a, **k: seen.extend(ids) or [""] * len(ids))
    model = evaluate_module._Model(config.model.path, None, None, load_tokenizer(config.model.path), task)
    with contextlib.ExitStack() as stack:
        asked = evaluate_module.questions_of(name, config, task, stack)
        evaluate_module._measured(asked, config, model, lambda _: None, None, Silent())
    return seen
