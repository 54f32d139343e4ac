"""Experts that peft trained, as cores: exact at their rank, routed, exported again; what cannot be one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from run_helpers import (
    Config,
    causal_config,
    classification_config,
    main_status,
    metrics_of,
    tiny_bert,
    tiny_llama,
    write_config,
    write_data,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsb import RunConfig, run
from fedsb.adapter.routing import routing_of, tell
from fedsb.errors import InputError
from fedsb.methods import ALL
from fedsb.models.mixture_folder import put_mixture_on, read_mixture
from fedsb.runner.export import export_experts
from fedsb.runner.external_experts import imported_experts
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import prepare_base

(MIXER,) = (method.name for method in ALL if method.experts is not None)
PROBE = (torch.arange(3 * 9).reshape(3, 9) * 7 + 4) % 27
EXPERTS: dict[str, dict[str, Any]] = {
    "law": {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "code": {"r": 3, "target_modules": ["v_proj", "up_proj"], "rank_pattern": {"up_proj": 5}},
    "news": {
        "r": 4,
        "lora_alpha": 3,
        "target_modules": ["q_proj"],
        "alpha_pattern": {"1.self_attn.q_proj": 9},
    },
}


def base_of(world: Path, name: str = "llama") -> nn.Module:
    if name == "bert":
        return AutoModelForSequenceClassification.from_pretrained(world / name, num_labels=3).eval()
    return AutoModelForCausalLM.from_pretrained(world / name).eval()


def save_expert(world: Path, folder: Path, seed: int, *, name: str = "llama", **settings: Any) -> Path:
    kind = {"task_type": "SEQ_CLS"} if name == "bert" else {}
    model = get_peft_model(base_of(world, name), LoraConfig(**kind | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if ".lora_" in key:
                nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    tiny_llama(folder / "llama")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=48, test=12)
    for seed, (name, settings) in enumerate(EXPERTS.items()):
        save_expert(folder, folder / name, seed, **settings)
        save_expert(folder, folder / f"bert-{name}", seed, name="bert", r=2 + seed, target_modules=["query"])
    return folder


def config_of(world: Path, family: str = "llama", **changes: Any) -> Config:
    make = {"bert": classification_config, "llama": causal_config}[family]
    prefix = "bert-" if family == "bert" else ""
    few = {
        "method": {
            "name": MIXER,
            "rank": 16,
            "init": {"kind": "orthonormal", "head_warmup": None},
            "experts": {
                "folders": {name: str(world / f"{prefix}{name}") for name in EXPERTS},
                "start": "zero",
            },
        },
        "federation": {"clients": 3, "rounds": 1},
        "evaluation": {"every": 1},
    }
    return make(world / family, world / "data", **few | changes)


def logits(model: nn.Module, **more: torch.Tensor) -> torch.Tensor:
    batch = {"input_ids": PROBE, "attention_mask": torch.ones_like(PROBE)}
    with torch.no_grad():
        return model.eval()(**tell(model, batch | more)).logits


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def hard(world: Path, run_folder: Path, place: int) -> torch.Tensor:
    model = base_of(world)
    put_mixture_on(model, run_folder / "mixture")
    routing_of(model).hard = True
    return logits(model, experts=torch.full((3,), place))


@pytest.fixture(scope="module")
def imported(world: Path) -> Path:
    return run(RunConfig.from_dict(config_of(world)), world / "run").folder


def test_each_expert_gives_peft_s_logits_when_it_works_alone(world: Path, imported: Path) -> None:
    for place, name in enumerate(EXPERTS):
        theirs = PeftModel.from_pretrained(base_of(world), world / name)
        assert worst(hard(world, imported, place), logits(theirs)) < 1e-5


def test_only_the_gate_trains_and_the_layers_are_the_folders(world: Path, imported: Path) -> None:
    mixture = read_mixture(imported / "mixture").mixture
    assert mixture.experts == tuple(EXPERTS)
    before = imported_experts(RunConfig.from_dict(config_of(world))).factors
    assert {name.rsplit(".", 1)[-1] for name in mixture.factors} == {"q_proj", "v_proj", "up_proj"}
    for layer, factors in mixture.factors.items():
        assert torch.equal(factors.R, before[layer].R)
        assert factors.G.abs().max() > 0
    adapts = [bool(core.any()) for core in before["model.layers.0.mlp.up_proj"].R]
    assert adapts == [False, True, False]
    line = metrics_of(imported)[1]
    assert line["upload_parameters"] == 3 * len(mixture.factors) * 3 * (16 + 1)


def test_statistics_start_the_gate_where_rows_say_whose_they_are(world: Path, tmp_path: Path) -> None:
    """Each client is one expert's."""
    config = config_of(world, federation={"clients": 3, "rounds": 1, "client_experts": [0, 1, 2]})
    config["method"]["experts"]["start"] = "statistics"
    result = run(RunConfig.from_dict(config), tmp_path / "run")
    once = {entry["what"] for entry in result.summary["communication"]["one_time"]}
    assert "statistics" in once


