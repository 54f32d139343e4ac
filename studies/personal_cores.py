"""A shared core, one of one's own besides, or training alone: scores over seeds at four sites of four tasks
(SST-2, CoLA, MRPC, SNLI as nine classes). Each arm's rate is chosen from the same grid, on other rows.

    python studies/mixture_rows.py classes final --rows 400
    python studies/mixture_rows.py classes tune --rows 200 --seed 1
    python studies/personal_cores.py tune/train.jsonl final/train.jsonl OUT [-s KEY=VALUE ...]

Rows of `tune` that are in `final` too are left out. Leaves OUT/scores.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from fedsb import RunConfig, run
from fedsb.compare.intervals import paired_interval

RECIPE = Path(__file__).parents[1] / "recipes" / "small" / "personal.yaml"
ARMS = {
    "shared": ["method.personal=false"],
    "personal": ["method.personal=true"],
    "fedsa-lora": ["method.name=fedsa-lora", "method.personal=false", "method.rank=8"],
}
RATES, SEEDS = (1.67e-3, 5e-3, 1.5e-2, 4.5e-2), (0, 1, 2)


def without(rows: Path, others: Path, out: Path) -> Path:
    """A file of the rows that the other file has not."""
    known = set(others.read_text(encoding="utf-8").splitlines())
    left = [line for line in rows.read_text(encoding="utf-8").splitlines() if line not in known]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(left) + "\n", encoding="utf-8")
    return out


def sites_of(train: Path, folder: Path, settings: list[str]) -> dict[str, Any]:
    """What the finished run says of its sites; an interrupted one is done again."""
    if not (folder / "summary.json").is_file():
        config = RunConfig.from_yaml(RECIPE, [f"data.train={train.resolve()}", *settings])
        return run(config, folder).summary["sites"]
    sites: dict[str, Any] = json.loads((folder / "summary.json").read_text())["sites"]
    return sites


def mean_of(sites: dict[str, Any]) -> float:
    """The mean accuracy over the sites."""
    return float(sites["mean"]["accuracy"])


def chosen_rate(train: Path, arm: str, out: Path, settings: list[str]) -> float:
    """The rate with the best mean over the sites of rows that nothing else is scored on."""
    base = [*ARMS[arm], "evaluation.baselines=[]", "evaluation.every=6", *settings]
    scores = {
        rate: mean_of(sites_of(train, out / arm / f"lr-{rate:g}", [*base, f"training.learning_rate={rate}"]))
        for rate in RATES
    }
    print(arm, {f"{rate:g}": round(score, 4) for rate, score in scores.items()}, flush=True)
    return max(scores, key=lambda rate: (scores[rate], -rate))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tune", type=Path)
    parser.add_argument("final", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", default=",".join(ARMS), help="by commas, the first is the reference")
    parser.add_argument("-s", dest="settings", action="append", default=[])
    asked = parser.parse_args()
    tune = without(asked.tune, asked.final, asked.out / "tune.jsonl")
    arms, record = asked.arms.split(","), dict[str, Any]()
    for arm in arms:
        rate = chosen_rate(tune, arm, asked.out / "tuning", asked.settings)
        baselines = "[local]" if arm == "shared" else "[]"
        settings = [*ARMS[arm], f"evaluation.baselines={baselines}", "evaluation.every=6", *asked.settings]
        for seed in SEEDS:
            more = [f"seed={seed}", f"training.learning_rate={rate}"]
            record[f"{arm} {seed}"] = sites_of(
                asked.final, asked.out / arm / f"seed-{seed}", [*settings, *more]
            )
            print(arm, rate, seed, json.dumps(record[f"{arm} {seed}"])[:400], flush=True)
    (asked.out / "scores.json").write_text(json.dumps(record, indent=1))
    for arm in arms[1:]:
        apart = [mean_of(record[f"{arm} {seed}"]) - mean_of(record[f"{arms[0]} {seed}"]) for seed in SEEDS]
        print(f"{arm} against {arms[0]}:", round(mean(apart), 4), paired_interval(apart, len(arms) - 1))


if __name__ == "__main__":
    main()
