"""Which layers are adapted, by what a model does with them; what is left out is told with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import DECODER, ENCODER
from run_helpers import WORDS, causal_config, classification_config, save_tokenizer, write_data
from torch import nn

from fedsb import RunConfig, run
from fedsb.adapter.update_estimate import estimate_update
from fedsb.cli.doctor import examine
from fedsb.errors import InputError
from fedsb.models.layer_uses import uses_of_layers
from fedsb.models.targets import choose_targets, chosen_targets, notes_on
from fedsb.report.progress import Silent

SMALL = {"initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
MOE = DECODER | {"num_experts_per_tok": 2}
MAMBA = SMALL | {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}


@dataclass(frozen=True)
class Base:
    """A model and, by hand, the ends of the names that defaults take and leave out."""

    kind: str
    config: Any
    taken: tuple[str, ...]
    left_out: tuple[str, ...]
    reason: str = ""
    group: bool = True
    """Whether `all-linear` leaves the same out: what is in no repeated block is in no group."""

    @property
    def causal(self) -> bool:
        return self.kind.endswith("CausalLM")

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model: nn.Module = getattr(transformers, self.kind)(self.config()).eval()
        return model


def _config(name: str, **values: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**values)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BERT_LIKE = ("query", "key", "value", "dense")
ONE_POSITION = "sees one position, not every token"

BASES = {
    "qwen2-moe": Base(
        "Qwen2MoeForCausalLM",
        _config(
            "Qwen2MoeConfig",
            **MOE | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        ),
        (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
        ("shared_expert_gate",),
        "only one input or output",
    ),
    "jetmoe": Base(
        "JetMoeForCausalLM",
        _config(
            "JetMoeConfig", **DECODER | {"num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 2}
        ),
        ("kv_proj",),
        ("router.layer",),
        "picks experts",
    ),
    "mamba": Base(
        "MambaForCausalLM",
        _config("MambaConfig", **MAMBA | {"time_step_rank": 8}),
        ("in_proj", "x_proj", "out_proj"),
        ("dt_proj",),
        "its weight is read without calling the layer",
    ),
    "falcon-mamba": Base(
        "FalconMambaForCausalLM",
        _config("FalconMambaConfig", **MAMBA | {"time_step_rank": 8}),
        ("in_proj", "x_proj", "out_proj"),
        ("dt_proj",),
        "its weight is read without calling the layer",
    ),
    "big-bird": Base(
        "BigBirdForSequenceClassification",
        _config("BigBirdConfig", **ENCODER | {"attention_type": "original_full"}),
        BERT_LIKE,
        ("bert.pooler",),
        ONE_POSITION,
        group=False,
    ),
    "longformer": Base(
        "LongformerForSequenceClassification",
        _config("LongformerConfig", **ENCODER | {"attention_window": 8, "sep_token_id": 3}),
        (*BERT_LIKE, "key_global", "value_global"),
        ("query_global",),
        ONE_POSITION,
    ),
    "esm": Base(
        "EsmForSequenceClassification",
        _config("EsmConfig", **ENCODER | {"mask_token_id": 1}),
        BERT_LIKE,
        ("contact_head.regression",),
        "only one input or output",
        group=False,
    ),
    "ernie": Base(
        "ErnieForSequenceClassification",
        _config("ErnieConfig", **ENCODER),
        BERT_LIKE,
        ("ernie.pooler.dense",),
        ONE_POSITION,
        group=False,
    ),
    "llama4": Base(
        "Llama4ForCausalLM",
        _config(
            "Llama4TextConfig",
            **DECODER
            | {"num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 8, "no_rope_layers": [1, 0]},
        ),
        (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
        ("router",),
        "gives several tensors",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_data(folder, train=24, test=6)
    return folder


def matched(names: Any, endings: tuple[str, ...]) -> bool:
    """Every name ends in one of these, and each of these ends a name."""
    hit = {ending for name in names for ending in endings if f".{name}".endswith(f".{ending}")}
    return hit == set(endings) and all(
        any(f".{name}".endswith(f".{ending}") for ending in endings) for name in names
    )


@pytest.mark.parametrize("name", BASES)
def test_a_default_takes_what_an_adapter_works_on(name: str) -> None:
    base = BASES[name]
    model = base.model()
    choice = choose_targets(model, None, rank=4)
    assert matched(choice.layers, base.taken), sorted(choice.layers)
    assert matched(choice.left_out, base.left_out)
    assert set(choice.left_out.values()) == {base.reason}
    assert base.reason in notes_on(model, choice)[0]
    everywhere = choose_targets(model, "all-linear", rank=4)
    assert set(everywhere.layers) == set(choice.layers)
    assert set(everywhere.left_out) == (set(choice.left_out) if base.group else set())


@pytest.mark.parametrize("name", BASES)
def test_every_layer_that_is_taken_gets_a_gradient(name: str) -> None:
    base = BASES[name]
    model = base.model().requires_grad_(False)
    ids = torch.randint(4, len(WORDS), (3, 9), generator=torch.Generator().manual_seed(1))

    def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=batch).logits
        return logits.flatten(1).logsumexp(1)

    layers = chosen_targets(model, None, rank=4)
    moved = estimate_update(
        model, layers, [ids], losses, lambda _, update: update.abs().sum(), learning_rate=1.0, rule="raw"
    )
    assert set(moved) == set(layers)
    assert (
        sum(float(size) > 0 for size in moved.values()) >= len(layers) - 3
    )  # a last block's queries may not


@pytest.mark.parametrize("name", ["qwen2-moe", "mamba", "big-bird", "longformer", "esm"])
def test_a_run_says_what_it_leaves_out(name: str, data: Path, tmp_path: Path) -> None:
    base = BASES[name]
    base.model().save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", causal=base.causal)
    make = causal_config if base.causal else classification_config
    small = {"federation": {"clients": 1, "rounds": 1}, "method__init": {"samples": 6, "head_warmup": None}}
    config = RunConfig.from_dict(make(tmp_path / "model", data, **small))
    watched = Stages()
    run(config, tmp_path / "out", progress=watched)
    assert any(base.reason in stage and base.left_out[0] in stage for stage in watched.stages)
    lines = {finding.what: finding for finding in examine(config)}
    assert lines["target layers"].ok
    assert base.reason in lines["target layers"].detail


class Stages(Silent):
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("mamba", "dt_proj", "read without calling"),
        ("big-bird", "bert.pooler", "not on the way to the output"),
        ("esm", "regression", "not on the way to the output"),
        ("llama4", "router", "gives several tensors"),
    ],
)
def test_a_named_layer_that_cannot_work_is_refused(name: str, target: str, reason: str) -> None:
    with pytest.raises(
        InputError, match=rf"method\.targets: no adapter works on '{target}'.*{reason}.*leave"
    ):
        chosen_targets(BASES[name].model(), [target])


def test_a_named_layer_that_can_work_is_taken_whatever_it_is() -> None:
    model = BASES["longformer"].model()
    assert all("query_global" in name for name in chosen_targets(model, ["query_global"]))
    assert len(chosen_targets(BASES["qwen2-moe"].model(), ["shared_expert_gate"])) == 2


def test_layers_narrower_than_the_rank_are_left_out_where_others_are_left() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))
    choice = choose_targets(model, None, rank=20)
    assert {name.rsplit(".", 1)[-1] for name in choice.left_out} == {"k_proj", "v_proj"}  # 16 x 32
    assert set(choice.left_out.values()) == {"narrower than rank 20"}
    assert len(choose_targets(model, None, rank=100).layers) == 14  # none is left: the rank is what is wrong
    assert len(choose_targets(model, ["k_proj"], rank=20).layers) == 2


# ---------------------------------------------------------------- experts

EXPERTS = {
    "mixtral": ("MixtralForCausalLM", _config("MixtralConfig", **MOE | {"num_local_experts": 4})),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        _config("Qwen3MoeConfig", **MOE | {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    ),
    "olmoe": ("OlmoeForCausalLM", _config("OlmoeConfig", **MOE | {"num_experts": 4})),
    "gpt-oss": (
        "GptOssForCausalLM",
        _config("GptOssConfig", **MOE | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 8}),
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj"]], ids=str)
def test_experts_in_one_tensor_are_named_with_their_share(name: str, targets: Any) -> None:
    kind, config = EXPERTS[name]
    model = getattr(transformers, kind)(config())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n and p.ndim == 3)
    others = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n)
    (note,) = notes_on(model, choose_targets(model, targets, rank=4))
    assert "experts are not adapted: model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp" in note
    assert f"hold {experts / others:.0%} of the weights" in note
    with pytest.raises(InputError, match="gate_up_proj holds the weights of all experts in one tensor"):
        chosen_targets(model, ["q_proj", "gate_up_proj"])


def test_a_run_names_the_experts_that_it_leaves_alone(data: Path, tmp_path: Path) -> None:
    kind, config = EXPERTS["mixtral"]
    getattr(transformers, kind)(config()).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", causal=True)
    watched = Stages()
    changes = {"federation": {"clients": 1, "rounds": 1}, "method__init": {"samples": 6}}
    values = causal_config(tmp_path / "model", data, **changes)
    run(RunConfig.from_dict(values), tmp_path / "out", progress=watched)
    assert any(stage.startswith("experts are not adapted") for stage in watched.stages)


# ---------------------------------------------------------------- how it is seen


def test_uses_are_seen_without_the_models_weights() -> None:
    model = BASES["mamba"].model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    uses = uses_of_layers(model)
    assert uses is not None
    assert {n.rsplit(".", 1)[-1] for n in uses.read} == {"dt_proj"}
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert not any(p.requires_grad != before[n].requires_grad for n, p in model.named_parameters())


def test_a_model_that_cannot_be_looked_at_keeps_all_its_layers() -> None:
    class Closed(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("not without a password")

    model = Closed(transformers.LlamaConfig(**DECODER))
    assert uses_of_layers(model) is None
    assert len(chosen_targets(model, None)) == 14
