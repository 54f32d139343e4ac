"""The prose is short, its links and paths lead somewhere, and its rooms are the packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layering import ORDER

ROOT = Path(__file__).parents[1]
PROSE = sorted(
    [ROOT / f"{name}.md" for name in ("README", "LOG", "DECISIONS", "PITFALLS", "CONTRIBUTING", "SECURITY")]
    + [*(ROOT / "log").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
FOLDERS = ("", "src/fedsb", "docs")
"""Where a path in backticks may begin."""
FILE = re.compile(
    r"(?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|css|svg)|(?:benchmarks|examples|scripts|studies)/[\w.-]+|\.ci/run"
)
WRITTEN = ("hospitals/", "server/", "runs/")
"""In folders that a command makes."""


def text_of(path: Path) -> str:
    """Without fenced blocks, in which nothing is a link."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if not re.match(r"https?:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("name", "lines"), [("README", 150), ("LOG", 120)])
def test_what_is_read_first_is_short(name: str, lines: int) -> None:
    assert len((ROOT / f"{name}.md").read_text(encoding="utf-8").splitlines()) <= lines


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in links(path):
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal), target


def named_files(path: Path) -> Iterator[str]:
    """Paths in backticks, also amid a command."""
    for words in re.findall(r"`([^`]+)`", text_of(path)):
        yield from (w for w in words.split() if FILE.fullmatch(w) and not re.search(r"NAME|TASK|X\.", w))


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    for name in named_files(path):
        if not name.startswith(WRITTEN):
            assert any((ROOT / folder / name).exists() for folder in FOLDERS), name


def test_the_search_finds_paths_and_links() -> None:
    assert "adapter/layer.py" in set(named_files(ROOT / "PITFALLS.md"))
    assert "studies/bases_overlap.py" in set(named_files(ROOT / "docs" / "guides" / "privacy.md"))
    assert "docs/security.md" in set(links(ROOT / "README.md"))
    assert "which-clip-norm" in anchors(ROOT / "log" / "privacy-sst2.md")


def test_the_rooms_of_the_readme_are_the_packages_in_their_order() -> None:
    rows = (ROOT / "README.md").read_text(encoding="utf-8").split("## The rooms")[1].split("\n\n")[2]
    rooms = re.findall(r"^\| `(\w+)` \|", rows, re.M)
    assert ["errors", *reversed(rooms)] == ORDER


def test_decisions_are_numbered_once_and_all_in_the_index() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.M)]
    index = re.sub(r"\(.*?\)", "", text.split("## 1.")[0])
    assert numbers == list(range(1, len(numbers) + 1))
    assert {int(n) for n in re.findall(r"\d+", index)} == set(numbers)
