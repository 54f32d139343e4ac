"""Federated fine-tuning of language models with Fed-SB and its rivals.

    import fedsb
    result = fedsb.run(fedsb.RunConfig.from_yaml("recipe.yaml"), out="runs/one")
    result = fedsb.compare({...}, methods=["fed-sb", "fedit"], train=rows, test=0.1, out="runs/two")

Names are imported when first used, so that `import fedsb` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.adapter.attached import attach as attach
    from fedsb.adapter.attached import collect as collect
    from fedsb.adapter.attached import detach as detach
    from fedsb.adapter.attached import find_targets as find_targets
    from fedsb.adapter.attached import fold as fold
    from fedsb.adapter.attached import load as load
    from fedsb.adapter.attached import merge as merge
    from fedsb.adapter.bases import bases_from_update as bases_from_update
    from fedsb.adapter.bases import bases_from_weight as bases_from_weight
    from fedsb.adapter.bases import orthonormal_bases as orthonormal_bases
    from fedsb.adapter.update_estimate import estimate_update as estimate_update
    from fedsb.compare.comparison import compare as compare
    from fedsb.config import RunConfig as RunConfig
    from fedsb.methods import fed_sb as fed_sb
    from fedsb.methods import fedit as fedit
    from fedsb.runner import run as run

_HOME = {
    "RunConfig": "config",
    "attach": "adapter.attached",
    "bases_from_update": "adapter.bases",
    "bases_from_weight": "adapter.bases",
    "collect": "adapter.attached",
    "compare": "compare.comparison",
    "detach": "adapter.attached",
    "estimate_update": "adapter.update_estimate",
    "fed_sb": "methods.fed_sb",
    "fedit": "methods.fedit",
    "find_targets": "adapter.attached",
    "fold": "adapter.attached",
    "load": "adapter.attached",
    "merge": "adapter.attached",
    "orthonormal_bases": "adapter.bases",
    "run": "runner",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsb' has no attribute {name!r}")
    if name == "compare":  # a room, too, which can be called
        return import_module("fedsb.compare")
    return getattr(import_module(f"fedsb.{_HOME[name]}"), name)
