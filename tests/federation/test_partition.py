"""Every example goes to exactly one client, no client is empty, and the generator alone decides."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsb.errors import InputError
from fedsb.federation.partition import by_column, by_name, dirichlet, iid, shards


def rng(seed=0):
    return np.random.default_rng(seed)


LABELS = [str(i % 4) for i in range(400)]

SPLITS = {
    "iid": lambda labels, clients, seed: iid(len(labels), clients, rng(seed)),
    "dirichlet": lambda labels, clients, seed: dirichlet(labels, clients, alpha=1.0, rng=rng(seed)),
    "shards": lambda labels, clients, seed: shards(labels, clients, shards_per_client=2, rng=rng(seed)),
    "by-column": lambda labels, clients, seed: by_column(
        [f"{i % 7}" for i in range(len(labels))], clients, rng(seed)
    ),
    "shared values": lambda labels, clients, seed: by_column(
        ["ab"[2 * i // len(labels)] for i in range(len(labels))], clients, rng(seed)
    ),
}
every_split = pytest.mark.parametrize("kind", list(SPLITS))


@every_split
@given(
    clients=st.integers(1, 7),
    per_client=st.integers(4, 20),
    classes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_example_goes_to_exactly_one_client_and_nobody_is_empty(
    kind, clients, per_client, classes, seed
):
    labels = [str(i % classes) for i in range(max(7, clients * per_client))]
    parts = SPLITS[kind](labels, clients, seed)
    assert len(parts) == clients
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert all(part == sorted(part) and part for part in parts)
    assert {type(i) for part in parts for i in part} == {int}  # they are written to JSON


@every_split
def test_a_seed_gives_the_same_split_and_another_seed_another(kind):
    assert SPLITS[kind](LABELS, 5, 3) == SPLITS[kind](LABELS, 5, 3)
    if kind != "by-column":  # no chance in it while there are clients enough for the values
        assert SPLITS[kind](LABELS, 5, 3) != SPLITS[kind](LABELS, 5, 4)


@given(num_examples=st.integers(1, 200), clients=st.integers(1, 20))
def test_iid_parts_differ_by_at_most_one(num_examples, clients):
    if num_examples < clients:
        with pytest.raises(InputError, match="too few"):
            iid(num_examples, clients, rng())
        return
    sizes = [len(part) for part in iid(num_examples, clients, rng())]
    assert max(sizes) - min(sizes) <= 1


@given(alpha=st.sampled_from([0.3, 1.0, 10.0]), min_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_dirichlet_gives_each_client_its_minimum(alpha, min_size, seed):
    parts = dirichlet(LABELS, 5, alpha=alpha, min_size=min_size, rng=rng(seed))
    assert min(map(len, parts)) >= min_size


def skew(parts):
    """Mean over the clients of the total variation between their label shares and everybody's."""
    distances = []
    for part in parts:
        counts = Counter(LABELS[i] for i in part)
        distances.append(0.5 * sum(abs(counts[label] / len(part) - 0.25) for label in set(LABELS)))
    return float(np.mean(distances))


def test_a_smaller_alpha_is_more_skewed():
    by_alpha = [
        np.mean([skew(dirichlet(LABELS, 5, alpha=alpha, rng=rng(seed))) for seed in range(10)])
        for alpha in (0.1, 1.0, 10.0, 1000.0)
    ]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_alpha[0] > 0.4
    assert by_alpha[-1] < 0.05


def test_the_dirichlet_shares_are_those_of_the_distribution():
    """Mean share of a label 1/clients, its variance (n - 1) / (n² (n alpha + 1))."""
    clients, alpha = 4, 2.0
    shares = [
        sum(LABELS[i] == "0" for i in part) / 100
        for seed in range(300)
        for part in dirichlet(LABELS, clients, alpha=alpha, rng=rng(seed))
    ]
    assert np.mean(shares) == pytest.approx(1 / clients, abs=1e-9)
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.var(shares) == pytest.approx(expected, rel=0.15)


