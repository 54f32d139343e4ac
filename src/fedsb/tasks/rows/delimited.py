"""CSV and TSV: a header line, and cells that are the text as it is written. An empty cell is a missing value.

Delimiter: the extension's own if it splits the header and the first records into equally many cells, two or
more; else the one other of , ; tab | that does so. A first line `sep=;`, as Excel writes it, says it and is
no record. `csv.Sniffer` guesses from frequencies instead and takes letters for delimiters.

Quotes: as RFC 4180 has them, strictly. With tabs they are text, as in GLUE's files, unless the file as a
whole was written with quoting: its header is in quotes, or a cell with doubled quotes is, or rows have
equally many cells only if tabs and line breaks in quotes belong to cells.

No row is swallowed: a row with other than the header's cells is an error with its line, and so is a cell in
quotes over many lines of which each would be a row.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from fedsb.errors import InputError
from fedsb.tasks.rows.cells import PlacedRow, require_distinct
from fedsb.tasks.rows.encodings import encoding_of
from fedsb.tasks.rows.text import LINE_END, LONGEST_LINE, open_text

DELIMITERS = (",", ";", "\t", "|")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD = 50
"""Records by which a delimiter is judged."""
MOSTLY = 0.5
"""Share of these records that must have the header's cells, where none has them all."""
_IN_QUOTES = re.compile(r'"(?:[^"]|"")*"')
_DECLARED = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)


class Form(NamedTuple):
    """How a file is written: what stands between cells, and its encoding."""

    delimiter: str
    encoding: str


class _Malformed(Exception):
    """Quotes that break the rules; the text says how, and on which line."""


def form_of(path: Path, source: str, standard: str, encoding: str | None = None) -> Form:
    """The form of a file.

    Args:
        standard: the delimiter that the extension stands for.
        encoding: what a person says it is; None: by its bytes.

    Raises:
        InputError: it is not clear.
    """
    known = encoding_of(path, source, encoding)
    with _long_cells():
        return Form(_declared(path, source, known) or _delimiter(path, standard, known), known)


def read_delimited(path: Path, source: str, form: Form) -> Iterator[PlacedRow]:
    """The rows, of which each has the header's columns.

    Raises:
        InputError: with the line on which a row begins.
    """
    delimiter, encoding = form
    with _long_cells():
        records = _records(path, form, quoted=delimiter != "\t" or _has_quoting(path, encoding))
        try:
            _, names = next(records, (1, []))
            require_distinct(names, source)
            for number, (line, cells) in enumerate(records, start=1):
                _check_record(cells, len(names), delimiter, f"{source}: line {line}")
                row = {name: cell or None for name, cell in zip(names, cells, strict=True)}
                yield PlacedRow(row, source, number, line)
        except _Malformed as error:
            raise InputError(f"{source}: {error}") from None


def _check_record(cells: list[str], width: int, delimiter: str, where: str) -> None:
    if len(cells) != width:
        raise InputError(
            f"{where}: expected {width} cells, as in the header, found {len(cells)} (between "
            f"{NAMES[delimiter]}); fix the row, or put cells that hold delimiters or line breaks in quotes"
        )
    fewest = 3 if delimiter == "\t" else 20  # a text may have as many commas in each line as a row has
    for cell in cells:
        lines = LINE_END.split(cell) if "\n" in cell or "\r" in cell else []
        if (
            len(lines) >= fewest
            and width > 1
            and all(line.count(delimiter) == width - 1 for line in lines[1:-1])
        ):
            raise InputError(
                f"{where}: a cell in quotes runs over {len(lines)} lines that look like rows; if its quotes "
                "are text write them twice, or save the rows as JSON lines"
            )


def _declared(path: Path, source: str, encoding: str) -> str | None:
    """The delimiter that the first line says, if it says one."""
    with open_text(path, newline="", encoding=encoding) as file:
        match = _DECLARED.fullmatch(file.readline(10))
    if match and match[1] not in DELIMITERS:
        raise InputError(
            f"{source}: line 1: sep= names another separator than , ; tab |; save it with one of these"
        )
    return match[1] if match else None


def _delimiter(path: Path, standard: str, encoding: str) -> str:
    if _fits(path, Form(standard, encoding)):
        return standard
    others = [other for other in DELIMITERS if other != standard]
    fitting = [other for other in others if _fits(path, Form(other, encoding))]
    if fitting:
        return fitting[0] if len(fitting) == 1 else standard
    shares = {delimiter: _share(path, Form(delimiter, encoding)) for delimiter in (standard, *others)}
    best = max(shares, key=lambda delimiter: shares[delimiter])
    return best if shares[best] >= MOSTLY else standard


def _share(path: Path, form: Form) -> float:
    """The share of the head's records with the header's cells, of which there are two or more: where a broken
    row keeps the file from being a table, it is to be named by the separator of the others."""
    widths: list[int] = []
    with suppress(_Malformed):
        widths.extend(len(cells) for _, cells in islice(_records(path, form, quoted=True), HEAD))
    return widths[1:].count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0


def _fits(path: Path, form: Form) -> bool:
    """Whether it splits the head of the file into a table of two columns or more."""
    for quoted in (True, False) if form.delimiter == "\t" else (True,):
        try:
            widths = {len(cells) for _, cells in islice(_records(path, form, quoted=quoted), HEAD)}
        except _Malformed:
            continue
        if len(widths) == 1 and widths != {1}:
            return True
    return False


def _has_quoting(path: Path, encoding: str) -> bool:
    """Whether quotes in a file of tabs are the writer's, see the module."""
    form = Form("\t", encoding)
    as_text = Counter(len(cells) for _, cells in _records(path, form, quoted=False))
    try:
        as_quotes = Counter(len(cells) for _, cells in _records(path, form, quoted=True))
    except _Malformed:
        return False
    records = (cells for _, cells in _records(path, form, quoted=False))
    if len(as_quotes) != 1 or all(map(_IN_QUOTES.fullmatch, next(records))):
        return len(as_quotes) == 1
    if as_text != as_quotes:
        return len(as_text) > 1
    return any('""' in cell[1:-1] and _IN_QUOTES.fullmatch(cell) for cell in chain.from_iterable(records))


def _records(path: Path, form: Form, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(the line on which it begins, its cells) of each record; blank lines are left out."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with open_text(path, newline="", encoding=form.encoding) as file:
        first = file.readline()
        before = 1 if _DECLARED.fullmatch(first) else 0
        lines = file if before else chain([first] if first else [], file)
        reader = csv.reader(lines, delimiter=form.delimiter, quoting=quoting, strict=quoted)
        line = 1 + before
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1 + before
        except csv.Error as error:
            raise _Malformed(f"line {line}: {_fault(str(error))}") from None


def _fault(message: str) -> str:
    if "limit" in message:
        return f"a cell has more than {LONGEST_LINE:,} characters; cut it, or close its quotes"
    fault = "a quote is never closed" if "end of data" in message else "text follows a closing quote"
    return f'{fault}; within a cell in quotes write a quote twice (""), or save the rows as JSON lines'


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells as long as a row of JSON may be; the csv module has one limit for all its readers."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)
