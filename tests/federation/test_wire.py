"""A message comes out as it went in, costs 4 bytes per number, and anything else is refused."""

import io
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedsb.errors import UpdateRejected
from fedsb.federation.wire import FORMAT, Header, Overflow, check, count, header_of, pack, unpack

HEADER = Header("fed-sb", 3, "0123456789abcdef", 4, num_examples=120, train_loss=0.75)


def accept(message: bytes, *, expected: Header = HEADER, size: int = 6) -> torch.Tensor:
    header, vector = unpack(message)
    check(header, vector, expected=expected, size=size)
    return vector


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    number=st.integers(1, 10**6),
    client=st.none() | st.integers(0, 10**6),
    loss=st.none() | st.floats(-1e12, 1e12),
    name=st.text(max_size=20),
    base=st.none() | st.integers(0, 10**6),
)
def test_a_message_comes_out_as_it_went_in(values, number, client, loss, name, base):
    header = Header(name, number, "d" * 16, client, num_examples=number, train_loss=loss, base=base)
    vector = torch.tensor(values, dtype=torch.float32)
    found, numbers = unpack(pack(header, vector))
    assert found == header
    assert torch.equal(numbers, vector)
    check(found, numbers, expected=header, size=len(values))


@given(size=st.integers(0, 300), client=st.none() | st.integers(0, 10**6))
def test_a_message_says_how_many_numbers_it_carries_without_being_read(size, client):
    message = pack(replace(HEADER, client=client), torch.zeros(size))
    assert count(message) == size


@pytest.mark.parametrize("base", [-1, 1.5, "1", True, [1], 2**60])
def test_a_base_rank_that_is_no_count_is_refused(base):
    fields = {"method": "fed-sb", "round": 3, "layout": HEADER.layout, "base": base}
    with pytest.raises(UpdateRejected, match="wrong base: expected a count"):
        unpack(save({"v": torch.zeros(6)}, metadata={FORMAT: json.dumps(fields)}))


def test_the_overhead_is_under_one_per_cent_for_50000_numbers():
    vector = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    assert 4 * 50_000 <= len(pack(HEADER, vector)) <= 1.01 * 4 * 50_000


def test_a_message_is_plain_safetensors_and_never_a_pickle():
    message = pack(HEADER, torch.arange(6.0))
    assert torch.equal(load(message)["v"], torch.arange(6.0))
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(message)  # noqa: S301


def test_a_pickle_is_refused_without_being_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    whole_archive = io.BytesIO()
    torch.save({"v": torch.zeros(6)}, whole_archive)
    for message in (pickle.dumps(Trap()), whole_archive.getvalue()):
        with pytest.raises(UpdateRejected):
            unpack(message)
    assert not (tmp_path / "ran").exists()


def test_other_types_and_strided_vectors_are_sent_as_fp32():
    wide = torch.arange(12.0, dtype=torch.float64)[::2]
    _, vector = unpack(pack(HEADER, wide))
    assert vector.dtype == torch.float32
    assert vector.tolist() == wide.tolist()


SHORT = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", SHORT)
@given(values=st.lists(st.floats(-6e4, 6e4, width=32), max_size=40))
def test_16_bits_cost_half_and_are_the_nearest_numbers_of_that_type(dtype, values):
    vector = torch.tensor(values, dtype=torch.float32)
    message = pack(HEADER, vector, dtype)
    header, found = unpack(message, dtype)
    assert header == HEADER == header_of(message)
    assert found.dtype == torch.float32
    assert torch.equal(found, vector.to(dtype).float())
    assert len(message) - len(pack(HEADER, vector[:0])) in range(2 * len(values), 2 * len(values) + 9)


@pytest.mark.parametrize("dtype", SHORT)
def test_a_number_too_large_for_its_type_is_an_error_with_the_reason(dtype):
    vector = torch.tensor([1.0, -3.402e38, 7e4 if dtype == torch.float16 else 1.0])
    count = 2 if dtype == torch.float16 else 1
    with pytest.raises(Overflow, match=rf"{count} of 3 numbers are too large for .*: up to 3.4e\+38"):
        pack(HEADER, vector, dtype)


def test_what_was_not_finite_before_is_for_the_receiver_to_name():
    header, vector = unpack(pack(HEADER, torch.tensor([float("nan")] * 6), torch.float16), torch.float16)
    with pytest.raises(UpdateRejected, match="not finite: 6 of 6"):
        check(header, vector, expected=HEADER, size=6)


