"""`fedsb report`: pages from what lies in folders, and their plots and tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli.common import out_console

Folders = Annotated[
    list[Path],
    typer.Argument(help="Run folders, several are set side by side; or the folder of a comparison."),
]


def report(
    folders: Folders,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file. Default: report.html in the folder, of several runs in this one."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write every plot and table as files of their own into this folder.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Formats of --figures: some of pdf,svg,png,csv,latex.")
    ] = "pdf,csv,latex",
) -> None:
    """Build the one-page HTML report from run folders, or that of a comparison.

    Examples: `fedsb report runs/quickstart` · `fedsb report runs/a runs/b --out both.html` ·
    `fedsb report runs/c --figures paper --format pdf,latex`
    """
    from fedsb.compare.page import write_comparison, write_comparison_figures
    from fedsb.report import write_figures, write_report
    from fedsb.report.paper import kinds_of

    kinds, compared = kinds_of(format_), _comparison_among(folders)
    if compared is not None:
        page = write_comparison(compared, out)
    else:
        page = write_report(folders, out or (folders[0] if len(folders) == 1 else Path()) / "report.html")
    out_console.print(f"wrote {page}", highlight=False, markup=False)
    if figures is not None:
        files = (
            write_figures(folders, figures, kinds)
            if compared is None
            else write_comparison_figures(compared, figures, kinds)
        )
        out_console.print(f"wrote {len(files)} files to {figures}", highlight=False, markup=False)


def _comparison_among(folders: list[Path]) -> Path | None:
    """The one folder, where it is a comparison's."""
    from fedsb.compare.folder import is_comparison
    from fedsb.errors import InputError

    compared = [folder for folder in folders if is_comparison(folder)]
    if compared and len(folders) > 1:
        raise InputError(f"{compared[0]}: a comparison has a page of its own; name it alone")
    return compared[0] if compared else None
