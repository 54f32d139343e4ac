"""Rows of token classification from E2E (Novikova et al. 2017, arXiv 1706.09254): where a restaurant's name,
its neighbour, its food and its area stand in the sentence that describes it.

    python studies/entity_rows.py OUT                             recipes/small/entities.yaml
    python studies/entity_rows.py OUT --of FOLDER/trainset.csv,FOLDER/testset_w_refs.csv

E2E has the values of these slots and the sentences, and does not say where the values stand: a row is taken
where each value is found as it is, whatever its case, and no two overlap. Leaves OUT/train.jsonl and
OUT/test.jsonl with the columns text, spans and name (of the restaurant, to deal rows by).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedsb.tasks.rows import read_rows

SLOTS = ("name", "near", "food", "area")
_SLOT = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")
Row = dict[str, Any]


def spans_in(meaning: str, text: str) -> list[Row] | None:
    """The places of the slots' values in the text; None where one is not found, or two overlap."""
    spans: list[Row] = []
    for slot, value in _SLOT.findall(meaning):
        if slot not in SLOTS:
            continue
        found = re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)
        here = [{"start": match.start(), "end": match.end(), "label": slot} for match in found]
        if not here:
            return None
        spans += here
    spans.sort(key=lambda span: span["start"])
    overlap = any(a["end"] > b["start"] for a, b in pairwise(spans))
    return None if overlap or not spans else spans


def entity_row(row: Any) -> Row | None:
    """A row of E2E, by the names of its columns on the hub or in its files, as one with spans."""
    meaning = row["meaning_representation"] if "meaning_representation" in row else row["mr"]
    text = row["human_reference"] if "human_reference" in row else row["ref"]
    spans = spans_in(meaning, text)
    return (
        None
        if spans is None
        else {"text": text, "spans": spans, "name": dict(_SLOT.findall(meaning))["name"]}
    )


def drawn(place: str, count: int, seed: int) -> list[Row]:
    """So many rows at random, no text twice."""
    made = {row["text"]: row for row in map(entity_row, read_rows(place)) if row is not None}
    rows = list(made.values())
    random.Random(seed).shuffle(rows)
    print(f"{place}: {len(rows)} rows with every value found, {min(count, len(rows))} taken")
    return rows[:count]


def main(arguments: list[str] | None = None) -> None:
    """Read, find and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--of", default="tuetschek/e2e_nlg@train,tuetschek/e2e_nlg@test", metavar="TRAIN,TEST"
    )
    asked = parser.parse_args(arguments)
    train, _, test = asked.of.partition(",")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, place, count in (("train", train, asked.rows), ("test", test, asked.test)):
        rows = drawn(place, count, asked.seed)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (asked.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
