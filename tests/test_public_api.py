"""The public names are written down, resolve, and cost nothing before they are used."""

import socket
import subprocess
import sys
from importlib import import_module

import pytest

import fedsb

HEAVY = ["torch", "transformers", "peft", "matplotlib", "datasets", "sklearn", "scipy", "numpy", "pandas"]


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running this."""
    listing = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("name", fedsb.__all__)
def test_every_public_name_resolves(name):
    value = getattr(fedsb, name)
    assert value.__module__.startswith("fedsb") or type(value).__module__.startswith("fedsb")


def test_the_public_names_are_these():
    """A change here is a change for others: say so in the release."""
    assert set(fedsb.__all__) >= {
        "RunConfig",
        "attach",
        "bases_from_update",
        "bases_from_weight",
        "collect",
        "compare",
        "detach",
        "estimate_update",
        "fed_sb",
        "fedit",
        "find_targets",
        "fold",
        "load",
        "merge",
        "orthonormal_bases",
        "run",
    }
    assert fedsb.__all__ == sorted(fedsb.__all__)


def test_the_names_for_type_checkers_are_the_same():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(fedsb.__file__).read_text(encoding="utf-8"))
    typed = next(n for n in tree.body if isinstance(n, ast.If))
    names = {(a.asname, i.module) for i in typed.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert {name for name, _ in names} == set(fedsb.__all__)
    for name, module in names:
        home = getattr(fedsb, name)
        assert getattr(import_module(module), name) is getattr(home, name, home)  # a room may be called, too


def test_a_comparison_is_one_name_for_the_function_and_its_room():
    code = (
        "from fedsb import compare; import fedsb.compare.config as config; import fedsb; "
        "assert fedsb.compare is compare and callable(compare) and compare.CompareConfig() == "
        "config.CompareConfig()"
    )
    assert loaded_by(code)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedsb.nothing


def test_importing_fedsb_loads_nothing_heavy():
    assert not loaded_by("import fedsb") & set(HEAVY)


def test_importing_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import fedsb.cli.app") & set(HEAVY)


def test_these_tests_cannot_reach_the_network():
    with pytest.raises(AssertionError, match="tests may not reach the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address reserved for documentation
