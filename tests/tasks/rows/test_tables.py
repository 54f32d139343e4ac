"""Parquet and Arrow files: classes by name, -1 for none, values as Python's."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fedsb.errors import InputError
from fedsb.tasks.labels import class_ids, has_label, label_set
from fedsb.tasks.rows import cell_text, read_rows

NAMES = ["not_equal", "equal", "doubtful"]


def huggingface(features: object) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def written(path: Path, labels: list[object], metadata: dict[bytes, bytes] | None = None) -> str:
    table = pyarrow.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels})
    table = table.replace_schema_metadata(metadata)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return str(path)


CLASSES = huggingface({"text": {"dtype": "string"}, "label": {"names": NAMES, "_type": "ClassLabel"}})


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_class_labels_have_the_names_and_the_order_of_the_schema(tmp_path, name):
    rows = read_rows(written(tmp_path / name, [1, 0, -1, None, 1], CLASSES))
    assert [row["label"] for row in rows] == [1, 0, None, None, 1]
    assert [has_label(row, "label") for row in rows] == [True, True, False, False, True]
    labelled = [row for row in rows if has_label(row, "label")]
    assert label_set(labelled, "label", name) == (tuple(NAMES), False)  # f1 is of "equal", as on the hub
    assert class_ids(labelled, "label", NAMES, name) == [1, 0, 1]
    assert [cell_text(row, "label", source=name, number=1) for row in labelled] == [
        "equal",
        "not_equal",
        "equal",
    ]
    with pytest.raises(InputError, match=rf"{name}: row 3 has no label in column 'label'"):
        label_set(rows, "label", name)


def test_a_file_written_by_datasets_is_as_the_hub(tmp_path):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["b", "a"]))
    made = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    made.to_parquet(str(tmp_path / "a.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for source in (str(tmp_path / "a.parquet"), str(tmp_path / "saved" / "*.arrow")):
        rows = read_rows(source)
        assert [row["label"] for row in rows] == [1, 0, None]
        assert label_set(rows[:2], "label", source) == (("b", "a"), False)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_dictionaries_are_their_values(tmp_path, name):
    labels = pyarrow.array(["low", "high", None, "low"]).dictionary_encode()
    assert [row["label"] for row in read_rows(written(tmp_path / name, labels))] == [
        "low",
        "high",
        None,
        "low",
    ]


def test_numbers_beyond_the_names_are_an_error_with_the_row(tmp_path):
    source = written(tmp_path / "a.parquet", [0, 3], CLASSES)
    with pytest.raises(
        InputError, match=r"a\.parquet: row 2: column 'label' has 3 class names and a number beyond"
    ):
        read_rows(source)
    with pytest.raises(InputError, match="row 1"):
        read_rows(written(tmp_path / "b.parquet", [-2], CLASSES))


@pytest.mark.parametrize(
    "metadata",
    [
        {b"huggingface": b"{broken"},
        {b"huggingface": b"[1]"},
        huggingface(["label"]),
        huggingface({"label": {"names": 3, "_type": "ClassLabel"}}),
        huggingface({"label": "ClassLabel"}),
        huggingface({"other": {"names": ["x"], "_type": "ClassLabel"}}),
        {b"pandas": b"{}"},
    ],
)
def test_a_schema_with_other_words_gives_plain_numbers(tmp_path, metadata):
    assert [row["label"] for row in read_rows(written(tmp_path / "a.parquet", [1, -1], metadata))] == [1, -1]


def test_values_are_pythons_and_their_text_is_pythons(tmp_path):
    day = datetime.datetime(2024, 1, 2, 3, 4)
    labels = [12345678901234567890, 1.0, Decimal("1.00"), day, day.date(), True]
    texts = ["12345678901234567890", "1.0", "1.00", "2024-01-02 03:04:00", "2024-01-02", "true"]
    for i, (value, text) in enumerate(zip(labels, texts, strict=True)):
        kind = pyarrow.uint64() if i == 0 else None
        (row,) = read_rows(written(tmp_path / f"{i}.parquet", pyarrow.array([value], kind)))
        assert cell_text(row, "label", source="", number=1) == text


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"PAR1 cut off"), ("a.arrow", b"ARROW1 not"), ("a.feather", b"FEA1"), ("a.arrow", b"")],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: not a whole (Parquet|Arrow) file"):
        read_rows(str(tmp_path / name))


def test_text_that_is_no_utf8_and_columns_of_one_name_are_errors(tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(InputError, match=r"a\.parquet: .*UnicodeDecodeError"):
        read_rows(written(tmp_path / "a.parquet", broken))
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["x", "x"])
    with pyarrow.ipc.new_file(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="distinct column names, found 'x' twice"):
        read_rows(str(tmp_path / "b.arrow"))
