"""Tiny random models of many families: encoders, decoders, experts, state space, encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from run_helpers import WORDS, save_tokenizer

POSITIONS = 24
VOCABULARY = len(WORDS)
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MARKS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS} | MARKS
PLAIN = SIZE | TEXT
DECODER = PLAIN | {"num_key_value_heads": 1}
EXPERTS = DECODER | {"num_experts_per_tok": 2}


@dataclass(frozen=True)
class Tiny:
    """A family's config class with its arguments, and what is known of it, written down by hand.

    Attributes:
        usable: tokens that an example may have; None: as many as it likes.
        trained: `usable` is what it was trained on, and more can be computed.
        segments: how many a table of them has; None: it takes none.
    """

    config: str
    arguments: dict[str, Any]
    causal: bool = True
    usable: int | None = POSITIONS
    trained: bool = False
    segments: int | None = None

    def build(self, **changes: Any) -> Any:
        """The model in memory; changes are of the config's arguments."""
        config = getattr(transformers, self.config)(**{"num_labels": 3} | self.arguments | changes)
        kind = "ForCausalLM" if self.causal else "ForSequenceClassification"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return getattr(transformers, f"AutoModel{kind}").from_config(config).eval()

    def save(self, folder: Path, **changes: Any) -> Path:
        """Model and tokenizer in this folder; changes are of the config's arguments."""
        self.build(**changes).save_pretrained(folder)
        save_tokenizer(folder, causal=self.causal)
        return folder


def encoder(config: str, usable: int | None = POSITIONS, segments: int | None = 2, **more: Any) -> Tiny:
    return Tiny(config, PLAIN | more, causal=False, usable=usable, segments=segments)


def rotary(config: str, base: dict[str, Any] = DECODER, **more: Any) -> Tiny:
    return Tiny(config, base | more, trained=True)


