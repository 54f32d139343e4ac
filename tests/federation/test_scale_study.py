"""A tree of partial sums gives what one server gives, for every method whose server only averages."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import weighted_mean

from fedsb.federation.exchange import Exchange
from fedsb.methods import ALL, Shape, Upload
from fedsb.methods.averaging.mean import WeightedSum

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "scale.py"))
AVERAGING = [method for method in ALL if method.aggregation.start is WeightedSum]


def test_the_tree_of_a_crowd_gives_the_mean_of_its_messages():
    crowd = SCRIPT["crowd_of"](500)
    clients = list(range(3, 500, 13))
    flat, (server,) = SCRIPT["through_tree"](crowd, clients, len(clients))
    tree, levels = SCRIPT["through_tree"](crowd, clients, 3)
    assert [len(level) for level in levels] == [13, 5, 2, 1]
    assert sum(node.bytes_in for node in levels[0]) == server[0].bytes_in
    assert [sum(node.bytes_out for node in level) for level in levels[:-1]] == [
        sum(node.bytes_in for node in level) for level in levels[1:]
    ]
    relative, other = SCRIPT["largest_difference"](flat, tree)
    assert (relative < 1e-12, other) == (True, pytest.approx(0, abs=1e-3))
    vectors = [np.frombuffer(bytes(crowd.message(c))[-4 * flat.total.numel() :], "<f4") for c in clients]
    expected = weighted_mean(vectors, [float(crowd.counts[c]) for c in clients])
    assert np.allclose((tree.total / tree.weight).numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", AVERAGING, ids=lambda method: method.name)
def test_partial_sums_are_exact_for_every_method_that_averages(method, rng):
    exchange = Exchange(method, {"l": Shape(6, 5)}, 2, 1, {})
    layout, state = exchange.up(1, exchange.whole), torch.zeros(exchange.down(2).size)
    vectors = [torch.from_numpy(rng.standard_normal(layout.size, dtype=np.float32)) for _ in range(7)]
    frame, aggregation = exchange.frame(1, state), method.aggregation

    def total(numbers):
        found = aggregation.start(frame)
        for n in numbers:
            found = aggregation.add(found, Upload(layout.view(vectors[n]), vectors[n], n + 1.0, client=n))
        return found

    flat, tree = (
        total(range(7)),
        SCRIPT["merged"](total([0, 4]), SCRIPT["merged"](total([6, 1, 2]), total([5, 3]))),
    )
    one, other = (aggregation.finish(found).tensors for found in (flat, tree))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_the_averaging_methods_are_found():
    assert len(AVERAGING) > 5
