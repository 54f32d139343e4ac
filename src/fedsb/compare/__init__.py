"""Methods times seeds on one config: same data, partition, batches and budget; rates chosen on held-out
training rows. `config` -> `arms` -> `inputs` (checks) -> `tuning` -> `execute` -> `results` -> page.

    import fedsb
    result = fedsb.compare(config, methods=["fed-sb", "fedit"], seeds=[0, 1, 2], out="runs/compared")

The package itself can be called: what else it has is `fedsb.compare.NAME`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.compare.comparison import Comparison as Comparison
    from fedsb.compare.comparison import compare as compare
    from fedsb.compare.config import CompareConfig as CompareConfig

_HOME = {"CompareConfig": "config", "Comparison": "comparison", "compare": "comparison"}

__all__ = ["CompareConfig", "Comparison", "compare"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsb.compare' has no attribute {name!r}")
    return getattr(import_module(f"fedsb.compare.{_HOME[name]}"), name)


class _Callable(ModuleType):
    """The package as the function `compare`: `fedsb.compare` is one name for both, whatever was imported."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return __getattr__("compare")(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
