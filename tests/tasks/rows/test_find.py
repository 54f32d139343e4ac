"""Several files of one source, in sorted order; a folder or a pattern only where what is meant is clear."""

from pathlib import Path

import pytest

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.tasks.rows import read_rows


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    for name in (
        "site-b/notes.csv",
        "site-a/notes.csv",
        "site-a/other.jsonl",
        "parts/p2.jsonl",
        "parts/p1.jsonl",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"name\n{name}\n" if path.suffix == ".csv" else f'{{"name": "{name}"}}\n')
    (tmp_path / "parts/README.md").write_text("not data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(source: str | list[str], **options: int) -> list[object]:
    return [row["name"] for row in read_rows(source, **options)]


def test_a_pattern_a_list_and_a_folder_are_read_in_order(files):
    assert names("site-*/notes.csv") == ["site-a/notes.csv", "site-b/notes.csv"]
    assert names("**/*.jsonl") == ["parts/p1.jsonl", "parts/p2.jsonl", "site-a/other.jsonl"]
    assert names(["site-b/notes.csv", "parts"]) == ["site-b/notes.csv", "parts/p1.jsonl", "parts/p2.jsonl"]
    assert names("par*") == ["parts/p1.jsonl", "parts/p2.jsonl"]
    assert names(str(files / "parts")) == ["parts/p1.jsonl", "parts/p2.jsonl"]
    assert names(["parts", "nowhere.csv"], limit=2) == ["parts/p1.jsonl", "parts/p2.jsonl"]


def test_a_row_knows_its_own_file_and_number(files):
    assert [(Path(row.source).name, row.number) for row in read_rows("parts")] == [
        ("p1.jsonl", 1),
        ("p2.jsonl", 1),
    ]


def test_tables_of_one_source_have_the_same_columns(files):
    (files / "site-a/notes.csv").write_text("text,name\nx,y\n")
    (files / "site-b/notes.csv").write_text("name;text\ny;x\n")
    told: list[str] = []
    rows = read_rows("site-*/notes.csv", told=told.append)
    assert [dict(row) for row in rows] == [{"text": "x", "name": "y"}] * 2
    assert told == ["notes.csv: read as UTF-8 text with semicolons between cells"]
    (files / "site-a/notes.csv").write_text("sep=|\ntext|name\nx|y\n")
    read_rows("site-*/notes.csv", told=told.append)
    assert [line.split(":")[0] for line in told[1:]] == ["site-a/notes.csv", "site-b/notes.csv"]
    for one, other in (("a", "b"), ("b", "a")):
        (files / f"site-{one}/notes.csv").write_text("text,name\nx,y\n")
        (files / f"site-{other}/notes.csv").write_text("name\ny\n")
        message = rf"site-{other}/notes.csv: has no column 'text', which site-{one}/notes.csv has"
        with pytest.raises(InputError, match=message):
            read_rows("site-*/notes.csv")


def test_a_file_with_a_patterns_marks_in_its_name_is_that_file(files):
    (files / "data[1].csv").write_text("name\nmarked\n")
    assert names("data[1].csv") == ["marked"]


@pytest.mark.parametrize(
    ("made", "source", "message"),
    [
        ((), "site-?/none.csv", r"no file matches this pattern"),
        ((), ".", r"a folder with files that end in .*found none directly in it.*pattern such as"),
        ((), "site-a", r"a folder with 'notes.csv', 'other.jsonl', and which .* not clear; list them"),
        (("parts/test.jsonl",), "parts", r"'p1.jsonl', 'p2.jsonl', 'test.jsonl', and which"),
        (("s/train.csv", "s/test.csv"), "s", r"'test.csv', 'train.csv', and which .* not clear"),
        (("s/x.train.csv", "s/x.dev.csv"), "s*", r"^s: a folder with"),
        (("s/notes.xlsx",), "s/*", r"^s/notes.xlsx: expected a file that ends in"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_cure(files, made, source, message):
    for name in made:
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_text("name\nx\n")
    with pytest.raises(InputError, match=message):
        read_rows(source)


def test_a_name_that_no_file_can_have_is_an_input_error(files):
    assert config("x" * 5000).with_absolute_paths().data.train == "x" * 5000
    for name in ("x" * 5000, "a\0b", "x" * 5000 + "*", "[", "~no such user/x.csv"):
        with pytest.raises(InputError):
            read_rows(name)


def test_words_that_only_hold_a_splits_name_are_no_split(files):
    for name in ("s/latest.csv", "s/retrained.csv"):
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_text("name\nx\n")
    assert names("s") == ["x", "x"]


def config(train: object, test: object = "t.jsonl") -> RunConfig:
    task = {"kind": "classification", "text": ["text"]}
    return RunConfig.from_dict({"model": {"path": "m"}, "task": task, "data": {"train": train, "test": test}})


def test_lists_and_patterns_become_absolute_and_mean_the_same_from_elsewhere(files, monkeypatch):
    odd = files / "odd [x]"
    odd.mkdir()
    (files / "site-a").rename(odd / "site-a")
    monkeypatch.chdir(odd)
    found = config(["site-a/notes.csv", "site-*/*.csv"], ["site-a", "owner/name"]).with_absolute_paths()
    assert found.data.train[0] == str(odd / "site-a/notes.csv")
    assert found.data.test == [str(odd / "site-a"), "owner/name"]
    monkeypatch.chdir("/")
    assert names(found.data.train) == ["site-a/notes.csv"] * 2
    assert RunConfig.from_dict(found.model_dump(mode="json")) == found
    assert found.with_absolute_paths() == found


@pytest.mark.parametrize("train", [[], {}, 5, [5], {"a": []}, {"a": {"b": "c"}}, None, ""])
def test_what_names_no_source_is_refused_in_one_message(train):
    with pytest.raises(
        InputError, match=r"data\.train: expected a file or hub id, a list of such, or names"
    ) as caught:
        config(train)
    assert "1 wrong" in str(caught.value)


def test_names_may_have_several_files_each():
    assert config({"x": ["a.csv", "b.csv"], "y": "c.csv"}).data.train == {
        "x": ["a.csv", "b.csv"],
        "y": "c.csv",
    }
