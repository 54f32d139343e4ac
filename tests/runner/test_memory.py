"""The estimate against what autograd really keeps and what the loaded model really is; refusals; advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, config_of
from run_helpers import classification_config, main_status
from torch.autograd.graph import saved_tensors_hooks

from fedsb.cli.doctor import examine
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.models import load_base
from fedsb.report.progress import Silent
from fedsb.runner import memory as memory_module
from fedsb.runner.memory import Longest, Memory, advice, available_bytes, check_memory, estimate_memory
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import local_model_of, memory_of
from fedsb.runner.prepared import prepare
from fedsb.runner.round_zero import begin

Saved = dict[str, Path]
SMALL = Memory(weights=100, factors=20, training=30, activations=40, start=10)


def kept_for_backward(config: RunConfig, folder: Path) -> int:
    """Bytes that autograd keeps of one training batch of the longest example, weights aside: counted."""
    prepared = prepare(config, folder, Silent())
    data, base, start = prepared.data, prepared.base, begin(prepared)
    local_model = local_model_of(config, data, base, start.factors)
    longest = max(data.train, key=lambda example: len(example["input_ids"]))
    batch = local_model.collate([longest] * config.training.batch_size)
    weights = {t.untyped_storage()._cdata for t in (*base.model.parameters(), *base.model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        local_model.losses(base.model.train(), batch).sum()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_near_what_autograd_keeps(
    saved: Saved,
    tmp_path: Path,
    name: str,
    dtype: str,
) -> None:
    init = {"kind": "weights", "head_warmup": None}
    config = config_of(saved, name, model__dtype=dtype, method__init=init, evaluation__batch_size=1)
    estimate = memory_of(config, prepare_data(config))
    assert estimate is not None
    counted = kept_for_backward(config, tmp_path)
    assert 0.75 * counted < estimate.activations < 1.5 * counted + 3 * logits(config)


def logits(config: RunConfig) -> int:
    """Bytes of a batch's logits: the estimate counts their gradients, which autograd does not keep."""
    data = prepare_data(config)
    longest = Longest.of(data.train)
    vocabulary = 259 if "qwen2" in config.model.path else 27
    return 4 * config.training.batch_size * longest.tokens * vocabulary if longest.predicted else 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "deberta"])
def test_weights_are_those_of_the_loaded_model(saved: Saved, name: str, dtype: str) -> None:
    config = config_of(saved, name, model__dtype=dtype)
    num_labels = None if FAMILIES[name].causal else 3
    estimate = estimate_memory(config, num_labels, Longest(8, 0))
    assert estimate is not None
    model = load_base(str(saved[name]), tokenizer=None, num_labels=num_labels, dtype=dtype)
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    head = sum(dict(model.named_parameters())[n].numel() for n in FAMILIES[name].head)
    assert estimate.weights == real - (2 * head if dtype == "bfloat16" else 0)


def test_what_grows_and_what_shrinks(saved: Saved) -> None:
    def of(tokens: int = 32, **changes: Any) -> Memory:
        small = {"evaluation__batch_size": 1, "method__init": {"batch_size": 1}}
        estimate = estimate_memory(config_of(saved, "llama", **small | changes), None, Longest(tokens, 4))
        assert estimate is not None
        return estimate

    plain = of()
    assert of(training__gradient_checkpointing=True).activations < plain.activations
    assert of(training__batch_size=12).activations > 1.5 * plain.activations
    assert of(64).activations == plain.activations  # cut at training.max_length = 32
    assert of(method__rank=8).factors > 1.9 * plain.factors
    assert of(method__rank=8).training == 4 * plain.training
    assert of(training__optimizer="sgd").training < plain.training
    assert of(method__name="flora").start > of(method__name="fedit").start == 0
    assert of(method__name="fedit").factors < plain.factors  # no core
    private = of(privacy={"epsilon": 3}, method__init={"kind": "weights"})
    assert private.training == plain.training // 7 * (7 + 6)  # a gradient for each of 6 examples
    assert of(evaluation__batch_size=640).activations > 3 * plain.activations


def test_four_bits_are_a_seventh_of_the_linear_layers(saved: Saved) -> None:
    whole, packed = (
        estimate_memory(config_of(saved, "llama", model__load_in_4bit=bits), None, Longest(8, 4))
        for bits in (False, True)
    )
    assert whole is not None
    assert packed is not None
    linear = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32)
    assert whole.weights - packed.weights == round(linear * (4 - 0.5625))


