"""Cells of CSV and TSV are the text as written; no row is lost; what cannot be read says where and why."""

import codecs
import gzip
from pathlib import Path

import pytest

from fedsb.errors import InputError
from fedsb.tasks.rows import read_rows


def saved(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def column(source: str, name: str) -> list[object]:
    return [row[name] for row in read_rows(source)]


AS_WRITTEN = [
    ["007", "010", "0"],
    ["1.00", "2.50", "1e5", "+3"],
    ["98765432109876543210", "98765432109876543211"],
    ["NA", "null", "None", "nan", "N/A", "-"],
    ["2024-01-02", "01/02/2024", "2024-01-02T03:04:05Z", "12:30"],
    ["true", "True", "FALSE", "no"],
    ["1,234.5", "1 234", "$5", "50%", "0x10", "1_000"],
    [" padded ", "a b", "\u00a0"],
    ["1.0", "2", "x"],
]


@pytest.mark.parametrize("cells", AS_WRITTEN, ids=lambda cells: cells[0].strip())
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_cells_are_the_text_that_is_written(tmp_path, cells, name):
    separator = "\t" if name == "a.tsv" else ","
    lines = [f"{cell if separator == chr(9) else chr(34) + cell + chr(34)}{separator}x" for cell in cells]
    assert column(saved(tmp_path, name, "\n".join([f"v{separator}w", *lines])), "v") == cells


def test_an_empty_cell_is_a_missing_value_in_every_column(tmp_path):
    source = saved(tmp_path, "a.csv", 'a,b,c\n1,,x\n,"",y\n')
    assert read_rows(source) == [{"a": "1", "b": None, "c": "x"}, {"a": None, "b": None, "c": "y"}]


def test_a_column_of_numbers_is_text_in_every_file_of_a_source(tmp_path):
    """Also where only one of the files has something else than numbers in it."""
    one, two = saved(tmp_path, "a.csv", "t,n\nx,01\n"), saved(tmp_path, "b.csv", "t,n\ny,1b\n")
    assert [row["n"] for row in read_rows([one, two])] == ["01", "1b"]


# Quotes between tabs

GLUE_LIKE = "sentence\tlabel\n" + "".join(
    f"{text}\t{i % 2}\n"
    for i, text in enumerate(
        ['"so they said', "plain", 'a "quoted" word', 'and then it ended"', '"', "5' 2\""]
    )
)


def test_quotes_between_tabs_are_text(tmp_path):
    texts = column(saved(tmp_path, "a.tsv", GLUE_LIKE), "sentence")
    assert texts == ['"so they said', "plain", 'a "quoted" word', 'and then it ended"', '"', "5' 2\""]


def test_quotes_that_would_swallow_rows_between_tabs_swallow_none(tmp_path):
    """The stray quotes of lines 3 and 30 make one cell of them by the rules of CSV."""
    lines = [f"word {i}\tn{i}\tx" for i in range(40)]
    lines[1], lines[28] = '"word 1\tn1\tx', 'word 28\tn28\tx"'
    rows = read_rows(saved(tmp_path, "a.tsv", "\n".join(["text\tsite\tlabel", *lines])))
    assert [row["site"] for row in rows] == [f"n{i}" for i in range(40)]
    assert (rows[1]["text"], rows[28]["label"]) == ('"word 1', 'x"')


def test_one_whole_cell_in_quotes_between_tabs_is_text(tmp_path):
    assert column(saved(tmp_path, "a.tsv", 't\tl\n"Great film"\t1\nok\t0\n'), "t") == ['"Great film"', "ok"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('t\tl\n"two\nlines"\t1\nok\t0\n', ["two\nlines", "ok"]),
        ('t\tl\n"a\ttab"\t1\nok\t0\n', ["a\ttab", "ok"]),
        ('t\tl\n"say ""hi"" twice"\t1\n"plain"\t0\n', ['say "hi" twice', "plain"]),
        ('"t"\t"l"\n"plain"\t"1"\n"more"\t"0"\n', ["plain", "more"]),
    ],
    ids=["line break", "tab", "doubled quotes", "header in quotes"],
)
def test_quotes_of_a_writer_between_tabs_are_taken_off(tmp_path, content, texts):
    assert column(saved(tmp_path, "a.tsv", content), "t") == texts


def test_a_csv_of_tabs_has_the_rules_of_tabs(tmp_path):
    assert column(saved(tmp_path, "a.csv", GLUE_LIKE), "label") == list("010101")


# What cannot be read

