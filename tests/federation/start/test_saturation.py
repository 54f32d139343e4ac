"""When a core counts as having stopped, against sequences and numbers by hand."""

import math

import pytest
import torch

from fedsb.federation.exchange import Exchange
from fedsb.federation.start.saturation import Saturation, change_per_rate
from fedsb.methods import Shape, by_name

CHANGES = {
    "it keeps moving": ([4.0, 4.0, 4.0, 4.0, 4.0], None),
    "it stops": ([4.0, 6.0, 3.1, 2.9, 1.0], 4),  # 3.1 is over half of 6, 2.9 is under
    "it is half as fast": ([4.0, 2.0, 2.0, 2.0], None),
    "it stops before it may": ([4.0, 1.0, 1.0], 3),
    "it was slow at first": ([1.0, 2.0, 4.0, 1.5], 4),
    "it was slow and goes on": ([1.0, 2.0, 4.0, 2.5], None),
    "it never moves": ([0.0, 0.0, 0.0], None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_first_round_after_which_it_is_reached(case):
    changes, expected = CHANGES[case]
    criterion = Saturation(share=0.5, least_rounds=3)
    reached = [n for n in range(len(changes) + 1) if criterion.reached(changes[:n])]
    assert (reached or [None])[0] == expected


def test_the_share_counts():
    assert not Saturation(share=0.1, least_rounds=2).reached([4.0, 0.41])
    assert Saturation(share=0.1, least_rounds=2).reached([4.0, 0.39])


def test_the_change_is_that_of_all_cores_and_of_nothing_else():
    layers = {"a": Shape(6, 5), "b": Shape(4, 7)}
    exchange = Exchange(by_name("fed-sb"), layers, rank=3, heads=2, task_head={"head.weight": (2, 4)})
    layout, generator = exchange.down(3), torch.Generator().manual_seed(3)
    before, after = (torch.randn(layout.size, generator=generator) for _ in range(2))
    named = [layout.unflatten(vector) for vector in (before, after)]
    squares = 0.0
    for name in ("a.R", "b.R"):
        for old, new in zip(
            named[0][name].flatten().tolist(), named[1][name].flatten().tolist(), strict=True
        ):
            squares += (new - old) ** 2
    assert change_per_rate(exchange, before, after, 0.25) == pytest.approx(4 * math.sqrt(squares), rel=1e-12)
    named[1]["head.weight"].zero_()
    assert change_per_rate(exchange, before, after, 0.25) == pytest.approx(4 * math.sqrt(squares), rel=1e-12)
    assert change_per_rate(exchange, before, before, 0.25) == 0.0
