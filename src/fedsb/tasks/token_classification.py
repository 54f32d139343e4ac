"""Entities in texts: a BIO tag for each word, learnt at the word's first sub-token.

Two forms of rows make the same examples:

    tokens  [The, Old, Mill, serves, tea]        text   The Old Mill serves tea
    tags    [B-NAME, I-NAME, I-NAME, O, B-FOOD]  spans  [{start: 0, end: 12, label: NAME}, ...]

Words of a text are runs of letters, runs of digits, and every other mark or CJK character alone; a word that
a span touches is of it. Words joined by blanks are tokenized as a text, and the tokenizer's offsets say which
sub-token is a word's first; all others are -100, which no loss sees.

Tags of rows and of models are read as conlleval does (Tjong Kim Sang and De Meulder 2003, aclanthology
W03-0419): B begins an entity, and so does an I that continues none of its type. An entity counts as found
where both of its ends and its type are right. What `max_length` cuts off is tagged O.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedsb.config.labels import label_name
from fedsb.config.sections.task import TokenClassificationConfig
from fedsb.errors import InputError
from fedsb.tasks.cuts import Tokens
from fedsb.tasks.labels import MOST_LABELS, unknown_class
from fedsb.tasks.rows import cell_text, like, place, require_columns
from fedsb.tasks.rows.cells import ClassId, check_text
from fedsb.tasks.task import (
    Batch,
    Collate,
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

IGNORED, NO_TOKEN, OUTSIDE = -100, -1, 0
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
WORD = re.compile(rf"\d+|[^\W\d_{_CJK}]+|\S")
_TAG = re.compile(r"([BI])-(.+)")


class Span(NamedTuple):
    """An entity: from `start` up to and without `end`, in characters; its type's number, in rows its name."""

    start: int
    end: int
    kind: Any


class Annotated(NamedTuple):
    """A row as a text, the (start, end) of its words in characters, and its entities."""

    text: str
    words: list[tuple[int, int]]
    spans: list[Span]


