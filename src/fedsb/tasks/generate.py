"""Texts from prompts of tokens: greedy or sampled, in batches, ended by the end token or a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fedsb.adapter.routing import answering, tell
from fedsb.common.seeding import scoped_global_seed
from fedsb.errors import InputError
from fedsb.models.limits import check_room_for_answers, positions_of
from fedsb.tasks.prompts import cut_left
from fedsb.tasks.task import (
    Batch,
    attention_mask,
    batches_by_length,
    device_of,
    evaluating,
    pad,
    pad_token_id,
)

Prompt = Sequence[int]
Engine = Callable[[Sequence[Prompt], int], list[str]]
"""(the prompts of a batch, the batch's number) -> their continuations, decoded, without prompt and stop."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """A text ends before the first of these."""
    ends: tuple[int, ...] = ()
    """Tokens that end a text, besides the tokenizer's end token."""
    temperature: float = 0.0
    """0: greedy, the likeliest token each time; else sampled, by what follows."""
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    """Seed of sampling: the same one, batches and versions give the same texts."""
    beams: int = 1
    """More: beam search, without sampling."""
    length_penalty: float = 1.0
    """Beam search: above 0 longer texts are favoured, below 0 shorter ones."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens occurs twice; 0: any may."""


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    ends: tuple[int, ...] = (),
    report: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy continuations of token prompts (an example's "prompt_ids"), decoded, without the prompt.

    The text ends before the first end token, the tokenizer's or one of `ends`. A prompt that with
    max_new_tokens exceeds the model's positions is cut on its left, after bos. report: told after each batch
    how many prompts it had.
    """
    engine = transformers_engine(model, tokenizer, Decoding(max_new_tokens=max_new_tokens, ends=ends))
    texts = [""] * len(prompts)
    for number, indices in enumerate(batches(prompts, batch_size)):
        answers = engine([prompts[i] for i in indices], number)
        for i, text in zip(indices, answers, strict=True):
            texts[i] = text
        if report is not None:
            report(len(indices))
    return texts


def batches(prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Indices of prompts of like length, longest first. Batches depend on the prompts alone, so that they are
    the same when a generation is resumed."""
    return list(batches_by_length([len(prompt) for prompt in prompts], batch_size))


def transformers_engine(model: Any, tokenizer: Any, decoding: Decoding) -> Engine:
    """Texts from a model in memory, which is left in the modes it had."""
    return partial(_texts, model, tokenizer, decoding)


def _texts(
    model: Any, tokenizer: Any, decoding: Decoding, prompts: Sequence[Prompt], number: int
) -> list[str]:
    fitted = _fitted(model, tokenizer, prompts, decoding.max_new_tokens)
    with evaluating(model), scoped_global_seed(decoding.seed, "generate", number):
        new = _continue(model, tokenizer, fitted, decoding)
    return [cut_at(_decode(tokenizer, ids, decoding.ends), decoding.stop) for ids in new]


def stream_text(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    decoding: Decoding,
    say: Callable[[str], None],
    *,
    number: int = 0,
) -> str:
    """As one prompt of an engine's batch of this number; `say` is told each next part as it is made."""
    (fitted,) = _fitted(model, tokenizer, [prompt], decoding.max_new_tokens)
    said = _Said(tokenizer, decoding, say)
    with evaluating(model), scoped_global_seed(decoding.seed, "generate", number):
        (new,) = _continue(model, tokenizer, [fitted], decoding, said if decoding.beams == 1 else None)
    said.all_of(new, last=True)
    return said.text


class _Said:
    """Text that grows with the tokens that transformers puts here, one prompt's; the prompt comes first."""

    def __init__(self, tokenizer: Any, decoding: Decoding, say: Callable[[str], None]) -> None:
        self.tokenizer, self.decoding, self.say = tokenizer, decoding, say
        self.text, self.ids, self.begun = "", list[int](), False

    def put(self, value: torch.Tensor) -> None:
        if self.begun:
            self.ids += value.flatten().tolist()
            self.all_of(self.ids)
        self.begun = True

    def end(self) -> None:
        """What is left is said by the last `all_of`."""

    def all_of(self, ids: list[int], *, last: bool = False) -> None:
        """Say what these tokens have more; half a character, and what may begin a stop string, wait."""
        text = _decode(self.tokenizer, ids, self.decoding.ends)
        cut = cut_at(text, self.decoding.stop)
        if last or not (cut.endswith("\ufffd") or _may_stop(cut, self.decoding.stop)):
            self.say(cut[len(self.text) :])
            self.text = cut


def _may_stop(text: str, stop: Sequence[str]) -> bool:
    return any(text.endswith(end[:length]) for end in stop for length in range(1, len(end)))


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    places = [at for at in (text.find(end) for end in stop) if at >= 0]
    return text[: min(places)] if places else text


def _fitted(model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    check_room_for_answers(model, max_new_tokens)
    positions = positions_of(model)
    longest = max((len(prompt) for prompt in prompts), default=0)
    room = longest if positions is None else positions.usable - max_new_tokens
    if any(not prompt for prompt in prompts):
        raise InputError(
            "task.prompt: a prompt has no tokens and the tokenizer adds no start token, so generation has "
            "nothing to start from; write a template with some text"
        )
    bos = tokenizer.bos_token_id
    return [cut_left(list(prompt), int(prompt[0] == bos), room) for prompt in prompts]


def _continue(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    streamer: Any = None,
) -> list[list[int]]:
    """New ids per prompt. Padding on the left, so that every prompt ends where its answer begins."""
    device = device_of(model)
    inputs = pad(prompts, pad_token_id(tokenizer), side="left").to(device)
    prompt = {"input_ids": inputs, "attention_mask": attention_mask(prompts, side="left").to(device)}
    with answering(model):
        output = _generate(model, tokenizer, tell(model, prompt), decoding, streamer)
    ids: list[list[int]] = output[:, inputs.shape[1] :].tolist()
    return ids


def _generate(model: Any, tokenizer: Any, prompt: Batch, decoding: Decoding, streamer: Any) -> torch.Tensor:
    stopping = [_Stop(tokenizer, prompt["input_ids"].shape[1], decoding.stop)] if decoding.stop else None
    output: torch.Tensor = model.generate(
        **prompt,
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        repetition_penalty=1.0,  # a model's own generation settings must not bend the search
        eos_token_id=_ends(tokenizer, decoding.ends),
        pad_token_id=pad_token_id(tokenizer),
        stopping_criteria=stopping,
        streamer=streamer,
        **_choice(decoding),
    )
    return output


def _choice(decoding: Decoding) -> dict[str, Any]:
    """How generate is to choose the next token; every setting said, so that none is the model's own."""
    if decoding.temperature == 0:
        return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k or 0,
    }


class _Stop:
    """Ends the rows whose new text holds a stop string. Text is decoded whole: a stop string may begin and
    end within tokens."""

    def __init__(self, tokenizer: Any, start: int, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.start, self.stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        texts = [_decode(self.tokenizer, ids, ()) for ids in input_ids[:, self.start :].tolist()]
        done = [any(end in text for end in self.stop) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def _decode(tokenizer: Any, ids: list[int], ends: tuple[int, ...]) -> str:
    last = _ends(tokenizer, ends)
    end = next((place for place, token in enumerate(ids) if token in last), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ends(tokenizer: Any, ends: tuple[int, ...]) -> list[int]:
    """Each once."""
    return list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
