"""Whole runs of a mixture of experts: stages, traffic, what stays as it was, resume, groups."""

import json
from pathlib import Path

import pytest
import torch
from run_helpers import (
    adapter_bytes,
    causal_config,
    classification_config,
    metrics_of,
    rows,
    timeless,
    tiny_bert,
    tiny_llama,
    write_data,
    write_rows,
)

from fedsb import RunConfig, run
from fedsb.adapter.mixture import mixture_of
from fedsb.adapter.routing import Statistics, gate_from, noting, routing_of
from fedsb.errors import RunFailed
from fedsb.federation.training import ClientFailed
from fedsb.models import load_tokenizer
from fedsb.report.progress import Silent
from fedsb.runner import loop as runner
from fedsb.runner.checkpoint import load_checkpoint
from fedsb.runner.clients import LocalClient
from fedsb.runner.prepare_data import prepare_data
from fedsb.tasks.generate import Decoding, transformers_engine

SITES = 4
RANK = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    tiny_bert(folder / "bert"), tiny_llama(folder / "llama")
    write_data(folder / "data", train=48, test=12)
    return folder


def config_of(world, make=classification_config, model="bert", **changes):
    few = {
        "method__name": "fed-mixer",
        "method__rank": RANK,
        "method__targets": ["query", "value"] if model == "bert" else ["q_proj", "v_proj"],
        "method__init": {"kind": "orthonormal", "head_warmup": None},
        "method__experts": {"by": "site"},
        "federation": {"clients": SITES, "rounds": 4, "partition": {"kind": "by-column", "column": "site"}},
        "evaluation__every": 4,
    }
    return make(world / model, world / "data", **few | changes)


def start(config, folder, **options):
    return run(RunConfig.from_dict(config), folder, **options)


@pytest.fixture(scope="module")
def whole(world):
    return start(config_of(world), world / "whole")


def state_of(result):
    return load_checkpoint(Path(result.folder) / "checkpoint").state


def test_a_run_ends_with_different_experts_and_a_gate(whole):
    routing = routing_of(whole.model)
    assert routing.names == ("s0", "s1", "s2", "s3")
    assert not routing.hard
    layer = next(m for m in whole.model.modules() if getattr(m, "G", None) is not None)
    assert layer.R.shape == (4, RANK, RANK)
    assert layer.G.shape == (4, RANK + 1)
    assert (layer.R[0] - layer.R[1]).abs().max() > 1e-3
    assert layer.G.abs().max() > 0
    assert state_of(whole).experts.opened
    assert state_of(whole).experts.holding == {0, 1, 2, 3}


def test_hard_rounds_send_what_one_core_sends(world, whole):
    """A client of one expert: a core's numbers each way, and a header that is hardly longer."""
    plain = start(
        config_of(world, method__name="fed-sb", method__experts=..., federation__rounds=1), world / "plain"
    )
    one, other = metrics_of(whole.folder)[1], metrics_of(plain.folder)[1]
    assert one["upload_parameters"] == other["upload_parameters"]
    for direction in ("upload_bytes", "download_bytes"):
        assert abs(one[direction] - other[direction]) <= 64 * SITES
    assert one["upload_bytes"] - other["upload_bytes"] <= 64 * SITES


