"""Which methods' averaged model is the mean of the clients' models, which is not, and what residuals hold."""

import numpy as np
import pytest
import torch
from fake_federation import Federation
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best_of_rank, numbers, relative_error, weighted_mean
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fedsb.adapter import Factors, LoraPair
from fedsb.federation.exchange import Exchange, Part
from fedsb.federation.server import Arrived, aggregate
from fedsb.methods import (
    ALL,
    Shape,
    Upload,
    fed_sb,
    fedex_lora,
    fedit,
    fedmomentum,
    flexlora,
    flora,
    hetlora,
    lora_fair,
    lora_xs,
    ravan,
)
from fedsb.methods.averaging.covariance import Covariance
from fedsb.methods.averaging.stack import factors_are_smaller

EXACT = [*(m for m in ALL if m.exact), fedmomentum.options(energy=1.0)]
EXACT_WITH_MIXED_RANKS = [m for m in EXACT if m.mixed_ranks]
CORES = [fed_sb, lora_xs, ravan]


def ids(method):
    return method.name


@st.composite
def federations(draw, method, *, mixed=False, some_heads=False):
    """A federation over random shapes, and two rounds' cohorts, weights, dropouts and parts."""
    heads = draw(st.integers(2 if some_heads else 1, 3)) if method.has_core else 1
    rank = draw(st.integers(2 if mixed else 1, 3))
    side = st.integers(heads * rank, 16)
    layers = {name: Shape(draw(side), draw(side)) for name in ("one", "two")}
    alpha = draw(st.sampled_from([None, 0.5, 7.0]))
    federation = Federation(
        method, rank=rank, heads=heads, alpha=alpha, layers=layers, seed=draw(st.integers(0, 999))
    )
    rounds = []
    for _ in range(2):
        cohort = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True))
        weights = {c: draw(st.integers(1, 300)) for c in cohort}
        failing = draw(st.sets(st.sampled_from(cohort), max_size=len(cohort) - 1))
        parts = {c: draw(one_part(rank if mixed else None, heads if some_heads else None)) for c in cohort}
        parts = {c: Part(rank, p.heads) if p.rank == 0 else p for c, p in parts.items()}
        rounds.append((cohort, {"weights": weights, "failing": failing, "parts": parts}))
    return federation, rounds


def one_part(largest, heads):
    ranks = st.just(0) if largest is None else st.integers(1, largest)
    none = st.none()
    chosen = (
        none if heads is None else none | st.sets(st.integers(0, heads - 1), min_size=1, max_size=heads - 1)
    )
    return st.builds(lambda r, h: Part(r, None if h is None else tuple(sorted(h))), ranks, chosen)


def assert_exact(federation, rounds, tolerance=1e-5):
    """After each round, the global model is the weighted mean of the whole models of those who answered."""
    for cohort, how in rounds:
        federation.close_round(cohort, **how)
        clients = list(federation.client_models.values())
        for name, found in federation.whole().items():
            expected = weighted_mean([model[name] for model in clients], federation.answer_weights)
            largest = max(np.abs(model[name]).max() for model in clients)
            assert np.abs(found - expected).max() <= tolerance * largest


@pytest.mark.parametrize("method", EXACT, ids=ids)
@settings(max_examples=12)
@given(data=st.data())
def test_an_exact_method_gives_the_mean_of_the_clients_models(method, data):
    assert_exact(*data.draw(federations(method)))


@pytest.mark.parametrize("method", EXACT_WITH_MIXED_RANKS, ids=ids)
@settings(max_examples=12)
@given(data=st.data())
def test_it_stays_exact_for_clients_of_mixed_ranks(method, data):
    assert_exact(*data.draw(federations(method, mixed=True)))


def test_which_methods_take_mixed_ranks():
    assert [fed_sb, flora, lora_xs, ravan] == EXACT_WITH_MIXED_RANKS


@pytest.mark.parametrize("method", CORES, ids=ids)
@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "mixed ranks"])
@settings(max_examples=12)
@given(data=st.data())
def test_it_stays_exact_where_clients_train_some_heads(method, mixed, data):
    """A head that a client does not train is in its model at the value that was broadcast."""
    assert_exact(*data.draw(federations(method, mixed=mixed, some_heads=True)))