FAMILIES = {
    # encoders
    "bert": encoder("BertConfig"),
    "roberta": encoder("RobertaConfig", usable=POSITIONS - 2, segments=1, pad_token_id=1, type_vocab_size=1),
    "xlm-roberta": encoder("XLMRobertaConfig", usable=POSITIONS - 1, segments=2),
    "distilbert": Tiny(
        "DistilBertConfig", TEXT | {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}, causal=False
    ),
    "albert": encoder("AlbertConfig", embedding_size=8),
    "electra": encoder("ElectraConfig", embedding_size=8),
    "deberta": encoder(
        "DebertaConfig", segments=None, relative_attention=True, pos_att_type=["c2p"], type_vocab_size=0
    ),
    "deberta-v3": encoder(
        "DebertaV2Config",
        usable=None,
        segments=None,
        relative_attention=True,
        position_biased_input=False,
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
    ),
    "mpnet": encoder("MPNetConfig", usable=POSITIONS - 2, segments=None),
    "modernbert": Tiny(
        "ModernBertConfig",
        PLAIN | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
        causal=False,
        trained=True,
    ),
    "xlnet": Tiny(
        "XLNetConfig",
        MARKS | {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32},
        causal=False,
        usable=None,
    ),
    "xlm": Tiny(
        "XLMConfig",
        TEXT | {"n_words": VOCABULARY, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "pad_index": 0},
        causal=False,
    ),
    "longformer": encoder("LongformerConfig", usable=POSITIONS - 1, attention_window=8, sep_token_id=3),
    "big_bird": encoder("BigBirdConfig", attention_type="original_full"),
    "esm": Tiny("EsmConfig", PLAIN | {"mask_token_id": 4}, causal=False, usable=POSITIONS - 1),
    "esm-rotary": Tiny(
        "EsmConfig",
        PLAIN | {"mask_token_id": 4, "position_embedding_type": "rotary"},
        causal=False,
        trained=True,
    ),
    "ernie": encoder("ErnieConfig"),
    "roformer": encoder("RoFormerConfig", embedding_size=16),
    "convbert": encoder("ConvBertConfig", embedding_size=16),
    "mobilebert": encoder(
        "MobileBertConfig", embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=1
    ),
    "funnel": Tiny(
        "FunnelConfig",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1],
            "num_decoder_layers": 1,
            "d_model": 16,
            "n_head": 2,
            "d_head": 8,
            "d_inner": 32,
        }
        | MARKS,
        causal=False,
        usable=None,
    ),
    "nystromformer": encoder("NystromformerConfig", num_landmarks=4, segment_means_seq_len=4),
    "yoso": encoder("YosoConfig"),
    "squeezebert": encoder(
        "SqueezeBertConfig",
        embedding_size=16,
        q_groups=1,
        k_groups=1,
        v_groups=1,
        post_attention_groups=1,
        intermediate_groups=1,
        output_groups=1,
    ),
    "fnet": encoder("FNetConfig", segments=4),
    "rembert": encoder("RemBertConfig", input_embedding_size=8, output_embedding_size=8),
    "megatron-bert": encoder("MegatronBertConfig"),
    "ibert": encoder("IBertConfig", usable=POSITIONS - 1),
    # decoders
    "gpt2": Tiny(
        "GPT2Config",
        MARKS | {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 16, "n_layer": 1, "n_head": 2},
    ),
    "openai-gpt": Tiny(
        "OpenAIGPTConfig",
        MARKS | {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 16, "n_layer": 1, "n_head": 2},
    ),
    "gpt-neo": Tiny(
        "GPTNeoConfig",
        TEXT
        | {
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "attention_types": [[["global"], 1]],
            "intermediate_size": 32,
        },
    ),
    "gptj": Tiny(
        "GPTJConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "rotary_dim": 4,
        },
    ),
    "codegen": Tiny(
        "CodeGenConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 4,
            "rotary_dim": 4,
        },
    ),
    "opt": Tiny(
        "OPTConfig",
        TEXT
        | {
            "hidden_size": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 8,
        },
    ),
    "ctrl": Tiny(
        "CTRLConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": 16,
            "dff": 32,
            "n_layer": 1,
            "n_head": 2,
        },
    ),
    "biogpt": Tiny("BioGptConfig", PLAIN),
    "xglm": Tiny(
        "XGLMConfig",
        TEXT | {"d_model": 16, "ffn_dim": 32, "num_layers": 1, "attention_heads": 2},
        usable=None,
    ),
    "bloom": Tiny(
        "BloomConfig",
        MARKS | {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2},
        usable=None,
    ),
    "mpt": Tiny(
        "MptConfig",
        MARKS
        | {"vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": POSITIONS},
    ),
    "falcon": rotary("FalconConfig", PLAIN),
    "falcon-alibi": Tiny("FalconConfig", PLAIN | {"alibi": True}, usable=None),
    "gpt-neox": rotary("GPTNeoXConfig", PLAIN),
    "llama": rotary("LlamaConfig"),
    "gemma2": rotary("Gemma2Config", head_dim=8, query_pre_attn_scalar=8, sliding_window=8),
    "qwen3": rotary("Qwen3Config", head_dim=8),
    "stablelm": rotary("StableLmConfig"),
    "cohere": rotary("CohereConfig"),
    # experts
    "mixtral": rotary("MixtralConfig", EXPERTS, num_local_experts=4),
    "qwen2_moe": rotary(
        "Qwen2MoeConfig",
        EXPERTS,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        decoder_sparse_step=1,
    ),
    "olmoe": rotary("OlmoeConfig", EXPERTS, num_experts=4),
    "granitemoe": rotary("GraniteMoeConfig", EXPERTS, num_local_experts=4),
    # state space, recurrent
    "mamba": Tiny(
        "MambaConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "state_size": 4,
            "time_step_rank": 4,
        },
        usable=None,
    ),
    "mamba2": Tiny(
        "Mamba2Config",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        usable=None,
    ),
    "falcon_mamba": Tiny(
        "FalconMambaConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "state_size": 4,
            "time_step_rank": 4,
        },
        usable=None,
    ),
    "rwkv": Tiny(
        "RwkvConfig",
        MARKS
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "attention_hidden_size": 16,
            "context_length": 64,
        },
        usable=None,
    ),
    "jamba": Tiny(
        "JambaConfig",
        EXPERTS
        | {
            "num_experts": 2,
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        usable=None,
    ),
    "recurrent_gemma": rotary(
        "RecurrentGemmaConfig", PLAIN, lru_width=16, attention_window_size=8, num_hidden_layers=3
    ),
    # encoder-decoder
    "t5": Tiny(
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 2,
            "pad_token_id": 0,
            "eos_token_id": 3,
            "decoder_start_token_id": 0,
        },
        causal=False,
        usable=None,
    ),
    "bart": Tiny(
        "BartConfig",
        TEXT
        | {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "decoder_start_token_id": 3,
        },
        causal=False,
    ),
    "bart-decoder": Tiny(
        "BartConfig",
        TEXT
        | {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "decoder_start_token_id": 3,
            "is_decoder": True,
            "is_encoder_decoder": False,
        },
    ),
}