def test_dirichlet_gives_up_with_a_cure():
    with pytest.raises(
        InputError, match=r"none of 1000 .* alpha 0.001 over 4 values .* at least 60 of 400 .*Raise alpha"
    ):
        dirichlet(LABELS, 5, alpha=0.001, min_size=60, rng=rng())


def test_dirichlet_over_very_many_values_gives_up_after_fewer_draws(monkeypatch):
    monkeypatch.setattr("fedsb.federation.partition.MAX_DRAWN", 2000)
    with pytest.raises(InputError, match=r"none of 5 .* over 400 values"):
        dirichlet([str(i) for i in range(400)], 2, alpha=1.0, min_size=200, rng=rng())


def test_dirichlet_refuses_a_minimum_that_cannot_be():
    with pytest.raises(InputError, match="500 needed in all"):
        dirichlet(LABELS, 5, alpha=1.0, min_size=100, rng=rng())


def test_each_client_of_shards_sees_few_labels():
    """100 of each label in pieces of 25: two pieces have at most two labels."""
    parts = shards(LABELS, 8, shards_per_client=2, rng=rng())
    assert max(len({LABELS[i] for i in part}) for part in parts) == 2
    assert {len(part) for part in parts} == {50}


def test_shards_need_an_example_each():
    with pytest.raises(InputError, match="12 needed in all"):
        shards(["a"] * 11, 4, shards_per_client=3, rng=rng())


def test_by_column_keeps_a_value_at_one_client():
    hospitals = ["north", "south", "north", "west", "south", "north"]
    assert by_column(hospitals, 3, rng()) == [[0, 2, 5], [1, 4], [3]]


def test_by_column_with_more_values_than_clients_balances_the_sizes():
    values = ["a"] * 6 + ["b"] * 5 + ["c"] * 4 + ["d"] * 3
    parts = by_column(values, 2, rng())
    assert [sorted({values[i] for i in part}) for part in parts] == [["a", "d"], ["b", "c"]]
    assert [len(part) for part in parts] == [9, 9]


def test_by_column_with_more_clients_than_values_shares_a_values_examples_evenly():
    """The value with the most examples for each of its clients gets the next client; none has two values."""
    values = ["few"] * 2 + ["many"] * 20 + ["some"] * 11
    parts = by_column(values, 8, rng())
    assert [{values[i] for i in part} for part in parts] == [{"many"}] * 4 + [{"some"}] * 3 + [{"few"}]
    assert [len(part) for part in parts] == [5, 5, 5, 5, 4, 4, 3, 2]
    assert by_column(values, 8, rng()) == parts != by_column(values, 8, rng(1))


@given(clients=st.integers(1, 30), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_by_column_leaves_nobody_without_examples(clients, sizes):
    values = [str(value) for value, size in enumerate(sizes) for _ in range(size)]
    if len(values) < clients:
        with pytest.raises(InputError, match=r"federation\.clients: .* too few"):
            by_column(values, clients, rng())
        return
    parts = by_column(values, clients, rng())
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(values)))
    assert clients < len(sizes) or all(len({values[i] for i in part}) == 1 for part in parts)


def test_sites_called_as_values_get_the_rows_of_theirs():
    values = ["South ", "north", "south", "south", "north"]
    assert by_name(values, ["North", "South"]) == [[1, 4], [0, 2, 3]]
    assert by_name(values, ["South", "North"]) == [[0, 2, 3], [1, 4]]
    assert by_name(values, ["one", "two"]) is None
    assert by_name(values, ()) is None


def test_a_site_without_rows_and_rows_without_a_site_are_refused():
    with pytest.raises(InputError, match=r"federation.sites: west: no row of theirs"):
        by_name(["north", "south"], ["north", "south", "west"])
    with pytest.raises(InputError, match=r"federation.sites: 2 rows are of no site listed") as caught:
        by_name(["north", "secret", "secret"], ["north"])
    assert "secret" not in str(caught.value)