def token_classification_of(
    section: TokenClassificationConfig,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    source: str,
    max_length: int,
) -> Task:
    """The task of a config's section; the types are those that it lists, or those of the training rows.

    Raises:
        InputError: the tokenizer tells no offsets, or the rows are wrong.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "model.path: token-classification needs a fast tokenizer, which tells where each token is in its "
            "text, and this model has a slow one; take another model"
        )
    types = _types(section, rows, source)
    collate = partial(_collate, tokenizer)
    encode = partial(_encode, section, tokenizer, types, max_length)
    names = ("O", *(f"{mark}-{name}" for name in types for mark in "BI"))
    return Task(
        primary_metric=section.metric or "entity_f1",
        higher_is_better=True,
        num_labels=1 + 2 * len(types),
        label_names=names,
        encode=encode,
        questions=partial(_questions, section, encode),
        said=partial(_said_of_words if section.tokens is not None else _said_of_text, names),
        collate=collate,
        losses=_losses,
        measure=partial(_measure, collate),
        partition_label=None,
    )


def _types(section: TokenClassificationConfig, rows: Sequence[Row], source: str) -> tuple[str, ...]:
    if section.labels is not None:
        return tuple(section.labels)
    column = section.columns[1]
    types = sorted({span.kind for row in _annotated(section, rows, source) for span in row.spans})
    if not 1 <= len(types) <= MOST_LABELS:
        raise InputError(
            f"{source}: expected 1 to {MOST_LABELS} types of entities in column {column!r}, found "
            f"{len(types)}; check the task's columns and data.limit, or list the types in task.labels"
        )
    return tuple(types)


# Rows


def _annotated(section: TokenClassificationConfig, rows: Sequence[Row], source: str) -> list[Annotated]:
    read: Callable[..., Annotated]
    read, keys = (_of_text, ("text", "spans")) if section.tokens is None else (_of_words, ("tokens", "tags"))
    for key, column in zip(keys, section.columns, strict=True):
        require_columns(rows, [column], source=source, key=f"task.{key}")
    return [read(section, row, source, number) for number, row in enumerate(rows, start=1)]


def _of_words(section: TokenClassificationConfig, row: Row, source: str, number: int) -> Annotated:
    words, tags = (_list(row, column, source, number) for column in section.columns)
    where = place(row, source, number)
    if len(words) != len(tags):
        raise InputError(
            f"{where}: expected a tag for every word, found {len(words)} words in column {section.tokens!r} "
            f"and {len(tags)} tags in column {section.tags!r}; fix the row"
        )
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"{where}, column {section.tokens!r}: expected words: text, not empty")
        check_text(word, row, str(section.tokens), source=source, number=number)
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    bounds = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    kinds = [_tag(tag, section.tags, where) for tag in tags]
    return Annotated(" ".join(words), bounds, spans_of(kinds, bounds))


def _list(row: Row, column: str, source: str, number: int) -> list[Any]:
    value = row.get(column)
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    if not isinstance(value, list):
        raise InputError(
            f"{place(row, source, number)}: expected a list in column {column!r}, found another value; "
            "fix the row, or for a text with spans of characters set task.text"
        )
    return value


def _tag(tag: object, column: str, where: str) -> tuple[str, str] | None:
    """("B" or "I", type), None of O."""
    name = str(tag) if isinstance(tag, str | ClassId) else ""
    if name == "O":
        return None
    if parts := _TAG.fullmatch(name):
        return parts[1], label_name(parts[2])
    nameless = isinstance(tag, int) and not isinstance(tag, ClassId)
    what = "a number without a name" if nameless else "another tag"
    raise InputError(
        f"{where}, column {column!r}: expected O, B-TYPE or I-TYPE, or class labels of a Parquet file or the "
        f"hub that are named so, found {what}; write the tags so"
    )


def _of_text(section: TokenClassificationConfig, row: Row, source: str, number: int) -> Annotated:
    column, where = section.spans, place(row, source, number)
    text = cell_text(row, str(section.text), source=source, number=number)
    spans = sorted(_span(value, column, where, len(text)) for value in _list(row, column, source, number))
    for before, after in pairwise(spans):
        if after.start < before.end:
            raise InputError(
                f"{where}, column {column!r}: two spans overlap, and a word has one tag; leave one out"
            )
    return Annotated(text, [match.span() for match in WORD.finditer(text)], spans)


def _span(value: object, column: str, where: str, length: int) -> Span:
    if not isinstance(value, Mapping) or not {"start", "end", "label"} <= value.keys():
        raise InputError(
            f"{where}, column {column!r}: expected spans such as {{start: 0, end: 4, label: NAME}}; fix it"
        )
    start, end, kind = value["start"], value["end"], value["label"]
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
        raise InputError(
            f"{where}, column {column!r}: expected whole numbers 0 <= start < end <= {length}, the text's "
            "characters; fix the span"
        )
    if not isinstance(kind, str) or not kind.strip():
        raise InputError(f"{where}, column {column!r}: expected a label that is text; fix the span")
    return Span(start, end, label_name(kind))


def spans_of(tags: Sequence[tuple[str, Any] | None], words: Sequence[tuple[int, int]]) -> list[Span]:
    """The entities that tags say, one for each word: ("B" or "I", type), or None outside."""
    spans: list[Span] = []
    before = None
    for tag, (start, end) in zip(tags, words, strict=True):
        if tag is not None:
            continues = tag[0] == "I" and before is not None and before[1] == tag[1]
            start = spans.pop().start if continues else start
            spans.append(Span(start, end, tag[1]))
        before = tag
    return spans


# Examples and batches


def _encode(
    section: TokenClassificationConfig,
    tokenizer: Any,
    types: tuple[str, ...],
    max_length: int,
    rows: Sequence[Row],
    source: str,
) -> list[Example]:
    """Examples with input_ids, a label for each of them, and for scores `places`, `words` and `spans`."""
    read = _annotated(section, rows, source)
    if not rows:
        return []
    numbers = {name: at for at, name in enumerate(types)}
    for number, (row, annotated) in enumerate(zip(rows, read, strict=True), start=1):
        if other := next((span.kind for span in annotated.spans if span.kind not in numbers), None):
            unknown = unknown_class(other, types, section.labels is not None)
            raise InputError(
                f"{place(row, source, number)} has an entity in column {section.columns[1]!r} that {unknown}"
            )
    texts = [annotated.text for annotated in read]
    lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    offsets = encoded.pop("offset_mapping")
    return [
        {name: column[i] for name, column in encoded.items()}
        | _labelled(annotated, numbers, offsets[i], lengths[i], cut=lengths[i] > max_length)
        for i, annotated in enumerate(read)
    ]


def _questions(
    section: TokenClassificationConfig,
    encode: Callable[[Sequence[Row], str], list[Example]],
    rows: Sequence[Row],
    source: str,
) -> list[Example]:
    """Examples of rows that need no tags or spans: none is an entity."""
    first, second = section.columns
    require_columns(rows, [first], source=source, key="task")

    def outside(row: Row) -> list[str]:
        words = row.get(first)
        return ["O"] * len(words) if section.tokens is not None and isinstance(words, list | tuple) else []

    return encode([like(row, {**row, second: outside(row)}) for row in rows], source)


def _labelled(
    row: Annotated,
    numbers: Mapping[str, int],
    offsets: Sequence[tuple[int, int]],
    length: int,
    *,
    cut: bool,
) -> Example:
    spans = [span._replace(kind=numbers[span.kind]) for span in row.spans]
    places = _first_tokens(row.words, offsets)
    tags = _tags(row.words, spans)
    labels = [IGNORED] * len(offsets)
    for at, tag in zip(places, tags, strict=True):
        if at != NO_TOKEN and labels[at] == IGNORED:
            labels[at] = tag
    lost = cut and any(tag != OUTSIDE and at == NO_TOKEN for tag, at in zip(tags, places, strict=True))
    return {
        "labels": labels,
        "places": places,
        "tags": tags,
        "words": row.words,
        "spans": spans,
        "tokens": Tokens(length, cut_texts=cut, cut_entities=lost),
    }


def _first_tokens(words: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each word; NO_TOKEN where it has none, or none is left."""
    places, at = [], 0
    for start, end in words:
        while at < len(offsets) and offsets[at][1] <= start:  # special tokens are at (0, 0)
            at += 1
        places.append(at if at < len(offsets) and offsets[at][0] < end else NO_TOKEN)
    return places


