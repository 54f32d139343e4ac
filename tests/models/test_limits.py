"""What models have room for, against what their forward pass takes; what is put right without asking."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import save_tokenizer
from tiny_models import FAMILIES, POSITIONS, VOCABULARY
from transformers import AutoTokenizer, CanineConfig, CanineForSequenceClassification

from fedsb.errors import InputError
from fedsb.models.limits import (
    check_length,
    check_room_for_answers,
    check_token_ids,
    embedding_rows,
    fit_pad_id,
    pad_option,
    positions_of,
    set_pad_token,
)
from fedsb.tasks.task import with_segments_in_reach

END = 3


def takes(model: Any, tokens: int) -> bool:
    """Whether two rows of so many tokens go through the model."""
    ids = torch.randint(5, 20, (2, tokens), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = END  # an encoder-decoder's classifier looks for one
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("name", FAMILIES)
def test_usable_positions_are_those_the_model_takes(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    positions = positions_of(model)
    assert (positions.usable if positions else None) == family.usable
    assert takes(model, family.usable or 3 * POSITIONS)
    if positions is not None:
        assert positions.trained == family.trained == takes(model, positions.usable + 1)
    assert embedding_rows(model) == VOCABULARY


@pytest.mark.parametrize(
    ("name", "changes", "usable"),
    [
        ("roberta", {"pad_token_id": 0}, POSITIONS - 1),  # ids begin at pad_token_id + 1, whatever it is
        ("roberta", {"pad_token_id": 4}, POSITIONS - 5),
        ("roberta", {"pad_token_id": -1}, POSITIONS),
        ("deberta-v3", {"position_biased_input": True}, POSITIONS),
        ("llama", {"max_position_embeddings": 2}, 2),
        ("opt", {"max_position_embeddings": 9}, 9),
        ("mpt", {"max_seq_len": 11}, 11),
    ],
)
def test_positions_follow_the_config(name: str, changes: dict[str, Any], usable: int) -> None:
    model = FAMILIES[name].build(**changes)
    positions = positions_of(model)
    assert positions is not None
    assert positions.usable == usable
    assert takes(model, usable)
    assert takes(model, usable + 1) == positions.trained


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("roberta", ["at most 22", "24 in its table, the first 2 for no token", "found 23", "lower it"]),
        ("gpt2", ["at most 24", "the model's positions, found 25", "lower it"]),
        ("llama", ["at most 24", "which it was trained on", "found 25", "rope scaling"]),
    ],
)
def test_too_long_is_refused_with_both_numbers(name: str, parts: list[str]) -> None:
    family = FAMILIES[name]
    model = family.build()
    check_length(model, family.usable)
    with pytest.raises(InputError, match=r"training\.max_length") as error:
        check_length(model, family.usable + 1)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("name", ["xlnet", "bloom", "falcon-alibi", "mamba", "t5", "deberta-v3"])
def test_no_limit_is_none(name: str) -> None:
    check_length(FAMILIES[name].build(), 10**6)


def test_answers_must_leave_room_for_a_prompt() -> None:
    check_room_for_answers(FAMILIES["gpt2"].build(), POSITIONS - 1)
    check_room_for_answers(FAMILIES["bloom"].build(), 10**6)
    with pytest.raises(InputError, match=r"task\.max_new_tokens: .* 24 positions, got 24"):
        check_room_for_answers(FAMILIES["gpt2"].build(), POSITIONS)


# ---------------------------------------------------------------- token ids


def test_a_token_without_an_embedding_is_refused_with_both_sizes() -> None:
    model, tokenizer = FAMILIES["llama"].build(), [None] * (VOCABULARY + 2)
    check_token_ids(model, tokenizer, VOCABULARY - 1, "base")
    with pytest.raises(InputError, match=rf"model\.path: .*'base' has {VOCABULARY + 2} tokens") as error:
        check_token_ids(model, tokenizer, VOCABULARY, "base")
    assert f"embeddings for {VOCABULARY}" in str(error.value)


def test_a_model_of_characters_has_no_table_of_tokens() -> None:
    size = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CanineForSequenceClassification(CanineConfig(num_hash_functions=2, num_hash_buckets=16, **size))
    check_token_ids(model, [], 10**5, "canine")


# ---------------------------------------------------------------- segments

KINDS = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "type_vocab_size": 2}, [[0, 1, 1]]),
        ({"model_type": "fnet", "type_vocab_size": 4}, [[0, 1, 2]]),
        ({"model_type": "roberta", "type_vocab_size": 1}, None),
        ({"model_type": "deberta", "type_vocab_size": 0}, None),
        ({"model_type": "distilbert"}, None),
        ({"model_type": "gpt2"}, None),  # it would add the embedding of token 0 to every token
        ({"model_type": "xlnet"}, [[0, 1, 2]]),
    ],
)
def test_segments_are_those_the_model_has(config: dict[str, Any], expected: list[list[int]] | None) -> None:
    inputs = {"input_ids": KINDS, "token_type_ids": KINDS}
    left = with_segments_in_reach(inputs, SimpleNamespace(**config))
    assert set(left) - {"token_type_ids"} == {"input_ids"}
    kinds = left.get("token_type_ids")
    assert (None if kinds is None else kinds.tolist()) == expected


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.causal])
def test_every_encoder_takes_the_segments_it_is_left(name: str) -> None:
    model = FAMILIES[name].build()
    ids = torch.tensor([[4, 5, END], [6, 7, END]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": KINDS.repeat(2, 1)}
    with torch.no_grad():
        logits = model(**with_segments_in_reach(inputs, model.config)).logits
    assert torch.isfinite(logits).all()


# ---------------------------------------------------------------- pad tokens


def tokenizer_with(folder: Any, **names: str) -> Any:
    save_tokenizer(folder, causal=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(names)
    return tokenizer


@pytest.mark.parametrize(
    ("names", "rows", "expected"),
    [
        ({"pad_token": "[PAD]"}, VOCABULARY, "[PAD]"),
        ({"pad_token": "[PAD]"}, None, "[PAD]"),
        ({"pad_token": "<new>"}, VOCABULARY + 1, "<new>"),
        ({"pad_token": "<new>"}, VOCABULARY, "[SEP]"),
        ({}, VOCABULARY, "[SEP]"),
        ({"pad_token": "<new>", "eos_token": "<end>"}, VOCABULARY, "[UNK]"),
        ({"pad_token": "<new>"}, 1, "[PAD]"),
    ],
)
def test_the_pad_token_has_an_embedding(
    tmp_path: Any, names: dict[str, str], rows: int | None, expected: str
) -> None:
    tokenizer = tokenizer_with(tmp_path, **names)
    set_pad_token(tokenizer, SimpleNamespace(vocab_size=rows))
    assert tokenizer.pad_token == expected
    assert rows is None or tokenizer.pad_token_id < rows


@pytest.mark.parametrize(
    ("pad", "fits"), [(None, True), (0, True), (9, True), (-1, True), (-10, True), (10, False), (-11, False)]
)
def test_a_config_with_a_pad_id_out_of_reach_gets_another(pad: int | None, fits: bool) -> None:
    config = SimpleNamespace(vocab_size=10, pad_token_id=pad)
    assert pad_option(config, SimpleNamespace(pad_token_id=7)) == ({} if fits else {"pad_token_id": 7})
    assert fit_pad_id(config).pad_token_id == (pad if fits else 0)
