"""A package that is not ours, as a folder to put on PYTHONPATH: the guides' modules, and entry points."""

import re
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
WORKING = {"fedsb.methods": {"damped": "damped:method"}, "fedsb.tasks": {"keyword": "keyword_task:family"}}
Groups = dict[str, dict[str, str]]


def shown_in(guide: str) -> str:
    """The program that a guide shows."""
    (program,) = re.findall(r"```python\n(.*?)```", (GUIDES / f"{guide}.md").read_text(), re.DOTALL)
    return str(program)


def write_package(folder: Path, groups: Groups = WORKING, *, name: str = "toys", **modules: str) -> Path:
    """The folder with the package in it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    ours = {"damped": shown_in("adding-a-method"), "keyword_task": shown_in("adding-a-task")}
    for module, text in {**ours, **modules}.items():
        (folder / f"{module}.py").write_text(text)
    return folder