def test_experts_go_out_as_they_came_in(world: Path, imported: Path, tmp_path: Path) -> None:
    export_experts(imported, tmp_path / "out")
    for name in EXPERTS:
        came = PeftModel.from_pretrained(base_of(world), world / name)
        went = PeftModel.from_pretrained(base_of(world), tmp_path / "out" / name)
        assert worst(logits(went), logits(came)) < 1e-5


def test_a_classifier_s_experts_leave_their_heads_behind(world: Path, tmp_path: Path) -> None:
    """The run trains a head for its own classes."""
    result = run(RunConfig.from_dict(config_of(world, "bert")), tmp_path / "run")
    mixture = read_mixture(tmp_path / "run" / "mixture").mixture
    for place, name in enumerate(EXPERTS):
        theirs = base_of(world, "bert")
        theirs.load_state_dict(
            {n: p for n, p in result.model.state_dict().items() if n.startswith("classifier")}, strict=False
        )
        head = {n: p.clone() for n, p in theirs.classifier.named_parameters()}
        theirs = PeftModel.from_pretrained(theirs, world / f"bert-{name}")
        with torch.no_grad():
            for part, value in head.items():
                dict(theirs.named_parameters())[
                    f"base_model.model.classifier.modules_to_save.default.{part}"
                ].copy_(value)
        ours = base_of(world, "bert")
        put_mixture_on(ours, tmp_path / "run" / "mixture")
        routing_of(ours).hard = True
        assert worst(logits(ours, experts=torch.full((3,), place)), logits(theirs)) < 1e-5
    assert mixture.experts == tuple(EXPERTS)


# Ranks


