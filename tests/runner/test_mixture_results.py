"""What a run with a mixture leaves and what becomes of it: folder, routes, scores, exports of experts."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from run_helpers import (
    Config,
    adapter_bytes,
    causal_config,
    changed,
    classification_config,
    main_status,
    metrics_of,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
)
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsb import RunConfig, run
from fedsb.adapter.routing import routing_of, tell
from fedsb.errors import InputError
from fedsb.methods import ALL
from fedsb.models.mixture_folder import put_mixture_on, read_mixture
from fedsb.models.peft_folder import read_adapter
from fedsb.report.progress import Silent
from fedsb.runner.chosen_lora import folder_names
from fedsb.runner.evaluate import evaluate_run
from fedsb.runner.export import export_experts, export_lora, export_merged
from fedsb.runner.predict import predict
from fedsb.runner.routing_record import mutual_information

(MIXER,) = (method.name for method in ALL if method.experts is not None)
PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27
SITES = ["s0", "s1", "s2", "s3"]
LAYERS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def mixture_config(world: Path, family: str, **changes: Any) -> Config:
    make = {"bert": classification_config, "llama": causal_config}[family]
    few = {
        "method": {
            "name": MIXER,
            "rank": 4,
            "targets": LAYERS[family],
            "init": {"kind": "orthonormal", "head_warmup": None},
            "experts": {"by": "site"},
        },
        "federation": {"clients": 4, "rounds": 4, "partition": {"kind": "by-column", "column": "site"}},
        "training__learning_rate": 0.1,
        "evaluation": {"every": 4},
    }
    return make(world / family, world / "data", **few | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each family, and one that routes whole requests."""
    folder = tmp_path_factory.mktemp("mixtures")
    tiny_bert(folder / "bert")
    tiny_llama(folder / "llama")
    write_data(folder / "data", train=48, test=12)
    configs = {
        "run-bert": mixture_config(folder, "bert"),
        "run-llama": mixture_config(folder, "llama"),
        "request": mixture_config(folder, "llama", method__experts={"by": "site", "route": "request"}),
    }
    for name, config in configs.items():
        result = run(RunConfig.from_dict(config), folder / name)
        torch.save(logits(result.model), folder / f"{name}.pt")
    return folder


def logits(model: nn.Module, **more: torch.Tensor) -> torch.Tensor:
    batch = {"input_ids": PROBE, "attention_mask": torch.ones_like(PROBE)}
    with torch.no_grad():
        return model.eval()(**tell(model, batch | more)).logits


def base_of(world: Path, run_name: str) -> nn.Module:
    if run_name == "run-bert":
        return AutoModelForSequenceClassification.from_pretrained(world / "bert", num_labels=3)
    return AutoModelForCausalLM.from_pretrained(world / "llama")


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def routing_of_run(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "routing.json").read_text())


RUNS = ["run-bert", "run-llama", "request"]


def test_a_file_is_labelled_by_the_mixture_as_it_routes(world: Path) -> None:
    config, file = RunConfig.from_yaml(world / "run-bert" / "config.yaml"), world / "data" / "test.jsonl"
    records = predict(world / "run-bert", config, str(file), Silent())
    labels = [json.loads(line)["label"] for line in file.read_text().splitlines()]
    right = [record["label"] == label for record, label in zip(records, labels, strict=True)]
    assert np.mean(right) == pytest.approx(metrics_of(world / "run-bert")[-1]["eval"]["accuracy"])
    (answer, *_) = predict(
        world / "request", RunConfig.from_yaml(world / "request" / "config.yaml"), str(file), Silent()
    )
    assert answer.keys() == {"row", "answer"}


# What the run leaves


@pytest.mark.parametrize("name", RUNS)
def test_the_folder_has_the_model_of_the_run(world: Path, name: str) -> None:
    model = base_of(world, name)
    put_mixture_on(model, world / name / "mixture")
    assert worst(logits(model), torch.load(world / f"{name}.pt")) < 1e-6


