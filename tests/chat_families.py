"""Tokenizers with chat templates of the form that well-known families have, tiny and in our own words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = [
    "what is one and two ?",
    "one is a number, two is more.\n\n\nBe kind to the user.",
    "It is 48 + 24 = 72.",
]
IN_TURN = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """What is known of it, by hand.

    Attributes:
        end: ends an answer. stop: the tokenizer's end token. begin: its begin token.
        adds: whether the tokenizer puts it before a text. strips: tokens that take what is blank behind them.
    """

    template: str
    end: str
    stop: str
    begin: str | None
    adds: bool = False
    pieces: bool = False
    special: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()


FAMILIES = {
    "llama3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' }}"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}",
        end="<|eot_id|>",
        stop="<|end_of_text|>",
        begin="<|begin_of_text|>",
        adds=True,
        special=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "qwen": Family(
        "{% if messages and messages[0].role != 'system' %}<|im_start|>system{{ '\n' }}You help.<|im_end|>"
        "{{ '\n' }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}"
        "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant{{ '\n' }}{% endif %}",
        end="<|im_end|>",
        stop="<|im_end|>",
        begin=None,
        special=("<|im_start|>",),
    ),
    "qwen3": Family(
        "{% set at = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set at.last = "
        "loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
        "{% if m.role == 'assistant' and loop.index0 > at.last %}<think>{{ '\n\n' }}</think>"
        "{{ '\n\n' }}{% endif %}"
        "{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}",
        end="<|im_end|>",
        stop="<|im_end|>",
        begin=None,
        special=("<|im_start|>",),
    ),
    "gemma": Family(
        "{{ bos_token }}" + IN_TURN + "{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}{{ '\n' }}{{ m.content | trim }}<end_of_turn>"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model{{ '\n' }}{% endif %}",
        end="<end_of_turn>",
        stop="<eos>",
        begin="<bos>",
        adds=True,
        special=("<start_of_turn>",),
    ),
    "mistral": Family(
        "{% if messages and messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
        "{% for m in turns %}{% if m.role == 'user' %}[INST] "
        "{% if loop.index0 >= turns | length - 2 and system %}"
        "{{ system }}{{ '\n\n' }}{% endif %}{{ m.content }} [/INST]{% else %} {{ m.content | trim }}"
        "{{ eos_token }}{% endif %}{% endfor %}",
        end="</s>",
        stop="</s>",
        begin="<s>",
        adds=True,
        pieces=True,
    ),
    "phi": Family(
        "{% for m in messages %}<|{{ m.role }}|>{{ '\n' }}{{ m.content }}<|end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\n' }}{% else %}{{ eos_token }}{% endif %}",
        end="<|end|>",
        stop="<|endoftext|>",
        begin="<s>",
        special=("<|user|>", "<|assistant|>", "<|system|>"),
        strips=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
}


def _core(family: Family) -> Tokenizer:
    """Byte-level BPE, or with `pieces` SentencePiece's kind, which puts a blank before a text."""
    core = Tokenizer(models.BPE(unk_token="<unk>" if family.pieces else None))
    if family.pieces:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [chr(i) for i in range(33, 127)] + ["\n", "▁"]
    else:
        words = Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return core


def save_chat_model(folder: Path, name: str) -> Path:
    """A tiny Llama with the family's tokenizer."""
    tokenizer = tokenizer_of(name)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **size, **marks)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tokenizer_of(name: str) -> Any:
    """The family's tokenizer. It is shared: leave it as it is."""
    family = FAMILIES[name]
    core = _core(family)
    names = dict.fromkeys([*filter(None, [family.begin]), "<unk>", family.stop, family.end, *family.special])
    core.add_special_tokens([AddedToken(t, special=True, rstrip=t in family.strips) for t in names])
    if family.adds:
        begin = (family.begin, core.token_to_id(family.begin))
        core.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.begin, eos_token=family.stop, unk_token="<unk>"
    )
    tokenizer.chat_template = family.template
    return tokenizer
