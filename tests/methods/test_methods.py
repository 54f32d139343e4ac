"""Fed-SB's average is exact and FedIT's is not; the mean is a stream and its order hardly matters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import dense_update, mean_of_updates, numbers, random_factors, relative_error, weighted_mean

from fedsb import methods
from fedsb.adapter import Factors
from fedsb.errors import InputError, RunFailed
from fedsb.federation.exchange import Exchange
from fedsb.methods import ALL, AggregationInputs, Shape, Upload, by_name, fed_sb, fedit
from fedsb.methods.averaging.mean import TOGETHER


def frame_of(size, **more):
    return AggregationInputs(current={}, answer={"x": (size,)}, layers={}, scale=1.0, **more)


def stream(vectors, weights, aggregation=fed_sb.aggregation):
    state = aggregation.start(frame_of(len(vectors[0])))
    for vector, weight in zip(vectors, weights, strict=True):
        state = aggregation.add(state, Upload({"x": vector}, vector, weight))
    return aggregation.finish(state).tensors["x"]


def average(method, clients: list[Factors], weights: list[float]) -> Factors:
    """The adapter a server broadcasts after these clients' uploads."""
    first, names = clients[0], method.trains(1)
    heads, rank = (1, len(first.A)) if first.R is None else first.R.shape[:2]
    exchange = Exchange(method, {"l": Shape(len(first.B), first.A.shape[1])}, rank, heads, {})
    sent = exchange.down(rank).flatten({f"l.{f}": getattr(first, f) for f in method.sends})
    state = method.aggregation.start(exchange.frame(1, sent))
    for client, weight in zip(clients, weights, strict=True):
        tensors = {f"l.{name}": getattr(client, name) for name in names}
        upload = Upload(tensors, exchange.up(1, exchange.whole).flatten(tensors), weight)
        state = method.aggregation.add(state, upload)
    averaged = method.aggregation.finish(state).tensors
    return first._replace(**{name: averaged[f"l.{name}"] for name in names})


@given(
    out=st.integers(1, 12),
    n_in=st.integers(1, 12),
    rank=st.integers(1, 4),
    heads=st.integers(1, 3),
    weights=st.lists(st.floats(0.01, 1000), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    drop=st.sets(st.integers(0, 5)),
)
def test_the_fed_sb_average_is_the_mean_of_the_clients_updates(out, n_in, rank, heads, weights, seed, drop):
    """mean(B R_i A) = B mean(R_i) A for any shapes, weights and dropouts."""
    draw = torch.Generator().manual_seed(seed)
    frozen = random_factors(out, n_in, rank, heads=heads, generator=draw)
    clients = [frozen._replace(R=torch.randn(heads, rank, rank, generator=draw)) for _ in range(len(weights))]
    kept = [i for i in range(len(clients)) if i not in drop] or [0]
    clients, weights = [clients[i] for i in kept], [weights[i] for i in kept]
    found = dense_update(average(fed_sb, clients, weights))
    largest = max(np.abs(dense_update(c)).max() for c in clients)
    assert np.abs(found - mean_of_updates(clients, weights)).max() <= 1e-6 * max(largest, 1e-30)


def test_fedit_is_not_exact():
    """Two clients that write to different entries: the average of A and B also writes where neither did."""
    one = Factors(B=torch.tensor([[1.0], [0.0]]), A=torch.tensor([[1.0, 0.0]]), R=None)
    two = Factors(B=torch.tensor([[0.0], [1.0]]), A=torch.tensor([[0.0, 1.0]]), R=None)
    found = dense_update(average(fedit, [one, two], [1.0, 1.0]))
    np.testing.assert_allclose(mean_of_updates([one, two], [1.0, 1.0]), [[0.5, 0.0], [0.0, 0.5]])
    np.testing.assert_allclose(found, [[0.25, 0.25], [0.25, 0.25]])


def test_fedit_is_exact_with_one_client(generator):
    client = random_factors(5, 4, 2, core=False, generator=generator)
    found = dense_update(average(fedit, [client], [3.0]))
    assert relative_error(found, dense_update(client)) < 1e-6


@given(
    weights=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20),
    size=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_the_stream_equals_the_mean_in_numpy(weights, size, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(weights), size)).astype(np.float32)
    found = stream([torch.from_numpy(v) for v in vectors], weights)
    expected = weighted_mean(list(vectors), weights)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 99), count=st.integers(2, 30), spread=st.sampled_from([1.0, 1e4]))
