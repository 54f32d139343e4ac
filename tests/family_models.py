"""Tiny random models of the families that recipes name, with tokenizers of the families' kinds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

TEXT = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction:\n\n### Response:\n Please choose the correct answer to the question:",
    "the correct answer is true false solution1 solution2 answer1 answer2 ending1 option1",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 640}


def _tokenizer(folder: Path, kind: str) -> int:
    """`bytes`: of bytes, no start token of its own. `llama`: the same with one. `pieces`: a blank before the
    text, as SentencePiece puts it, and a start token. The number of tokens."""
    core = Tokenizer(models.BPE(unk_token="<unk>" if kind == "pieces" else None))
    if kind == "pieces":
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = [chr(i) for i in range(32, 127)] + ["\n", "▁"]
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet)
    core.train_from_iterator(TEXT, trainer)
    if kind == "roberta":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    elif kind != "bytes":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return core.get_vocab_size()


def save_family(folder: Path, family: str) -> Path:
    """A model folder of `family`: mistral, gemma2, llama, gpt2 or roberta."""
    kinds = {"mistral": "pieces", "gemma2": "pieces", "llama": "llama", "gpt2": "bytes", "roberta": "roberta"}
    vocabulary = _tokenizer(folder, kinds[family])
    torch.manual_seed(0)
    _model(family, {"vocab_size": vocabulary, **ENDS}).save_pretrained(folder)
    return folder


def _model(family: str, common: dict[str, Any]) -> torch.nn.Module:
    if family == "gpt2":
        del common["max_position_embeddings"]
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=640, **common))
    if family == "roberta":
        return RobertaModel(RobertaConfig(**SIZE, **common))
    grouped = {**SIZE, "num_key_value_heads": 2, **common}
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**grouped))
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(head_dim=4, query_pre_attn_scalar=4, **grouped))
    return LlamaForCausalLM(LlamaConfig(**grouped))
