"""The task of answering in a conversation.

Layout of an example, the assistant's turns and the tokens that end them being trained (T template, A answer):

    input_ids   T1   T2   T3   A1  A2  end  T4   T5   A3  end
    labels      -100 -100 -100 A1  A2  end  -100 -100 A3  end

All T are the chat template's, a begin token included: none is added to it. A new turn is generated from the
very tokens that it is trained behind. Too long for max_length: the conversation loses tokens on its left,
and its last answer is kept, as `fedsb.tasks.causal_lm` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from fedsb.config.sections.task import ChatConfig
from fedsb.errors import InputError
from fedsb.tasks.answers import IGNORED, answer_task, check_some_response, cut_example
from fedsb.tasks.chat.messages import read_conversations, shapes_of
from fedsb.tasks.chat.template import ChatTemplate, Layout, Unfit, chat_template
from fedsb.tasks.prompts import cut_left
from fedsb.tasks.rows import place
from fedsb.tasks.task import Example, Row, Task


def chat_of(
    section: ChatConfig, tokenizer: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task of a config's section. rows: training rows, for what is said of their shape.

    Raises:
        InputError: the chat template cannot be used, or the first row is no conversation.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("model.path: expected a tokenizer with an end-of-sequence token, this one has none")
    template = chat_template(tokenizer, plain=section.template == "plain")
    shapes = [f"conversations of {name}: in {shape}" for name, shape in shapes_of(rows, source).items()]
    return answer_task(
        tokenizer,
        partial(_encode, template, section=section, max_length=max_length),
        questions=partial(_questions, template, max_length=max_length),
        max_new_tokens=section.max_new_tokens,
        ends=(template.end_id,),
        notes=(*shapes, *_notes(template, section)),
    )


def _notes(template: ChatTemplate, section: ChatConfig) -> list[str]:
    which = "the tokenizer's own" if template.own else "plain (User: ..., Assistant: ...)"
    if not template.own and section.template is None:
        which += ", since the tokenizer has none"
    learnt = "all of the assistant's turns" if section.train_on == "all" else "the assistant's last turn"
    notes = [f"chat template: {which}; an answer ends with {template.end!r}; the loss is on {learnt}"]
    if template.folds:
        notes.append("the chat template has no system message: its text goes before the first question")
    return notes


def _encode(
    template: ChatTemplate, rows: Sequence[Row], source: str, *, section: ChatConfig, max_length: int
) -> list[Example]:
    """Examples as `fedsb.tasks.answers` has them."""
    every, examples, lengths = section.train_on == "all", [], []
    read = read_conversations(rows, source)
    for number, (row, messages) in enumerate(zip(rows, read, strict=True), start=1):
        with _placed(row, source, number):
            layout = template.lay_out(messages, every=every)
        examples.append(_example(template, layout, max_length))
        lengths.append(len(layout.answer))
    if not section.allow_cut_responses:
        check_some_response(examples, rows, lengths, source=source, max_length=max_length)
    return examples


def _questions(template: ChatTemplate, rows: Sequence[Row], source: str, *, max_length: int) -> list[Example]:
    examples = []
    read = read_conversations(rows, source, asks=True)
    for number, (row, messages) in enumerate(zip(rows, read, strict=True), start=1):
        with _placed(row, source, number):
            prompt = template.question(messages)
        examples.append({"prompt_ids": cut_left(prompt, _keep(template, prompt), max_length)})
    return examples


@contextmanager
def _placed(row: Row, source: str, number: int) -> Iterator[None]:
    """Inside the block, what does not fit the template is an error of this row."""
    try:
        yield
    except Unfit as unfit:
        raise InputError(f"{place(row, source, number)}: {unfit}") from None


def _example(template: ChatTemplate, layout: Layout, max_length: int) -> Example:
    prompt, answer, tokenizer = layout.prompt, layout.answer, template.tokenizer
    labels = [IGNORED] * len(prompt)
    for start, end in layout.learnt:
        labels[start:end] = prompt[start:end]
    keep = _keep(template, prompt)
    example = cut_example(prompt, labels, answer, keep=keep, max_length=max_length)
    example["tokens"] = example["tokens"]._replace(untrained_turns=layout.skipped)
    text = tokenizer.decode(answer[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return {**example, "response": str(text)}


def _keep(template: ChatTemplate, prompt: Sequence[int]) -> int:
    """How many tokens of a prompt are never cut: a begin token."""
    return int(list(prompt[:1]) == [template.tokenizer.bos_token_id])
