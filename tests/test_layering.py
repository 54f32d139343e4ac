"""Imports only go down, randomness has one door, nothing is pickled, and no loop knows a method by name."""

import ast
import sys
from pathlib import Path

import pytest

import fedsb
from fedsb.methods import ALL

ROOT = Path(fedsb.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
PURE = {
    "adapter",
    "attached",
    "bases",
    "dropout",
    "errors",
    "exchange",
    "layout",
    "linear",
    "moments",
    "norm_bound",
    "partition",
    "sampling",
    "schedule",
    "seeding",
    "sketch",
    "traffic",
    "update_estimate",
    "wire",
    "compare.pareto",
    "evaluation.choices",
    "evaluation.cider",
    "evaluation.gsm8k",
    "evaluation.intervals",
    "evaluation.mathematics",
    "evaluation.nist",
    "evaluation.text_scores",
} | {name for name in FILES if name.split(".")[0] in ("methods", "privacy")} - {
    "privacy.dp_sgd",
    "privacy.ledger",
    "privacy.guard",
}
COMPOSE = {
    "privacy.dp_sgd",
    "client",
    "contribution",
    "contributions",
    "fixed_shape",
    "gradient_start",
    "head",
    "initialize",
    "noised_sums",
    "refresh",
    "server",
    "simulate",
    "trainable",
}
LIBRARIES = {"torch", "numpy", "safetensors", "jaxtyping"}
LAZY_LIBRARIES = {
    "bitsandbytes",
    "cryptography",
    "dp_accounting",
    "nltk",
    "opacus",
    "rouge_score",
    "sacrebleu",
    "scipy",
}
"""Allowed inside a function of a pure module."""


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


def test_the_module_lists_are_of_files_that_exist():
    assert set(FILES) >= PURE | COMPOSE


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_pure_modules_and_number_libraries(name):
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
def test_compose_modules_import_pure_and_compose_modules(name):
    ours, others = split_imports(name)
    assert ours <= PURE | COMPOSE
    assert others <= LIBRARIES | LAZY_LIBRARIES
    only_lazily = {i.split(".")[0] for i in inside_functions(tree_of(name))}
    assert others & LAZY_LIBRARIES <= only_lazily


@pytest.mark.parametrize("name", sorted(PURE | COMPOSE))
def test_pure_and_compose_modules_touch_no_file_and_no_environment(name):
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
    assert not dotted & {"torch.load", "torch.save"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"seeding"}))
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
"""What these share (the mean, stacks, ...) is no method and may be used by anyone."""


LOOPS = (COMPOSE - {"head"}) | {"exchange", "runner", "prepare_base", "prepare_data", "settings"}
COMPARE = {name for name in FILES if name.split(".")[0] == "compare"}


@pytest.mark.parametrize("name", sorted(LOOPS | COMPARE))
def test_no_loop_knows_a_method_by_name(name):
    tree = tree_of(name)
    assert set(FILES) >= METHOD_FILES
    assert not literals(tree) & {method.name for method in ALL}
    ours, _ = split_imports(name)
    assert not ours & METHOD_FILES
    taken = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert not taken & {file.removeprefix("methods.") for file in METHOD_FILES}


def test_the_checks_above_see_what_they_look_for():
    """The readers themselves, on code that breaks the rules."""
    tree = ast.parse(
        "import pickle\nfrom fedsb import wire\nfrom fedsb.client import train\n"
        "def f():\n    '''fed-sb in a docstring'''\n    import bitsandbytes\n    return 'fedit'\n"
    )
    assert imports(tree) == {"pickle", "fedsb.wire", "fedsb.client", "bitsandbytes"}
    assert inside_functions(tree) == {"bitsandbytes"}
    assert literals(tree) == {"fedit"}
