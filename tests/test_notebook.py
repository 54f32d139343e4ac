"""The notebook of the docs runs from its first cell to its last, as it stands, and shows no stale outputs."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "guides" / "from-python.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    programs = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell.get("outputs")]
    space = {"__name__": "notebook"}
    for number, program in enumerate(programs):
        exec(compile(program, f"cell {number}", "exec", dont_inherit=True), space)
    assert list(space["compared"].summary["method"]) == ["fed-sb", "fedit"]
    assert list(space["result"].history["round"]) == [0, 1]
    assert len(space["compared"].history) == 4
