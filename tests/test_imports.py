"""What is imported when: a command that asks for help waits for no library that it does not use."""

import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "transformers", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "datasets"}
HEAVY |= {"peft", "jinja2", "flwr", "grpc", "opacus", "dp_accounting", "ray", "psutil"}
NEVER_IN_THE_QUICKSTART = {"datasets", "pandas", "pyarrow", "sklearn", "flwr", "grpc", "opacus"}
NEVER_IN_THE_QUICKSTART |= {"dp_accounting", "cryptography", "ray", "tensorboard", "nltk", "sacrebleu"}

COMMANDS = """
import sys
def loaded(names): return sorted(set(names) & set(sys.modules))
import fedsb
print("import", loaded(NAMES | {"typer", "rich", "pydantic"}))
from fedsb.cli import app
app.app(["version"], standalone_mode=False)
app.app(["deploy", "--help"], standalone_mode=False)
app.app(["--help"], standalone_mode=False)
print("commands", loaded(NAMES | {"pydantic"}))
"""

QUICKSTART = """
import sys
from pathlib import Path
def loaded(names): return sorted(set(names) & set(sys.modules))
import fedsb.runner.processes.worker
print("worker", loaded(NAMES | {"peft", "matplotlib", "jinja2", "rich"}))
from fedsb.cli.quickstart.recipe import quickstart_config
from fedsb.report.canvas import Plot
from fedsb.runner import folder, loop
few = ["federation.rounds=1", "data.limit.train=60", "data.limit.test=10", "method.init.samples=20"]
config = quickstart_config(Path(FOLDER), few)
real = folder.finish
def finish(*args):
    print("rounds", loaded(NAMES | {"peft", "matplotlib"}))
    return real(*args)
folder.finish, Plot.svg = finish, "<svg></svg>"
loop.run(config, Path(FOLDER))
print("run", loaded(NAMES))
"""


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.endswith("]") and "[" in line]


def test_importing_the_package_and_asking_for_help_import_no_large_library() -> None:
    code = COMMANDS.replace("NAMES", repr(HEAVY))
    assert [line for line in printed(code) if line[:6] in ("import", "comman")] == [
        "import []",
        "commands []",
    ]


def test_the_quickstart_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """A worker process neither: pages and adapters are the first process's work."""
    code = QUICKSTART.replace("NAMES", repr(NEVER_IN_THE_QUICKSTART)).replace("FOLDER", repr(str(tmp_path)))
    assert printed(code) == ["worker []", "rounds []", "run []"]
