"""All that knows vLLM: texts from it, for those who have it, and what its server of adapters accepts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fedsb.common.seeding import derive
from fedsb.errors import InputError
from fedsb.tasks.generate import Decoding, Engine, Prompt, cut_at


def check_vllm() -> None:
    """InputError if it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "evaluation.generation.engine: vllm is not installed here; pip install vllm, or take transformers"
        )


def vllm_engines(model: str, *, dtype: str) -> Callable[[Decoding], Engine]:
    """Engines over one whole model (hub id, or a folder with the adapter merged in)."""
    from vllm import LLM

    llm = LLM(model=model, dtype=dtype, trust_remote_code=False)
    return lambda decoding: partial(_texts, llm, decoding)


def _texts(llm: Any, decoding: Decoding, prompts: Sequence[Prompt], number: int) -> list[str]:
    from vllm import SamplingParams

    parameters = SamplingParams(
        max_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k or -1,
        stop=list(decoding.stop),
        stop_token_ids=list(decoding.ends),
        seed=derive(decoding.seed, "generate", number) % 2**31,
    )
    asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
    outputs = llm.generate(asked, parameters, use_tqdm=False)
    return [cut_at(str(output.outputs[0].text), decoding.stop) for output in outputs]


# What servers of LoRA adapters accept.


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank` (vllm/config/lora.py, MaxLoRARanks, 0.14 to 0.26)."""


def serving_rank(rank: int) -> int:
    """The smallest rank of vLLM's that holds an adapter of this rank.

    Raises:
        InputError: there is none.
    """
    fits = [accepted for accepted in VLLM_RANKS if accepted >= rank]
    if not fits:
        raise InputError(
            f"--for vllm: the adapter has rank {rank} and vLLM takes {VLLM_RANKS[-1]} at most; serve "
            "merged weights instead: --format merged"
        )
    return fits[0]


def check_servable(config: Mapping[str, Any], rank: int | None) -> None:
    """Refuse an adapter of this peft config, at the rank that was asked for, if vLLM cannot serve it.

    Raises:
        InputError: a trained head, or a rank that is none of vLLM's.
    """
    if heads := config.get("modules_to_save"):
        raise InputError(
            f"--for vllm: vLLM refuses adapters with a trained head ({', '.join(heads)}); "
            "serve merged weights instead: --format merged"
        )
    if rank is not None and rank not in VLLM_RANKS:
        accepted = ", ".join(map(str, VLLM_RANKS))
        raise InputError(
            f"--rank: expected one of vLLM's ranks ({accepted}), found {rank}; give {serving_rank(rank)}, or "
            "leave --rank out"
        )
