"""Robust averages against numpy, poisoned clients against both kinds of average, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import classification_config, main_status, metrics_of, tiny_bert, write_config, write_data

from fedsb import RunConfig, run
from fedsb.config.checks import check_settings
from fedsb.errors import InputError, RunFailed
from fedsb.federation import wire
from fedsb.federation.exchange import Exchange, Layout, Part
from fedsb.federation.server import Arrived, aggregate
from fedsb.federation.start import head_warmup, sketches
from fedsb.federation.start.from_gradients import contribution
from fedsb.federation.start.head_warmup import warm_up
from fedsb.federation.start.messages import pack_start, unpack_start
from fedsb.federation.start.noised_sums import NOISED_SUMS
from fedsb.federation.start.robust import Head, Robust, Sizes, average_heads, evened
from fedsb.federation.start.settings import Start
from fedsb.federation.start.sketches import sketch_of
from fedsb.federation.state import ServerState
from fedsb.methods import ALL, Shape, by_name, fed_sb
from fedsb.methods.averaging import robust as robust_module
from fedsb.methods.averaging.robust import NormBound, cut_of, robust, trimmed_mean
from fedsb.report.progress import Silent
from fedsb.runner.arguments import start_of
from fedsb.runner.clients import RemoteClients
from fedsb.runner.remote_start import _ask_for_heads

EXCHANGE = Exchange(fed_sb, {"query": Shape(9, 8), "value": Shape(6, 7)}, 3, 1, {"out.weight": (2, 3)})
SIZE = 24
CURRENT = torch.linspace(-1, 1, SIZE)


def message(exchange, client, vector, *, round_number=1, part=None):
    layout = exchange.up(round_number, part or exchange.whole)
    header = wire.Header(exchange.method.name, round_number, layout.digest, client, num_examples=5 + client)
    return Arrived(client, wire.pack(header, vector))


def honest(count, *, seed=0, size=SIZE, spread=0.1):
    rng = np.random.default_rng(seed)
    return (0.5 + spread * rng.standard_normal((count, size))).astype(np.float32)


def close_round(
    vectors, *, exchange=EXCHANGE, average="mean", trim=0.1, bound=None, current=CURRENT, fewest=1
):
    outcomes = [message(exchange, c, torch.from_numpy(np.asarray(v))) for c, v in enumerate(vectors)]
    aggregation = robust(exchange.method.aggregation, average, trim)
    state = ServerState(0, current)
    return aggregate(
        state, outcomes, exchange, weighting="uniform", aggregation=aggregation, bound=bound, fewest=fewest
    )


# ---------------------------------------------------------------- the averages


@given(st.integers(3, 12), st.integers(0, 1000), st.integers(1, 64))
def test_the_median_is_numpys(count, seed, block):
    vectors = honest(count, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust_module, "BLOCK", block)  # the last block is short, or a block is one number
        state, report = close_round(vectors, average="median")
    np.testing.assert_allclose(state.vector.numpy(), np.median(vectors, axis=0), rtol=1e-6, atol=1e-7)
    assert report.clients == list(range(count))


@given(st.integers(3, 20), st.floats(0.01, 0.49), st.integers(0, 1000))
def test_the_trimmed_mean_leaves_out_both_ends_of_each_number(count, trim, seed):
    vectors = honest(count, seed=seed)
    cut = max(1, int(trim * count + 1e-9))
    expected = [np.mean(sorted(column.tolist())[cut : count - cut]) for column in vectors.T]
    state, _ = close_round(vectors, average="trimmed-mean", trim=trim)
    np.testing.assert_allclose(state.vector.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("average", "trim", "count", "cut"), [
    ("median", 0.1, 3, 1), ("median", 0.1, 4, 1), ("median", 0.1, 5, 2),
    ("trimmed-mean", 0.1, 30, 3), ("trimmed-mean", 0.1, 5, 1), ("trimmed-mean", 0.49, 3, 1),
])  # fmt: skip
def test_how_many_are_cut_off(average, trim, count, cut):
    assert cut_of(average, trim, count) == cut


def test_the_trimmed_mean_equals_scipys(rng):
    from scipy.stats import trim_mean

    vectors = rng.standard_normal((20, 50)).astype(np.float32)
    np.testing.assert_allclose(trimmed_mean(vectors, 2), trim_mean(vectors.astype(float), 0.1, axis=0))


def test_the_order_of_arrival_changes_nothing():
    vectors = honest(7)
    for average in ("median", "trimmed-mean"):
        one, _ = close_round(vectors, average=average)
        other, _ = close_round(vectors[::-1], average=average)
        assert torch.equal(one.vector, other.vector)


def test_without_a_wish_the_methods_own_aggregation_is_used():
    assert robust(fed_sb.aggregation, "mean", 0.1) is fed_sb.aggregation


@pytest.mark.parametrize(
    "poison", [lambda v: 1000 * v, lambda v: -v, lambda v: -1000 * v, lambda v: v + 1e15]
)
def test_a_poisoned_client_moves_the_mean_and_not_the_median(poison):
    vectors = honest(7)
    without = np.median(vectors, axis=0)
    vectors[3] = poison(vectors[3])
    moved = {}
    for average in ("mean", "median", "trimmed-mean"):
        state, _ = close_round(vectors, average=average, trim=0.2)
        moved[average] = np.linalg.norm(state.vector.numpy() - without)
    spread = np.linalg.norm(np.ptp(honest(7), axis=0))
    assert moved["median"] < 0.2 * spread
    assert moved["trimmed-mean"] < 0.3 * spread
    assert moved["mean"] > 2 * max(moved["median"], moved["trimmed-mean"])


AVERAGING = [m.name for m in ALL if m.averages]


@pytest.mark.parametrize("name", AVERAGING)
def test_every_method_that_averages_can_take_the_median(name):
    """What the method makes of the mean (FedSVD's rotation) is made of the median."""
    method = by_name(name)
    exchange = Exchange(method, {"layer": Shape(6, 5)}, 2, method.heads if name == "ravan" else 1, {})
    if name == "ravan":
        exchange = replace(exchange, layers={"layer": Shape(12, 10)})
    size = exchange.up(1, exchange.whole).size
    current = torch.from_numpy(honest(1, seed=9, size=exchange.down(exchange.rank).size)[0])
    vectors = honest(5, size=size)
    state, report = close_round(vectors, exchange=exchange, average="median", current=current)
    middle = np.median(vectors, axis=0).astype(np.float32)
    same, _ = close_round([middle] * 3, exchange=exchange, current=current)
    torch.testing.assert_close(state.vector, same.vector, rtol=1e-5, atol=1e-6)
    assert report.deviation is None


@pytest.mark.parametrize("average", ["median", "trimmed-mean"])
@pytest.mark.parametrize("poison", [lambda v: 1000 * v, lambda v: -1000 * v, lambda v: v + 1e15])
def test_of_two_usable_updates_the_round_takes_no_more_than_both_agree_on(average, poison):
    """The third was refused, or stayed away: neither does that end the run, nor does a poisoned one rule."""
    vectors = honest(2)
    vectors[1] = poison(vectors[1])
    state, report = close_round(vectors, average=average, trim=0.2)
    np.testing.assert_array_equal(state.vector, np.median([*vectors, CURRENT.numpy()], axis=0))
    change = np.abs(state.vector.numpy() - CURRENT.numpy())
    assert (change <= np.abs(vectors[0] - CURRENT.numpy())).all()
    assert report.clients == [0, 1]


def test_a_single_update_moves_nothing_and_none_fails_the_round():
    assert torch.equal(close_round(honest(1), average="median")[0].vector, CURRENT)
    with pytest.raises(RunFailed, match="no client's update could be used"):
        close_round([], average="median")


# ---------------------------------------------------------------- the bound


def test_an_update_beyond_the_bound_is_left_out_with_its_reason():
    vectors = honest(4)
    vectors[2] *= 1000
    state, report = close_round(vectors, bound=NormBound(10.0))
    without, _ = close_round(vectors[[0, 1, 3]])
    assert torch.equal(state.vector, without.vector)
    (rejected,) = report.rejected
    assert rejected["client"] == 2
    assert "federation.robust.norm_bound is 10" in str(rejected["reason"])
    assert report.clients == [0, 1, 3]


def test_an_update_beyond_the_bound_is_scaled_back_along_its_direction():
    vectors = honest(4)
    vectors[2] *= 1000
    state, report = close_round(vectors, bound=NormBound(10.0, "scale"))
    change = vectors[2] - CURRENT.numpy().astype(np.float64)
    vectors[2] = CURRENT.numpy() + change * 10 / np.linalg.norm(change)
    np.testing.assert_allclose(state.vector.numpy(), vectors.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert report.scaled == [2]
    assert report.clients == [0, 1, 2, 3]


def test_within_the_bound_nothing_changes_to_the_bit():
    vectors = honest(4)
    bounded, report = close_round(vectors, bound=NormBound(1e6, "scale"))
    assert torch.equal(bounded.vector, close_round(vectors)[0].vector)
    assert not report.scaled


def test_the_bound_measures_a_small_clients_update_from_its_part_of_the_broadcast():
    exchange = Exchange(fed_sb, {"layer": Shape(12, 10)}, 3, 2, {})
    current = torch.arange(18.0)
    part = Part(2, (1,))
    sent = current.view(2, 3, 3)[1:, :2, :2].clone()
    for distance, allowed in ((0.5, True), (2.0, False)):
        moved = sent.clone()
        moved[0, 0, 0] += distance
        outcome = message(exchange, 0, moved.flatten(), part=part)
        keep = message(exchange, 1, current)
        _, report = aggregate(
            ServerState(0, current),
            [outcome, keep],
            exchange,
            weighting="uniform",
            part_of=lambda c: part if c == 0 else exchange.whole,
            bound=NormBound(1.0),
        )
        assert (0 in report.clients) == allowed


# ---------------------------------------------------------------- the start

HEAD = {"out.weight": torch.zeros(3, 4), "out.bias": torch.zeros(3)}
HEADS = Layout.of(HEAD)
BEFORE = torch.linspace(-0.1, 0.1, HEADS.size)


def averaged(vectors, checks):
    heads = [Head(c, torch.from_numpy(v), 5 + c) for c, v in enumerate(vectors)]
    return average_heads(heads, BEFORE, HEADS, checks).numpy()


def test_heads_are_averaged_by_examples_where_nothing_else_is_asked_for():
    vectors = honest(3, size=HEADS.size)
    expected = np.average(vectors, axis=0, weights=[5, 6, 7])
    np.testing.assert_allclose(averaged(vectors, None), expected, rtol=1e-6)


@pytest.mark.parametrize("poison", [lambda v: v * 0 + 9e5, lambda v: -50 * v, lambda v: v + 1e5])
@pytest.mark.parametrize(
    "checks",
    [Robust("median"), Robust("trimmed-mean", 0.2), Robust("mean", bound=NormBound(2.0))],
    ids=lambda c: c.average,
)
def test_one_warmed_up_head_cannot_carry_the_mean_away(poison, checks):
    """The bound scales it back although `over_bound` rejects: it moves the mean by less than the bound."""
    vectors = honest(3, size=HEADS.size)
    without = averaged(vectors[:2], Robust(bound=checks.bound))
    vectors[2] = poison(vectors[2])
    assert np.linalg.norm(averaged(vectors, None) - without) > 3
    assert np.linalg.norm(averaged(vectors, checks) - without) < 2


def test_heads_and_nobody_to_send_one():
    with pytest.raises(RunFailed, match="start: no client's head could be used"):
        averaged([], Robust("median"))


SHAPES = {"l": Shape(48, 40), "m": Shape(12, 9)}
TRUTH = {
    name: torch.linalg.qr(torch.randn(shape.out, 2, generator=torch.Generator().manual_seed(1))).Q
    @ torch.randn(2, shape.n_in, generator=torch.Generator().manual_seed(2))
    for name, shape in SHAPES.items()
}
WAYS = {
    "factors": {"rule": "raw"},
    "sketch": {"rule": "raw", "upload": "sketch"},
    "moments": {"rule": "moments"},
    "noised sums": {"rule": "raw"},
}


def contribution_of(way, gradients, how):
    """What a client with these gradients sends."""
    kind, sent = (NOISED_SUMS if way == "noised sums" else contribution(how)), {}
    like = kind.template(SHAPES, how)
    for name, G in gradients.items():
        if way == "factors":
            U, S, Vh = torch.linalg.svd(G, full_matrices=False)
            k = like[f"{name}.A"].shape[0]
            pair = {"B": U[:, :k] * S[:k], "A": Vh[:k]} if k < 9 else {"B": G, "A": torch.eye(G.shape[1])}
            sent |= {f"{name}.{part}": value for part, value in pair.items()}
        elif way == "sketch":
            probes = sketches._shared_probes(SHAPES, how)[name]
            sent |= {f"{name}.{side}": t for side, t in sketch_of(G, probes)._asdict().items()}
        elif way == "moments":
            P, Q = like[f"{name}.left"], like[f"{name}.right"]
            sent |= {f"{name}.left": G @ (G.T @ P), f"{name}.right": G.T @ (G @ Q)}
        else:
            sent[f"{name}.sum"] = G
    return kind, {name: t.to(like[name].dtype) for name, t in sent.items()}


def spoiled_bases(way, factor, *, robust):
    """Three clients with the same gradients of rank 2 and a fourth with others, times `factor`."""
    wanted = {"upload": "factors", "batch_size": 4, "rank": 2, "heads": 1, "step_size": 0.1, "seed": 0}
    how = Start(**wanted | WAYS[way], robust=Robust() if robust else None)
    draw = torch.Generator().manual_seed(3)
    other = {name: factor * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    sent = [contribution_of(way, gradients, how) for gradients in (TRUTH, TRUTH, TRUTH, other)]
    kind = sent[0][0]
    return kind.bases(SHAPES, how, ((message, 5) for _, message in sent))


def kept(factors):
    """Share of the true directions that the bases hold, of the worst layer."""
    return min(float((factors[name].B.T @ truth).norm() / truth.norm()) for name, truth in TRUTH.items())


@pytest.mark.parametrize("way", list(WAYS))
def test_one_contribution_cannot_make_up_the_bases(way):
    assert kept(spoiled_bases(way, 1e4, robust=False)) < 0.3
    assert kept(spoiled_bases(way, 1e4, robust=True)) > 0.8


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("factor", [0.0, 1e-6])
def test_a_small_contribution_pulls_nobody_down(way, factor):
    one, other = spoiled_bases(way, factor, robust=True), spoiled_bases(way, factor, robust=False)
    for name, factors in one.items():
        torch.testing.assert_close(factors.B.abs(), other[name].B.abs(), atol=2e-2, rtol=0)


def test_contributions_are_held_down_layer_by_layer():
    """One that is small in all is not allowed to be large in one."""

    def message(large, small):
        norms = {"a": Sizes((large,), ("a.sum",)), "b": Sizes((small,), ("b.sum",))}
        return ({"a.sum": torch.tensor([large]), "b.sum": torch.tensor([small])}, 1), norms

    found = [tensors for tensors, _ in evened([message(1.0, 100.0), message(9.0, 0.0), message(2.0, 200.0)])]
    assert [float(t["a.sum"]) for t in found] == [1.0, 2.0, 2.0]
    assert [float(t["b.sum"]) for t in found] == [100.0, 0.0, 100.0]


def poisoned_answers(client, spoil):
    """`Remote.ask` of clients that answer a warm-up with the head they got, plus a step; one spoils it."""

    def ask(kind, cohort, message_to):
        for c in cohort:
            facts, tensors = unpack_start(message_to(c))
            heads = {n: t + 0.1 for n, t in tensors.items() if n.startswith("head.")}
            if c == client:
                heads = {n: spoil(t) for n, t in heads.items()}
            yield Arrived(c, pack_start({"kind": kind, "round": facts["round"], "client": c}, heads))

    return ask


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t * 0 + 1e30,
        lambda t: t + 1e5,
        lambda t: torch.full(t.shape, 1e300, dtype=torch.float64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t * float("nan"),
        lambda t: t[:1],
    ],
)
def test_the_head_of_a_deployed_start_withstands_one_client(spoil):
    head = {"w": torch.nn.Parameter(torch.zeros(3, 4))}
    remote = RemoteClients([5, 5, 5], poisoned_answers(1, spoil))
    draw = {client: [client] for client in range(3)}
    ask = _ask_for_heads(head, remote, draw, Silent())
    warm_up(head, 2, 3, ask, Robust("median", bound=NormBound(5.0)))
    torch.testing.assert_close(head["w"].detach(), torch.full((3, 4), 0.2))


def test_the_config_tells_the_start():
    changes = {
        "federation__weighting": "uniform",
        "federation__robust": {"average": "median", "norm_bound": 3},
    }
    config = RunConfig.from_dict(classification_config(Path("m"), Path("d"), **changes))
    assert start_of(config, [[0]]).robust == Robust("median", 0.1, NormBound(3.0))
    without = start_of(RunConfig.from_dict(classification_config(Path("m"), Path("d"))), [[0]])
    assert without.robust is None


def test_a_simulated_start_withstands_what_a_deployed_one_does(world, tmp_path, monkeypatch):
    """Client 2's head is thrown far off in every warm-up round."""
    real, trained = head_warmup.train_head, []

    def train_head(model, head, *args, **more):
        real(model, head, *args, **more)
        trained.append(None)
        if len(trained) % 3 == 0:
            for parameter in head.values():
                parameter.data.mul_(-50)

    monkeypatch.setattr(head_warmup, "train_head", train_head)
    init = {"kind": "gradient", "samples": 30, "head_warmup": {"rounds": 2, "steps": 10}}
    changes = {"federation__clients": 3, "method__init": init, "training__learning_rate": 1e-6}
    losses = {}
    for name, wanted in {"mean": None, "median": {"average": "median"}}.items():
        run(RunConfig.from_dict(config_of(world, federation__robust=wanted, **changes)), tmp_path / name)
        losses[name] = metrics_of(tmp_path / name)[-1]["eval"]["loss"]
    assert losses["mean"] > losses["median"] + 0.3


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    tiny_bert(folder / "bert")
    write_data(folder / "data", train=60, test=12)
    return folder


def config_of(world, **changes):
    few = {
        "federation__rounds": 1,
        "federation__clients": 4,
        "federation__weighting": "uniform",
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    return classification_config(world / "bert", world / "data", **few | changes)


def poisoned(monkeypatch, client):
    """That client answers with its numbers times -1000."""
    from fedsb.runner.clients import LocalClient

    real = LocalClient.answer

    def answer(self, broadcast, *args):
        sent = real(self, broadcast, *args)
        if self.client != client:
            return sent
        header, vector = wire.unpack(sent)
        return wire.pack(header, -1000 * vector)

    monkeypatch.setattr(LocalClient, "answer", answer)


def test_a_run_with_a_poisoned_client(world, tmp_path, monkeypatch):
    poisoned(monkeypatch, 2)
    checks = {
        "mean": None,
        "median": {"average": "median"},
        "reject": {"norm_bound": 20.0},
        "scale": {"norm_bound": 20.0, "over_bound": "scale"},
    }
    lines = {}
    for name, wanted in checks.items():
        run(RunConfig.from_dict(config_of(world, federation__robust=wanted)), tmp_path / name)
        lines[name] = metrics_of(tmp_path / name)[1:]
    losses = {name: found[-1]["eval"]["loss"] for name, found in lines.items()}
    assert losses["mean"] > 3 * max(losses["median"], losses["reject"])
    assert [r["client"] for line in lines["reject"] for r in line["rejected"]] == [2]
    assert all("norm_bound" in r["reason"] for line in lines["reject"] for r in line["rejected"])
    assert [line["scaled"] for line in lines["scale"]] == [[2]]
    assert all(line["clients"] == [0, 1, 2, 3] for line in lines["median"])


UNIFORM = {"federation__weighting": "uniform"}
CLIENT_LEVEL = {"unit": "client", "epsilon": 8.0, "clip_norm": 0.5}
REFUSED = [
    ({}, {"average": "median"}, "set federation.weighting: uniform"),
    ({}, {"norm_bound": 1.0}, "set federation.weighting: uniform"),
    (UNIFORM | {"privacy": CLIENT_LEVEL}, {"average": "median"}, "clips every update to privacy.clip_norm"),
    (UNIFORM | {"privacy": CLIENT_LEVEL}, {"norm_bound": 1.0}, "clips every update to privacy.clip_norm"),
    *[
        (UNIFORM | {"method__name": m.name}, {"average": "median"}, f"{m.name} makes more of its clients'")
        for m in ALL
        if not m.averages
    ],
    (UNIFORM | {"method__name": "flora"}, {"norm_bound": 1.0}, "flora starts again each round"),
    (
        UNIFORM | {"federation__client_ranks": [4, 4, 2]},
        {"average": "median"},
        "not every client sends every",
    ),
    (UNIFORM | {"federation__clients": 2}, {"average": "trimmed-mean"}, "of 2 updates in a round"),
    (UNIFORM | {"federation__clients_per_round": 2}, {"average": "median"}, "of 2 updates in a round"),
    (UNIFORM, {"average": "middle"}, "federation.robust.average: Input should be"),
    (UNIFORM, {"average": "trimmed-mean", "trim": 0.5}, "federation.robust.trim"),
    (UNIFORM, {"norm_bound": 0}, "federation.robust.norm_bound"),
]


@pytest.mark.parametrize(("changes", "wanted", "reason"), REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path, changes, wanted, reason):
    changes = changes | {
        "federation__robust": wanted,
        "method__init": {"kind": "weights", "head_warmup": None},
    }
    config = classification_config(tmp_path / "no model", tmp_path, **changes)
    with pytest.raises(InputError, match=reason):
        check_settings(RunConfig.from_dict(config))


def test_a_refusal_is_status_2_and_leaves_nothing(world, tmp_path, monkeypatch, capsys):
    config = config_of(world, method__name="flora", federation__robust={"average": "median"})
    file = write_config(tmp_path / "c.yaml", config)
    assert main_status(monkeypatch, "run", file, "--out", tmp_path / "out") == 2
    assert "federation.robust.average: flora" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