def _tags(words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[int]:
    """Each word's label: that of the first span that touches it."""
    tags, at, begun = [], 0, NO_TOKEN
    for start, end in words:
        while at < len(spans) and spans[at].end <= start:
            at += 1
        touched = at < len(spans) and spans[at].start < end
        tags.append(1 + 2 * spans[at].kind + (begun == at) if touched else OUTSIDE)
        begun = at if touched else begun
    return tags


def _collate(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    ids = [example["input_ids"] for example in examples]
    batch = {"input_ids": pad(ids, pad_token_id(tokenizer)), "attention_mask": attention_mask(ids)}
    if any("token_type_ids" in example for example in examples):
        batch["token_type_ids"] = pad([e["token_type_ids"] for e in examples], tokenizer.pad_token_type_id)
    batch["labels"] = pad([example["labels"] for example in examples], IGNORED)
    return batch | own_experts(examples)


# Losses and scores


def _losses(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean over an example's own words, so that each example weighs the same however long."""
    return _losses_of_logits(model_logits(model, batch), batch["labels"])


def _losses_of_logits(logits: Tensor, labels: Tensor) -> Float[Tensor, " batch"]:
    labels = labels.to(logits.device)
    each = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return each.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


def _measure(
    collate: Collate,
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int,
    generate: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """entity_f1, entity_precision and entity_recall over all entities; token_accuracy over all words."""
    if not examples:
        raise ValueError("expected at least one example to evaluate, got none")
    counts, each, done = np.zeros((len(examples), 5)), np.zeros(len(examples)), 0
    with evaluating(model):
        for indices in batches_by_length([len(example["input_ids"]) for example in examples], batch_size):
            batch = collate([examples[i] for i in indices])
            logits = model_logits(model, batch).float()
            each[indices] = _losses_of_logits(logits, batch["labels"]).double().cpu().numpy()
            predicted = logits.argmax(dim=-1).cpu().tolist()
            counts[indices] = [_counts(examples[i], tags) for i, tags in zip(indices, predicted, strict=True)]
            done += len(indices)
            if progress is not None:
                progress(done, len(examples))
    return [Measurement(len(examples), partial(_scores, counts, each))]


def _counts(example: Example, predicted: Sequence[int]) -> list[int]:
    """Entities found, entities said, entities there; words right, words."""
    tags = predicted_tags(example, predicted)
    said, there = _entities(example, predicted), example["spans"]
    right = sum(tag == gold for tag, gold in zip(tags, example["tags"], strict=True))
    return [len(set(said) & set(there)), len(said), len(there), right, len(tags)]


def _entities(example: Example, predicted: Sequence[int]) -> list[Span]:
    tags = predicted_tags(example, predicted)
    named = [None if tag == OUTSIDE else ("BI"[(tag - 1) % 2], (tag - 1) // 2) for tag in tags]
    return spans_of(named, example["words"])


def predicted_tags(example: Example, predicted: Sequence[int]) -> list[int]:
    """The label of each word of an example, from those of its tokens; O where it has no token left."""
    return [OUTSIDE if at == NO_TOKEN else predicted[at] for at in example["places"]]


def _said_of_words(names: Sequence[str], logits: Tensor, example: Example) -> dict[str, Any]:
    tags = predicted_tags(example, logits.argmax(dim=-1).tolist())
    return {"tags": [names[tag] for tag in tags]}


def _said_of_text(names: Sequence[str], logits: Tensor, example: Example) -> dict[str, Any]:
    spans = _entities(example, logits.argmax(dim=-1).tolist())
    said = [(span.start, span.end, names[1 + 2 * span.kind][2:]) for span in spans]
    return {"spans": [{"start": start, "end": end, "label": label} for start, end, label in said]}


def _scores(counts: np.ndarray, losses: np.ndarray, indices: np.ndarray) -> dict[str, float]:
    found, said, there, right, words = counts[indices].sum(axis=0).tolist()
    return {
        "entity_f1": 2 * found / max(said + there, 1),
        "entity_precision": found / max(said, 1),
        "entity_recall": found / max(there, 1),
        "token_accuracy": right / max(words, 1),
        "loss": float(losses[indices].mean()),
    }