FILES_WITH_FAULTS = [
    ("a.csv", 't,l\nx,1\n"never closed,2\nzzz,3\n', r"line 3: a quote is never closed.*write a quote twice"),
    ("a.csv", 't,l\n"a \\"zzz\\" day",1\n', r"line 2: text follows a closing quote.*JSON lines"),
    ("a.csv", 't,l\n"zzz" y,1\n', r"line 2: text follows a closing quote"),
    ("a.csv", 't,l\n"x\ny",1\n\nzzz\n', r"line 5: expected 2 cells, .*found 1 \(between commas\)"),
    ("a.csv", "t,l\nzzz, yes,1\n", r"line 2: expected 2 cells, .*found 3.*put cells .* in quotes"),
    ("a.tsv", "t\tl\nx\t1\nzzz\n", r"line 3: expected 2 cells, .*found 1 \(between tabs\)"),
    ("a.tsv", 't\tl\nx\t1\n"zzz\ty\t1\n', r"line 3: expected 2 cells, .*found 3"),
    ("a.csv", "t;l\nzzz;1\n" + "x;2\n" * 60 + "x;1;2\n", r"line 63: .*found 3 \(between semicolons\)"),
    ("a.csv", "t;l\nx, y;1\nx;2\nzzz;1;2\n", r"line 4: .*found 3 \(between semicolons\)"),
    ("a.csv", 't;l\n"x;1\nx;2\n', r"a quote is never closed"),
    ("a.csv", "t,l,\n1,2,3\n,,zzz,4\n", r"line 3: expected 3 cells, .*found 4"),
    ("a.csv", b"t,l\nx,1\nzzz \xe8,2\n", r"line 3: neither UTF-8 .*data.encoding.*iconv"),
    ("a.csv", "t,l\nx \xe4,1\n".encode() + b"zzz \xe4,2\n", r"line 3: neither UTF-8"),
    ("a.csv", b"t,l\nzzz \xe4\nx," + "\xe4\n".encode(), r"line 3: neither UTF-8"),
    ("a.csv", "t,l\nzzz sch\xf6n,1\n".encode("cp850"), r"line 2: neither UTF-8"),
    ("a.csv", "t,l\nzzz \u0434\u0430,1\n".encode("cp1251"), r"line 2: neither UTF-8"),
    ("a.csv", "t,l\nzzz \u65e5,1\n".encode("shift_jis"), r"line 2: neither UTF-8"),
    ("a.csv", "sep=:\nt:l\nzzz:1\n", r"line 1: sep= names another separator"),
    ("a.csv", "sep=;\nt;l\nzzz;1;2\n", r"line 3: expected 2 cells"),
    ("a.jsonl", b'{"t": "x"}\n{"t": "zzz\xe9"}\n', r"line 2: expected UTF-8 .*iconv"),
    ("a.csv", codecs.BOM_UTF16_LE + "t,l\nzzz,1\n".encode("utf-16-le")[:-1], r"line 2: expected UTF-16"),
    ("a.csv", b"PK\x03\x04zzz\xff", r"expected text, found an Excel workbook or zip archive"),
    ("a.csv", gzip.compress(b"t,l\nzzz,1\n", mtime=0), r"expected text, found gzip"),
    ("a.csv.gz", b"t,l\nzzz,1\n", r"cannot be read: Not a gzipped file"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES_WITH_FAULTS)
def test_a_fault_is_named_with_its_line_and_shows_no_cell(tmp_path, name, content, message):
    source = saved(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_rows(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "zzz" not in str(caught.value)


def test_a_file_that_unpacks_to_absurdly_much_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsb.tasks.rows.text.ANY_EXPANSION", 1 << 16)
    letters = b"t,l\n" + b"zzz,1\n" * 60_000
    source = saved(tmp_path, "a.csv.gz", gzip.compress(letters))
    with pytest.raises(InputError, match=r"more than 200 times as long when unpacked") as caught:
        read_rows(source)
    assert "zzz" not in str(caught.value)
    plain = saved(tmp_path, "b.csv.gz", gzip.compress(b"t,l\n" + letters[4:58]))
    assert len(read_rows(plain)) == 9


def test_rows_swallowed_by_a_quote_between_commas_are_an_error(tmp_path):
    lines = [f"word {i},n{i}" for i in range(60)]
    lines[5], lines[45] = '"word 5,n5', 'word 45",n45'
    source = saved(tmp_path, "a.csv", "\n".join(["text,site", *lines]))
    with pytest.raises(InputError, match=r"line 7: a cell in quotes runs over 41 lines that look like rows"):
        read_rows(source)


def test_a_long_letter_in_quotes_is_one_cell(tmp_path):
    letter = "\n".join(["Dear all,", *[f"line {i}, and more, {i}" for i in range(30)], "", "Yours"])
    assert column(saved(tmp_path, "a.csv", f'text,label\n"{letter}",x\nshort,y\n'), "text") == [
        letter,
        "short",
    ]


def test_a_cell_longer_than_the_csv_modules_limit_is_read_and_the_limit_is_as_it_was(tmp_path):
    import csv

    before = csv.field_size_limit()
    long = "word " * 60_000
    assert column(saved(tmp_path, "a.csv", f"t,l\n{long},1\n"), "t") == [long]
    assert csv.field_size_limit() == before


# Separators, encodings, line ends


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_separator_is_that_which_makes_a_table(tmp_path, separator, name):
    lines = [separator.join(cells) for cells in (("text", "label"), ("fine day", "1"), ("poor", "0"))]
    assert read_rows(saved(tmp_path, name, "\n".join(lines))) == [
        {"text": "fine day", "label": "1"},
        {"text": "poor", "label": "0"},
    ]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            "text;price\nfine;1,5\npoor;2,5\n",
            [{"text": "fine", "price": "1,5"}, {"text": "poor", "price": "2,5"}],
        ),
        (
            "text;label\ngood, fast;1\nbad;0\n",
            [{"text": "good, fast", "label": "1"}, {"text": "bad", "label": "0"}],
        ),
        ('text;label\n"a; b";1\n', [{"text": "a; b", "label": "1"}]),
        ("text\nno; tables\nin; here\n", [{"text": "no; tables"}, {"text": "in; here"}]),
        (
            "text;more\nno; tables\nhere\nat\nall\n",
            [{"text;more": t} for t in ("no; tables", "here", "at", "all")],
        ),
        ("text,label\na;b;c,1\n", [{"text": "a;b;c", "label": "1"}]),
        ("q|a,b|label\nx|y,z|1\n", [{"q|a": "x|y", "b|label": "z|1"}]),  # the extension's own comes first
    ],
)
def test_other_separators_in_cells_confuse_nothing(tmp_path, content, rows):
    assert read_rows(saved(tmp_path, "a.csv", content)) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_line_ends_and_unicode_encodings(tmp_path, name, encoding, end):
    separator = "\t" if name == "a.tsv" else ","
    content = (
        end.join(separator.join(cells) for cells in (("text", "label"), ("日本 é", "1"), ("", "0"))) + end
    )
    encoded = content.encode(encoding)
    source = saved(tmp_path, name, gzip.compress(encoded) if name.endswith(".gz") else encoded)
    assert read_rows(source) == [{"text": "日本 é", "label": "1"}, {"text": None, "label": "0"}]


