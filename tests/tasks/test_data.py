"""Every format gives back the rows that were written, and every wrong input gives one message with a cure."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text, read_rows, require_columns

ROWS: list[dict[str, object]] = [
    {"text": "plain", "label": 0, "score": 0.5},
    {"text": 'a "quoted", comma\nand a newline', "label": 1, "score": 1.5},
    {"text": "", "label": 10, "score": -2.0},
    {"text": "true", "label": 2, "score": 3.25},
]


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


def write_json_data(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "data": ROWS}))


def write_delimited(path: Path) -> None:
    delimiter = "\t" if ".tsv" in path.name else ","
    lines = [["text", "label", "score"]] + [[str(cell) for cell in row.values()] for row in ROWS]
    quoted = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    path.write_text("\n".join(quoted) + "\n")


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_arrow(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def write_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def compressed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_compressed(path: Path) -> None:
        write(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))

    return write_compressed


WRITERS = [
    ("rows.jsonl", write_jsonl),
    ("rows.JSONL", write_jsonl),
    ("rows.jsonl.gz", compressed(write_jsonl)),
    ("rows.ndjson", write_jsonl),
    ("rows.NDJSON.gz", compressed(write_jsonl)),
    ("rows.json.gz", compressed(write_json)),
    ("lines.json", write_jsonl),
    ("rows.csv.gz", compressed(write_delimited)),
    ("rows.tsv.gz", compressed(write_delimited)),
    ("rows.json", write_json),
    ("data.json", write_json_data),
    ("rows.csv", write_delimited),
    ("rows.tsv", write_delimited),
    ("rows.parquet", write_parquet),
    ("rows.arrow", write_arrow),
    ("stream.arrow", write_stream),
    ("rows.feather", write_arrow),
]


def as_text(row: dict[str, object]) -> dict[str, object]:
    """A row as CSV has it: text, and nothing for the empty text."""
    return {name: str(value) or None for name, value in row.items()}


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_every_format_gives_back_the_rows(name, write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it for a local file would now fail
    write(tmp_path / name)
    rows = [as_text(row) for row in ROWS] if ".csv" in name or ".tsv" in name else ROWS
    assert read_rows(str(tmp_path / name)) == rows
    for limit in (1, 3, 100):
        assert read_rows(str(tmp_path / name), limit=limit) == rows[:limit]


def saved(tmp_path: Path, name: str, text: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_csv_text_stays_as_written(tmp_path):
    source = saved(
        tmp_path, "a.csv", "when,flag,na,none,n\n2020-01-02T03:04:05,true,NA,,1\n2021-01-01,No,3,,\n"
    )
    assert read_rows(source) == [
        {"when": "2020-01-02T03:04:05", "flag": "true", "na": "NA", "none": None, "n": "1"},
        {"when": "2021-01-01", "flag": "No", "na": "3", "none": None, "n": None},
    ]


def test_csv_column_that_turns_to_text_late_is_text_throughout(tmp_path):
    wide = "x" * 1000
    lines = ["text,label"] + [f"{wide},{i}" for i in range(17_000)] + [f"{wide},last"]  # more than one block
    labels = [row["label"] for row in read_rows(saved(tmp_path, "long.csv", "\n".join(lines)))]
    assert labels == [*(str(i) for i in range(17_000)), "last"]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert read_rows(saved(tmp_path, "a.csv", b"\xef\xbb\xbftext,n\nx,1\n")) == [{"text": "x", "n": "1"}]
    assert read_rows(saved(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "x"}\n')) == [{"text": "x"}]


def test_limit_leaves_later_lines_unread(tmp_path):
    source = saved(tmp_path, "a.jsonl", '{"a": 1}\n{broken\n')
    assert read_rows(source, limit=1) == [{"a": 1}]


BROKEN = [
    ("a.jsonl", '{"a": 1}\n\n{"a": \n', r"line 3 is not valid JSON.*one object per line"),
    ("a.jsonl", '{"a": 1}\n[1, 2]\n', r"line 2: expected an object.*got an array"),
    ("a.json", '[{"a": 1},\n {"a": }]', r"line 2 is not valid JSON"),
    ("a.json", '{"a": 1}\n{"a": }\n', r"line 2 is not valid JSON.*one object per line"),
    ("a.json", '{"a": 1} {"a": 2}', r"line 1 is not valid JSON: Extra data.*one object per line"),
    ("a.json", '[{"a": 1}, "b"]', r"row 2: expected an object.*got a string"),
    ("a.json", '{"rows": []}', r"expected an array of objects.*got an object"),
    ("a.json", "", r"at least one row, found none"),
    ("a.json", "[]", r"at least one row, found none"),
    ("a.jsonl", "", r"at least one row, found none"),
    ("a.csv", "", r"at least one row, found none"),
    ("a.csv", "text,label\n", r"at least one row, found none"),
    ("a.csv", "text,label\nx,1\ny,2,3\n", r"line 3: expected 2 cells, .*found 3.*fix the row"),
    ("a.csv", "text,text\nx,1\n", r"distinct column names, found 'text' twice"),
    ("a.csv", b"text\n\xff\xfe\n", r"(?i)utf-?8"),
    ("a.jsonl", b'{"a": "\xff"}\n', r"expected UTF-8"),
    ("a.jsonl.gz", b"not gzip", r"cannot be read: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], r"cannot be read"),
    ("a.parquet", b"PAR1 but not really", r"not a whole Parquet file"),
    ("a.txt", "x", r"ends in \.jsonl, .*\.parquet, .*, got '\.txt'; convert or rename"),
    ("noextension", "x", r"got 'no extension'"),
]


@pytest.mark.parametrize(
    ("name", "text", "message"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_broken_files(name, text, message, tmp_path):
    source = saved(tmp_path, name, text)
    with pytest.raises(InputError, match=message) as caught:
        read_rows(source)
    assert str(caught.value).startswith(f"{source}: ")


def test_missing_file_names_similar_ones(tmp_path, monkeypatch):
    saved(tmp_path, "train.jsonl", "{}")
    with pytest.raises(InputError, match=r"no such file; the folder has 'train\.jsonl'"):
        read_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(InputError, match=r"the folder has 'train\.jsonl'"):
        read_rows(str(tmp_path / "train.csv"))
    with pytest.raises(InputError, match="nothing there has a similar name"):
        read_rows(str(tmp_path / "quite-other.csv"))
    with pytest.raises(InputError, match="the folder 'nowhere' does not exist"):
        read_rows("nowhere/train.csv")
    monkeypatch.chdir(tmp_path.parent)  # a path that could be a hub id, but whose folder is here
    with pytest.raises(InputError, match=r"no such file; the folder has 'train\.jsonl'"):
        read_rows(f"{tmp_path.name}/train")


def test_neither_file_nor_hub_id():
    with pytest.raises(InputError, match=r"no such file.*or a hub data set \(owner/name"):
        read_rows("mydata")


def test_limit_must_be_positive(tmp_path):
    with pytest.raises(InputError, match=r"row limit must be 1 or more, or null.*got 0"):
        read_rows(saved(tmp_path, "a.jsonl", "{}"), limit=0)


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: records what is asked, gives three rows with a class label."""
    import datasets

    asked = []
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    content = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, -1, 1]}, features=features)

    def load_dataset(name, config, *, split, trust_remote_code):
        assert trust_remote_code is False
        asked.append((name, config, split))
        if name == "owner/missing":
            raise ConnectionError("cannot reach it\nsecond line")
        return content

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_ids(hub):
    rows = read_rows("owner/name", split="test")
    assert rows == [{"text": "a", "label": 0}, {"text": "b", "label": None}, {"text": "c", "label": 1}]
    assert read_rows("owner/name:config", limit=1) == rows[:1]
    assert read_rows("owner/na.me-2:con_fig@validation", split="train", limit=9) == rows
    assert hub == [
        ("owner/name", None, "test"),
        ("owner/name", "config", "train"),
        ("owner/na.me-2", "con_fig", "validation"),
    ]


