"""Federated fine-tuning of language models with Fed-SB and its rivals.

    from fedsb import RunConfig, run
    result = run(RunConfig.from_yaml("recipe.yaml"), out="runs/one")

Names are imported when first used, so that `import fedsb` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.adapter import attach as attach
    from fedsb.adapter import collect as collect
    from fedsb.adapter import detach as detach
    from fedsb.adapter import find_targets as find_targets
    from fedsb.adapter import fold as fold
    from fedsb.adapter import load as load
    from fedsb.adapter import merge as merge
    from fedsb.bases import bases_from_update as bases_from_update
    from fedsb.bases import bases_from_weight as bases_from_weight
    from fedsb.bases import orthonormal_bases as orthonormal_bases
    from fedsb.config import RunConfig as RunConfig
    from fedsb.methods import fed_sb as fed_sb
    from fedsb.methods import fedit as fedit
    from fedsb.runner import run as run
    from fedsb.update_estimate import estimate_update as estimate_update

_HOME = {
    "RunConfig": "config",
    "attach": "adapter",
    "bases_from_update": "bases",
    "bases_from_weight": "bases",
    "collect": "adapter",
    "detach": "adapter",
    "estimate_update": "update_estimate",
    "fed_sb": "methods.fed_sb",
    "fedit": "methods.fedit",
    "find_targets": "adapter",
    "fold": "adapter",
    "load": "adapter",
    "merge": "adapter",
    "orthonormal_bases": "bases",
    "run": "runner",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsb' has no attribute {name!r}")
    return getattr(import_module(f"fedsb.{_HOME[name]}"), name)
