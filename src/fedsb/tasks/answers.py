"""What tasks share whose examples hold an answer to learn: batches, the loss on it, generation, metrics.

An example has `input_ids`; `labels`, IGNORED where nothing is learnt; `prompt_ids`, what an answer is
generated from; `response`, the text to expect; `tokens`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedsb.errors import InputError
from fedsb.tasks.cuts import Tokens
from fedsb.tasks.generate import generate_texts
from fedsb.tasks.prompts import cut_left
from fedsb.tasks.rows import place
from fedsb.tasks.task import (
    Batch,
    Example,
    Measurement,
    Progress,
    Row,
    Task,
    attention_mask,
    batches_by_length,
    evaluating,
    model_logits,
    own_experts,
    pad,
    pad_token_id,
)
from fedsb.tasks.totals import of_responses

IGNORED = -100


def answer_task(
    tokenizer: Any,
    encode: Callable[[Sequence[Row], str], list[Example]],
    *,
    questions: Callable[[Sequence[Row], str], list[Example]],
    max_new_tokens: int,
    ends: tuple[int, ...] = (),
    notes: tuple[str, ...] = (),
) -> Task:
    """The task whose examples `encode` makes; the other arguments as of `Task` and `causal_lm`."""
    return Task(
        primary_metric="loss",
        higher_is_better=False,
        num_labels=None,
        label_names=None,
        encode=encode,
        collate=partial(_collate, tokenizer),
        losses=_losses,
        measure=partial(_measure, tokenizer, max_new_tokens, ends),
        partition_label=None,
        totals=of_responses(),
        questions=questions,
        ends=ends,
        notes=notes,
    )


# Examples and batches


def cut_example(
    prompt: list[int], labels: list[int], response: list[int], *, keep: int, max_length: int
) -> Example:
    """An example within max_length. The response, whose last token is the end token, is kept first; the
    prompt loses tokens on its left, behind the first `keep`.

    labels: of the prompt, which may hold earlier answers; one that lost its beginning is not learnt.
    """
    kept_response = response[: max(max_length - keep, 0)]
    room = max_length - len(kept_response)
    kept, kept_labels = cut_left(prompt, keep, room), cut_left(labels, keep, room)
    if len(kept) < len(prompt):
        kept_labels = _without_torn(kept_labels, keep)
    return {
        "input_ids": kept + kept_response,
        "labels": kept_labels + kept_response,
        "prompt_ids": cut_left(prompt, keep, max_length),
        "tokens": Tokens(
            length=len(prompt) + len(response),
            cut_prompts=len(kept) < len(prompt),
            lost_prompts=len(kept) <= keep < len(prompt),
            cut_questions=len(prompt) > max_length,
            cut_responses=len(kept_response) < len(response) - 1,
            lost_end_tokens=len(kept_response) < len(response),
        ),
    }


def _without_torn(labels: list[int], keep: int) -> list[int]:
    """Labels without those that directly follow the first `keep`."""
    end = next((i for i in range(keep, len(labels)) if labels[i] == IGNORED), len(labels))
    return labels[:keep] + [IGNORED] * (end - keep) + labels[end:]


def check_some_response(
    examples: Sequence[Example], rows: Sequence[Row], lengths: Sequence[int], *, source: str, max_length: int
) -> None:
    """Refuse an example that has nothing to learn.

    lengths: tokens of each response.

    Raises:
        InputError: names the first such row.
    """
    empty = [i for i, example in enumerate(examples) if example["labels"][-1] == IGNORED]
    if empty:
        first, more = empty[0], f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(
            f"{place(rows[first], source, first + 1)}{more}: training.max_length {max_length} leaves nothing "
            f"of the response, which has {lengths[first]} tokens; raise training.max_length, or set "
            "task.allow_cut_responses: true to take rows that teach nothing"
        )


def _collate(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    ids = [example["input_ids"] for example in examples]
    labels = [example["labels"] for example in examples]
    return {
        "input_ids": pad(ids, pad_token_id(tokenizer)),
        "attention_mask": attention_mask(ids),
        "labels": pad(labels, IGNORED),
        "asked": pad([_asked(of_example) for of_example in labels], 0).bool(),
    } | own_experts(examples)


def _asked(labels: Sequence[int]) -> list[int]:
    """1 at the tokens before the last answer."""
    asked = next((place for place in range(len(labels), 0, -1) if labels[place - 1] == IGNORED), 0)
    return [1] * asked + [0] * (len(labels) - asked)


# Losses


def _losses(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean over an example's own response tokens, so that each example weighs the same however long."""
    total, count = _response_nll(model, batch)
    return total / count.clamp(min=1)