def test_arrival_order_changes_at_most_the_last_fp32_digit(seed, count, spread):
    rng = np.random.default_rng(seed)
    vectors = [torch.from_numpy(v) for v in (spread * rng.normal(size=(count, 50))).astype(np.float32)]
    weights = rng.uniform(1, 100, size=count).tolist()
    order = rng.permutation(count)
    one, other = stream(vectors, weights), stream([vectors[i] for i in order], [weights[i] for i in order])
    scale = max(float(v.abs().max()) for v in vectors)
    assert (one - other).abs().max() <= torch.finfo(torch.float32).eps * scale


def test_a_small_update_is_not_lost_among_many_large_ones():
    """An fp32 sum would drop the ones: 1e8 + 1 = 1e8."""
    vectors = [torch.tensor([1e8])] + [torch.tensor([1.0])] * 100 + [torch.tensor([-1e8])]
    assert stream(vectors, [1.0] * 102).item() == pytest.approx(100 / 102)


@pytest.mark.parametrize(("numbers", "most"), [(2**23, TOGETHER - 1), (25, 2), (5, 0)])
def test_the_accumulator_does_not_grow_and_keeps_few_updates(numbers, most, monkeypatch):
    """Seven at most; of large ones as many as fit a bound, or none."""
    monkeypatch.setattr("fedsb.methods.averaging.mean.NUMBERS", numbers)
    aggregation, waited = fed_sb.aggregation, set()
    state = aggregation.start(frame_of(10))
    for _ in range(50):
        vector = torch.ones(10)
        state = aggregation.add(state, Upload({"x": vector}, vector, 1.0))
        held = [v for v in vars(state).values() if isinstance(v, torch.Tensor)]
        assert [t.numel() for t in held] == [10, 10]  # the sum, and the block that is widened
        assert state.named["x"].data_ptr() == held[0].data_ptr()
        waited.add(len(state.waiting))
    assert max(waited) == most
    assert torch.equal(aggregation.finish(state).tensors["x"], torch.ones(10))
    assert not state.waiting


def test_blocks_make_no_difference_and_threads_are_given_back(monkeypatch, rng):
    """Ten numbers in blocks of four, the last one shorter."""
    vectors = [torch.from_numpy(rng.standard_normal(10, dtype=np.float32)) for _ in range(5)]
    weights = [1.0, 3.0, 2.5, 7.0, 1e9]
    whole = stream(vectors, weights)
    monkeypatch.setattr("fedsb.methods.averaging.mean.BLOCK", 4)
    torch.set_num_threads(2)
    try:
        assert torch.equal(stream(vectors, weights), whole)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    expected = weighted_mean([v.double().numpy() for v in vectors], weights)
    assert np.allclose(whole.double().numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ValueError, match="weight: expected a positive number"):
        stream([torch.ones(3)], [weight])


def test_no_update_has_no_mean():
    with pytest.raises(RunFailed, match="no update to average"):
        fed_sb.aggregation.finish(fed_sb.aggregation.start(frame_of(3)))


# ---------------------------------------------------------------- the values themselves


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_each_method_states_its_source_and_whether_it_is_exact(method):
    assert "arXiv" in method.source or "openreview" in method.source
    assert isinstance(method.exact, bool)
    for number in (1, 2, 3):
        assert method.trains(number)
        assert set(method.trains(number)) <= {"A", "R", "B", "s", "F"}
    assert set(method.stays) <= set(method.trains(1)) - set(method.sends)
    assert set(method.sends) <= {"A", "R", "B", "F"} | ({"G"} if method.experts else set())
    assert by_name(method.name) is method
    assert method.scale(8, None) == 1.0


