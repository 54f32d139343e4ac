"""Values by name: the package's own, those that a program registers, those that installed packages offer, and
those of files that the user names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from fedsb.errors import InputError

WITH = "FEDSB_WITH"
"""Environment variable with Python files, separated as in PATH, that register methods and tasks. A process
runs each once, when a name is looked up; processes that it starts do so too. No config can name one."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Values of one type. Entry points are imported when their name is asked for and not known, or for `all`.

    Args:
        group: of entry points; an entry point has the name of its value.
        kind: the type of the values.
        built_in: the package's values, whose names are taken.
    """

    def __init__(self, group: str, kind: type[T], built_in: Iterable[T]):
        self.group, self.kind = group, kind
        self._values = {value.name: value for value in built_in}

    @cached_property
    def _entries(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))

    def register(self, value: T) -> T:
        """Make the value known to this process, and give it back.

        Raises:
            InputError: it is of another type, or its name is taken.
        """
        if not isinstance(value, self.kind):
            raise InputError(f"{self.group}: expected a {self.kind.__name__}, found a {type(value).__name__}")
        if self._values.setdefault(value.name, value) is not value:
            raise InputError(f"{self.group}: the name {value.name} is taken; choose another")
        return value

    def names(self) -> list[str]:
        """All names; of packages nothing is imported."""
        run_files()
        return list(dict.fromkeys([*self._values, *(entry.name for entry in self._entries)]))

    def get(self, name: str) -> T | None:
        """The value of that name; None if there is none.

        Raises:
            InputError: a package offers it, and cannot be used; or the user's file cannot be run.
        """
        run_files()
        if name not in self._values:
            self._load(entry for entry in self._entries if entry.name == name)
        return self._values.get(name)

    def all(self) -> list[T]:
        """Every value.

        Raises:
            InputError: a package offers one that cannot be used; or the user's file cannot be run.
        """
        run_files()
        self._load(self._entries)
        return list(self._values.values())

    def _load(self, entries: Iterable[EntryPoint]) -> None:
        for entry in entries:
            try:
                name = self.register(entry.load()).name
            except Exception as error:
                raise InputError(f"{_whose(entry)}: {type(error).__name__}: {error}") from error
            if name != entry.name:
                raise InputError(f"{_whose(entry)}: its value is named {name}; give both one name")


def _whose(entry: EntryPoint) -> str:
    package = f"of the package {entry.dist.name} " if entry.dist else ""
    return f"the entry point {entry.name} = {entry.value} {package}in {entry.group} cannot be used"


def run_files() -> None:
    """Run the files that the environment names, those that were not run yet.

    Raises:
        InputError: one is missing, or fails.
    """
    for name in filter(None, os.environ.get(WITH, "").split(os.pathsep)):
        if name not in sys.modules and not _is_imported(name):
            _run_file(name)


def add_files(files: Sequence[Path]) -> None:
    """Have these files run, here and in processes that are started from here.

    Raises:
        InputError: as `run_files`.
    """
    names = [str(file.resolve()) for file in files]
    before = os.environ.get(WITH, "").split(os.pathsep)
    os.environ[WITH] = os.pathsep.join(dict.fromkeys(filter(None, [*before, *names])))
    run_files()


def _is_imported(name: str) -> bool:
    """Whether the program has imported the file by a name of its own."""
    return any(getattr(module, "__dict__", {}).get("__file__") == name for module in [*sys.modules.values()])


def _run_file(name: str) -> None:
    """The file as a module, called by its path."""
    spec = spec_from_file_location(name, name)
    if spec is None or spec.loader is None or not Path(name).is_file():
        raise InputError(f"--with: expected a Python file that registers methods, found {name}")
    sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"--with: {name} cannot be run: {type(error).__name__}: {error}") from error
