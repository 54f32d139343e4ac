"""What a message's header may hold beside what a file may: less of everything."""

import math

import pytest

from fedsb.common.strict_json import HEADER_DEEPEST, HEADER_DIGITS, Unreadable, parse_json, strict_json

FILES_ALONE = {
    "deep": "[" * (HEADER_DEEPEST + 1) + "]" * (HEADER_DEEPEST + 1),
    "long number": "9" * (HEADER_DIGITS + 1),
    "a key twice": '{"a": 1, "a": 2}',
    "not finite": "[NaN, Infinity]",
}


@pytest.mark.parametrize("text", FILES_ALONE.values(), ids=FILES_ALONE)
def test_a_header_is_refused_that_a_file_may_hold(text: str) -> None:
    parse_json(text)
    with pytest.raises(Unreadable):
        strict_json(text, 100)


def test_what_is_within_both_bounds_is_the_same_value() -> None:
    text = (
        '{"a": [1, -2.5, null, true, "é"], "b": '
        + "[" * (HEADER_DEEPEST - 1)
        + "]" * (HEADER_DEEPEST - 1)
        + "}"
    )
    assert strict_json(text.encode(), 100) == strict_json(text, 100) == parse_json(text)
    assert strict_json("9" * HEADER_DIGITS, 100) == 10**HEADER_DIGITS - 1
    assert math.isnan(parse_json("NaN"))


def test_a_header_longer_than_may_be_is_not_read() -> None:
    with pytest.raises(Unreadable, match="3 bytes of header, 2 is the most"):
        strict_json("rub", 2)


@pytest.mark.parametrize("text", [b"\xff", b'{"a": 1', b"1e400", b"[" * 90], ids=repr)
def test_rubbish_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(text, 100)
