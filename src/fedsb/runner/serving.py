"""What servers of LoRA adapters accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsb.errors import InputError

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


def check_vllm(config: Mapping[str, Any], rank: int | None) -> None:
    """Refuse what vLLM cannot serve as an adapter.

    Args:
        config: the adapter's peft config.
        rank: the rank that was asked for.

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
