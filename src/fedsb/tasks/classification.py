"""Texts to classes, or to one number (regression)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from fedsb.config.sections.task import ClassificationConfig
from fedsb.errors import InputError
from fedsb.tasks.cuts import Tokens
from fedsb.tasks.labels import class_ids, label_set, row_name, targets
from fedsb.tasks.logits import (
    class_scores,
    class_sums,
    correlations,
    losses,
    measure,
    number_sums,
    of_classes,
    of_numbers,
)
from fedsb.tasks.prompts import adds_at_start
from fedsb.tasks.rows import cell_text, require_columns
from fedsb.tasks.task import (
    Example,
    Row,
    Task,
    collate_texts,
)


def classification(
    tokenizer: Any,
    *,
    text: Sequence[str],
    label: str,
    label_names: Sequence[str] | None,
    regression: bool,
    max_length: int,
    metric: str | None = None,
    listed: bool = False,
) -> Task:
    """The task of telling `label` from one or two text columns.

    label_names, regression: as `label_set` derives them from the train rows.
    metric: the one to lead with; None: accuracy of classes, Pearson's correlation of numbers.
    max_length: tokens per example with special tokens; of a pair the longer text is cut first.
    listed: whether a config lists the label names, so that errors may show them.
    """
    names = _checked_names(label_names, regression)
    columns = checked_columns(text)
    labels_of = partial(_labels, label=label, names=names, listed=listed)
    encode = partial(encode_texts, tokenizer, columns=columns, max_length=max_length)
    label_type = torch.float32 if regression else torch.long
    collate = partial(collate_texts, tokenizer, label_type=label_type)
    scoring = (correlations, number_sums) if regression else (class_scores, class_sums)
    return Task(
        primary_metric=checked_metric(metric, names),
        higher_is_better=True,
        num_labels=len(names) if names else 1,
        label_names=names,
        encode=partial(encode, labels_of=labels_of),
        collate=collate,
        losses=losses,
        measure=partial(measure, collate, *scoring),
        partition_label=partial(row_name, label=label) if names else None,
        totals=of_classes(len(names)) if names else of_numbers(),
        questions=partial(encode, labels_of=no_labels),
    )


def classification_of(
    section: ClassificationConfig, tokenizer: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task of a config's section; the classes are those of the training rows unless it lists them."""
    if section.labels is not None:
        names, regression = tuple(section.labels), False
    elif section.regresses:
        names, regression = None, True
    else:
        names, regression = label_set(rows, section.label, source, regression=section.regresses)
    return classification(
        tokenizer,
        text=section.text,
        label=section.label,
        label_names=names,
        regression=regression,
        max_length=max_length,
        metric=section.metric,
        listed=section.labels is not None,
    )


def _checked_names(label_names: Sequence[str] | None, regression: bool) -> tuple[str, ...] | None:
    if regression == (label_names is not None):
        raise ValueError("expected label_names for classes, or regression=True without label_names")
    return None if label_names is None else tuple(label_names)


def checked_metric(metric: str | None, names: Sequence[str] | None) -> str:
    """The metric to lead with. names: of the classes; None of a regression.

    Raises:
        InputError: these labels have no such metric.
    """
    known = ["pearson", "spearman"] if names is None else ["accuracy", "macro_f1", "matthews"]
    known += ["f1"] if names is not None and len(names) == 2 else []
    if metric is not None and metric not in known:
        raise InputError(
            f"task.metric: expected one of {', '.join(known)} for these labels, got {metric}; "
            f"null leads with {known[0]}"
        )
    return metric or known[0]


def checked_columns(text: Sequence[str]) -> tuple[str, ...]:
    """The text columns, one or two.

    Raises:
        InputError: none or more.
    """
    if isinstance(text, str) or len(text) not in (1, 2):
        raise InputError(
            f"task.text: expected a list of one or two columns, got {text!r}; for example [sentence]"
        )
    return tuple(text)


# Examples


def encode_texts(
    tokenizer: Any,
    rows: Sequence[Row],
    source: str,
    *,
    columns: tuple[str, ...],
    labels_of: Callable[[Sequence[Row], str], Sequence[Any]],
    max_length: int,
) -> list[Example]:
    """Examples of one or two text columns. labels_of: (rows, source) -> what each has at its key "labels"."""
    require_columns(rows, columns, source=source, key="task.text")
    labels = labels_of(rows, source)
    if not rows:
        return []
    texts = [
        [cell_text(row, column, source=source, number=number) for number, row in enumerate(rows, start=1)]
        for column in columns
    ]
    begin = _added_begin(tokenizer)  # a text that has it gets no second one
    held = [begin is not None and text.startswith(begin) for text in texts[0]]
    texts[0] = [text.removeprefix(begin or "") for text in texts[0]]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    lengths = _lengths(tokenizer, texts, encoded["input_ids"], max_length)
    tokens = [
        Tokens(n, cut_texts=n > max_length, begin_in_text=b) for n, b in zip(lengths, held, strict=True)
    ]
    return [
        {**{name: column[i] for name, column in encoded.items()}, "labels": labels[i], "tokens": tokens[i]}
        for i in range(len(rows))
    ]


def _added_begin(tokenizer: Any) -> str | None:
    """The special token that the tokenizer puts before a text by itself, as text."""
    ids = (getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id"))
    begin = next((id_ for id_ in ids if adds_at_start(tokenizer, id_)), None)
    return None if begin is None else str(tokenizer.convert_ids_to_tokens(begin))


def _lengths(
    tokenizer: Any, texts: Sequence[Sequence[str]], ids: Sequence[Sequence[int]], max_length: int
) -> list[int]:
    """Tokens of each example before it was cut to these ids: those that fill max_length are counted again."""
    lengths = [len(example) for example in ids]
    full = [i for i, length in enumerate(lengths) if length >= max_length]
    if full:
        uncut = tokenizer(*([column[i] for i in full] for column in texts), verbose=False)["input_ids"]
        for i, example in zip(full, uncut, strict=True):
            lengths[i] = len(example)
    return lengths


def _labels(
    rows: Sequence[Row], source: str, *, label: str, names: tuple[str, ...] | None, listed: bool
) -> list[int] | list[float]:
    require_columns(rows, [label], source=source, key="task.label")
    if names is None:
        return targets(rows, label, source)
    return class_ids(rows, label, names, source, listed=listed)


def no_labels(rows: Sequence[Row], source: str) -> list[int]:
    """Labels in the place of those that nobody knows."""
    return [0] * len(rows)
