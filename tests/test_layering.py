"""Rooms import rooms below them, randomness has one door, nothing is pickled, and one room names methods."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

import fedsb
from fedsb.methods import ALL

ROOT = Path(fedsb.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
ORDER = [
    "errors",
    "common",
    "adapter",
    "methods",
    "models",
    "report",
    "privacy",
    "config",
    "tasks",
    "federation",
    "runner",
    "deploy",
    "compare",
    "cli",
]
"""From the ground up. The package's own `__init__` and `__main__` stand above all."""
LONGEST = 9
EDGE = {f"privacy.{name}" for name in ("account", "data_ledger", "ledger", "lines")} | {"methods"}
"""Files in pure rooms that touch the disk: `methods/__init__.py` looks up installed methods."""


def room(name: str) -> str:
    return name.split(".")[0]


PURE = {name for name in FILES if room(name) in ("adapter", "methods", "privacy")} - EDGE
PURE |= {"errors", "common.printable", "common.seeding", "common.strict_json"}
PURE |= {"models.head", "models.limits", "tasks.choices", "tasks.intervals", "tasks.task", "tasks.totals"}
PURE |= {f"tasks.scoring.{name}" for name in ("answer_text", "gsm8k", "mathematics", "multiple_choice")}
PURE |= {"tasks.chat", "tasks.chat.refusal", "tasks.cuts", "tasks.scoring.texts"}
COMPOSE = {name for name in FILES if room(name) == "federation"}
LIBRARIES = {"torch", "numpy", "safetensors", "jaxtyping"}
LAZY_LIBRARIES = {"bitsandbytes", "cryptography", "dp_accounting", "nltk", "opacus", "rouge_score"}
LAZY_LIBRARIES |= {"sacrebleu", "scipy"}
"""Allowed inside a function of a pure or composing file."""


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all modules that this code imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            whole = node.module or ""
            found |= {
                f"{whole}.{a.name}" if f"{whole}.{a.name}".removeprefix("fedsb.") in FILES else whole
                for a in node.names
            }
    return found


def inside_functions(tree: ast.AST) -> set[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name for function in functions for name in imports(function)}


def split_imports(name: str) -> tuple[set[str], set[str]]:
    """(fedsb modules, top-level names of other packages outside the standard library)."""
    found = imports(tree_of(name))
    ours = {i.removeprefix("fedsb.") for i in found if i.split(".")[0] == "fedsb"}
    others = {i.split(".")[0] for i in found} - {"fedsb"} - set(sys.stdlib_module_names)
    return ours, others


