"""Any table in any dialect, held against Python's csv module and pyarrow: the same rows and texts, or an
error that names file and line. Any bytes at all: rows that some dialect gives, or such an error."""

import csv
import io
import json
import re
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv

from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text, is_missing, read_rows
from fedsb.tasks.rows.delimited import DELIMITERS

many = settings(max_examples=120, suppress_health_check=list(HealthCheck))
CELLS = st.one_of(
    st.sampled_from(
        ["", "0", "007", "1.00", "NA", "null", "true", "2024-01-02", "98765432109876543210", " x ", '"']
    ),
    st.text(st.sampled_from('ab1.,;|\t"\n\r é日\u2028\x1f'), max_size=12),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
NAMES = st.text(st.sampled_from("abcdefgh _é"), min_size=1, max_size=6)
Table = tuple[list[str], list[list[str]]]


@st.composite
def tables(draw) -> Table:
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    row = st.lists(CELLS, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(row, min_size=1, max_size=8))


def as_rows(names: list[str], records: list[list[str]]) -> list[dict[str, str | None]]:
    return [dict(zip(names, (cell or None for cell in cells), strict=True)) for cells in records]


def by_csv(text: str, delimiter: str, *, quoted: bool = True) -> list[list[str]]:
    """All records that are no blank lines, as Python's own module reads them."""
    how = {"quoting": csv.QUOTE_MINIMAL, "strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    return [cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **how) if cells]


def by_arrow(text: str, delimiter: str) -> list[list[str]]:
    names = by_csv(text, delimiter)[0]
    table = arrow_csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string())),
    )
    return [names, *([str(cell) for cell in row.values()] for row in table.to_pylist())]


def with_breaks(table: Table, end: str) -> Table:
    """The table with one kind of line break in its cells: csv.writer leaves others without quotes."""
    return table[0], [[re.sub(r"\r\n?|\n", end, cell) for cell in cells] for cells in table[1]]


def written(table: Table, **dialect: object) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, **dialect)
    writer.writerows([table[0], *table[1]])
    return file.getvalue()


def encodable(table: Table, encoding: str) -> Table:
    """The table without what the encoding has no letters for."""
    return table[0], [[c.encode(encoding, "ignore").decode(encoding) for c in cells] for cells in table[1]]


def read(
    folder: Path, name: str, content: bytes, encoding: str | None = None
) -> list[dict[str, object]] | str:
    """The rows, or what is said instead of them."""
    path = folder / name
    path.write_bytes(content)
    try:
        return [dict(row) for row in read_rows(str(path), encoding=encoding)]
    except InputError as error:
        said = str(error)
        assert said.startswith(f"{path}: ")
        return said.removeprefix(f"{path}: ")


@many
@given(
    table=tables(),
    delimiter=st.sampled_from([",", ";", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "windows-1252", "windows-1252"]),
    declared=st.booleans(),
    said=st.booleans(),
)
def test_a_file_that_csv_wrote_is_read_as_csv_and_pyarrow_read_it(
    tmp_path, table, delimiter, quoting, end, encoding, declared, said
):
    """In Windows-1252 that nobody says: so, or refused with its line. A first line may say the separator."""
    table = encodable(with_breaks(table, end), encoding)
    text = written(table, delimiter=delimiter, quoting=quoting, lineterminator=end)
    assert by_csv(text, delimiter) == by_arrow(text, delimiter) == [table[0], *table[1]]
    content = (f"sep={delimiter}{end}" * declared + text).encode(encoding)
    assume(
        said
        or encoding != "windows-1252"
        or content.isascii()
        or "\ufffd" in content.decode("utf-8", "replace")
    )
    rows = read(tmp_path, "a.csv", content, encoding if said and encoding == "windows-1252" else None)
    if isinstance(rows, str):
        assert encoding == "windows-1252"
        assert not said
        assert re.match(r"line \d+: neither UTF-8", rows)
    else:
        assert rows == as_rows(*table)


