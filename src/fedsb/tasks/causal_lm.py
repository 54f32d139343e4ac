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

from collections.abc import Sequence
from functools import partial
from typing import Any

from fedsb.config.sections.task import CausalLmConfig
from fedsb.errors import InputError
from fedsb.tasks.answers import IGNORED, answer_task, check_some_response, cut_example
from fedsb.tasks.prompts import Template, added_bos, columns_of, cut_left, fill, parse_template, tokenize
from fedsb.tasks.rows import cell_text, require_columns
from fedsb.tasks.task import Example, Row, Task


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
    template = parse_template(prompt)
    encode = partial(
        _encode,
        tokenizer,
        template=template,
        response=response,
        max_length=max_length,
        allow_cut_responses=allow_cut_responses,
    )
    questions = partial(_questions, tokenizer, template=template, max_length=max_length)
    return answer_task(tokenizer, encode, questions=questions, max_new_tokens=max_new_tokens)


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
    prompts = _prompts(rows, source, template)
    require_columns(rows, [response], source=source, key="task.response")
    if not rows:
        return []
    responses = [cell_text(row, response, source=source, number=n) for n, row in enumerate(rows, start=1)]
    ids = list(zip(tokenize(tokenizer, prompts), tokenize(tokenizer, responses), strict=True))
    bos = added_bos(tokenizer)
    examples = [_example(bos, tokenizer.eos_token_id, max_length, *pair) for pair in ids]
    if not allow_cut_responses:
        lengths = [len(response) for _, response in ids]
        check_some_response(examples, rows, lengths, source=source, max_length=max_length)
    for example, text in zip(examples, responses, strict=True):
        example["response"] = text.removesuffix(tokenizer.eos_token)
    return examples


def _prompts(rows: Sequence[Row], source: str, template: Template) -> list[str]:
    require_columns(rows, columns_of(template), source=source, key="task.prompt")
    return [fill(template, row, source, number) for number, row in enumerate(rows, start=1)]


def _questions(
    tokenizer: Any, rows: Sequence[Row], source: str, *, template: Template, max_length: int
) -> list[Example]:
    prompts, bos = _prompts(rows, source, template), added_bos(tokenizer)
    ids = tokenize(tokenizer, prompts) if prompts else []
    begun = [prompt if bos and prompt[:1] == bos else bos + prompt for prompt in ids]
    return [{"prompt_ids": cut_left(prompt, len(bos), max_length)} for prompt in begun]


def _example(bos: list[int], eos: int, max_length: int, prompt: list[int], response: list[int]) -> Example:
    """Prompt and response, as tokenized alone, within max_length; bos is never cut."""
    begin, end = bool(bos) and prompt[:1] == bos, response[-1:] == [eos]
    prompt, response = prompt if begin else bos + prompt, response if end else [*response, eos]
    example = cut_example(prompt, [IGNORED] * len(prompt), response, keep=len(bos), max_length=max_length)
    example["tokens"] = example["tokens"]._replace(begin_in_text=begin, end_in_text=end)
    return example
