"""One self-contained HTML page from one or several run folders; what a terminal shows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsb.report.write import write_figures as write_figures
    from fedsb.report.write import write_report as write_report

__all__ = ["write_figures", "write_report"]


def __getattr__(name: str) -> Any:
    """Imported when first used: a page takes a template engine, a terminal does not."""
    if name not in __all__:
        raise AttributeError(f"module 'fedsb.report' has no attribute {name!r}")
    return getattr(import_module("fedsb.report.write"), name)
