"""Every method through the real server, wire and client code, against dense matrices and loops."""

import numpy as np
import pytest
import torch
from fake_federation import LAYERS, SEED, Federation, random_rounds
from oracles import best_of_rank, numbers, relative_error, weighted_mean

from fedsb.common.seeding import torch_generator
from fedsb.federation import wire
from fedsb.federation.exchange import Part
from fedsb.methods import ALL, Shape, fed_sb, fedex_lora, flexlora, flora, florg, ravan

named = pytest.mark.parametrize("method", [m for m in ALL if m.experts is None], ids=lambda m: m.name)
HEADS = {"ravan": 2}
RANKS = (2, 1, 2, 1, 2)


def make(method, **more):
    return Federation(method, **{"heads": HEADS.get(method.name, 1), **more})


def assert_global_model(federation, tolerance=1e-5):
    """The server's model is the oracle's, layer by layer."""
    for name, found in federation.whole().items():
        assert relative_error(found, federation.oracle.total(name)) < tolerance, name


def assert_mean_of_clients(federation, tolerance=1e-5):
    """The server's model is the weighted mean of the clients' whole models."""
    clients, weights = federation.client_models.values(), federation.answer_weights
    for name, found in federation.whole().items():
        expected = weighted_mean([model[name] for model in clients], weights)
        largest = max(np.abs(model[name]).max() for model in clients)
        assert np.abs(found - expected).max() < tolerance * largest, name


# ---------------------------------------------------------------- whole runs against the oracle


