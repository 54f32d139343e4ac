"""A layout turns named tensors into one vector and back, and tells layouts apart."""

from hashlib import sha256

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsb.federation.exchange import Layout

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
named_shapes = st.dictionaries(st.text("abc.", min_size=1, max_size=5), shapes, max_size=5)


def tensors_of(named, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in named.items()}


@given(named=named_shapes)
def test_flattening_and_unflattening_is_a_round_trip(named):
    tensors = tensors_of(named)
    layout = Layout.of(tensors)
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.size,)
    assert layout.size == sum(t.numel() for t in tensors.values())
    back = layout.unflatten(vector)
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_the_vector_is_the_tensors_one_after_the_other_in_the_layouts_order():
    a, b = torch.arange(4.0).reshape(2, 2), torch.tensor([9.0])
    vector = Layout.of({"a": a, "b": b}).flatten({"b": b, "a": a})
    assert vector.tolist() == [0.0, 1.0, 2.0, 3.0, 9.0]


@given(named=named_shapes.filter(bool), data=st.data())
def test_the_digest_changes_with_a_name_a_shape_and_the_order(named, data):
    layout = Layout.of(tensors_of(named))
    assert layout.digest == Layout.of(tensors_of(named, seed=1)).digest  # not with the numbers
    assert len(layout.digest) == 16
    place = data.draw(st.integers(0, len(layout.entries) - 1))
    (name, shape), entries = layout.entries[place], list(layout.entries)
    for changed in [(name + "x", shape), (name, (*shape, 1)), (name, (2, *shape))]:
        other = Layout(tuple(changed if i == place else entry for i, entry in enumerate(entries)))
        assert other.digest != layout.digest
    if len(entries) > 1:
        assert Layout(tuple(reversed(entries))).digest != layout.digest


def test_the_digest_is_the_same_in_another_process():
    """Clients and server on different machines must agree, so it is a hash of plain text."""
    layout = Layout((("layer.R", (1, 2, 2)), ("head.bias", (3,))))
    text = '[["layer.R", [1, 2, 2]], ["head.bias", [3]]]'
    assert layout.digest == sha256(text.encode()).hexdigest()[:16]


def test_copying_into_parameters_keeps_their_type_and_flags():
    parameter = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16), requires_grad=True)
    layout = Layout.of({"p": parameter})
    layout.copy_into({"p": parameter}, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert parameter.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert parameter.dtype == torch.bfloat16
    assert parameter.is_leaf
    assert parameter.requires_grad


def test_other_keys_are_named():
    layout = Layout.of(tensors_of({"a": (2,), "b": (3,)}))
    for use in (layout.flatten, lambda t: layout.copy_into(t, torch.zeros(5))):
        with pytest.raises(ValueError, match=r"missing \['b'\], not expected \['c'\]"):
            use(tensors_of({"a": (2,), "c": (3,)}))


def test_other_shapes_are_named():
    layout = Layout.of(tensors_of({"a": (2, 3)}))
    with pytest.raises(ValueError, match=r"a: expected shape \(2, 3\), found \(3, 2\)"):
        layout.flatten(tensors_of({"a": (3, 2)}))


@pytest.mark.parametrize("length", [0, 5, 7])
def test_a_vector_of_another_length_is_refused(length):
    layout = Layout.of(tensors_of({"a": (2, 3)}))
    with pytest.raises(ValueError, match="expected a vector of 6 numbers"):
        layout.unflatten(torch.zeros(length))
