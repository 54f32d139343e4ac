"""Federated methods, one per file. Adding one: its file, one line here, a recipe, a test."""

from difflib import get_close_matches

from fedsb.errors import InputError
from fedsb.methods.fed_sb import fed_sb as fed_sb
from fedsb.methods.fedit import fedit as fedit
from fedsb.methods.mean import weighted_mean as weighted_mean
from fedsb.methods.method import Aggregation as Aggregation
from fedsb.methods.method import Method as Method

ALL: tuple[Method, ...] = (fed_sb, fedit)


def by_name(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: no such method; the message lists those that exist and the close ones.
    """
    methods = {method.name: method for method in ALL}
    if name not in methods:
        close = get_close_matches(name, methods, n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"method.name: expected one of {', '.join(methods)}, found {name!r}.{hint}")
    return methods[name]