@named
@pytest.mark.parametrize("own", [False, True], ids=["shared model", "own models"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_global_model_is_the_oracles_after_each_round(method, own, seed):
    federation = make(method, own=own, seed=seed)

    def check(report):
        assert_global_model(federation)
        head = federation.exchange.down(2).unflatten(federation.state.vector)["out.weight"]
        expected = weighted_mean(federation.heads_sent, federation.answer_weights)
        np.testing.assert_allclose(numbers(head), expected, atol=1e-5)
        if federation.oracle.deviation is not None and method.changes_base is False:
            assert report.deviation == pytest.approx(federation.oracle.deviation, rel=1e-4, abs=1e-6)

    random_rounds(federation, 5, seed=seed, after=check)


@pytest.mark.parametrize("kept", [1, 3, 30])
def test_a_truncated_residual_gives_the_oracles_model(kept):
    """Rank 3 is dense over the smallest layer, rank 30 over all."""
    federation = make(fedex_lora, own=True, residual_rank=kept)

    def check(report):
        assert_global_model(federation)
        assert_clients_have_the_servers_base(federation)

    random_rounds(federation, 5, seed=1, after=check)


@pytest.mark.parametrize("method", [m for m in ALL if m.mixed_ranks], ids=lambda m: m.name)
@pytest.mark.parametrize("padding", ["all", "owners"])
@pytest.mark.parametrize("own", [False, True], ids=["shared model", "own models"])
def test_mixed_ranks_give_the_oracles_model(method, padding, own):
    federation = make(method, padding=padding, own=own)
    random_rounds(
        federation,
        5,
        seed=4,
        part_of=lambda client: Part(RANKS[client]),
        after=lambda report: assert_global_model(federation),
    )


def test_a_factor_of_a_gram_matrix_lies_as_near_to_the_last_broadcast_as_it_can():
    federation = Federation(florg, layers={"large": Shape(20, 24), "tall": Shape(40, 7)})
    for cohort in ([0, 1, 2], [1], [0, 3]):
        federation.close_round(cohort, weights={c: c + 1 for c in cohort})
        for name, layer in federation.globally.attached.layers.items():
            assert relative_error(numbers(layer.F), federation.oracle.layers[name].F) < 1e-4


def parts_with_heads(heads, ranks, seed=0):
    """A new draw for each call, as each round has."""
    rng = np.random.default_rng(seed)

    def part_of(client):
        chosen = sorted(rng.choice(heads, rng.integers(1, heads + 1), replace=False).tolist())
        return Part(ranks[client], None if len(chosen) == heads else tuple(chosen))

    return part_of


@pytest.mark.parametrize("method", [ravan, fed_sb], ids=lambda m: m.name)
@pytest.mark.parametrize("padding", ["all", "owners"])
@pytest.mark.parametrize("ranks", [(2,) * 5, RANKS], ids=["one rank", "mixed ranks"])
def test_clients_that_train_some_heads_give_the_oracles_model(method, padding, ranks):
    layers = {"large": Shape(20, 24), "tall": Shape(40, 7)}
    federation = make(method, padding=padding, heads=3, layers=layers)
    random_rounds(
        federation,
        5,
        seed=4,
        part_of=parts_with_heads(3, ranks),
        after=lambda report: assert_global_model(federation),
    )


def test_a_restarted_lora_is_what_everybody_draws():
    """FLoRA sends no factors: server, shared model and a client's own model draw the same ones each round."""
    federation = make(flora, own=True)
    seen = []
    for number in (1, 2, 3):
        federation.close_round([0, 1])
        for name, layer in federation.globally.attached.layers.items():
            draw = torch_generator(SEED, "restart", number + 1, name)
            expected = flora.draw(*LAYERS[name], 2, generator=draw)
            assert torch.equal(layer.A, expected.A)
            assert not layer.B.any()
        seen.append(federation.globally.attached.layers["large"].A.clone())
        client = federation.clients[1].attached.layers["large"]
        assert client.B.any()
    assert not torch.equal(seen[0], seen[1])


def test_a_client_starts_a_round_of_flora_from_the_global_model():
    federation = make(flora, own=True)
    for cohort in ([0, 1], [0], [1, 2], [0, 1, 2]):
        before = federation.whole()
        federation.close_round(cohort)
        for received in federation.received.values():
            for name, whole in received.items():
                np.testing.assert_allclose(whole, before[name], atol=1e-5)


# ---------------------------------------------------------------- clients with models of their own


def assert_clients_have_the_servers_base(federation):
    for client in federation.messages:
        for name, found in federation.base_of(client).items():
            expected = federation.base_before.get(name, 0.0)
            np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"client {client}, {name}")


CHANGES_BASE = [m for m in ALL if m.changes_base]


@pytest.mark.parametrize("method", CHANGES_BASE, ids=lambda m: m.name)
@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_comes_and_goes_has_the_servers_base_weights(method, seed):
    federation = make(method, own=True, seed=seed)
    kinds = set()

    def check(report):
        assert_clients_have_the_servers_base(federation)
        kinds.update(wire.unpack(down)[0].base for down, _ in federation.messages.values())

    random_rounds(federation, 8, seed=seed, after=check)
    assert {None, 0} < kinds  # nothing, everything, and some increments' ranks


def test_a_client_in_the_last_round_gets_the_increment_and_others_everything():
    federation = make(flora, own=True)
    bases = []
    for cohort in ([0, 1, 2], [0, 1], [0, 2, 3], [3], [0, 3]):
        federation.close_round(cohort)
        assert_clients_have_the_servers_base(federation)
        headers = {c: wire.unpack(down)[0] for c, (down, _) in federation.messages.items()}
        bases.append({client: header.base for client, header in headers.items()})
    assert bases == [
        {0: None, 1: None, 2: None},
        {0: 6, 1: 6},
        {0: 4, 2: 0, 3: 0},
        {3: 6},
        {0: 0, 3: 2},
    ]


@pytest.mark.parametrize("method", CHANGES_BASE, ids=lambda m: m.name)
def test_a_client_that_failed_after_it_took_an_increment_does_not_add_it_twice(method):
    """A round of one survivor changes nothing in FedEx-LoRA: there is no newer increment to send."""
    federation = make(method, own=True)
    federation.close_round([0, 1, 2])
    federation.close_round([0, 1], failing=[1])
    federation.close_round([1, 2])
    assert_clients_have_the_servers_base(federation)
    federation.close_round([0, 1, 2])
    assert_clients_have_the_servers_base(federation)
    assert_global_model(federation)


@named
@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "mixed ranks"])
def test_a_message_is_four_bytes_for_each_number_of_its_layout_and_a_header(method, mixed):
    federation = make(method, own=True)
    rank_of = RANKS if mixed and method.mixed_ranks else (2,) * 5
    for cohort in ([0, 1, 2], [0, 1, 2, 3], [2, 3], [1, 3, 4]):
        parts = {client: Part(rank_of[client]) for client in cohort}
        federation.close_round(cohort, parts=parts)
        number = federation.state.round
        for client, (down, up) in federation.messages.items():
            base = wire.unpack(down)[0].base
            message = federation.exchange.message(number, parts[client], base)
            sizes = message.size, federation.exchange.up(number, parts[client]).size
            for message, size in zip((down, up), sizes, strict=True):
                assert wire.count(message) == wire.unpack(message)[1].numel() == size
                assert 4 * size < len(message) < 4 * size + 400


def test_a_client_of_rank_k_gets_the_best_rank_k_of_the_mean_from_flexlora():
    federation = make(flexlora)
    federation.close_round([0, 1, 2], weights={0: 3})
    mean = {name: federation.oracle.total(name) for name in LAYERS}
    federation.close_round([0, 1, 2], parts={0: Part(1), 1: Part(2), 2: Part(1)})
    for client, rank in enumerate((1, 2, 1)):
        for name, whole in federation.received[client].items():
            assert relative_error(whole, best_of_rank(mean[name], rank)) < 1e-5