def test_heads_a_client_did_not_train_weigh_at_their_old_value():
    """By hand: heads 0 and 1 at 10; one client makes head 0 a 1, the other makes head 1 a 2."""
    exchange = Exchange(ravan, {"l": Shape(4, 4)}, 1, 2, {})
    state = ravan.aggregation.start(exchange.frame(1, torch.tensor([10.0, 10.0])))
    for head, value in ((0, 1.0), (1, 2.0)):
        sent = torch.tensor([value])
        state = ravan.aggregation.add(state, Upload({"l.R": sent.reshape(1, 1, 1)}, sent, 1.0, (head,)))
    assert ravan.aggregation.finish(state).tensors["l.R"].flatten().tolist() == [5.5, 6.0]


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("all", [[2.5, 1.0], [1.0, 1.0]]), ("owners", [[2.5, 4.0], [4.0, 4.0]])],
)
def test_padding_by_hand(padding, expected):
    """A client of rank 2 with fours and weight 1, one of rank 1 with a two and weight 3."""
    exchange = Exchange(fed_sb, {"l": Shape(4, 4)}, 2, 1, {}, padding=padding)
    state = fed_sb.aggregation.start(exchange.frame(1, torch.full((4,), 9.0)))
    for size, value, weight in ((2, 4.0, 1.0), (1, 2.0, 3.0)):
        R = torch.full((1, size, size), value)
        state = fed_sb.aggregation.add(state, Upload({"l.R": R}, R.flatten(), weight))
    assert fed_sb.aggregation.finish(state).tensors["l.R"][0].tolist() == expected


def test_with_owners_what_nobody_holds_keeps_its_value():
    exchange = Exchange(fed_sb, {"l": Shape(4, 4)}, 2, 1, {}, padding="owners")
    state = fed_sb.aggregation.start(exchange.frame(1, torch.full((4,), 9.0)))
    R = torch.full((1, 1, 1), 2.0)
    state = fed_sb.aggregation.add(state, Upload({"l.R": R}, R.flatten(), 3.0))
    assert fed_sb.aggregation.finish(state).tensors["l.R"][0].tolist() == [[2.0, 9.0], [9.0, 9.0]]


# ---------------------------------------------------------------- not exact, and by how much


def close(method, clients, weights, *, rank=None, **more):
    """One aggregation of these LoRA factors over one layer: exchange and result."""
    out, n_in = len(clients[0].B), clients[0].A.shape[1]
    rank = rank or max(len(c.A) for c in clients)
    exchange = Exchange(method, {"l": Shape(out, n_in)}, rank, 1, {}, **more)
    sent = torch.zeros(exchange.down(rank).size)
    state = method.aggregation.start(exchange.frame(1, sent))
    for client, weight in zip(clients, weights, strict=True):
        tensors = {"l.A": client.A, "l.B": client.B}
        vector = torch.cat([client.A.flatten(), client.B.flatten()])
        state = method.aggregation.add(state, Upload(tensors, vector, weight))
    return method.aggregation.finish(state)


def product(averaged):
    return numbers(averaged.tensors["l.B"]) @ numbers(averaged.tensors["l.A"])


def lora(B, A):
    return Factors(B=torch.tensor(B), A=torch.tensor(A), R=None)


CORNERS = [lora([[1.0], [0.0]], [[1.0, 0.0]]), lora([[0.0], [1.0]], [[0.0, 1.0]])]
"""Two clients that write to one entry each, on the diagonal."""


@pytest.mark.parametrize("method", [fedit, hetlora], ids=ids)
def test_averages_of_factors_are_not_exact(method):
    """They also write where no client did."""
    averaged = close(method, CORNERS, [1.0, 1.0])
    np.testing.assert_allclose(product(averaged), [[0.25, 0.25], [0.25, 0.25]])
    if method is fedit:
        assert averaged.deviation == pytest.approx(1 / np.sqrt(2))


def test_hetlora_weighs_by_the_norm_of_the_product():
    clients = [CORNERS[0], lora([[0.0], [3.0]], [[0.0, 1.0]])]
    averaged = close(hetlora, clients, [1.0, 100.0])
    np.testing.assert_allclose(numbers(averaged.tensors["l.B"]).T, [[0.25, 2.25]])
    np.testing.assert_allclose(numbers(averaged.tensors["l.A"]), [[0.25, 0.75]])


