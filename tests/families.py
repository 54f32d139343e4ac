"""A tiny random model of each family that people fine-tune, and what must be found in it."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from run_helpers import WORDS, causal_config, classification_config, save_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedsb.config import RunConfig

BYTES = 256
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = SIZE | {
    "vocab_size": len(WORDS),
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ENCODER = SIZE | {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
BERT_LIKE = ("attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True)
class Family:
    """What a family's tiny model must turn out to have, written down by hand.

    Attributes:
        config: name of the transformers config class, and its arguments.
        default: endings of the layers adapted by default; attention, mlp: of those groups.
        head: parameters outside the base model.
        width: (out, in) of the first default layer.
    """

    config: str
    arguments: dict[str, Any]
    default: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    width: tuple[int, int]
    head: tuple[str, ...] = ()
    blocks: int = field(default=2)

    @property
    def causal(self) -> bool:
        return not self.head

    def save(self, folder: Path) -> Path:
        """The model and a tokenizer of one word a token, in this folder."""
        self.save_model(folder)
        if self.config == "Qwen2Config":  # transformers rebuilds it as byte-level BPE, whatever is there
            save_byte_tokenizer(folder)
        else:
            save_tokenizer(folder, causal=self.causal)
        return folder

    def save_model(self, folder: Path, **changes: Any) -> None:
        """The model alone, with other arguments of its config where they are named."""
        auto = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModel
        config = getattr(transformers, self.config)(**self.arguments | changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            auto.from_config(config).save_pretrained(folder)


def save_byte_tokenizer(folder: Path) -> None:
    """One byte, one token; [CLS] begins and [SEP] ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)


def _layers(*groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group)


def _llama_like(config: str, **more: Any) -> Family:
    both = _layers(SEPARATE, GATED)
    return Family(config, DECODER | more, both, SEPARATE, GATED, (32, 32))


_encoder = partial(Family, blocks=2)
POOLED = ("pooler.dense.weight", "pooler.dense.bias")
OUT = ("classifier.weight", "classifier.bias")

FAMILIES = {
    "llama": _llama_like("LlamaConfig"),
    "mistral": _llama_like("MistralConfig", sliding_window=16),
    "gemma": _llama_like("GemmaConfig", head_dim=8),
    "gemma2": _llama_like("Gemma2Config", head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "qwen2": _llama_like("Qwen2Config", vocab_size=BYTES + 3),
    "qwen3": _llama_like("Qwen3Config", head_dim=8),
    "gpt2": Family(
        "GPT2Config",
        {
            "vocab_size": len(WORDS),
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": 0.2,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        default=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        attention=("attn.c_attn", "attn.c_proj"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
        width=(96, 32),
    ),
    "phi": Family(
        "PhiConfig",
        DECODER,
        default=("q_proj", "k_proj", "v_proj", "self_attn.dense", "fc1", "fc2"),
        attention=("q_proj", "k_proj", "v_proj", "self_attn.dense"),
        mlp=("fc1", "fc2"),
        width=(32, 32),
    ),
    "phi3": Family(
        "Phi3Config",
        DECODER,
        default=("o_proj", "qkv_proj", "gate_up_proj", "down_proj"),
        attention=("o_proj", "qkv_proj"),
        mlp=("gate_up_proj", "down_proj"),
        width=(32, 32),
    ),
    "bert": _encoder(
        "BertConfig",
        ENCODER,
        default=("query", "value"),
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        width=(32, 32),
        head=OUT,
    ),
    "roberta": _encoder(
        "RobertaConfig",
        ENCODER,
        default=("query", "value"),
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        width=(32, 32),
        head=(
            "classifier.dense.weight",
            "classifier.dense.bias",
            "classifier.out_proj.weight",
            "classifier.out_proj.bias",
        ),
    ),
    "deberta": _encoder(
        "DebertaConfig",
        ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        default=("in_proj",),
        attention=("in_proj", "pos_proj", "pos_q_proj", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        width=(96, 32),
        head=POOLED + OUT,
    ),
    "deberta-v3": _encoder(
        "DebertaV2Config",
        ENCODER
        | {
            "relative_attention": True,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": ["p2c", "c2p"],
            "type_vocab_size": 0,
        },
        default=("query_proj", "value_proj"),
        attention=("query_proj", "key_proj", "value_proj", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        width=(32, 32),
        head=POOLED + OUT,
    ),
    "modernbert": _encoder(
        "ModernBertConfig",
        ENCODER
        | {
            "global_attn_every_n_layers": 2,
            "local_attention": 16,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
        default=("Wqkv",),
        attention=("Wqkv", "attn.Wo"),
        mlp=("mlp.Wi", "mlp.Wo"),
        width=(96, 32),
        head=("head.dense.weight", "head.norm.weight", *OUT),
    ),
}


def config_of(saved: dict[str, Path], name: str, **changes: Any) -> RunConfig:
    """One client, one round of two steps: LoRA's A has no gradient before B moved."""
    settings = {
        "method__init": {"samples": 6, "head_warmup": None},
        "federation": {"clients": 1, "rounds": 1},
        "training__batch_size": 6,
        "model__check_memory": True,
    }
    make = causal_config if FAMILIES[name].causal else classification_config
    values = make(saved[name], saved["data"], **settings | changes)
    return RunConfig.from_dict(values)