def _response_nll(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Per example: the negative log-likelihood of its response tokens, and how many they are.

    Only the logits that predict a response token are cast to fp32: they are (batch, width, vocabulary).
    """
    logits = model_logits(model, batch)[:, :-1]  # place i predicts the token at i + 1
    targets = batch["labels"].to(logits.device)[:, 1:]
    trained = targets != IGNORED
    nll = F.cross_entropy(logits[trained].float(), targets[trained], reduction="none")
    by_place = torch.zeros(targets.shape, dtype=nll.dtype, device=nll.device).masked_scatter(trained, nll)
    return by_place.sum(dim=1), trained.sum(dim=1)


# Metrics


def _measure(
    tokenizer: Any,
    max_new_tokens: int,
    ends: tuple[int, ...],
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int,
    generate: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """loss: NLL of all response tokens / their number (not the mean of `losses`); perplexity: exp(loss).

    exact_match, with `generate`: the share of answers equal to the response, both without outer blanks.
    """
    if not examples:
        raise ValueError("expected at least one example to evaluate, got none")
    asked = list(examples[: generate or 0])
    report = _counter(len(examples) + len(asked), progress)
    nll, tokens = _nll_of_each(tokenizer, model, examples, batch_size, report)
    none = {"asked": np.zeros(()), "exact": np.zeros(())}
    sums = {"loss": nll.sum(), "tokens": tokens.sum()} | none
    measurements = [Measurement(len(examples), partial(_loss_metrics, nll, tokens), sums=sums)]
    if asked:
        hits = _hits(tokenizer, model, asked, max_new_tokens, ends, batch_size, report)
        given, share = {"asked": np.array(len(hits)), "exact": hits.sum()}, frozenset({"exact_match"})
        measurements.append(
            Measurement(len(asked), lambda at: {"exact_match": float(hits[at].mean())}, share, given)
        )
    return measurements


def _loss_metrics(nll: np.ndarray, tokens: np.ndarray, indices: np.ndarray) -> dict[str, float]:
    loss = float(nll[indices].sum() / max(tokens[indices].sum(), 1))
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else loss * math.inf}


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """A function that adds up what it is told is done, and passes it on."""
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    return report


def _nll_of_each(
    tokenizer: Any,
    model: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """(examples,) negative log-likelihoods of the responses, and (examples,) how many tokens they have."""
    nll, tokens = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    with evaluating(model):
        for indices in batches_by_length([len(example["input_ids"]) for example in examples], batch_size):
            each, count = _response_nll(model, _collate(tokenizer, [examples[i] for i in indices]))
            nll[indices], tokens[indices] = each.double().cpu().numpy(), count.cpu().numpy()
            report(len(indices))
    return nll, tokens


def _hits(
    tokenizer: Any,
    model: nn.Module,
    examples: Sequence[Example],
    max_new_tokens: int,
    ends: tuple[int, ...],
    batch_size: int,
    report: Callable[[int], None],
) -> np.ndarray:
    """(examples,) whether the greedy answer is the response."""
    texts = generate_texts(
        model,
        tokenizer,
        [example["prompt_ids"] for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        ends=ends,
        report=report,
    )
    pairs = zip(texts, examples, strict=True)
    return np.asarray([text.strip() == example["response"].strip() for text, example in pairs])