clients_of_rank = st.lists(st.integers(1, 3), min_size=1, max_size=5)
weights = st.floats(0.1, 300)


def random_clients(out, n_in, ranks, seed):
    draw = torch.Generator().manual_seed(seed)
    return [
        Factors(torch.randn(out, r, generator=draw), torch.randn(r, n_in, generator=draw), None)
        for r in ranks
    ]


def dense_mean(clients, weights):
    return weighted_mean([numbers(c.B) @ numbers(c.A) for c in clients], weights)


@given(st.integers(1, 14), st.integers(1, 14), clients_of_rank, st.data(), st.integers(0, 999))
def test_flexlora_is_the_best_of_its_rank_and_exact_where_the_mean_fits(out, n_in, ranks, data, seed):
    clients = random_clients(out, n_in, ranks, seed)
    given_weights = [data.draw(weights) for _ in ranks]
    rank = data.draw(st.integers(1, 16))
    averaged = close(flexlora, clients, given_weights, rank=rank)
    mean = dense_mean(clients, given_weights)
    best = best_of_rank(mean, rank)
    assert averaged.tensors["l.A"].shape == (rank, n_in)
    found = product(averaged)
    assert np.linalg.norm(mean - found) <= np.linalg.norm(mean - best) + 1e-5 * np.linalg.norm(mean)
    lost = np.linalg.norm(mean - best) / np.linalg.norm(mean)
    assert averaged.deviation == pytest.approx(lost, rel=1e-3, abs=1e-5)
    if sum(ranks) <= rank:
        assert relative_error(found, mean) < 1e-5


def test_flexlora_leaves_the_singular_values_to_B():
    averaged = close(flexlora, random_clients(9, 7, [2, 2], 0), [1.0, 2.0])
    B, A = numbers(averaged.tensors["l.B"]), numbers(averaged.tensors["l.A"])
    np.testing.assert_allclose(A @ A.T, np.eye(len(A)), atol=1e-5)
    squares = np.diag(B.T @ B)
    np.testing.assert_allclose(B.T @ B, np.diag(squares), atol=1e-5)
    assert np.diff(squares).max() < 0


# ---------------------------------------------------------------- FedEx-LoRA's residual


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 3),
    st.lists(weights, min_size=1, max_size=6),
    st.data(),
)
def test_the_residual_is_the_covariance_in_factors_of_rank_at_most_c_minus_1_r(
    out, n_in, rank, given_weights, data
):
    count = len(given_weights)
    clients = random_clients(out, n_in, [rank] * count, data.draw(st.integers(0, 99)))
    averaged = close(fedex_lora, clients, given_weights, scale=1.5)
    residual = averaged.base_update["l"]
    shape = Shape(out, n_in)
    if isinstance(residual, LoraPair):
        assert residual.A.shape == ((count - 1) * rank, n_in)
        assert factors_are_smaller(shape, (count - 1) * rank)
        residual = residual.B.double() @ residual.A.double()
    else:
        assert not factors_are_smaller(shape, (count - 1) * rank)
    mean = dense_mean(clients, given_weights)
    expected = 1.5 * (mean - product(averaged))
    largest = max(np.abs(numbers(c.B) @ numbers(c.A)).max() for c in clients)
    np.testing.assert_allclose(numbers(residual), expected, atol=1e-5 * largest)
    deviation = np.linalg.norm(expected) / 1.5 / np.linalg.norm(mean)
    assert averaged.deviation == pytest.approx(deviation, rel=1e-3, abs=1e-4)
    assert close(fedit, clients, given_weights).deviation == pytest.approx(averaged.deviation)