@pytest.mark.parametrize("name", RUNS)
def test_adapter_is_the_mean_of_the_experts_by_their_examples(world: Path, name: str) -> None:
    mixture = read_mixture(world / name / "mixture").mixture
    assert mixture.usage is not None
    assert float(mixture.usage.sum()) == pytest.approx(1.0)
    _, pairs, _ = read_adapter(world / name / "adapter")
    for layer, factors in mixture.factors.items():
        mean = sum(share * R for share, R in zip(mixture.usage, factors.R, strict=True))
        expected = factors.B @ mean @ factors.A
        torch.testing.assert_close(pairs[layer].B @ pairs[layer].A, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_routing_json_says_which_expert_worked_on_what(world: Path, name: str) -> None:
    record = routing_of_run(world / name)
    assert record["experts"] == record["domains"] == SITES
    assert record["examples"] == [3] * 4
    use = np.array(record["use"])
    assert use.shape == (4, len(record["layers"]), 4)
    np.testing.assert_allclose(use.sum(-1), 1, atol=1e-5)
    entropy = np.array(record["entropy"])
    assert (entropy >= 0).all()
    assert (entropy <= math.log(4) + 1e-6).all()
    if name == "request":
        assert (entropy < 1e-6).all(), "one expert has all the weight"
        assert (use == use[:, :1]).all(), "in all layers the same"
    assert len(record["mutual_information"]) == len(record["right_by_layer"]) == len(record["layers"])
    assert 0 <= record["right"] <= 1
    assert record["untrained"] == {}


@pytest.mark.parametrize("name", RUNS)
def test_scores_of_three_routings(world: Path, name: str) -> None:
    record, summary = routing_of_run(world / name), json.loads((world / name / "summary.json").read_text())
    scores = record["scores"]
    assert scores["routed"] == summary["final"]
    assert summary["mixture"] == {
        "experts": SITES,
        "right": record["right"],
        "oracle": scores["oracle"],
        "static": scores["static"],
    }
    assert len({scores[kind]["loss"] for kind in ("routed", "oracle", "static")}) == 3


def test_the_oracle_s_and_the_static_scores_are_those_of_their_models(world: Path) -> None:
    """By models put together here: hard routing by the rows' column, and adapter/ put on by peft."""
    from fedsb.runner.prepare_data import prepare_data

    config = RunConfig.from_yaml(world / "run-bert" / "config.yaml")
    data, scores = prepare_data(config), routing_of_run(world / "run-bert")["scores"]
    model = base_of(world, "run-bert")
    put_mixture_on(model, world / "run-bert" / "mixture")
    routing_of(model).hard = True
    oracle = data.task.evaluate(model, data.test, batch_size=5)
    assert oracle == pytest.approx(scores["oracle"], abs=1e-5)
    static = PeftModel.from_pretrained(base_of(world, "run-bert"), world / "run-bert" / "adapter")
    assert data.task.evaluate(static, data.test, batch_size=5) == pytest.approx(scores["static"], abs=1e-5)


def test_rows_that_do_not_say_whose_they_are(world: Path, tmp_path: Path) -> None:
    lines = (world / "data" / "test.jsonl").read_text().splitlines()
    others = [{**json.loads(line), "site": "elsewhere"} for line in lines]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    config = mixture_config(world, "bert", data__test=str(tmp_path / "test.jsonl"), federation__rounds=2)
    summary = run(RunConfig.from_dict(config), tmp_path / "run").summary
    record = routing_of_run(tmp_path / "run")
    assert summary["mixture"]["oracle"] is summary["mixture"]["right"] is record["scores"]["oracle"] is None
    assert record["domains"] == ["all rows"]
    assert record["scores"]["static"] is not None


def test_a_run_that_evaluates_nothing_says_nothing_of_routes(world: Path, tmp_path: Path) -> None:
    config = mixture_config(world, "bert", evaluation={"every": None}, federation__rounds=2)
    assert run(RunConfig.from_dict(config), tmp_path / "run").summary["mixture"]["static"] is None
    assert routing_of_run(tmp_path / "run").keys() == {"route", "experts", "untrained"}


def test_the_same_run_leaves_the_same_bytes(world: Path, tmp_path: Path) -> None:
    run(RunConfig.from_dict(mixture_config(world, "bert")), tmp_path / "again")
    for name in ("mixture/mixture.safetensors", "mixture/mixture.json", "routing.json"):
        assert (tmp_path / "again" / name).read_bytes() == (world / "run-bert" / name).read_bytes()
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(world / "run-bert")


def test_experts_without_an_owner_are_named_with_their_rounds(world: Path, tmp_path: Path) -> None:
    config = mixture_config(world, "bert", federation__clients_per_round=1)
    run(RunConfig.from_dict(config), tmp_path / "run")
    lines = {line["round"]: line.get("untrained", []) for line in metrics_of(tmp_path / "run")}
    expected = {site: [n for n, names in lines.items() if site in names] for site in SITES}
    assert routing_of_run(tmp_path / "run")["untrained"] == {k: v for k, v in expected.items() if v}


def test_mutual_information_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    use, shares = rng.dirichlet(np.ones(3), size=(4, 2)), np.array([0.1, 0.2, 0.3, 0.4])
    for layer in range(2):
        joint = shares[:, None] * use[:, layer]
        apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        expected = (joint * np.log(joint / apart)).sum()
        assert mutual_information(use, shares)[layer] == pytest.approx(expected)
    sharp = np.eye(3)[:, None]
    assert mutual_information(sharp, np.full(3, 1 / 3))[0] == pytest.approx(math.log(3))


# Evaluation


def test_evaluate_scores_the_routed_model_and_the_others_beside_it(world: Path) -> None:
    result, record = evaluate_run(world / "run-bert"), routing_of_run(world / "run-bert")
    final = json.loads((world / "run-bert" / "summary.json").read_text())["final"]
    assert result["metrics"] == pytest.approx(final, abs=1e-5)
    for kind in ("oracle", "static"):
        scores = {name: score["value"] for name, score in result["other_routings"][kind].items()}
        assert scores == pytest.approx(record["scores"][kind], abs=1e-5)


def test_evaluate_on_the_command_line_takes_a_mixture_for_an_adapter(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / "run-bert"
    words = ["evaluate", "--model", world / "bert", "--adapter", folder / "mixture", "--config"]
    assert main_status(monkeypatch, *words, folder / "config.yaml", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"] == pytest.approx(
        json.loads((folder / "summary.json").read_text())["final"], abs=1e-5
    )
    assert main_status(monkeypatch, "evaluate", "--run", folder) == 0
    said = capsys.readouterr().out
    assert "with each row's own expert chosen for it, which the model does not have" in " ".join(said.split())


def test_vllm_cannot_answer_for_a_mixture(world: Path, tmp_path: Path) -> None:
    benchmark = {"data": str(world / "data" / "test.jsonl"), "score": "exact"}
    evaluation = {"benchmarks": {"own": benchmark}, "generation": {"engine": "vllm"}}
    config = RunConfig.from_dict(mixture_config(world, "llama", evaluation=evaluation))
    from fedsb.runner.evaluate import check_evaluation

    with pytest.raises(InputError, match="vllm has no router"):
        check_evaluation(config)


def test_benchmarks_are_asked_of_the_routed_model(world: Path, tmp_path: Path) -> None:
    benchmark = {"data": str(world / "data" / "test.jsonl"), "score": "exact", "limit": 5}
    config = mixture_config(
        world, "llama", evaluation={"benchmarks": {"own": benchmark}}, federation__rounds=2
    )
    result = run(RunConfig.from_dict(config), tmp_path / "run")
    from fedsb.tasks import generate_texts

    scores = evaluate_run(tmp_path / "run")
    assert scores["scores"]["own_accuracy"]["count"] == 5
    lines = (tmp_path / "run" / "evaluation" / "own.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    from fedsb.models import load_tokenizer

    tokenizer = load_tokenizer(str(world / "llama"))
    prompts = [tokenizer(answer["prompt"])["input_ids"] for answer in answers]
    texts = generate_texts(result.model, tokenizer, prompts, max_new_tokens=3, batch_size=64)
    assert [answer["output"] for answer in answers] == texts


# Exports


@pytest.mark.parametrize("name", RUNS)
def test_peft_alone_loads_each_expert_and_gives_its_hard_routed_logits(
    world: Path, tmp_path: Path, name: str
) -> None:
    folders = export_experts(world / name, tmp_path / "experts")
    assert folders == {site: site for site in SITES}
    record = json.loads((tmp_path / "experts" / "experts.json").read_text())
    assert record["experts"] == folders
    ours = base_of(world, name)
    put_mixture_on(ours, world / name / "mixture")
    routing_of(ours).hard = True
    for place, site in enumerate(SITES):
        expected = logits(ours, experts=torch.full((3,), place))
        theirs = PeftModel.from_pretrained(base_of(world, name), tmp_path / "experts" / site)
        assert worst(logits(theirs), expected) < 1e-5
    assert (tmp_path / "experts" / "gate.safetensors").exists() == (name == "request")
    assert list(tmp_path.iterdir()) == [tmp_path / "experts"]


def test_the_gate_of_requests_is_written_beside_its_experts(world: Path, tmp_path: Path) -> None:
    export_experts(world / "request", tmp_path / "experts")
    gate = load_file(tmp_path / "experts" / "gate.safetensors")["gate"]
    assert torch.equal(gate, read_mixture(world / "request" / "mixture").mixture.gate)


SERVED = Path(__file__).parents[2] / "docs" / "guides" / "mixtures.md"


def test_the_guide_s_program_chooses_and_answers_as_the_mixture_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft alone, over the folders of the experts."""
    from fedsb.models import load_tokenizer
    from fedsb.tasks import generate_texts

    by_key = {"clients": 3, "rounds": 2, "partition": {"kind": "by-column", "column": "key"}}
    settings = {"method__experts": {"by": "key", "route": "request"}, "federation": by_key}
    run(RunConfig.from_dict(mixture_config(world, "llama", **settings)), tmp_path / "keys")
    export_experts(tmp_path / "keys", tmp_path / "experts")
    (program,) = re.findall(r":caption: serve_experts\.py\n\n(.*?)```", SERVED.read_text(), re.DOTALL)
    program = re.sub(r"BASE = .*", f"BASE = {str(world / 'llama')!r}", program)
    monkeypatch.chdir(tmp_path)
    served: dict[str, Any] = {"__name__": "served"}
    exec(program, served)
    ours, tokenizer = base_of(world, "request"), load_tokenizer(str(world / "llama"))
    put_mixture_on(ours, tmp_path / "keys" / "mixture")
    chosen = set()
    for key in ("good", "bad", "dull", "w1 good", "bad w2 w3"):
        prompt = tokenizer(f"say {key} :", return_tensors="pt")
        batch = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        tell(ours, batch)
        expert = routing_of(ours).names[int(routing_of(ours).experts)]
        assert served["expert_for"](batch) == expert
        chosen.add(expert)
        (expected,) = generate_texts(
            ours, tokenizer, [batch["input_ids"][0].tolist()], max_new_tokens=4, batch_size=1
        )
        assert served["answer"](f"say {key} :").replace("[SEP]", "").split() == expected.split()
    assert len(chosen) > 1, "else any constant would do"


def test_experts_for_vllm_are_padded_and_named(world: Path, tmp_path: Path) -> None:
    export_experts(world / "run-llama", tmp_path / "served", server="vllm")
    config = json.loads((tmp_path / "served" / "s2" / "adapter_config.json").read_text())
    assert config["r"] == 8
    card = (tmp_path / "served" / "README.md").read_text()
    assert "--max-lora-rank 8 --lora-modules s0=FOLDER/s0 s1=FOLDER/s1 s2=FOLDER/s2 s3=FOLDER/s3" in card
    assert 'model.load_adapter("FOLDER/s1", adapter_name="s1")' in card
    assert "no one expert has them" in card
    assert str(world) not in card
    with pytest.raises(InputError, match="vLLM refuses adapters with a trained head"):
        export_experts(world / "run-bert", tmp_path / "refused", server="vllm")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", ["run-bert", "run-llama"])
def test_one_expert_as_a_lora_and_merged(world: Path, tmp_path: Path, name: str) -> None:
    export_lora(world / name, tmp_path / "lora", rank=6, expert="s3")
    export_merged(world / name, tmp_path / "merged", expert="s3")
    theirs = PeftModel.from_pretrained(base_of(world, name), tmp_path / "lora")
    merged = type(base_of(world, name)).from_pretrained(tmp_path / "merged")
    assert worst(logits(merged), logits(theirs)) < 1e-4
    for folder in ("lora", "merged"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "This is the expert `s3` alone" in card
        assert "| accuracy |" not in card


def test_the_mean_has_its_own_scores_in_its_card(world: Path, tmp_path: Path) -> None:
    export_lora(world / "run-bert", tmp_path / "mean", expert="mean")
    card, record = (tmp_path / "mean" / "README.md").read_text(), routing_of_run(world / "run-bert")
    assert f"{record['scores']['static']['loss']:.4g} |" in card
    assert f"{record['scores']['routed']['loss']:.4g} |" not in card
    assert "not the mixture that was trained" in card
    theirs = PeftModel.from_pretrained(base_of(world, "run-bert"), tmp_path / "mean")
    static = PeftModel.from_pretrained(base_of(world, "run-bert"), world / "run-bert" / "adapter")
    assert worst(logits(theirs), logits(static)) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--format", "lora"], ["--expert", "s0, s1, s2, s3 or mean", "--format experts"]),
        (["--format", "merged"], ["--expert", "nothing says which"]),
        (["--format", "lora", "--expert", "law"], ["--expert", "found 'law'"]),
        (["--format", "experts", "--expert", "s0"], ["--expert", "leave it out"]),
        (["--format", "experts", "--for", "tgi"], ["--for: expected vllm"]),
    ],
)
def test_an_export_that_does_not_fit_a_mixture_is_refused(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    assert main_status(monkeypatch, "export", world / "run-bert", "--out", tmp_path / "o", *arguments) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts)
    assert not (tmp_path / "o").exists()


def test_a_run_without_a_mixture_has_no_experts_to_export(world: Path, tmp_path: Path) -> None:
    plain = changed(mixture_config(world, "bert"), method__name="fed-sb", method__experts=...)
    plain["federation"]["rounds"] = 1
    run(RunConfig.from_dict(plain), tmp_path / "run")
    assert not (tmp_path / "run" / "mixture").exists()
    assert not (tmp_path / "run" / "routing.json").exists()
    with pytest.raises(InputError, match=r"--format experts: .* no mixture"):
        export_experts(tmp_path / "run", tmp_path / "out")
    with pytest.raises(InputError, match=r"--expert: .* no mixture"):
        export_lora(tmp_path / "run", tmp_path / "out", expert="s0")


def test_names_that_cannot_be_folders_get_numbers() -> None:
    names = ["law", "../up", "LAW", "a/b", "README.md", "", "é", "x" * 70, "Expert-1"]
    assert folder_names(names) == {
        "law": "law",
        "../up": "expert-1",
        "LAW": "expert-2",
        "a/b": "expert-3",
        "README.md": "expert-4",
        "": "expert-5",
        "é": "expert-6",
        "x" * 70: "expert-7",
        "Expert-1": "expert-8",
    }


def test_the_whole_on_the_command_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", mixture_config(world, "bert", federation__rounds=2))
    assert main_status(monkeypatch, "run", config, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"next     fedsb export {tmp_path / 'run'} --format experts --out run-experts" in said
    assert (
        main_status(monkeypatch, "export", tmp_path / "run", "--format", "experts", "--out", tmp_path / "e")
        == 0
    )
    assert f"wrote {tmp_path / 'e'} and checked it" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Routing</h2>" in page
