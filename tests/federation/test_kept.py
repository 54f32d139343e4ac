"""What stays with clients: the dense oracle's models, round by round, and nothing of it in a message."""

import numpy as np
import pytest
import torch
from fake_federation import Federation, random_rounds
from oracles import numbers

from fedsb.federation import wire
from fedsb.federation.training import (
    ClientFailed,
    LocalTraining,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from fedsb.methods import fed_sb, fedsa_lora, lora_xs

PERSONAL = fed_sb.with_personal_cores()
CASES = {"personal": PERSONAL, "lora-xs": lora_xs.with_personal_cores(), "fedsa-lora": fedsa_lora}


def blocks(stacked):
    """A dense matrix with these blocks on its diagonal."""
    heads, r, _ = stacked.shape
    dense = np.zeros((heads * r, heads * r))
    for h, block in enumerate(stacked):
        dense[h * r : (h + 1) * r, h * r : (h + 1) * r] = block
    return dense


def expected_at(federation, kept, layer):
    """A client's model as its round begins: the oracle's shared part and what the client had."""
    part, scale = federation.oracle.layers[layer], federation.oracle.scale
    if "P" in federation.method.stays:
        own = blocks(kept.get(f"{layer}.P", np.zeros_like(part.R)))
        return scale * part.B @ (part.core() + own) @ part.A
    return scale * kept.get(f"{layer}.B", np.zeros_like(part.B)) @ part.A


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_client_begins_with_the_shared_mean_and_what_it_kept(name, heads):
    """Over rounds with partial cohorts, unequal weights and dropouts; a new client begins with nothing."""
    method = CASES[name]
    if heads > 1 and not method.has_core:
        return
    federation = Federation(method, heads=heads)
    shadow = {}  # client -> what it had after its last round, noted by hand
    seen = []

    def check(report):
        for client, model in federation.received.items():
            for layer in federation.layers:
                expected = expected_at_start[client][layer]
                assert np.abs(model[layer] - expected).max() < 1e-4
            seen.append(client in shadow)
            shadow[client] = {n: numbers(t) for n, t in federation.kept[client].items()}
        for layer in federation.layers:
            np.testing.assert_allclose(
                federation.whole()[layer], expected_at(federation, {}, layer), atol=1e-4
            )
        note()

    def note():
        expected_at_start.clear()
        for client in range(5):
            kept = shadow.get(client, {})
            expected_at_start[client] = {n: expected_at(federation, kept, n) for n in federation.layers}

    expected_at_start = {}
    note()
    random_rounds(federation, 6, seed=4, after=check)
    assert True in seen
    assert False in seen
    assert any(np.abs(value).max() > 0 for value in shadow[0].values())


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_stays_is_in_a_layout(name):
    exchange = Federation(CASES[name]).exchange
    for layout in (
        exchange.up(1, exchange.whole),
        exchange.down(2),
        exchange.message(1, exchange.whole, None),
    ):
        assert not [n for n, _ in layout.entries if n.rpartition(".")[2] in CASES[name].stays]
    assert exchange.stays(1) == [f"{layer}.{CASES[name].stays[0]}" for layer in exchange.layers]


def test_an_answer_that_could_not_be_sent_changes_nothing_that_is_kept(monkeypatch):
    federation = Federation(PERSONAL)
    federation.close_round([0])
    before = {name: tensor.clone() for name, tensor in federation.kept[0].items()}

    def overflow(*args):
        raise wire.Overflow("too large for float16")

    monkeypatch.setattr(wire, "pack", overflow)
    message = federation.messages[0][0]
    with pytest.raises(ClientFailed, match="too large for float16"):
        federation.answer_to(message, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in federation.kept[0].items())


def test_what_stays_has_a_rate_of_its_own():
    parameters = {n: torch.nn.Parameter(torch.zeros(2, 2)) for n in ("l.R", "l.P", "head")}
    training = LocalTraining(optimizer="sgd", learning_rate=0.5, personal_rate=0.1, schedule="linear")
    optimizer = make_optimizer(parameter_groups(parameters, ["l.P"], training), training)
    for parameter in parameters.values():
        parameter.grad = torch.ones(2, 2)
    set_learning_rate(optimizer, 1, 2, training)
    optimizer.step()
    moved = {name: -parameter[0, 0].item() for name, parameter in parameters.items()}
    assert moved == pytest.approx({"l.R": 0.25, "l.P": 0.025, "head": 0.25})