@pytest.mark.parametrize(("shape", "count"), [((40, 50), 4), ((6, 7), 4), ((40, 50), 1)])
@pytest.mark.parametrize("kept", [1, 3, 5, 20])
def test_a_truncated_residual_is_the_best_of_its_rank(shape, count, kept):
    clients = random_clients(*shape, [2] * count, seed=count)
    given_weights = [1.0, 5.0, 2.0, 0.5][:count]
    whole, part = (
        close(fedex_lora, clients, given_weights, scale=2.0, residual_rank=k).base_update["l"]
        for k in (None, kept)
    )
    whole = numbers(whole.B) @ numbers(whole.A) if isinstance(whole, LoraPair) else numbers(whole)
    assert part.A.shape[0] == kept
    found = numbers(part.B) @ numbers(part.A)
    np.testing.assert_allclose(found, best_of_rank(whole, kept), atol=1e-4)


def test_the_residual_of_clients_that_agree_is_zero():
    (client,) = random_clients(30, 30, [2], 0)
    residual = close(fedex_lora, [client] * 4, [1.0, 2.0, 3.0, 4.0]).base_update["l"]
    assert (residual.B @ residual.A).abs().max() < 1e-6


class Largest(TorchDispatchMode):
    """Notes the largest tensor made inside the block."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


FACTORED = [fedit, fedex_lora, flora, flexlora, hetlora, lora_fair, fedmomentum]


@pytest.mark.parametrize("method", FACTORED, ids=ids)
def test_no_out_x_in_matrix_is_made_while_factors_are_smaller(method):
    """Five clients of rank 2 over 20000 x 20000: dense would be 400 million numbers (3 GB in fp64)."""
    side, rank, count = 20_000, 2, 5
    clients = random_clients(side, side, [rank] * count, seed=0)
    with Largest() as largest:
        close(method, clients, [1.0, 2.0, 3.0, 4.0, 5.0])
        if method is fedex_lora:
            close(method, clients, [1.0] * count, residual_rank=3)
    assert rank * side <= largest.numbers <= 4 * count * rank * side


def test_what_watches_for_large_tensors_sees_them():
    with Largest() as largest:
        covariance = Covariance(Shape(30, 30))
        for _ in range(20):
            covariance.add(torch.randn(30, 2), torch.randn(2, 30), 1.0)
    assert covariance.stack.dense is not None
    assert largest.numbers == 900


@pytest.mark.parametrize("method", [flexlora, hetlora], ids=ids)
def test_directions_that_no_client_of_a_round_held_can_train_again(method):
    """Where A and B are both zero, both gradients are zero for ever."""
    federation = Federation(method, rank=3, layers={"l": Shape(12, 10)})
    federation.close_round([0, 1, 2])
    before = federation.globally.attached.layers["l"].A.clone()
    federation.close_round([0], parts={0: Part(1)})
    layer = federation.globally.attached.layers["l"]
    assert not layer.B[:, 1:].any()
    assert torch.equal(layer.A[1:], before[1:])
    assert relative_error(federation.whole()["l"], federation.oracle.total("l")) < 1e-5


@pytest.mark.parametrize("cohort", [(0, 1, 2), (0, 1, 2, 3, 4)], ids=len)
@pytest.mark.parametrize("method", [m for m in ALL if m.experts is None], ids=ids)
def test_the_order_in_which_answers_arrive_is_without_effect(method, cohort):
    """Layers that travel as factors, as either and dense; to the last bit, or to fp32's rounding where the
    first answers' mean is a question: in it rounding turns directions that nobody uses."""
    federation = Federation(method)
    federation.close_round(cohort)
    before = federation.state
    federation.close_round(cohort, weights={c: c + 1 for c in cohort})
    answers = [Arrived(c, federation.messages[c][1]) for c in cohort]
    for order in (answers[::-1], answers[1:] + answers[:1]):
        state, _ = aggregate(
            before,
            order,
            federation.exchange,
            weighting="examples",
            start=federation.start_by_name,
            second=federation.second(before),
        )
        for name, value in base_tensors(state).items():
            assert torch.equal(value, base_tensors(federation.state)[name])
        bits = {"rtol": 0.0, "atol": 1e-5 if method.follow_up else 0.0}
        torch.testing.assert_close(state.vector, federation.state.vector, **bits)


def base_tensors(state):
    """What travels of the base's last change, by name."""
    pairs = {n: v for n, v in state.base.last.items() if isinstance(v, LoraPair)}
    dense = {n: v for n, v in state.base.last.items() if n not in pairs}
    return dense | {f"{n}.{part}": t for n, pair in pairs.items() for part, t in pair._asdict().items()}