@pytest.mark.parametrize(("sent", "wanted"), [
    (torch.float32, torch.float16), (torch.float16, torch.float32), (torch.float16, torch.bfloat16),
])  # fmt: skip
def test_another_type_than_agreed_is_refused(sent, wanted):
    name = str(wanted).removeprefix("torch.")
    with pytest.raises(UpdateRejected, match=f"one {name} vector and no more"):
        unpack(pack(HEADER, torch.zeros(6), sent), wanted)


# ---------------------------------------------------------------- refused


@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(UpdateRejected, match="not a fedsb-1 message"):
        unpack(garbage)


@given(cut=st.integers(0, 10_000))
def test_a_cut_off_message_is_refused(cut):
    message = pack(HEADER, torch.arange(6.0))
    with pytest.raises(UpdateRejected):
        unpack(message[: cut % len(message)])


@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_message_with_one_byte_changed_is_refused_or_differs_in_its_numbers_alone(place, value):
    """Nothing but UpdateRejected comes out of reading it."""
    message = bytearray(pack(HEADER, torch.arange(6.0)))
    message[place % len(message)] = value
    try:
        vector = accept(bytes(message))
    except UpdateRejected:
        return
    assert vector.shape == (6,)
    assert torch.isfinite(vector).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_and_counted(bad):
    vector = torch.zeros(6)
    vector[1] = vector[4] = bad
    with pytest.raises(UpdateRejected, match="not finite: 2 of 6 numbers"):
        accept(pack(HEADER, vector))


@pytest.mark.parametrize(
    "change", [{"method": "other"}, {"round": 2}, {"layout": "f" * 16}, {"client": 5}, {"client": None}]
)
def test_a_message_of_another_method_round_layout_or_client_is_refused(change):
    (name,) = change
    with pytest.raises(UpdateRejected, match=f"wrong {name}: expected"):
        accept(pack(replace(HEADER, **change), torch.zeros(6)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(5),
        torch.zeros(7),
        torch.zeros(2, 3),
        torch.zeros(0),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.bfloat16),
        torch.zeros(6, dtype=torch.int32),
    ],
    ids=lambda t: f"{tuple(t.shape)}-{t.dtype}",
)
def test_another_shape_or_type_is_refused(tensor):
    metadata = {FORMAT: json.dumps({"method": "fed-sb", "round": 3, "layout": HEADER.layout, "client": 4})}
    with pytest.raises(UpdateRejected, match=r"expected (6|one) float32 (numbers|vector)"):
        accept(save({"v": tensor}, metadata=metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "{}"},
        {FORMAT: "not json"},
        {FORMAT: "[1, 2]"},
        {FORMAT: "3"},
        {FORMAT: "{}"},
        {FORMAT: '{"method": "fed-sb", "round": 1, "layout": "x", "unknown": 1}'},
    ],
)
def test_a_header_that_is_not_ours_is_refused(metadata):
    with pytest.raises(UpdateRejected, match="not a fedsb-1 message"):
        unpack(save({"v": torch.zeros(6)}, metadata=metadata))


def test_a_message_without_its_vector_is_refused():
    with pytest.raises(UpdateRejected):
        unpack(save({"w": torch.zeros(6)}, metadata={FORMAT: "{}"}))


def test_a_deeply_nested_header_is_refused():
    with pytest.raises(UpdateRejected):
        unpack(save({"v": torch.zeros(6)}, metadata={FORMAT: "[" * 100_000}))


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 4])
def test_bytes_after_the_numbers_are_refused(extra):
    with pytest.raises(UpdateRejected, match="one float32 vector and no more"):
        unpack(pack(HEADER, torch.arange(6.0)) + extra)


def test_two_vectors_are_refused():
    metadata = {FORMAT: json.dumps({"method": "fed-sb", "round": 3, "layout": HEADER.layout})}
    with pytest.raises(UpdateRejected, match="one float32 vector and no more"):
        unpack(save({"v": torch.zeros(6), "w": torch.zeros(1)}, metadata=metadata))


def test_reading_copies_nothing():
    message = pack(HEADER, torch.arange(6.0))
    assert unpack(message)[1].data_ptr() == unpack(message)[1].data_ptr()
