"""Texts from vLLM, for those who have it installed and ask for it."""

import importlib.util
from collections.abc import Callable, Sequence
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
        seed=derive(decoding.seed, "generate", number) % 2**31,
    )
    asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
    found = llm.generate(asked, parameters, use_tqdm=False)
    return [cut_at(str(one.outputs[0].text), decoding.stop) for one in found]
