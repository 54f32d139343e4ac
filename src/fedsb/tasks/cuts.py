"""What `training.max_length` takes from examples, and which special tokens their texts had by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


class Tokens(NamedTuple):
    """What happened to one example's tokens; an example has it at its key "tokens".

    length: tokens before anything was cut, special tokens included.
    cut_texts: a text to classify lost its end. cut_prompts: a prompt lost its beginning, lost_prompts: all of
    it; cut_questions: it is too long alone, so that generation sees only its end. cut_responses: a response
    lost its end, lost_end_tokens: the end token. cut_entities: some of a text's entities were cut off.
    begin_in_text, end_in_text: the text had the begin or end token; no second one was added.
    untrained_turns: earlier answers of a conversation are context alone, see `fedsb.tasks.chat.template`.
    """

    length: int
    cut_texts: bool = False
    cut_prompts: bool = False
    lost_prompts: bool = False
    cut_questions: bool = False
    cut_responses: bool = False
    lost_end_tokens: bool = False
    begin_in_text: bool = False
    end_in_text: bool = False
    untrained_turns: bool = False
    cut_entities: bool = False


def cut_counts(examples: Sequence[Mapping[str, Any]], max_length: int) -> dict[str, Any] | None:
    """The number of examples of each kind, and percentiles of their lengths in tokens (by nearest rank).

    None where examples do not say: there is none, or the task is another package's.
    """
    if not examples or not all("tokens" in example for example in examples):
        return None
    tokens = np.asarray([example["tokens"] for example in examples], dtype=np.int64)
    lengths = np.percentile(tokens[:, 0], list(PERCENTILES.values()), method="inverted_cdf")
    counts = tokens[:, 1:].sum(axis=0).tolist()
    return {
        "examples": len(examples),
        "max_length": max_length,
        "cut": int((tokens[:, 0] > max_length).sum()),
        **dict(zip(Tokens._fields[1:], counts, strict=True)),
        "length": dict(zip(PERCENTILES, lengths.tolist(), strict=True)),
    }
