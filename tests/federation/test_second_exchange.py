"""Rounds of two exchanges: what is lost between them, who may answer, and what a client keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_federation import Federation
from oracles import best_of_rank, numbers, relative_error, weighted_mean

from fedsb.errors import RunFailed, UpdateRejected
from fedsb.federation import wire
from fedsb.federation.second_exchange import second_answer
from fedsb.methods import Shape, fedask, fedit

LAYERS = {"large": Shape(20, 24), "tall": Shape(40, 7)}
BOTH = fedask.options(both=True, oversampling=8)


def federation_of(method=fedask, **more):
    return Federation(method, layers=LAYERS, **more)


def question_of(federation, client, number):
    """A well-formed question of this round."""
    layout = federation.exchange.question()
    header = wire.Header(federation.method.name, number, layout.digest, exchange=2)
    return wire.pack(header, torch.randn(layout.size))


def test_with_both_factors_it_is_the_best_of_its_rank_where_the_sketch_is_wide_enough():
    """Three clients' products of rank 2 fit a sketch of 10; then only the rank is lost."""
    federation = federation_of(BOTH)
    for weights in ({0: 1, 1: 5, 2: 2}, {0: 3, 1: 1, 2: 1}):
        federation.close_round([0, 1, 2], weights=weights)
        for name, found in federation.whole().items():
            products = [model[name] for model in federation.client_models.values()]
            best = best_of_rank(weighted_mean(products, federation.answer_weights), 2)
            assert relative_error(found, best) < 1e-4


def test_a_client_that_answers_once_is_left_out_of_the_product():
    """With a common A. What Q holds of the others': their mean's part in the columns of all three's."""
    federation = federation_of()
    report = federation.close_round([0, 1, 2], weights={0: 1, 1: 5, 2: 2}, silent=[1])
    assert report.clients == [0, 2]
    assert report.rejected == [{"client": 1, "reason": "second answer: went away later"}]
    models = federation.client_models
    for name, found in federation.whole().items():
        everyone = weighted_mean([models[c][name] for c in (0, 1, 2)], [1, 5, 2])
        U, S, _ = np.linalg.svd(everyone)
        Q = U[:, : int((1e-6 * S[0] < S).sum())]
        others = weighted_mean([models[c][name] for c in (0, 2)], [1, 2])
        inside = Q @ Q.T @ others
        assert np.linalg.norm(found - others) <= np.linalg.norm(inside - others) * (1 + 1e-5)


def test_a_round_to_which_nobody_answers_twice_fails_and_leaves_the_state():
    federation = federation_of()
    federation.close_round([0, 1])
    before = federation.state
    with pytest.raises(RunFailed, match="round 2: nobody answered the second question"):
        federation.close_round([0, 1], silent=[0, 1])
    assert federation.state is before


def test_its_traffic_is_counted_apart():
    federation = federation_of()
    report = federation.close_round([0, 1, 2], silent=[2])
    down, up = report.second
    sizes = [(shape.out, shape.n_in, min(2 + 4, *shape)) for shape in LAYERS.values()]
    assert (down.direction, down.clients, up.direction, up.clients) == ("down", 3, "up", 3)
    assert down.parameters == 3 * sum(out * w for out, _, w in sizes)
    assert up.parameters == 2 * sum(n_in * w for _, n_in, w in sizes)
    assert 0 < down.bytes - 4 * down.parameters < 3 * 400
    assert 0 < up.bytes - 4 * up.parameters < 2 * 400


def test_what_was_kept_of_an_older_round_answers_nothing():
    federation = federation_of()
    federation.close_round([0, 1])
    with pytest.raises(UpdateRejected, match="no first answer in this round"):
        second_answer(
            question_of(federation, 0, 2), federation.exchange, federation.kept[0], client=0, num_examples=1
        )
    federation.close_round([0])
    assert {name.split(" ")[1] for name in federation.kept[0]} == {"2"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "fedit"}, "wrong method"),
        ({"layout": "0" * 16}, "wrong layout"),
    ],
)
def test_a_question_that_is_none_of_this_method_is_refused(change, reason):
    federation = federation_of()
    federation.close_round([0])
    layout = federation.exchange.question()
    header = replace(wire.Header("fedask", 1, layout.digest, exchange=2), **change)
    message = wire.pack(header, torch.zeros(layout.size))
    with pytest.raises(UpdateRejected, match=reason):
        second_answer(message, federation.exchange, federation.kept[0], client=0, num_examples=1)


def test_a_method_of_one_exchange_is_asked_once():
    federation = federation_of(fedit)
    with pytest.raises(UpdateRejected, match="fedit has one exchange in a round"):
        second_answer(b"", federation.exchange, {}, client=0, num_examples=1)


def test_a_sketch_of_fp32_numbers_holds_the_product():
    """Weights far apart, factors far apart in size."""
    federation = federation_of()
    federation.close_round(list(range(5)), weights={0: 1, 1: 1000, 2: 3, 3: 40, 4: 7})
    for name, found in federation.whole().items():
        models = [model[name] for model in federation.client_models.values()]
        assert relative_error(found, weighted_mean(models, federation.answer_weights)) < 1e-5
    assert numbers(federation.globally.attached.layers["large"].A).any()