@cache
def arrows() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import."""
    found: dict[str, set[str]] = {place: set() for place in ORDER}
    for name in set(FILES) - {"fedsb", "", "__init__", "__main__"}:
        found[room(name)] |= {room(ours) for ours in split_imports(name)[0]} - {room(name)}
    return found


def floors(of: str, found: dict[str, set[str]]) -> int:
    return 1 + max((floors(below, found) for below in found[of]), default=0)


def test_the_rooms_are_the_folders():
    places = {path.stem for path in ROOT.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert places - {"__init__", "__main__"} == set(ORDER)
    assert len(places | {"py.typed"}) <= 17


def test_the_lists_are_of_files_that_exist():
    assert set(FILES) >= PURE | EDGE | PARTS | METHOD_FILES


@pytest.mark.parametrize("place", ORDER)
def test_a_room_imports_only_rooms_below_it(place):
    assert not {other for other in arrows()[place] if ORDER.index(other) > ORDER.index(place)}


def test_no_chain_of_imports_between_rooms_is_long():
    found = arrows()
    assert max(floors(place, found) for place in ORDER) <= LONGEST


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_files_import_pure_files_and_number_libraries(name):
    ours, others = split_imports(name)
    assert ours <= PURE
    assert others <= LIBRARIES | LAZY_LIBRARIES
    only_lazily = {i.split(".")[0] for i in inside_functions(tree_of(name))}
    assert others & LAZY_LIBRARIES <= only_lazily


PARTS = {"privacy.noise", "privacy.sampling", "privacy.clipping", "privacy.per_example", "privacy.accounting"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_parts_of_privacy_do_not_know_each_other(name):
    assert not {i for i in split_imports(name)[0] if i.startswith("privacy")} - {"privacy.keystream"}


@pytest.mark.parametrize("name", sorted(COMPOSE))
def test_the_federation_imports_pure_rooms_and_itself(name):
    ours, others = split_imports(name)
    assert ours <= PURE | COMPOSE
    assert others <= LIBRARIES | LAZY_LIBRARIES
    only_lazily = {i.split(".")[0] for i in inside_functions(tree_of(name))}
    assert others & LAZY_LIBRARIES <= only_lazily


@pytest.mark.parametrize("name", sorted(PURE | COMPOSE))
def test_pure_rooms_and_the_federation_touch_no_file_and_no_environment(name):
    found = imports(tree_of(name))
    assert not {i.split(".")[0] for i in found} & {
        "os",
        "pathlib",
        "shutil",
        "socket",
        "subprocess",
        "tempfile",
    }
    calls = [n for n in ast.walk(tree_of(name)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert not {call.func.id for call in calls} & {"open", "print", "input", "eval", "exec"}


OPENS_PICKLES = "models.peft_weights"
"""Of older adapters, and of tensors alone."""


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_pickled_and_nothing_star_imported(name):
    tree = tree_of(name)
    assert not {i.split(".")[0] for i in imports(tree)} & {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
    }
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.alias) and n.name == "*"]
    dotted = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    if name == OPENS_PICKLES:
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
        assert all("weights_only=True" in ast.unparse(call) for call in calls)
        dotted.discard("torch.load")
    assert not dotted & {"torch.load", "torch.save"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"common.seeding"}))
def test_only_seeding_seeds(name):
    tree = tree_of(name)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    used |= {n.name for n in ast.walk(tree) if isinstance(n, ast.alias)}
    assert not used & {"manual_seed", "manual_seed_all", "set_seed", "seed_everything"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_global_generator_of_numpy_or_the_standard_library_is_used(name):
    for node in ast.walk(tree_of(name)):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        if text.startswith(("np.random.", "numpy.random.")):
            assert text.split(".")[2] in {"Generator", "default_rng", "Philox", "SeedSequence"}, text
        if text.startswith("random."):
            assert text.split(".")[1] in {"Random"}, text


def literals(tree: ast.Module) -> set[str]:
    """String constants that are not docstrings."""
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
    return {n.value for n in constants if isinstance(n.value, str)}


METHOD_FILES = {f"methods.{method.name.replace('-', '_')}" for method in ALL}
"""What these share (`methods.averaging`) is no method and may be used by anyone."""
MAY_KNOW = {
    "__init__",  # the package's public names
    "config.sections.method",  # the default; methods need torch, a config must not
    "cli.quickstart.recipe",  # the text of a recipe
}
NAMES = {method.name for method in ALL} | {method.name.replace("-", "_") for method in ALL}
A_NAME = re.compile(rf"(?<![\w-])({'|'.join(sorted(NAMES))})(?![\w-])")
"""Only the command line's docstrings, which are its help, give examples with names."""


@pytest.mark.parametrize("name", sorted(n for n in FILES if room(n) != "methods" and n not in MAY_KNOW))
def test_no_file_outside_methods_knows_a_method_by_name(name):
    tree = tree_of(name)
    assert not [text for text in literals(tree) if A_NAME.search(text)]
    ours, _ = split_imports(name)
    assert not ours & METHOD_FILES
    taken = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert not taken & {file.removeprefix("methods.") for file in METHOD_FILES}


def test_the_checks_above_see_what_they_look_for():
    """The readers themselves, on code that breaks the rules."""
    tree = ast.parse(
        "import pickle\nfrom fedsb.federation import wire\nfrom fedsb.federation.client import train\n"
        "def f():\n    '''fed-sb in a docstring'''\n    import bitsandbytes\n    return 'fedit'\n"
    )
    assert imports(tree) == {"pickle", "fedsb.federation.wire", "fedsb.federation.client", "bitsandbytes"}
    assert inside_functions(tree) == {"bitsandbytes"}
    assert literals(tree) == {"fedit"}
    for text in ("fedit", "take fed-sb, or", "fed_sb:200", "methods.fed_sb"):
        assert A_NAME.search(text), text
    for text in ("FedIT", "fed-sbx", "unfedit", "FLoRA's clients"):
        assert not A_NAME.search(text), text