def test_a_lower_rank_says_what_it_loses(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", config_of(world, method__rank=4))
    assert main_status(monkeypatch, "run", config, "--out", tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 4 loses of the experts" in said
    assert "method.rank: 6 loses nothing" in said
    lost = json.loads((tmp_path / "run" / "routing.json").read_text())["lost"]
    assert lost == metrics_of(tmp_path / "run")[0]["lost"]
    assert set(lost) == set(EXPERTS)
    assert all(0.01 < share < 1 for share in lost.values())
    exact = imported_experts(RunConfig.from_dict(config_of(world, method__rank=16)))
    cut = imported_experts(RunConfig.from_dict(config_of(world, method__rank=4)))
    for place, name in enumerate(EXPERTS):
        whole, left_out = 0.0, 0.0
        for layer, factors in exact.factors.items():
            update = factors.B @ factors.R[place] @ factors.A
            other = cut.factors[layer]
            whole += float(update.square().sum())
            left_out += float((update - other.B @ other.R[place] @ other.A).square().sum())
        assert lost[name] == pytest.approx((left_out / whole) ** 0.5, rel=1e-3)


def test_a_rank_that_holds_all_says_so(world: Path) -> None:
    result = imported_experts(RunConfig.from_dict(config_of(world)))
    assert result.rank_needed == 6, "q_proj: 2 + 4; v_proj: 2 + 3; up_proj: 5"
    assert max(result.lost.values()) < 1e-6
    assert result.in_words(16) == "3 experts from folders, exact at rank 16 (6 is enough)"


# Where folders lie


def test_relative_folders_are_made_absolute(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    config = config_of(world)
    config["method"]["experts"]["folders"] = {"law": "law", "code": "./code"}
    made = RunConfig.from_dict(config).with_absolute_paths()
    assert made.method.experts.folders == {"law": str(world / "law"), "code": str(world / "code")}


def test_an_expert_of_the_hub_is_fetched_without_more_than_its_adapter(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, sorted(allow_patterns)))
        return str(world / "law")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    config = config_of(world)
    config["method"]["experts"]["folders"]["law"] = "someone/law-lora"
    imported_experts(RunConfig.from_dict(config))
    files = ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"]
    assert asked == [("someone/law-lora", files)]


# Refusals


def _config(**changes: Any):
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _tensors(spoil):
    def change(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        spoil(tensors)
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})

    return change


def _saves_another_module(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(28, 32)


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {n: t[:, 1:].contiguous() for n, t in tensors.items() if "lora_A" in n}


def _another_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layers.1" in name]:
        tensors[name.replace("layers.1", "layers.7")] = tensors.pop(name)


REFUSED = {
    "DoRA": (_config(use_dora=True), "use_dora scales whole weights"),
    "lora_bias": (_config(lora_bias=True), "lora_bias trains biases"),
    "bias": (_config(bias="all"), "bias 'all' trains the base's biases"),
    "another kind": (_config(peft_type="LOHA"), "peft_type is LOHA"),
    "prompt tuning": (_config(peft_type="PROMPT_TUNING"), "peft_type: expected one of"),
    "pissa": (_config(init_lora_weights="pissa"), "init_lora_weights pissa changes the base"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "safetensors is missing"),
    "modules_to_save": (
        lambda f: (_config(modules_to_save=["lm_head"])(f), _tensors(_saves_another_module)(f)),
        "modules_to_save has lm_head whole",
    ),
    "another width": (_tensors(_narrow), "made for another model"),
    "another layer": (_tensors(_another_layer), "made for another model"),
    "ranks that are not there": (_config(rank_pattern={"q_proj": 7}), "expected B and A of rank 7"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_core_is_one_message_and_exit_2(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    spoil, reason = REFUSED[case]
    spoil(shutil.copytree(world / "law", tmp_path / "law"))
    config = config_of(world)
    config["method"]["experts"]["folders"]["law"] = str(tmp_path / "law")
    path = write_config(tmp_path / "c.yaml", config)
    assert main_status(monkeypatch, "run", path, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "method.experts.folders.law: " in said
    assert reason in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_adapted_embedding_is_refused(world: Path, tmp_path: Path) -> None:
    save_expert(world, tmp_path / "law", 0, r=2, target_modules=["embed_tokens", "q_proj"])
    config = config_of(world)
    config["method"]["experts"]["folders"]["law"] = str(tmp_path / "law")
    with pytest.raises(InputError, match="adapts an embedding"):
        prepare_base(RunConfig.from_dict(config), prepare_data(RunConfig.from_dict(config)))


def test_an_expert_of_other_weights_is_refused(world: Path, imported: Path, tmp_path: Path) -> None:
    """An export of fedsb says which weights it is for."""
    export_experts(imported, tmp_path / "out")
    tiny = shutil.copytree(world / "llama", tmp_path / "other")
    weights = load_file(tiny / "model.safetensors")
    save_file({n: t + 0.01 for n, t in weights.items()}, tiny / "model.safetensors", {"format": "pt"})
    config = config_of(world, model__path=str(tiny))
    config["method"]["experts"]["folders"] = {n: str(tmp_path / "out" / n) for n in ("law", "code")}
    settings = RunConfig.from_dict(config)
    with pytest.raises(InputError, match="trained on other weights"):
        prepare_base(settings, prepare_data(settings))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method__targets": ["q_proj"]}, "method.targets: with experts from folders"),
        ({"method__experts": {"folders": {"one": "law"}}}, "at least 2 items"),
        (
            {"method__experts": {"folders": {"a": "nowhere/at/all", "b": "x"}, "start": "zero"}},
            "expected a PEFT adapter",
        ),
    ],
)
def test_settings_of_folders_that_cannot_be(
    world: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        run(RunConfig.from_dict(config_of(world, **changes)), tmp_path / "run")
