"""Rows called public share nothing with what is trained on."""

import runpy
from pathlib import Path

SPLIT = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "public_rows.py"))["split"]
ROWS = [{"premise": f"p{i // 3}", "hypothesis": f"h{i}"} for i in range(60)]


def test_no_premise_is_on_both_sides():
    public, rest = SPLIT(ROWS, "premise", 10, seed=0)
    assert len(public) == 10
    assert not {row["premise"] for row in public} & {row["premise"] for row in rest}
    assert len(rest) == 60 - 12, "whole groups of three are taken out"


def test_the_rest_keeps_its_order_and_the_seed_decides():
    public, rest = SPLIT(ROWS, "premise", 9, seed=0)
    assert rest == [row for row in ROWS if row in rest]
    assert SPLIT(ROWS, "premise", 9, seed=0)[0] == public
    assert SPLIT(ROWS, "premise", 9, seed=1)[0] != public