def test_what_each_method_trains_and_how_it_scales():
    assert (fed_sb.exact, fed_sb.trains(1), fed_sb.scale(8, 16.0), fed_sb.draw) == (True, ("R",), 1.0, None)
    assert (fedit.exact, fedit.trains(1), fedit.scale(8, 16.0)) == (False, ("A", "B"), 2.0)
    trained = {method.name: (method.trains(1), method.trains(2)) for method in ALL}
    assert trained == {
        "fed-sb": (("R",),) * 2,
        "fedit": (("A", "B"),) * 2,
        "ffa-lora": (("B",),) * 2,
        "flora": (("A", "B"),) * 2,
        "fedex-lora": (("A", "B"),) * 2,
        "lora-xs": (("R",),) * 2,
        "flexlora": (("A", "B"),) * 2,
        "hetlora": (("A", "B"),) * 2,
        "ravan": (("R", "s"),) * 2,
        "fedsvd": (("B",),) * 2,
        "rolora": (("B",), ("A",)),
        "fedsa-lora": (("A", "B"),) * 2,
        "fedrot-lora": (("A", "B"),) * 2,
        "lora-fair": (("A", "B"),) * 2,
        "fedmomentum": (("A", "B"),) * 2,
        "fr-lora": (("A", "B"),) * 2,
        "la-lora": (("A", "B"),) * 2,
        "florg": (("F",),) * 2,
        "fedask": (("B",),) * 2,
        "fed-mixer": (("R",),) * 2,
    }
    assert {m.name for m in ALL if m.exact} == {
        "fed-sb",
        "ffa-lora",
        "flora",
        "fedex-lora",
        "lora-xs",
        "ravan",
        "fedsvd",
        "rolora",
        "fedask",
    }
    assert [m.name for m in ALL if m.stays] == ["fedsa-lora"]
    assert [m.name for m in ALL if m.personal] == ["fed-sb", "lora-xs"]
    with_core = {"fed-sb", "lora-xs", "ravan", "fed-mixer"}
    assert (
        {m.name for m in ALL if m.scale(8, 16.0) == 1.0} == {m.name for m in ALL if m.has_core} == with_core
    )


@pytest.mark.parametrize("method", [m for m in ALL if m.draw is not None], ids=lambda m: m.name)
def test_a_data_free_start_has_what_it_trains_and_begins_at_no_update(method, generator):
    factors = method.draw(7, 5, 2, generator=generator)
    assert all(getattr(factors, name) is not None for name in method.trains(1))
    assert factors.A.abs().min() > 0
    assert np.abs(dense_update(factors)).max() < (1e-5 if method.name == "florg" else 1e-30)


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [("fedrot-lora", "rotation", 1.5), ("lora-fair", "penalty", 0.0), ("fedmomentum", "energy", -0.1)],
)
def test_an_option_beyond_its_range_is_refused(name, option, wrong):
    with pytest.raises(
        InputError, match=f"method.options.{option}: expected a number from .* found {wrong:g}"
    ):
        by_name(name).options(**{option: wrong})


def test_names_are_unique():
    assert len({m.name for m in ALL}) == len(ALL)


@pytest.mark.parametrize(("wrong", "close"), [("fedsb", "fed-sb"), ("fed-it", "fedit"), ("Fed-SB", "fed-sb")])
def test_a_wrong_name_lists_the_methods_and_the_close_ones(wrong, close):
    with pytest.raises(InputError) as error:
        by_name(wrong)
    listed, _, hint = str(error.value).partition("Did you mean")
    assert all(m.name in listed for m in methods.ALL)
    assert close in hint


def test_a_name_like_no_other_gets_no_hint():
    with pytest.raises(InputError, match="found 'zzz'") as error:
        by_name("zzz")
    assert "mean" not in str(error.value)