@many
@given(table=tables(), end=st.sampled_from(["\n", "\r\n"]))
def test_tabs_without_quoting_are_read_as_they_stand(tmp_path, table, end):
    table = table[0], [[re.sub(r"[\t\n\r]", " ", cell) for cell in cells] for cells in table[1]]
    assume(
        not any(re.fullmatch(r'"(?:[^"]|"")*""(?:[^"]|"")*"', cell) for cells in table[1] for cell in cells)
    )
    text = "".join("\t".join(cells) + end for cells in [table[0], *table[1]])
    assert by_csv(text, "\t", quoted=False) == [table[0], *table[1]]
    assert read(tmp_path, "a.tsv", text.encode()) == as_rows(*table)


@many
@given(table=tables(), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_tabs_with_quoting_are_read_with_it_unless_each_line_is_a_row(tmp_path, table, quoting):
    table = with_breaks(table, "\n")
    text = written(table, delimiter="\t", quoting=quoting, lineterminator="\n")
    lines = by_csv(text, "\t", quoted=False)
    rows = read(tmp_path, "a.tsv", text.encode())
    whole = {len(cells) for cells in lines} == {len(table[0])} and quoting == csv.QUOTE_MINIMAL
    if isinstance(rows, str):
        assert "lines that look like rows" in rows
    elif rows != as_rows(*table):
        assert whole
        assert rows == as_rows(lines[0], lines[1:])


@many
@given(
    text=st.text(st.sampled_from('ab1,;|\t"\n\r é'), max_size=60),
    header=st.sampled_from(["x,y\n", "x;y\n", "x\ty\n", "x\n", '"x","y"\n', ""]),
    name=st.sampled_from(["a.csv", "a.tsv"]),
)
def test_any_text_is_rows_of_some_dialect_or_an_error_with_its_line(tmp_path, text, header, name):
    rows = read(tmp_path, name, (header + text).encode())
    if isinstance(rows, str):
        assert re.match(r"line \d+: |expected (at least one row|distinct column names)", rows), rows
        return
    possible = []
    for delimiter in DELIMITERS:
        for quoted in (True, False) if delimiter == "\t" else (True,):
            try:
                names, *records = by_csv(header + text, delimiter, quoted=quoted)
            except (csv.Error, ValueError):
                continue
            if {len(cells) for cells in records} == {len(names)} and len(set(names)) == len(names):
                possible.append(as_rows(names, records))
    assert rows in possible


@many
@given(
    content=st.binary(max_size=60),
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.parquet", "a.arrow"]),
)
def test_any_bytes_are_rows_or_an_error_that_shows_none_of_them(tmp_path, content, name):
    secret = b"qzqz"
    rows = read(tmp_path, name, b"x,y\n" + content + secret if name.endswith("sv") else content + secret)
    if isinstance(rows, str):
        assert "qzqz" not in rows


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a\0b", "\ud83d", "\ud83d\ude00"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@many
@given(
    values=st.lists(VALUES, min_size=1, max_size=5),
    name=st.sampled_from(["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"]),
)
def test_json_values_are_texts_or_errors_with_their_row(tmp_path, values, name):
    import gzip

    rows = [{"value": value, "other": 1} for value in values]
    text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    read_back = read(tmp_path, name, gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert repr(read_back) == repr(json.loads(json.dumps(rows)))  # repr: a NaN is not equal to itself
    for number, row in enumerate(read_back, start=1):
        value = row["value"]
        if is_missing(value) or isinstance(value, list | dict) or value in ("a\0b", "\ud83d"):
            with pytest.raises(InputError, match=f"^{name}: row {number}"):
                cell_text(row, "value", source=name, number=number)
        elif not (isinstance(value, str) and "\0" in value):
            text = cell_text(row, "value", source=name, number=number)
            assert text == (str(value).lower() if isinstance(value, bool) else str(value))
