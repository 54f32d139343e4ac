"""How a class is named, whether a config lists it or a row holds it."""

import re

_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0")


def label_name(value: object) -> str:
    """1, 1.0 and "1.0" are "1"; true and "True" are "true"; all else is the text as it is, without outer
    blanks."""
    text = str(value).strip()
    if text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return text.removesuffix(".0") if _WHOLE.fullmatch(text) else text
