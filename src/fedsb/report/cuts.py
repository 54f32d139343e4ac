"""What was cut from a run's texts, and what was not added to them, in words and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsb.report.load import mapping, whole
from fedsb.report.markup import numbers, table, texts
from fedsb.report.units import count, plural

LOST = {
    "cut_texts": "text",
    "cut_prompts": "prompt",
    "lost_prompts": "whole prompt",
    "cut_responses": "response",
    "lost_end_tokens": "end token",
    "cut_entities": "row with entities",
}
HAD = {
    "begin_in_text": "begin with the begin token by themselves: no second one is added",
    "end_in_text": "end with the end token by themselves: no second one is added",
    "untrained_turns": "have earlier answers that the chat template rewrites later: not trained",
}
LENGTHS = {"p50": "half at most", "p95": "95 % at most", "p99": "99 % at most", "max": "longest"}


def cut_notes(record: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each way in which examples are not trained or scored as their rows have them.

    record: by split ("train"), counts as `fedsb.tasks.cuts.cut_counts` makes them, or whatever a file has in
    their place.
    """
    for name, counts in record.items():
        yield from _notes(name, mapping(counts))


def _notes(name: str, counts: Mapping[str, Any]) -> Iterator[str]:
    examples, cut = f"{_number(counts, 'examples'):,} {name} examples", _number(counts, "cut")
    if cut:
        lost = ", ".join(plural(_number(counts, k), part) for k, part in LOST.items() if _number(counts, k))
        yield (
            f"training.max_length {_number(counts, 'max_length')} cuts {cut:,} of {examples} ({lost}); that "
            f"is {cut / max(_number(counts, 'examples'), 1):.1%}, and {_enough(counts)}, or shorten the texts"
        )
    for key, what in HAD.items():
        if held := _number(counts, key):
            yield f"{held:,} of {examples} {what}"


def _enough(counts: Mapping[str, Any]) -> str:
    """The lengths, in steps of 8, that would cut little and nothing."""
    lengths = mapping(counts.get("length"))
    often, longest = (-(-_number(lengths, key) // 8) * 8 for key in ("p99", "max"))
    most = f"{often:,} would hold 99 of 100, " if _number(counts, "max_length") < often < longest else ""
    return f"{most}{longest:,} would hold all"


def length_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Percentiles of the lengths of each split's examples; record: as `cut_notes` takes it."""
    for name, counts in record.items():
        lengths = mapping(mapping(counts).get("length"))
        shown = ", ".join(f"{percentile} {whole(lengths.get(percentile)) or 0:,}" for percentile in LENGTHS)
        yield f"in {name} examples: {shown}"


def cut_table(record: Mapping[str, Any]) -> str:
    """Examples, what was cut from them and how long they were, by split; empty without any."""
    splits = {name: mapping(counts) for name, counts in record.items() if mapping(counts)}
    shown = [key for key in LOST if any(_number(counts, key) for counts in splits.values())]
    columns = texts("split") + numbers("examples", *LENGTHS.values(), *(f"{LOST[key]}s cut" for key in shown))
    rows = [[name, *_row(counts, shown)] for name, counts in splits.items()]
    return table("Tokens of an example before anything is cut", columns, rows) if rows else ""


def _row(counts: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    lengths = mapping(counts.get("length"))
    return [
        count(_number(counts, "examples")),
        *(count(whole(lengths.get(key))) for key in LENGTHS),
        *(count(_number(counts, key)) for key in shown),
    ]


def _number(counts: Mapping[str, Any], key: str) -> int:
    return whole(counts.get(key)) or 0
