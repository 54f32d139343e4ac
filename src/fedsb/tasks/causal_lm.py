"""A prompt and the response to it, for a causal language model.

Layout of an example, the response and the end token being trained (P prompt, R response):

    input_ids   [bos]  P1   P2   P3   R1  R2  eos
    labels      -100  -100 -100 -100  R1  R2  eos

bos is there only where the tokenizer adds one by itself. Prompt and response are tokenized apart and then
joined. So the border is exact to the token, and generation starts from the very tokens of training. Some
tokenizers put a blank of their own before a text: with those, end the prompt without a blank.

Too long for max_length: the prompt loses tokens on its left, after bos, and the response is kept. A response
that is too long on its own loses its tail, and the end token first.
"""

import math
import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedsb.data import cell_text, require_columns
from fedsb.errors import InputError
from fedsb.evaluation.intervals import Measurement
from fedsb.tasks.task import (
    Batch,
    Example,
    Progress,
    Row,
    Task,
    attention_mask,
    batches_by_length,
    device_of,
    evaluating,
    model_logits,
    pad,
    pad_token_id,
)

IGNORED = -100
Template = tuple[tuple[str, str | None], ...]  # pieces: text, then the column that follows it (or None)


def causal_lm(tokenizer: Any, *, prompt: str, response: str, max_length: int, max_new_tokens: int) -> Task:
    """The task of continuing a prompt with a response.

    prompt: a template such as "Question: {question}\\nAnswer:"; {{ and }} stand for braces. May be empty.
    response: the column that holds the response.
    max_length: tokens per example, all told. max_new_tokens: the most that generation adds to a prompt.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("model.path: expected a tokenizer with an end-of-sequence token, this one has none")
    template = parse_template(prompt)
    return Task(
        kind="causal-lm",
        primary_metric="loss",
        higher_is_better=False,
        num_labels=None,
        label_names=None,
        encode=partial(_encode, tokenizer, template=template, response=response, max_length=max_length),
        collate=partial(_collate, tokenizer),
        losses=_losses,
        measure=partial(_measure, tokenizer, max_new_tokens),
        partition_label=None,
    )


# Prompts


def parse_template(prompt: str) -> Template:
    """The pieces of a prompt template. What stands in braces is a column's name and nothing else."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"task.prompt: {error} in {prompt!r}; {_TEMPLATE_CURE}") from error
    for _, column, form, conversion in pieces:
        if column == "" or form or conversion:
            got = (
                "{"
                + (column or "")
                + (f"!{conversion}" if conversion else "")
                + (f":{form}" if form else "")
                + "}"
            )
            raise InputError(f"task.prompt: expected a column name in braces, got {got}; {_TEMPLATE_CURE}")
    return tuple((text, column) for text, column, _, _ in pieces)


_TEMPLATE_CURE = "write {column}, and {{ or }} for a brace that is text"


def _fill(template: Template, row: Row, source: str, number: int) -> str:
    return "".join(
        text + (cell_text(row, column, source=source, number=number) if column is not None else "")
        for text, column in template
    )


def _prompt_ids(tokenizer: Any, prompts: Sequence[str], max_length: int) -> list[list[int]]:
    """The one place where prompts are tokenized, for training and generation: [bos] and the prompt's tail."""
    bos = _added_bos(tokenizer)
    return [_cut_left(bos + ids, len(bos), max_length) for ids in _tokenize(tokenizer, prompts)]


def _cut_left(ids: list[int], keep: int, most: int) -> list[int]:
    """At most `most` ids: the first `keep` and as much of the end as fits."""
    tail = max(most - keep, 0)
    return ids if len(ids) <= most else ids[: min(keep, most)] + ids[len(ids) - tail :]


