"""Which files a source names: one, those of a folder, or those that fit a pattern; or none, on the hub."""

import difflib
import glob
import os
import re
from pathlib import Path

from fedsb.errors import InputError
from fedsb.tasks.rows.cells import listed

_TEXT, _TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv"), (".parquet", ".arrow", ".feather")
_KNOWN = (*_TEXT, *(f"{name}.gz" for name in _TEXT), *_TABLES)
EXTENSIONS = f"{', '.join(_TEXT)} (or these with .gz), {', '.join(_TABLES)}"
HUB_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[^@:/]+))?(?:@(?P<split>[^@/]+))?", re.ASCII
)
HUB_FORM = "owner/name, owner/name:config or owner/name:config@split"
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|val|valid|validation|dev|eval|heldout|holdout)(?:[^a-z]|$)")


def files_of(source: str) -> list[Path] | None:
    """The files that a source names, in sorted order; None where it names a hub data set.

    Raises:
        InputError: there is no such file, or it is not clear which of a folder's files are meant.
    """
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_in(path, source)
    if any(mark in source for mark in "*?["):
        return _matching(path, source)
    if _looks_local(path) or not HUB_ID.fullmatch(source):
        raise InputError(_not_found(path, source))
    return None


def is_rows_file(path: Path) -> bool:
    """Whether this is a file whose ending says that it holds rows."""
    return path.is_file() and extension(path) in _KNOWN


def extension(path: Path) -> str:
    """The ending that says how a file is read, in lower case."""
    name = path.name.lower()
    return next((known for known in _KNOWN if name.endswith(known)), path.suffix.lower())


def _matching(path: Path, source: str) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [
        file for match in matches for file in (_files_in(match, str(match)) if match.is_dir() else [match])
    ]
    if not files:
        raise InputError(f"{source}: no file matches this pattern; fix it, or list the files")
    return files


def _files_in(folder: Path, source: str) -> list[Path]:
    """A folder's files, where they are plainly parts of one whole: one format, and not train beside test."""
    inside = sorted(filter(is_rows_file, folder.iterdir()))
    if not inside:
        raise InputError(
            f"{source}: expected a folder with files that end in {EXTENSIONS}, found none directly in it; "
            f"name a file, or a pattern such as {source}/*/notes.csv; a folder of images has a subfolder for "
            "each label"
        )
    splits = {tuple(_SPLIT.findall(file.name.lower())) for file in inside}
    if len({extension(file) for file in inside}) > 1 or len(splits) > 1:
        raise InputError(
            f"{source}: a folder with {listed([file.name for file in inside])}, and which of them are meant "
            f"is not clear; list them, or give a pattern such as {source}/*{extension(inside[0])}"
        )
    return inside


def _looks_local(path: Path) -> bool:
    return extension(path) in _KNOWN or (path.parent.is_dir() and (bool(path.suffix) or bool(_similar(path))))


def _not_found(path: Path, source: str) -> str:
    if not path.parent.is_dir():
        where = f"the folder {str(path.parent)!r} does not exist"
    elif similar := _similar(path):
        where = f"the folder has {listed(similar)}"
    else:
        where = "nothing there has a similar name"
    return f"{source}: no such file; {where}. Give a file ({EXTENSIONS}) or a hub data set ({HUB_FORM})"


def _similar(path: Path) -> list[str]:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    same_stem = [name for name in names if name.split(".")[0] == path.name.split(".")[0]]
    close = difflib.get_close_matches(path.name, names, n=3)
    return list(dict.fromkeys(close + sorted(same_stem)))[:3]