def test_gate_rounds_send_gates_and_all_cores_once(whole):
    lines, layers, head = metrics_of(whole.folder), 4, 32 * 3 + 3
    gate, cores = layers * 4 * (RANK + 1) + head, layers * 4 * RANK * RANK
    assert lines[3]["upload_parameters"] == lines[4]["upload_parameters"] == SITES * gate
    first, second = lines[3]["download_bytes"] / SITES, lines[4]["download_bytes"] / SITES
    assert 4 * gate < second < 4 * gate + 400
    assert abs(first - second - 4 * cores) < 32
    once = {e["what"]: e for e in whole.summary["communication"]["one_time"]}
    numbers = layers * (RANK * (RANK + 1) // 2 + RANK + 1)
    assert once["statistics"]["parameters"] == SITES * numbers
    assert once["mean for statistics"]["parameters"] == SITES * layers * RANK * RANK


def test_a_resumed_run_is_the_same_run(world, whole, monkeypatch):
    for stop in (1, 2, 3):
        folder = world / f"stopped-{stop}"
        real = runner.play_round

        def until(session, saved, number, chosen, stop=stop, real=real):
            if number > stop:
                raise KeyboardInterrupt
            return real(session, saved, number, chosen)

        monkeypatch.setattr(runner, "play_round", until)
        with pytest.raises(KeyboardInterrupt):
            start(config_of(world), folder)
        monkeypatch.setattr(runner, "play_round", real)
        start(config_of(world), folder, resume=True)
        assert timeless(folder) == timeless(whole.folder)
        assert adapter_bytes(folder) == adapter_bytes(whole.folder)


def test_an_expert_that_nobody_trains_stays_bit_for_bit(world):
    """One client a round: three experts are named as untrained, and the next one's begin as they began."""
    config = config_of(
        world,
        federation__clients_per_round=1,
        federation__rounds=2,
        method__experts={"by": "site", "hard_rounds": 2},
    )
    result = start(config, world / "alone")
    lines = metrics_of(result.folder)[1:]
    assert [len(line["untrained"]) for line in lines] == [3, 3]
    trained = {f"s{c}" for line in lines for c in line["clients"]}
    assert all(
        set(line["untrained"]) == {f"s{i}" for i in range(4)} - {f"s{line['clients'][0]}"} for line in lines
    )
    for layer in mixture_of_run(result).factors.values():
        for number, core in enumerate(layer.R):
            assert (core.abs().max() > 0) == (f"s{number}" in trained)


def mixture_of_run(result):
    from fedsb.adapter.attached import Attached
    from fedsb.adapter.layer import LowRankLinear

    layers = {n: m for n, m in result.model.named_modules() if isinstance(m, LowRankLinear)}
    return mixture_of(Attached(result.model, layers, {}))


def test_both_trains_cores_and_gate_and_stays_near(world):
    settings = {"by": "site", "train": "both", "hard_rounds": 2}
    terms = {"entropy": 0.1, "balance": 0.1}
    free = start(config_of(world, method__experts=settings | terms), world / "free")
    kept = start(config_of(world, method__experts=settings | terms | {"keep": 100.0}), world / "kept")
    assert not state_of(free).experts.cores
    cores = state_of(kept).experts.cores
    moved = [
        sum(
            float((part.R - cores[name]).square().sum())
            for name, part in mixture_of_run(result).factors.items()
        )
        for result in (free, kept)
    ]
    assert 0 < moved[1] < 0.1 * moved[0]
    usage = routing_of(kept.model).usage
    assert usage.sum() == pytest.approx(1.0)
    assert (usage - 0.25).abs().max() > 1e-4


def test_clients_with_several_experts(world):
    """Two clients of two sites each, and one whose rows are of every site."""
    result = start(config_of(world, federation__clients=2), world / "two")
    counts = state_of(result).experts.counts
    assert {client: sum(held.values()) for client, held in counts.items()} == {0: 24, 1: 24}
    assert all(len(held) == 2 for held in counts.values())
    line = metrics_of(result.folder)[1]
    assert line["upload_parameters"] == 2 * (2 * 4 * RANK * RANK + 99)
    mixed = start(config_of(world, federation__partition={"kind": "iid"}), world / "iid")
    held = [len(of_client) for of_client in state_of(mixed).experts.counts.values()]
    assert max(held) > 2
    assert metrics_of(mixed.folder)[1]["upload_parameters"] == sum(held) * 4 * RANK * RANK + SITES * 99


def test_clients_named_by_the_config(world):
    config = config_of(world, method__experts={}, federation__client_experts=[0, 0, 1, 1])
    result = start(config, world / "named")
    assert routing_of(result.model).names == ("0", "1")
    assert [list(held) for held in state_of(result).experts.counts.values()] == [[0], [0], [1], [1]]


@pytest.mark.parametrize("route", ["sequence", "token", "request"])
def test_decoders_answer_the_same_with_and_without_a_cache(world, route):
    config = config_of(
        world, causal_config, "llama", method__experts={"by": "site", "route": route}, evaluation__generate=4
    )
    result = start(config, world / f"causal-{route}")
    tokenizer = load_tokenizer(str(world / "llama"))
    prompts = [[2, *range(4, 4 + n)] for n in (3, 6, 4)]

    def texts(of, beams):
        engine = transformers_engine(result.model, tokenizer, Decoding(max_new_tokens=5, beams=beams))
        return engine(of, 0)

    cached = {beams: texts(prompts, beams) for beams in (1, 3)}
    result.model.generation_config.use_cache = result.model.config.use_cache = False
    for beams, expected in cached.items():
        assert texts(prompts, beams) == expected
        assert [texts([prompt], beams)[0] for prompt in prompts] == expected


def test_one_decision_for_all_layers(world):
    result = start(config_of(world, method__experts={"by": "site", "route": "request"}), world / "request")
    routing, experts = routing_of(result.model), state_of(result).experts
    assert experts.gate.shape == (4, 33)
    assert torch.equal(routing.gate, experts.gate)
    assert routing.experts.shape == (12,)
    assert metrics_of(result.folder)[-1]["eval"]["accuracy"] > 0
    once = {e["what"]: e for e in result.summary["communication"]["one_time"]}
    assert once["mean for statistics"]["parameters"] == 0
    assert once["statistics"]["parameters"] == SITES * (32 * 33 // 2 + 33)


def test_the_gate_of_a_run_is_that_of_all_rows_together(world):
    """Sums of four clients, as they travelled, against one pass over all rows."""
    config = config_of(world, method__experts={"by": "site", "hard_rounds": 4})
    result = start(config, world / "pooled")
    routing, parts = routing_of(result.model), mixture_of_run(result).factors
    made = RunConfig.from_dict(config)
    data = prepare_data(made)
    routing.hard, cores = True, {name: part.R for name, part in parts.items()}
    for name, core in cores.items():  # all rows pass the experts' mean: no layer sees whose row it was
        result.model.get_submodule(name).set_factor("R", core.mean(0, keepdim=True))
    sums = {name: Statistics.zero(4, RANK) for name in parts}
    layers = {id(m): n for n, m in result.model.named_modules()}
    batch = data.task.collate(data.train)
    with torch.no_grad(), noting(result.model.eval()) as notes:
        data.task.losses(result.model, batch)
    for note in notes:
        sums[layers[id(note.layer)]].add(note.q[:, 0], batch["experts"])
    for name, part in parts.items():
        torch.testing.assert_close(part.G, gate_from(sums[name]), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def grouped(world):
    """Two kinds of clients: the label of the ones' rows is the others' of the same word."""
    turn = {"pos": "neg", "neg": "flat", "flat": "pos"}
    made = rows(96, seed=5)
    for i, row in enumerate(made):
        site = i // 16
        row["site"], row["label"] = f"s{site}", row["label"] if site < 3 else turn[row["label"]]
    write_rows(world / "turned.jsonl", made)
    return config_of(
        world,
        data__train=str(world / "turned.jsonl"),
        federation={"clients": 6, "rounds": 4, "partition": {"kind": "by-column", "column": "site"}},
        method__experts={"count": 2, "warmup_rounds": 2, "hard_rounds": 3},
        training__epochs=4,
    )


def test_groups_are_the_kinds_of_clients(world, grouped):
    result = start(grouped, world / "grouped")
    held = {client: next(iter(of)) for client, of in state_of(result).experts.counts.items()}
    sites = [client_site(world, result.folder, client) for client in range(6)]
    kinds = [int(site[1]) < 3 for site in sites]
    assert len({(kind, held[client]) for client, kind in enumerate(kinds)}) == 2
    layer = next(iter(mixture_of_run(result).factors.values()))
    assert (layer.R[0] - layer.R[1]).abs().max() > 1e-3
    assert routing_of(result.model).names == ("0", "1")


def client_site(world, folder, client):
    lines = (world / "turned.jsonl").read_text().splitlines()
    part = json.loads((folder / "partition.json").read_text())["clients"][str(client)]
    return json.loads(lines[part[0]])["site"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_with_groups_is_resumed_as_it_was(world, grouped, monkeypatch, stop):
    whole = world / "grouped"
    if not whole.exists():
        start(grouped, whole)
    real = runner.play_round

    def until(session, saved, number, chosen):
        if number > stop:
            raise KeyboardInterrupt
        return real(session, saved, number, chosen)

    monkeypatch.setattr(runner, "play_round", until)
    with pytest.raises(KeyboardInterrupt):
        start(grouped, world / f"grouped-{stop}")
    monkeypatch.setattr(runner, "play_round", real)
    start(grouped, world / f"grouped-{stop}", resume=True)
    assert timeless(world / f"grouped-{stop}") == timeless(whole)
    assert adapter_bytes(world / f"grouped-{stop}") == adapter_bytes(whole)


def test_soft_from_the_start_leaves_the_saddle(world):
    """Equal cores and a gate at zero would stay equal for ever."""
    result = start(
        config_of(world, method__experts={"by": "site", "hard_rounds": 0, "start": "zero", "train": "both"}),
        world / "soft",
    )
    layer = next(iter(mixture_of_run(result).factors.values()))
    assert (layer.R[0] - layer.R[1]).abs().max() > 1e-4
    assert metrics_of(result.folder)[-1]["train_loss"] < metrics_of(result.folder)[1]["train_loss"]


def test_a_client_without_statistics_leaves_its_expert_at_the_mean(world, monkeypatch):
    """It is left out and said; without any the run stops, and can be resumed."""
    real, stages = LocalClient.statistics, []

    def failing(self, question, on_step=None):
        if self.client in gone:
            raise ClientFailed("went away")
        return real(self, question)

    monkeypatch.setattr(LocalClient, "statistics", failing)
    monkeypatch.setattr(Silent, "stage", lambda self, text: stages.append(text))
    config = config_of(world, federation__rounds=1)
    gone = [3]
    result = start(config, world / "one-gone")
    assert any("no client gave statistics of s3" in text for text in stages)
    assert all(part.G.isfinite().all() for part in mixture_of_run(result).factors.values())
    gone = [0, 1, 2, 3]
    with pytest.raises(RunFailed, match="no client gave statistics"):
        start(config, world / "all-gone")
    gone = []
    start(config, world / "all-gone", resume=True)
    whole = start(config, world / "none-gone")
    assert adapter_bytes(world / "all-gone") == adapter_bytes(whole.folder)
