"""A tokenizer's chat template: where the assistant's turns stand in what it writes, and their tokens.

An answer is what a conversation up to its turn has beyond the prompt for it, as a server asks: so the text
that a model is trained on begins with the very text that it will be asked with. It ends with the first
special token behind the message, the token of the end of the turn, which is learnt too.

Templates may write earlier turns otherwise once later ones follow (Qwen 3 takes their reasoning out, Mistral
moves a system message to the last question), and a tokenizer may join what ends a prompt to what follows it.
An earlier turn that no longer stands behind the tokens it is asked for with is context and not learnt; the
last one always is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from fedsb.errors import InputError
from fedsb.tasks.chat.messages import ASSISTANT, SYSTEM, USER, Messages
from fedsb.tasks.prompts import adds_at_start, tokenize

PLAIN = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[message.role] }}: "
    "{{ message.content | trim }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""What stands in for a template that a tokenizer lacks."""
DATE = "26 Jul 2024"
"""Given to templates of Llama 3's kind, which otherwise write the day of the run."""
PROBE = "Wkq7"
"""A message that no template has in it."""


class Unfit(Exception):
    """Why a conversation cannot be laid out, in words without any of its text."""


class Layout(NamedTuple):
    """A conversation as text and as tokens, up to the end token of its last answer.

    Attributes:
        prompt: token ids before the last answer. answer: its own, the end token last.
        learnt: (start, end) in the prompt of each earlier answer that is learnt, its end token included.
        skipped: whether an earlier answer is not, since it is written otherwise now.
    """

    prompt: list[int]
    answer: list[int]
    learnt: list[tuple[int, int]]
    skipped: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A template that was tried out.

    Attributes:
        source: it, in Jinja. own: whether it is the tokenizer's.
        end: the token that ends an answer.
        marks: special tokens that it writes, which no message may hold.
        folds: whether a system message goes to the beginning of the first question, since it has no place.
    """

    tokenizer: Any
    source: str
    own: bool
    end: str = ""
    marks: tuple[str, ...] = ()
    folds: bool = False

    @property
    def end_id(self) -> int:
        """Its token id."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end))

    def lay_out(self, messages: Messages, *, every: bool) -> Layout:
        """A conversation that ends with an answer.

        Args:
            every: earlier answers are to be learnt, too.

        Raises:
            Unfit: the template does not take it, or the tokenizer does not part its last answer.
        """
        messages = self._fitted(messages)
        whole, asked = self.render(messages), self.render(messages[:-1], asks=True)
        last = self._span(asked, whole)
        if last is None:
            raise Unfit("the chat template's prompt for the last answer is not what it writes before it")
        turns = [turn for turn, message in enumerate(messages[:-1]) if message["role"] == ASSISTANT]
        spans = [self._earlier(messages, turn, whole) for turn in turns] if every else []
        kept = [span for span in spans if span is not None]
        prompt, answer = self._last(whole[: last[1]], last[0])
        learnt = self._learnt(whole, [*kept, last], [*prompt, *answer])
        return Layout(prompt, answer, learnt, len(learnt) < len(spans))

    def question(self, messages: Messages) -> list[int]:
        """The token ids that the next answer to the messages is generated from.

        Raises:
            Unfit: the template does not take them.
        """
        return self._ids(self.render(self._fitted(messages), asks=True))

    def render(self, messages: Messages, *, asks: bool = False) -> str:
        """The text of the messages, with the prompt for an answer if it `asks`.

        Raises:
            Unfit: the template does not take them.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.source,
                add_generation_prompt=asks,
                tokenize=False,
                date_string=DATE,
            )
        except Exception as error:  # whatever a template's own code does
            roles = ", ".join(message["role"] for message in messages[:20]) or "no message"
            raise Unfit(
                f"the chat template does not take these roles in this order: {roles}; reorder or remove "
                "them, or set task.template: plain"
            ) from error
        return str(text)

    def _fitted(self, messages: Messages) -> Messages:
        held = [mark for mark in self.marks for message in messages if mark in message["content"]]
        if held:
            raise Unfit(
                f"a message holds the special token {held[0]!r}, which begins or ends turns; take it out"
            )
        return _folded(messages) if self.folds else messages

    def _earlier(self, messages: Messages, turn: int, whole: str) -> tuple[int, int] | None:
        """Where an earlier answer is in the text, if it still stands there as it was given."""
        try:
            asked, answered = self.render(messages[:turn], asks=True), self.render(messages[: turn + 1])
        except Unfit:
            return None
        span = self._span(asked, answered)
        return span if span is not None and whole.startswith(answered[: span[1]]) else None

    def _span(self, asked: str, answered: str) -> tuple[int, int] | None:
        end = answered.find(self.end, len(asked))
        if not self.end or end < 0 or not answered.startswith(asked):
            return None
        return len(asked), end + len(self.end)

    def _last(self, text: str, start: int) -> tuple[list[int], list[int]]:
        """Token ids before and of the last answer. A token that would reach over its start is two: it is
        generated behind a prompt that ends there."""
        prompt, whole = tokenize(self.tokenizer, [text[:start], text])
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        alone = self._ids(text[start:])
        if self._text([*prompt, *alone]) != self._text(whole):
            raise Unfit(
                "the tokenizer joins the end of the prompt and the answer; take blanks off the answer"
            )
        return prompt, alone

    def _learnt(self, text: str, spans: Sequence[tuple[int, int]], ids: list[int]) -> list[tuple[int, int]]:
        """Places in `ids` of all spans of the text but the last: of those that come behind the very tokens by
        which they are asked for."""
        if len(spans) == 1:
            return []
        cuts = [0, *(place for span in spans for place in span)]
        pieces = tokenize(self.tokenizer, [text[a:b] for a, b in pairwise(cuts)])
        if _joined(pieces) == ids:
            places = list(accumulate(map(len, pieces[:-2])))
        else:  # pieces alone are other tokens: look at the text up to each place
            before = tokenize(self.tokenizer, [text[:cut] for cut in cuts[1:-2]])
            places = [len(part) if ids[: len(part)] == part else -1 for part in before]
        pairs = zip(places[::2], places[1::2], strict=True)
        return [(start, end) for start, end in pairs if min(start, end) >= 0]

    def _ids(self, text: str) -> list[int]:
        return tokenize(self.tokenizer, [text])[0]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _joined(pieces: Sequence[list[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]


def _folded(messages: Messages) -> Messages:
    """The messages with a first system message at the beginning of the first question."""
    if [message["role"] for message in messages[:2]] != [SYSTEM, USER]:
        return messages
    system, user, *rest = messages
    return [{"role": USER, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


# Trying a template out


def chat_template(tokenizer: Any, *, plain: bool) -> ChatTemplate:
    """The tokenizer's chat template, or PLAIN where it has none or it is asked for.

    Raises:
        InputError: answers cannot be found in what it writes, or nothing ends them.
    """
    own = None if plain else _stored(tokenizer)
    template = ChatTemplate(tokenizer, own or _plain(tokenizer), own=own is not None)
    question, answer = {"role": USER, "content": PROBE}, {"role": ASSISTANT, "content": f"{PROBE}a"}
    try:
        asked, answered = template.render([question], asks=True), template.render([question, answer])
    except Unfit:
        raise _not_usable("it cannot be rendered for a question and its answer") from None
    if not answered.startswith(asked) or answer["content"] not in answered[len(asked) :]:
        raise _not_usable("its prompt for an answer is not what it writes before one")
    end = _first_special(tokenizer, answered[answered.index(answer["content"], len(asked)) :])
    if end is None:
        raise _not_usable("it ends no answer with a special token, so a model would not learn to stop")
    folds = not _has_system(template, [question, answer])
    system = [] if folds else [{"role": SYSTEM, "content": PROBE}]
    written = template.render([*system, question, answer], asks=True)
    marks = tuple(sorted(token for token in _special(tokenizer) if token in written))
    return replace(template, end=end, marks=marks, folds=folds)


def _plain(tokenizer: Any) -> str:
    """PLAIN, behind the begin token where the tokenizer puts one before a text by itself."""
    begins = adds_at_start(tokenizer, tokenizer.bos_token_id)
    return ("{{ bos_token }}" if begins else "") + PLAIN


def _stored(tokenizer: Any) -> str | None:
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = templates.get("default")
    return templates or None


def _not_usable(reason: str) -> InputError:
    return InputError(
        f"task.template: the tokenizer's chat template cannot be trained with: {reason}; set "
        "task.template: plain, or take another model"
    )


def _special(tokenizer: Any) -> dict[str, int]:
    """Special tokens, by their text."""
    added = {str(token): at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    return {token: at for token, at in {**dict(named), **added}.items() if token.strip()}


def _first_special(tokenizer: Any, text: str) -> str | None:
    """The special token that comes first, the longest where several begin there."""
    places = [(text.find(token), -len(token), token) for token in _special(tokenizer) if token in text]
    return min(places)[2] if places else None


def _has_system(template: ChatTemplate, messages: Sequence[dict[str, str]]) -> bool:
    """Whether a system message finds its place in what the template writes."""
    words = f"{PROBE}s"
    try:
        return words in template.render([{"role": SYSTEM, "content": words}, *messages], asks=False)
    except Unfit:
        return False
