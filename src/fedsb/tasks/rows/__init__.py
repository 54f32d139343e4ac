"""Rows from files or the hub, and checked access to their columns.

A row is a dict from column name to value. Every way the input can be wrong ends in one `InputError` that
names the file, and the line or row where there is one (both counted from 1), and shows no cell.

    .jsonl .ndjson       one object per line; blank lines are skipped
    .json                an array of objects, {"data": [objects]}, or one object per line
    .csv .tsv            header line, then cells of text; see `delimited` and `encodings` beside this file
    .parquet             also .arrow and .feather
    folder/label/x.png   images, each label in a folder of its own; see `fedsb.tasks.rows.image_folder`
    owner/name           a data set of the hub; also owner/name:config, owner/name:config@split

Text files also with .gz. Several files make one source: a list, a folder, or a pattern such as
`site-*/notes.csv`, the last two in sorted order; tables among them have the same columns. Importing this is
cheap: pyarrow and datasets are imported by the readers that need them.
"""

import os
import zlib
from collections.abc import Callable, Iterator, KeysView, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from fedsb.errors import InputError
from fedsb.tasks.rows.cells import PlacedRow as PlacedRow
from fedsb.tasks.rows.cells import cell_text as cell_text
from fedsb.tasks.rows.cells import is_missing as is_missing
from fedsb.tasks.rows.cells import like as like
from fedsb.tasks.rows.cells import listed
from fedsb.tasks.rows.cells import place as place
from fedsb.tasks.rows.cells import require_columns as require_columns
from fedsb.tasks.rows.delimited import NAMES, Form, form_of, read_delimited
from fedsb.tasks.rows.find import EXTENSIONS, extension, files_of
from fedsb.tasks.rows.hub import read_hub
from fedsb.tasks.rows.image_folder import labelled_images
from fedsb.tasks.rows.json_rows import read_json, read_json_lines
from fedsb.tasks.rows.tables import read_arrow, read_parquet
from fedsb.tasks.rows.text import in_words

Reader = Callable[[Path, str], Iterator[dict[str, object]]]
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}


STANDARD = {".csv": ",", ".tsv": "\t"}
"""The delimiter that an extension stands for."""
TABLES = (*STANDARD, ".parquet", ".arrow", ".feather")
"""Files in which every row has the same columns."""


@dataclass
class Reading:
    """What is known of a source's files while they are read.

    Attributes:
        encoding: of its CSV and TSV files, where a person says it.
        columns: the first table's name and columns.
        forms: the files that have another form than their extension says.
    """

    encoding: str | None = None
    columns: tuple[Path, KeysView[str]] | None = None
    forms: dict[Form, list[Path]] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        """A line for each unusual form, with its files."""
        for form, files in self.forms.items():
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            name = files[0].name if len(self.forms) == 1 else Path(files[0].parent.name, files[0].name)
            encoding = form.encoding.removesuffix("-sig").upper()
            yield f"{name}{more}: read as {encoding} text with {NAMES[form.delimiter]} between cells"


def read_rows(
    source: str | Sequence[str],
    *,
    limit: int | None = None,
    split: str = "train",
    encoding: str | None = None,
    told: Callable[[str], None] = lambda note: None,
) -> list[PlacedRow]:
    """The rows of files, or of a hub data set where `source` is no path; of a list, one after the other.

    limit: only the first so many rows, in the order of the files. What lies behind them is not checked.
    split: the hub split to read where `source` does not end in @split. Files have no splits: ignored there.
    encoding: of CSV and TSV files without a mark of their own; None: by their bytes.
    told: takes a line about files of another form than commas (or a .tsv's tabs) and UTF-8.

    Raises:
        InputError: a source cannot be read, or has no rows, or its tables differ in their columns.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: the row limit must be 1 or more, or null for all rows; got {limit}")
    sources, reading = [source] if isinstance(source, str) else source, Reading(encoding)
    try:
        rows = list(islice(chain.from_iterable(_rows_of(name, split, reading) for name in sources), limit))
    except MemoryError:
        raise InputError(f"{source}: more than fits into memory; split the file or set data.limit") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be looked for: {error.strerror}; name a file") from error
    for note in reading.notes():
        told(note)
    return rows


def _rows_of(source: str, split: str, reading: Reading) -> Iterator[PlacedRow]:
    folder = Path(os.path.expanduser(source))
    if images := labelled_images(folder):
        return _placed(iter(images), str(folder))
    files = files_of(source)
    if files is None:
        return _placed(read_hub(source, split), source)
    return chain.from_iterable(_read(file, reading) for file in files)


def _read(path: Path, reading: Reading) -> Iterator[PlacedRow]:
    kind = extension(path).removesuffix(".gz")
    if kind not in READERS and kind not in STANDARD:
        raise InputError(
            f"{path}: expected a file that ends in {EXTENSIONS}, got {path.suffix or 'no extension'!r}; "
            "convert or rename it"
        )
    try:
        rows = _placed(_reader(kind, reading)(path, str(path)), str(path))
        yield from _alike(rows, path, reading) if kind in TABLES else rows
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: {in_words(error, path, reading.encoding if kind in STANDARD else None)}"
        ) from error


def _reader(kind: str, reading: Reading) -> Reader:
    if kind not in STANDARD:
        return READERS[kind]

    def read(path: Path, source: str) -> Iterator[dict[str, object]]:
        form = form_of(path, source, STANDARD[kind], reading.encoding)
        if form != (STANDARD[kind], "utf-8") and form != (STANDARD[kind], "utf-8-sig"):
            reading.forms.setdefault(form, []).append(path)
        return read_delimited(path, source, form)

    return read


def _alike(rows: Iterator[PlacedRow], path: Path, reading: Reading) -> Iterator[PlacedRow]:
    """The rows, once it is clear that they have the columns of the source's first table."""
    first = next(rows)
    name, columns = reading.columns = reading.columns or (path, first.keys())
    for file, missing, other in ((path, columns - first.keys(), name), (name, first.keys() - columns, path)):
        if missing:
            raise InputError(
                f"{file}: has no column {listed(sorted(missing))}, which {other} has; files of one source "
                "have the same columns: add or rename it, or name each source (train: {north: a.csv, ...})"
            )
    yield first
    yield from rows


def _placed(rows: Iterator[dict[str, object]], source: str) -> Iterator[PlacedRow]:
    number = 0
    for number, row in enumerate(rows, start=1):
        yield row if isinstance(row, PlacedRow) else PlacedRow(row, source, number)
    if not number:
        raise InputError(f"{source}: expected at least one row, found none; give a file that holds data")
