"""Short names for weights: equal for equal numbers, each dtype its own, none where nobody can know."""

import copy

import torch
from torch import nn

from fedsb.models.digest import base_digest, layer_digest


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"b": nn.Linear(3, 4), "a": nn.Linear(4, 2)}


def test_the_order_of_layers_and_their_biases_do_not_matter() -> None:
    first, again = layers(), dict(reversed(layers().items()))
    nn.init.ones_(again["a"].bias)  # type: ignore[arg-type]
    assert layer_digest(first) == layer_digest(again)


def test_one_number_matters() -> None:
    first, again = layers(), layers()
    with torch.no_grad():
        again["a"].weight[0, 0] += 1e-6  # type: ignore[index, operator]
    assert layer_digest(first) != layer_digest(again)


def test_names_and_shapes_matter() -> None:
    first = layers()
    assert layer_digest(first) != layer_digest({"c": first["b"], "a": first["a"]})


def test_the_dtype_is_said() -> None:
    assert str(layer_digest(layers())).startswith("float32:")
    assert str(layer_digest({n: m.bfloat16() for n, m in layers().items()})).startswith("bfloat16:")


def test_nothing_is_said_of_weights_that_are_not_there() -> None:
    assert layer_digest({"a": nn.Linear(4, 2, device="meta")}) is None
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    assert layer_digest({"a": packed}) is None


def test_the_head_is_left_out_of_the_base() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    head = dict(model[1].named_parameters())
    before = base_digest(model, head)
    nn.init.ones_(model[1].weight)
    assert base_digest(model, head) == before
    changed = copy.deepcopy(model)
    nn.init.ones_(changed[0].weight)
    assert base_digest(changed, dict(changed[1].named_parameters())) != before
