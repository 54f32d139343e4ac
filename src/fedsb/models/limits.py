"""What a model has room for: token ids, positions, segments, a pad id. Read from the model or its config.

positions   a learned or fixed table           its rows, less those that no token is given: RoBERTa's ids
                                               begin at padding_idx + 1, OPT's and BART's at 2
            rotary                             max_position_embeddings, what it was trained on
            relative, ALiBi, none (Mamba)      no limit
segments    a table of token types             its rows; with fewer than two they are left out
            relative (XLNet, Funnel)           no limit
            none                               left out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedsb.errors import InputError

POSITION_TABLES = {
    "embed_positions",
    "pos_emb",
    "pos_embed",
    "position_embedding",
    "position_embeddings",
    "position_embeds_layer",
    "positions_embed",
    "wpe",
}
OTHER_SENSES = ("audio", "image", "speech", "vision", "visual")
"""Parts of a module's name under which a table of positions is not of tokens."""
LIMIT_KEYS = {
    "codegen": "n_positions",
    "ctrl": "n_positions",
    "gptj": "n_positions",
    "mpt": "max_seq_len",
}
"""Families without a table in which more positions than this number fail -> its key in config.json."""


@dataclass(frozen=True)
class Positions:
    """How many tokens an example may have.

    Attributes:
        usable: the largest number.
        kept: rows of the table that no token is given.
        trained: whether it is the length the model was trained on, and not the size of a table.
    """

    usable: int
    kept: int = 0
    trained: bool = False


def positions_of(model: Any) -> Positions | None:
    """The model's positions; None where an example may be as long as it likes."""
    config = text_config(model.config)
    tables = [_of_table(owner, table, config) for owner, table in _position_tables(model)]
    if tables:
        return min(tables, key=lambda positions: positions.usable)
    if limit := getattr(config, LIMIT_KEYS.get(config.model_type, ""), None):
        return Positions(int(limit))
    trained = _declared(config)
    return Positions(trained, trained=True) if trained is not None and _is_rotary(model, config) else None


def text_config(config: Any) -> Any:
    """The part of a model's config that is about text."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _position_tables(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """(owner, table) of every table of token positions."""
    owners = [owner for name, owner in model.named_modules() if not _is_other_sense(name)]
    children = ((owner, leaf, child) for owner in owners for leaf, child in owner.named_children())
    named = [(owner, child) for owner, leaf, child in children if leaf in POSITION_TABLES]
    return [(owner, table) for owner, table in named if isinstance(getattr(table, "weight", None), Tensor)]


def _is_other_sense(name: str) -> bool:
    return any(sense in name for sense in OTHER_SENSES)


def _of_table(owner: Any, table: Any, config: Any) -> Positions:
    """RoBERTa's kind has a padding row in the table itself; its first token comes after that."""
    rows = int(table.weight.shape[0])
    kept = int(getattr(table, "offset", 0))
    if getattr(table, "padding_idx", None) is not None:
        kept = int(getattr(owner, "padding_idx", table.padding_idx)) + 1
    return Positions(min(rows - kept, _declared(config) or rows), kept)


def _declared(config: Any) -> int | None:
    """max_position_embeddings; -1 and nothing both mean none."""
    number = getattr(config, "max_position_embeddings", None)
    return number if isinstance(number, int) and number > 0 else None


def _is_rotary(model: nn.Module, config: Any) -> bool:
    """Falcon has a rotary module with ALiBi too."""
    rotates = any("Rotary" in type(module).__name__ for module in model.modules())
    return rotates and not getattr(config, "alibi", False)


def embedding_rows(model: Any) -> int | None:
    """How many token ids the model has embeddings for; None where it has no table of them (CANINE)."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


# Checks


def check_length(model: Any, max_length: int) -> None:
    """Refuse examples of more tokens than the model has positions for.

    Raises:
        InputError: with both numbers.
    """
    positions = positions_of(model)
    if positions is None or max_length <= positions.usable:
        return
    what, cure = "the model's positions", "lower it"
    if positions.kept > 0:
        table = positions.usable + positions.kept
        what += f" ({table} in its table, the first {positions.kept} for no token)"
    if positions.trained:
        what += ", which it was trained on"
        cure += ", or set rope scaling and a larger max_position_embeddings in the model's config.json"
    raise InputError(
        f"training.max_length: expected at most {positions.usable}, {what}, found {max_length}; {cure}"
    )


def check_room_for_answers(model: Any, max_new_tokens: int) -> None:
    """Refuse answers that leave no position for a prompt.

    Raises:
        InputError: with both numbers.
    """
    positions = positions_of(model)
    if positions is not None and max_new_tokens >= positions.usable:
        raise InputError(
            f"task.max_new_tokens: expected less than the model's {positions.usable} positions, "
            f"got {max_new_tokens}; lower it"
        )


def check_token_ids(model: Any, tokenizer: Any, largest: int, path: str) -> None:
    """Refuse a token that has no embedding.

    Args:
        largest: the largest id in the data.

    Raises:
        InputError: with the sizes of both.
    """
    rows = embedding_rows(model)
    if rows is None or largest < rows:
        return
    raise InputError(
        f"model.path: the tokenizer in {path!r} has {len(tokenizer)} tokens, the model embeddings for "
        f"{rows}, and the data have token {largest}, beyond the last. Take the tokenizer that the model was "
        "trained with, or give the model more embeddings (in transformers: "
        f"resize_token_embeddings({len(tokenizer)}))"
    )


# What is put right without asking


def set_pad_token(tokenizer: Any, config: Any | None) -> None:
    """Give a tokenizer a pad token that the model of this config has an embedding for.

    Its own; where it has none or none in reach its end token, then another special one, then token 0. What
    stands at filled places is never looked at.
    """
    rows = getattr(text_config(config), "vocab_size", None)
    if _in_reach(tokenizer.pad_token_id, rows):
        return
    others = (tokenizer.eos_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids, 0)
    pad = next((token_id for token_id in others if _in_reach(token_id, rows)), 0)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def pad_option(config: Any | None, tokenizer: Any) -> dict[str, int]:
    """`pad_token_id` in place of a config's own that has no embedding, with which no model can be built."""
    if _pads_in_reach(config):
        return {}
    return {"pad_token_id": 0 if tokenizer is None else tokenizer.pad_token_id}


def fit_pad_id(config: Any) -> Any:
    """The config, its pad id 0 where it has no embedding."""
    if not _pads_in_reach(config):
        config.pad_token_id = 0
    return config


def _pads_in_reach(config: Any | None) -> bool:
    rows, pad = getattr(config, "vocab_size", None), getattr(config, "pad_token_id", None)
    return pad is None or not isinstance(rows, int) or -rows <= pad < rows


def _in_reach(token_id: int | None, rows: int | None) -> bool:
    return token_id is not None and (rows is None or token_id < rows)