HOSPITAL = (
    "Befund;Pr\u00fcfung;Ergebnis\r\n"
    '"Gr\u00f6\u00dfe 5 \u00b5m, Patient\r\nsagt ""gut"" \u2013 \u00c4rztin";A1;gut\r\n'
    "\u00dcbel;B2;schlecht\r\n"
)


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "windows-1252", "utf-16"])
def test_a_hospitals_csv_is_read_without_any_option_and_said(tmp_path, encoding, declared):
    content = f"sep=;\r\n{HOSPITAL}" if declared else HOSPITAL
    told: list[str] = []
    rows = read_rows(saved(tmp_path, "a.csv", content.encode(encoding)), told=told.append)
    assert [list(row.values()) for row in rows] == [
        ['Gr\u00f6\u00dfe 5 \u00b5m, Patient\r\nsagt "gut" \u2013 \u00c4rztin', "A1", "gut"],
        ["\u00dcbel", "B2", "schlecht"],
    ]
    assert [(row.number, row.line) for row in rows] == [(1, 2 + declared), (2, 4 + declared)]
    name = encoding.removesuffix("-sig").upper()
    assert told == [f"a.csv: read as {name} text with semicolons between cells"]


def test_an_encoding_that_is_said_is_taken_where_the_file_has_no_mark_of_its_own(tmp_path):
    polish = saved(tmp_path, "a.csv", "t,l\nza\u017c\u00f3\u0142\u0107,1\n".encode("windows-1250"))
    with pytest.raises(InputError, match=r"line 2: neither"):
        read_rows(polish)
    assert read_rows(polish, encoding="windows-1250")[0]["t"] == "za\u017c\u00f3\u0142\u0107"
    marked = saved(tmp_path, "b.csv", "t,l\n\u0142,1\n".encode("utf-8-sig"))
    assert read_rows(marked, encoding="windows-1250")[0]["t"] == "\u0142"
    with pytest.raises(InputError, match=r"a\.csv: line 2: expected UTF-8 text"):
        read_rows(polish, encoding="utf-8")


def test_usual_files_are_not_worth_a_word(tmp_path):
    told: list[str] = []
    for name, content in (("a.csv", "t,l\n\u00e9,1\n"), ("a.tsv", "t\tl\nx\t1\n"), ("a.jsonl", '{"t": 1}')):
        read_rows(saved(tmp_path, name, content), told=told.append)
    assert told == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"t": "é"}\n'), ("a.json", '[{"t": "é"}]')])
def test_encodings_of_json(tmp_path, name, content, encoding):
    assert read_rows(saved(tmp_path, name, content.encode(encoding))) == [{"t": "é"}]


def test_blank_lines_are_no_rows_and_rows_behind_the_limit_are_not_looked_at(tmp_path):
    source = saved(tmp_path, "a.csv", "t,l\n\nx,1\n\ny,2\n" + "z,3\n" * 60 + "broken\n")
    assert read_rows(source, limit=2) == [{"t": "x", "l": "1"}, {"t": "y", "l": "2"}]
