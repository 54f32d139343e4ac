"""A prompt and the response to it, for a causal language model.

Layout of an example, the response and the end token being trained (P prompt, R response):

    input_ids   [bos]  P1   P2   P3   R1  R2  eos
    labels      -100  -100 -100 -100  R1  R2  eos

bos is there only where the tokenizer adds one by itself. Prompt and response are tokenized apart and then
joined. So the border is exact to the token, and generation starts from the very tokens of training. Some
tokenizers put a blank of their own before a text: with those, end the prompt without a blank.

A text that has bos or the end token where it would be added gets no second one.

Too long for max_length: the prompt loses tokens on its left, after bos, and the response is kept. A response
that is too long on its own loses its tail, and the end token first. `fedsb.tasks.cuts` counts all of it.
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

from fedsb.config.sections import CausalLmConfig
from fedsb.errors import InputError
from fedsb.tasks.cuts import Tokens
from fedsb.tasks.generate import generate_texts
from fedsb.tasks.prompts import (
    Template,
    added_bos,
    columns_of,
    cut_left,
    fill,
    parse_template,
    tokenize,
)
from fedsb.tasks.rows import cell_text, place, require_columns
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


def causal_lm(
    tokenizer: Any,
    *,
    prompt: str,
    response: str,
    max_length: int,
    max_new_tokens: int,
    allow_cut_responses: bool = False,
) -> Task:
    """The task of continuing a prompt with a response.

    prompt: a template such as "Question: {question}\\nAnswer:"; {{ and }} stand for braces. May be empty.
        {column:optional} is empty where a row has no value.
    response: the column that holds the response.
    max_length: tokens per example, all told. max_new_tokens: the most that generation adds to a prompt.
    allow_cut_responses: take rows, too, of whose response max_length leaves nothing.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("model.path: expected a tokenizer with an end-of-sequence token, this one has none")
    encode = partial(
        _encode,
        tokenizer,
        template=parse_template(prompt),
        response=response,
        max_length=max_length,
        allow_cut_responses=allow_cut_responses,
    )
    return Task(
        primary_metric="loss",
        higher_is_better=False,
        num_labels=None,
        label_names=None,
        encode=encode,
        collate=partial(_collate, tokenizer),
        losses=_losses,
        measure=partial(_measure, tokenizer, max_new_tokens),
        partition_label=None,
        totals=of_responses(),
    )


def causal_lm_of(
    section: CausalLmConfig, tokenizer: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task of a config's section, whatever the training rows."""
    return causal_lm(
        tokenizer,
        prompt=section.prompt,
        response=section.response,
        max_length=max_length,
        max_new_tokens=section.max_new_tokens,
        allow_cut_responses=section.allow_cut_responses,
    )


# Examples and batches


def _encode(
    tokenizer: Any,
    rows: Sequence[Row],
    source: str,
    *,
    template: Template,
    response: str,
    max_length: int,
    allow_cut_responses: bool,
) -> list[Example]:
    """Examples with input_ids, labels and tokens, and for generation prompt_ids and the response as text."""
    require_columns(rows, columns_of(template), source=source, key="task.prompt")
    require_columns(rows, [response], source=source, key="task.response")
    if not rows:
        return []
    prompts = [fill(template, row, source, number) for number, row in enumerate(rows, start=1)]
    responses = [cell_text(row, response, source=source, number=n) for n, row in enumerate(rows, start=1)]
    ids = list(zip(tokenize(tokenizer, prompts), tokenize(tokenizer, responses), strict=True))
    bos = added_bos(tokenizer)
    examples = [_example(bos, tokenizer.eos_token_id, max_length, *pair) for pair in ids]
    if not allow_cut_responses:
        _check_responses(examples, rows, [len(response) for _, response in ids], source, max_length)
    for example, text in zip(examples, responses, strict=True):
        example["response"] = text.removesuffix(tokenizer.eos_token)
    return examples


def _check_responses(
    examples: Sequence[Example], rows: Sequence[Row], lengths: Sequence[int], source: str, max_length: int
) -> None:
    """Refuse an example that has nothing to learn."""
    empty = [i for i, example in enumerate(examples) if example["labels"][-1] == IGNORED]
    if empty:
        first, more = empty[0], f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(
            f"{place(rows[first], source, first + 1)}{more}: training.max_length {max_length} leaves nothing "
            f"of the response, which has {lengths[first]} tokens; raise training.max_length, or set "
            "task.allow_cut_responses: true to take rows that teach nothing"
        )


def _example(bos: list[int], eos: int, max_length: int, prompt: list[int], response: list[int]) -> Example:
    """Prompt and response, as tokenized alone, within max_length; bos is never cut."""
    begin, end = bool(bos) and prompt[:1] == bos, response[-1:] == [eos]
    prompt, response = prompt if begin else bos + prompt, response if end else [*response, eos]
    kept_response = response[: max(max_length - len(bos), 0)]
    kept_prompt = cut_left(prompt, len(bos), max_length - len(kept_response))
    return {
        "input_ids": kept_prompt + kept_response,
        "labels": [IGNORED] * len(kept_prompt) + kept_response,
        "prompt_ids": cut_left(prompt, len(bos), max_length),
        "tokens": Tokens(
            length=len(prompt) + len(response),
            cut_prompts=len(kept_prompt) < len(prompt),
            lost_prompts=len(kept_prompt) <= len(bos) < len(prompt),
            cut_questions=len(prompt) > max_length,
            cut_responses=len(kept_response) < len(response) - 1,
            lost_end_tokens=len(kept_response) < len(response),
            begin_in_text=begin,
            end_in_text=end,
        ),
    }


def _collate(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    ids = [example["input_ids"] for example in examples]
    valid, labels = attention_mask(ids), pad([example["labels"] for example in examples], IGNORED)
    return {
        "input_ids": pad(ids, pad_token_id(tokenizer)),
        "attention_mask": valid,
        "labels": labels,
        "asked": valid.bool() & (labels == IGNORED),
    } | own_experts(examples)


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
        hits = _hits(tokenizer, model, asked, max_new_tokens, batch_size, report)
        given = {"asked": np.array(len(hits)), "exact": hits.sum()}
        share = frozenset({"exact_match"})
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
        report=report,
    )
    pairs = zip(texts, examples, strict=True)
    return np.asarray([text.strip() == example["response"].strip() for text, example in pairs])