def _added_bos(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer puts it before a text by itself, else []."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    adds = bos is not None and with_special[:1] == [bos] and plain[:1] != [bos]
    return [bos] if adds else []


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


# Examples and batches


def _encode(
    tokenizer: Any, rows: Sequence[Row], source: str, *, template: Template, response: str, max_length: int
) -> list[Example]:
    """Examples with input_ids and labels, and for generation prompt_ids and the response as text."""
    columns = [column for _, column in template if column is not None]
    require_columns(rows, columns, source=source, key="task.prompt")
    require_columns(rows, [response], source=source, key="task.response")
    if not rows:
        return []
    prompts = [_fill(template, row, source, number) for number, row in enumerate(rows, start=1)]
    responses = [cell_text(row, response, source=source, number=n) for n, row in enumerate(rows, start=1)]
    prompt_ids = _prompt_ids(tokenizer, prompts, max_length)
    response_ids = [[*ids, tokenizer.eos_token_id] for ids in _tokenize(tokenizer, responses)]
    keep = len(_added_bos(tokenizer))
    return [
        {**_joined(ids, answer, keep, max_length), "prompt_ids": ids, "response": text}
        for ids, answer, text in zip(prompt_ids, response_ids, responses, strict=True)
    ]


def _joined(prompt: list[int], response: list[int], keep: int, max_length: int) -> Example:
    """Prompt and response within max_length; `keep` ids of the prompt (bos) are never cut."""
    response = response[: max(max_length - keep, 0)]
    prompt = _cut_left(prompt, keep, max_length - len(response))
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def _collate(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad(ids, pad_token_id(tokenizer)),
        "attention_mask": attention_mask(ids),
        "labels": pad([example["labels"] for example in examples], IGNORED),
    }


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
    found = [Measurement(len(examples), partial(_loss_metrics, nll, tokens))]
    if asked:
        hits = _hits(tokenizer, model, asked, max_new_tokens, batch_size, report)
        found.append(
            Measurement(
                len(asked), lambda at: {"exact_match": float(hits[at].mean())}, frozenset({"exact_match"})
            )
        )
    return found


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


# Generation


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy continuations of token prompts (an example's "prompt_ids"), decoded, without the prompt.

    The text ends before the first end token. A prompt that with max_new_tokens exceeds the model's positions
    is cut on its left, after bos. report: told after each batch how many prompts it had.
    """
    prompts = _fitted(model, tokenizer, prompts, max_new_tokens)
    texts = [""] * len(prompts)
    with evaluating(model):
        for indices in batches_by_length([len(prompt) for prompt in prompts], batch_size):
            chosen = [prompts[i] for i in indices]
            for i, ids in zip(indices, _continue(model, tokenizer, chosen, max_new_tokens), strict=True):
                texts[i] = _decode(tokenizer, ids)
            if report is not None:
                report(len(indices))
    return texts


def _fitted(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    positions = getattr(model.config, "max_position_embeddings", None)
    room = (
        max((len(prompt) for prompt in prompts), default=0)
        if positions is None
        else positions - max_new_tokens
    )
    if prompts and room < 1:
        raise InputError(
            f"task.max_new_tokens: expected less than the model's {positions} positions, "
            f"got {max_new_tokens}; lower it"
        )
    if any(not prompt for prompt in prompts):
        raise InputError(
            "task.prompt: a prompt has no tokens and the tokenizer adds no start token, so generation has "
            "nothing to start from; write a template with some text"
        )
    keep = len(_added_bos(tokenizer))
    return [_cut_left(list(prompt), keep, room) for prompt in prompts]


def _continue(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """New ids per prompt. Padding on the left, so that every prompt ends where its answer begins."""
    device = device_of(model)
    inputs = pad(prompts, pad_token_id(tokenizer), side="left").to(device)
    output = model.generate(
        input_ids=inputs,
        attention_mask=attention_mask(prompts, side="left").to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # a model's own generation settings must not bend greedy search
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id(tokenizer),
    )
    ids: list[list[int]] = output[:, inputs.shape[1] :].tolist()
    return ids


def _decode(tokenizer: Any, ids: list[int]) -> str:
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))
