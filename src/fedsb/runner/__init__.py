"""A run: prepare, loop, folder, resume, score, export."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.runner.evaluate import evaluate_run as evaluate_run
    from fedsb.runner.export import export_lora as export_lora
    from fedsb.runner.export import export_merged as export_merged
    from fedsb.runner.loop import run as run
    from fedsb.runner.result import RunResult as RunResult

_HOME = {
    "RunResult": "result",
    "evaluate_run": "evaluate",
    "export_lora": "export",
    "export_merged": "export",
    "run": "loop",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsb.runner' has no attribute {name!r}")
    return getattr(import_module(f"fedsb.runner.{_HOME[name]}"), name)