# ---------------------------------------------------------------- refusal and advice


def test_what_does_not_fit_is_refused_before_loading(
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def must_not(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("fedsb.runner.prepare_model.available_bytes", lambda device, all_gpus: 10_000)
    monkeypatch.setattr("fedsb.runner.prepare_model.load_base", must_not)
    file = tmp_path / "run.yaml"
    file.write_text(config_of(saved, "llama").to_yaml())
    for command in (("run", file, "--out", tmp_path / "out"), ("doctor", file)):
        assert main_status(monkeypatch, *command) == 2
        captured = capsys.readouterr()
        text = " ".join((captured.err + captured.out).split())
        assert "memory: this run needs about" in text
        assert "weights" in text
        assert "10 kB are free" in text.replace("\u202f", " ")
        assert "model.dtype: bfloat16" in text
    assert not (tmp_path / "out").exists()


def test_a_run_may_go_on_all_the_same(saved: Saved) -> None:
    check_memory(SMALL, 200, config_of(saved, "llama"))
    check_memory(None, 0, config_of(saved, "llama"))
    check_memory(SMALL, 1, config_of(saved, "llama", model__check_memory=False))
    with pytest.raises(InputError, match="memory"):
        check_memory(SMALL, 199, config_of(saved, "llama"))


def test_worker_processes_hold_models_of_their_own(
    saved: Saved,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(saved, "llama", federation__processes=2)
    check_memory(SMALL, 600, config)
    with pytest.raises(InputError, match=r"3 times that for federation\.processes"):
        check_memory(SMALL, 599, config)
    monkeypatch.setattr(memory_module, "visible_gpus", lambda: [torch.device("cuda", i) for i in range(2)])
    check_memory(SMALL, 400, config)  # GPU 0 holds the run's own model and one worker's


@pytest.mark.parametrize(
    ("part", "changes", "said", "unsaid"),
    [
        ("weights", {}, "model.dtype: bfloat16", "rank"),
        ("weights", {"model__dtype": "bfloat16"}, "model.load_in_4bit", "bfloat16"),
        ("factors", {}, "lower method.rank", "dtype"),
        ("activations", {}, "training.gradient_checkpointing: true", "dtype"),
        (
            "activations",
            {"training__gradient_checkpointing": True},
            "training.batch_size: 3",
            "checkpointing",
        ),
        ("start", {}, "orthonormal", "dtype"),
    ],
)
def test_advice_is_for_the_largest_part(
    saved: Saved,
    part: str,
    changes: dict[str, Any],
    said: str,
    unsaid: str,
) -> None:
    text = advice(replace(Memory(0, 0, 0, 0, 0), **{part: 9}), config_of(saved, "llama", **changes))
    assert said in text.split(", ")[0] or said in text
    assert unsaid not in text.split(", ")[0]


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory_module, "CGROUP", tmp_path)
    free = available_bytes(cpu)
    (tmp_path / "memory.current").write_text("40000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) > free / 2
    (tmp_path / "memory.max").write_text("100000\n")
    assert available_bytes(cpu) == 60_000


# ---------------------------------------------------------------- an estimate that fails


@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError, ZeroDivisionError, InputError])
def test_an_estimate_that_fails_is_not_known(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise error("no such thing")

    config = config_of(saved, "bert")
    monkeypatch.setattr(memory_module, "build_on_meta", fail)
    assert memory_of(config, prepare_data(config)) is None
    memory = {finding.what: finding for finding in examine(config)}["memory"]
    assert memory.ok
    assert memory.detail.startswith("not known from the config of this model; ")


def test_an_estimate_that_is_switched_off_is_not_made(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(memory_module, "build_on_meta", lambda *args, **more: asked.append(args))
    config = config_of(saved, "bert", model__check_memory=False)
    assert memory_of(config, prepare_data(config)) is None
    findings = {finding.what: finding for finding in examine(config)}
    assert findings["memory"].detail.startswith("not estimated (model.check_memory: false); ")
    assert all(finding.ok for finding in findings.values())
    assert asked == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3"])
def test_a_decoder_that_classifies_is_estimated(saved: Saved, name: str) -> None:
    """None of them has a pad id that the estimate could do without."""
    values = classification_config(saved[name], saved["data"], model__check_memory=True)
    estimate = estimate_memory(RunConfig.from_dict(values), 3, Longest(8, 0))
    assert estimate is not None
    assert estimate.activations > 0
