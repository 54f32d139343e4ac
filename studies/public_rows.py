"""Take rows out of a training file to be called public: what the private recipes' arm `fed-sb-public` needs.

    python studies/public_rows.py sst2/train.jsonl OUT --apart sentence
    python studies/public_rows.py snli/train.jsonl OUT --apart premise

Leaves OUT/public.jsonl and OUT/train.jsonl. No value of the column --apart is in both files: rows of one
premise go together, and what repeats a public row stays out of training.
"""

import argparse
import json
import random
from pathlib import Path

Row = dict[str, object]


def split(rows: list[Row], apart: str, wanted: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(public, rest): so many public rows, whole groups drawn at random; the rest in the file's order."""
    values = list(dict.fromkeys(row[apart] for row in rows))
    random.Random(seed).shuffle(values)
    groups: dict[object, list[Row]] = {value: [] for value in values}
    for row in rows:
        groups[row[apart]].append(row)
    public: list[Row] = []
    taken = set()
    for value, group in groups.items():
        if len(public) >= wanted:
            break
        public += group
        taken.add(value)
    return public[:wanted], [row for row in rows if row[apart] not in taken]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="JSON lines")
    parser.add_argument("out", type=Path)
    parser.add_argument("--apart", required=True, help="column of which no value may be on both sides")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.train.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(asked.apart not in row for row in rows):
        parser.error(f"--apart: not every row of {asked.train} has a column {asked.apart!r}")
    asked.out.mkdir(parents=True, exist_ok=True)
    parts = zip(("public", "train"), split(rows, asked.apart, asked.rows, asked.seed), strict=True)
    for name, part in parts:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (asked.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(part)} rows")


if __name__ == "__main__":
    main()
