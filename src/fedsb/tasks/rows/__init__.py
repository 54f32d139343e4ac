"""Rows from files or the hub, and checked access to their columns.

A row is a dict from column name to value. Every way the input can be wrong ends in one `InputError` that
names the file, and the line or row where there is one (both counted from 1), and shows no cell.

    .jsonl .ndjson       one object per line; blank lines are skipped
    .json                an array of objects, {"data": [objects]}, or one object per line
    .csv .tsv            header line, then cells of text; see `fedsb.tasks.rows.delimited`
    .parquet             also .arrow and .feather
    folder/label/x.png   images, each label in a folder of its own; see `fedsb.tasks.rows.image_folder`
    owner/name           a data set of the hub; also owner/name:config, owner/name:config@split

Text files also with .gz. Several files make one source: a list, a folder, or a pattern such as
`site-*/notes.csv`, the last two in sorted order. Importing this is cheap: pyarrow and datasets are imported
by the readers that need them.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from fedsb.errors import InputError
from fedsb.tasks.rows.cells import PlacedRow as PlacedRow
from fedsb.tasks.rows.cells import cell_text as cell_text
from fedsb.tasks.rows.cells import is_missing as is_missing
from fedsb.tasks.rows.cells import like as like
from fedsb.tasks.rows.cells import place as place
from fedsb.tasks.rows.cells import require_columns as require_columns
from fedsb.tasks.rows.delimited import read_csv, read_tsv
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
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}


def read_rows(
    source: str | Sequence[str], *, limit: int | None = None, split: str = "train"
) -> list[PlacedRow]:
    """The rows of files, or of a hub data set where `source` is no path; of a list, one after the other.

    limit: only the first so many rows, in the order of the files. What lies behind them is not checked.
    split: the hub split to read where `source` does not end in @split. Files have no splits: ignored there.

    Raises:
        InputError: a source cannot be read, or has no rows.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: the row limit must be 1 or more, or null for all rows; got {limit}")
    sources = [source] if isinstance(source, str) else source
    try:
        return list(islice(chain.from_iterable(_rows_of(name, split) for name in sources), limit))
    except MemoryError:
        raise InputError(f"{source}: more than fits into memory; split the file or set data.limit") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be looked for: {error.strerror}; name a file") from error


def _rows_of(source: str, split: str) -> Iterator[PlacedRow]:
    folder = Path(os.path.expanduser(source))
    if images := labelled_images(folder):
        return _placed(iter(images), str(folder))
    files = files_of(source)
    return (
        _placed(read_hub(source, split), source) if files is None else chain.from_iterable(map(_read, files))
    )


def _read(path: Path) -> Iterator[PlacedRow]:
    reader = READERS.get(extension(path).removesuffix(".gz"))
    if reader is None:
        raise InputError(
            f"{path}: expected a file that ends in {EXTENSIONS}, got {path.suffix or 'no extension'!r}; "
            "convert or rename it"
        )
    try:
        yield from _placed(reader(path, str(path)), str(path))
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {in_words(error, path)}") from error


def _placed(rows: Iterator[dict[str, object]], source: str) -> Iterator[PlacedRow]:
    number = 0
    for number, row in enumerate(rows, start=1):
        yield PlacedRow(row, source, number)
    if not number:
        raise InputError(f"{source}: expected at least one row, found none; give a file that holds data")
