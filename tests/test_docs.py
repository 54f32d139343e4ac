"""The documentation: it builds without a warning, and every command and snippet in it runs.

`sh` blocks are run line by line, `fedsb` in this process; `python` blocks too, with names of their own;
blocks with a caption are written there; `yaml` blocks of the class keys are checked as parts of a config.
What needs another machine, a package index or a server is fenced as `console`, and listed here.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from chat_families import save_chat_model
from run_helpers import environment, main_status, tiny_llama

from fedsb.cli.quickstart import MODEL_DIR
from fedsb.config import RunConfig
from fedsb.methods import METHODS
from fedsb.report.canvas import Plot

pytestmark = pytest.mark.plots

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "tutorial",
    "method",
    *(f"guides/{n}" for n in ("data", "hospital", "chat", "model", "methods")),
    *(f"guides/{n}" for n in ("privacy", "secure-aggregation", "deployment", "report")),
]
PAGES += [
    "guides/serving",
    "guides/mixtures",
    "guides/sites",
    "guides/python",
    "guides/own-method",
    "guides/adding-a-method",
    "guides/adding-a-task",
    "reference/commands",
]
PAGES += ["reference/python"]
"""In the order in which they are run, in one folder: later pages look at the tutorial's run."""

NOT_RUN = {
    "tutorial": ["python3 -m venv .venv", "source .venv/bin/activate", "python serve.py", "curl -d"],
    "guides/methods": [*["fedsb reproduce "] * 3, *["fedsb run recipes/paper/"] * 2],
    "guides/own-method": ["fedsb compare recipes/compare/"],
    "guides/deployment": [
        "pip install",
        "fedsb deploy check",
        "fedsb privacy --ledger",
        "fedsb status hospitals/run",
    ],
    "guides/serving": [
        "vllm serve",
        "curl http://localhost:8000",
        "python convert_lora_to_gguf.py",
        "llama-server",
        "cat Modelfile",
        "ollama create",
        "ollama run",
        "pip install lm_eval",
        "lm_eval run",
    ],
    "guides/mixtures": ["vllm serve"],
}
"""Commands that need a package index, another machine, a running federation or a server: how they begin."""

SMALLER = {
    "fedsb run": "-s federation.rounds=1 -s data.limit.train=80 -s data.limit.test=40 -s training.epochs=1",
    "fedsb compare": "-s federation.rounds=1 -s data.limit.train=60 -s data.limit.test=40 "
    "-s training.epochs=1 -s method.rank=8 -s compare.learning_rates=0.005",
}
SMALLER_START = "-s method.init.samples=40 -s method.init.head_warmup.steps=5"
"""What is added to these commands where they run on the quickstart, so that this takes seconds."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its directive's options, its text."""

    page: str
    line: int
    kind: str
    options: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"docs/{self.page}.md:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\{[\w-]+\} *)?([\w-]*)\n(.*?)^```$", text, re.M | re.S):
        directive, kind, body = found[1], found[2], found[3]
        options = dict(re.findall(r"^:([\w-]+): *(.*)$", body, re.M)) if directive else {}
        code = re.sub(r"\A(:[\w-]+:.*\n)+\n?", "", body) if directive else body
        line = text[: found.start()].count("\n") + 1
        yield (
            Block(page, line, kind, options, code)
            if not directive or "code" in directive
            else Block(page, line, "", {}, "")
        )


def commands(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages are run: the models they name on the hub are folders of the same name here."""
    shutil.copytree(MODEL_DIR, tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    tiny_llama(tmp_path / "HuggingFaceTB" / "SmolLM2-135M")
    save_chat_model(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct", "qwen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # programs of one page that another imports
    monkeypatch.setenv("FEDSB_WITH", "")
    monkeypatch.setattr(METHODS, "_values", dict(METHODS._values))
    return tmp_path


def run_command(monkeypatch: pytest.MonkeyPatch, line: str, where: str) -> None:
    words = shlex.split(line)
    if words[0] != "fedsb":
        done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
        return
    quickstart = words == ["fedsb", "run"] or any("runs/quickstart/config.yaml" in word for word in words)
    more = shlex.split(SMALLER.get(" ".join(words[:2]), "")) if quickstart else []
    if more and "method.init.kind=weights" not in words:
        more += shlex.split(SMALLER_START)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("Good morning\n"))  # of those that talk
        if words[1] != "report":  # which draws the pages of runs again
            patch.setattr(Plot, "svg", "<svg></svg>")
        assert main_status(patch, *words[1:], *more) == 0, f"{where}: {line}"


def run_program(block: Block) -> None:
    """In this process, where torch is imported already, with names of its own."""
    try:
        exec(compile(block.text, str(block), "exec", dont_inherit=True), {"__name__": "snippet"})
    except Exception as error:
        pytest.fail(f"{block}: {type(error).__name__}: {error}")


def check_keys(block: Block) -> None:
    """Each line of such a block is a section of its own, on top of a config that is whole."""
    config = yaml.safe_load(Path("letters.yaml").read_text())
    for line in block.text.splitlines():
        section = yaml.safe_load(line)
        RunConfig.from_dict(config | section, source=str(block))


def run_block(monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    if caption := block.options.get("caption"):
        Path(caption).write_text(block.text)
    elif block.kind == "sh":
        for line in commands(block):
            run_command(monkeypatch, line, str(block))
    elif block.kind == "python":
        run_program(block)
    elif block.options.get("class") == "keys":
        check_keys(block)
    else:
        assert block.kind in ("console", ""), f"{block}: a {block.kind} block that nothing checks"


@pytest.mark.slow
def test_every_command_and_snippet_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in PAGES:
        for block in blocks(page):
            run_block(monkeypatch, block)
    compile(Path("serve.py").read_text(), "serve.py", "exec")
    for name in ("serve_experts", "load_mixture", "elected_sign"):
        del sys.modules[name]
    assert json.loads(Path("served/adapter_config.json").read_text())["r"] == 8


def test_every_page_is_run_and_what_is_not_run_is_listed() -> None:
    found = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    without = {page for page in found if not any(b.kind for b in blocks(page))}
    assert found - without == set(PAGES)
    shown = {page: [c for b in blocks(page) if b.kind == "console" for c in commands(b)] for page in PAGES}
    prompts = {page: [c[2:] for c in lines if c.startswith("$ ")] for page, lines in shown.items()}
    for page, lines in prompts.items():
        beginnings = NOT_RUN.get(page, [])
        assert len(lines) == len(beginnings), page
        assert all(line.startswith(start) for line, start in zip(lines, beginnings, strict=True)), page


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("furo") is None, reason="needs the extra fedsb[docs]")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "method.html").read_text()
    assert "<math" in page
    assert "mathjax.js" not in page.lower()
    for file in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', file.read_text())
        assert not loaded, file.name


def test_links_between_files_of_the_repository_hold() -> None:
    for path in DOCS.rglob("*.md"):
        for name in re.findall(r"`((?:src|tests|recipes|scripts)/[\w./-]+)`", path.read_text()):
            assert (DOCS.parent / name).exists() or "NAME" in name, f"{path.name}: {name}"
