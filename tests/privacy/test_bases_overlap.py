"""The share of one subspace in another: known for equal, orthogonal and random ones."""

import runpy
from pathlib import Path

import pytest
import torch

from fedsb.adapter import Factors

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "bases_overlap.py"))


def bases(columns: list[int]) -> dict[str, Factors]:
    """One square layer whose bases are these unit vectors."""
    picked = torch.eye(8)[:, columns]
    return {"layer": Factors(picked, picked.T.clone(), None)}


@pytest.mark.parametrize(("other", "share"), [([0, 1], 1.0), ([1, 0], 1.0), ([2, 3], 0.0), ([1, 2], 0.5)])
def test_shared_directions_are_counted(other, share):
    assert SCRIPT["overlaps"](bases([0, 1]), bases(other)) == pytest.approx((share, share))


def test_chance_is_what_random_subspaces_have_on_average():
    one = {"layer": Factors(torch.eye(60)[:, :12], torch.eye(30)[:6], None)}
    torch.manual_seed(0)
    found = [
        SCRIPT["overlaps"](one, {"layer": Factors(torch.randn(60, 12), torch.randn(6, 30), None)})
        for _ in range(50)
    ]
    assert torch.tensor(found).mean(0).tolist() == pytest.approx(SCRIPT["by_chance"](one), rel=0.05)