def test_hub_not_reachable(hub):
    with pytest.raises(InputError) as caught:
        read_rows("owner/missing:small@test")
    message = str(caught.value)
    assert message.startswith("owner/missing:small@test: no such local file")
    assert "config small, split test" in message
    assert "ConnectionError: cannot reach it. Check the id" in message
    assert "second line" not in message


def test_require_columns():
    rows = [{"Sentence": "x", "label": 1}, {"Sentence": "y", "label": 0, "extra": 2}]
    require_columns(rows, ["Sentence", "extra"], source="a.csv")
    with pytest.raises(InputError) as caught:
        require_columns(rows, ["label", "sentense"], source="a.csv", key="task.text")
    assert str(caught.value) == (
        "a.csv: task.text names the column 'sentense', which is not there; the columns are 'Sentence', "
        "'label', 'extra' (did you mean 'Sentence'?); fix task.text in the config"
    )


def test_cell_text():
    row = {"s": " as is ", "i": 7, "f": 2.5, "b": True, "none": None, "nan": float("nan"), "list": ["x"]}
    texts = [cell_text(row, column, source="a.json", number=1) for column in "sifb"]
    assert texts == [" as is ", "7", "2.5", "true"]
    for column in ("none", "nan", "absent"):
        with pytest.raises(InputError, match=rf"a\.json: row 4 has no value in column '{column}'"):
            cell_text(row, column, source="a.json", number=4)
    with pytest.raises(InputError, match="row 4, column 'list': expected text or a number, got an array"):
        cell_text(row, "list", source="a.json", number=4)
