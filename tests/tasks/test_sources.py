"""Rows under the names by which a task calls their columns, from one source or several."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fedsb.config import RunConfig
from fedsb.config.sections.evaluation import BenchmarkConfig
from fedsb.errors import InputError
from fedsb.tasks.rows import cell_text, read_rows
from fedsb.tasks.sources import asked_rows, benchmark_rows, train_name, train_rows
from fedsb.tasks.sources import test_rows as held_out_rows


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(**data) -> RunConfig:
    task = {"kind": "causal-lm", "prompt": "{query} ->", "response": "answer"}
    return RunConfig.from_dict({"model": {"path": "m"}, "task": task, "data": {"test": "t.jsonl", **data}})


def test_columns_are_renamed_and_others_stay(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "more": 1}])
    found = config(train=one, test=one, columns={"train": {"query": "question"}, "test": {"answer": "more"}})
    assert train_rows(found) == [{"question": "q", "answer": "a", "more": 1, "query": "q"}]
    assert held_out_rows(found) == [{"question": "q", "answer": 1, "more": 1}]


def test_several_sources_tell_their_rows_apart(tmp_path):
    one, two = (write(tmp_path / f"{n}.jsonl", [{"query": n, "answer": i} for i in range(3)]) for n in "ab")
    found = config(train={"first": one, "second": two}, limit={"train": 2})
    rows = train_rows(found)
    assert [(row["query"], row["answer"], row["source"]) for row in rows] == [
        ("a", 0, "first"),
        ("a", 1, "first"),
        ("b", 0, "second"),
        ("b", 1, "second"),
    ]
    assert train_name(found) == f"{one}, {two}"


def test_paths_of_all_sources_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{}])
    found = config(train={"x": "a.jsonl", "y": "owner/name"}, test="a.jsonl")
    evaluation = {"benchmarks": {"b": {"data": "a.jsonl", "score": "exact"}}}
    found = RunConfig.from_dict({**found.model_dump(), "evaluation": evaluation}).with_absolute_paths()
    assert found.data.train == {"x": str(tmp_path / "a.jsonl"), "y": "owner/name"}
    assert found.evaluation.benchmarks["b"].data == str(tmp_path / "a.jsonl")
    assert RunConfig.from_dict(found.model_dump(mode="json")) == found


def test_a_column_that_is_not_there_is_named_with_its_key(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"question": "q"}])
    with pytest.raises(
        InputError, match=r"data\.columns\.train names the column 'query'.*the columns are 'question'"
    ):
        train_rows(config(train=one, columns={"train": {"x": "query"}}))
    wanted = BenchmarkConfig(data=one, score="exact", columns={"query": "problem"})
    with pytest.raises(InputError, match=r"evaluation\.benchmarks\.math\.columns names the column 'problem'"):
        benchmark_rows(wanted, "math")


def test_data_sets_that_are_scripts_are_read_from_the_hubs_tables(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, trust_remote_code, **how):
        assert trust_remote_code is False
        asked.append(how)
        if not how:
            raise RuntimeError("Dataset scripts are no longer supported, but found e2e_nlg.py")
        return datasets.Dataset.from_dict({"mr": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("owner/e2e") == [{"mr": "a"}]
    assert asked == [{}, {"revision": "refs/convert/parquet"}]


def labelled_config(**data):
    task = {"kind": "classification", "text": ["text"]}
    return RunConfig.from_dict({"model": {"path": "m"}, "task": task, "data": {"test": "t.jsonl", **data}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nx,1\ny,\nz,0\n"),
        ("a.tsv", "text\tlabel\nx\t1\ny\t \nz\t0\n"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n{"text": "z", "label": 0}\n'),
        ("a.json", '[{"text": "x", "label": "1"}, {"text": "y", "label": ""}, {"text": "z", "label": "0"}]'),
    ],
)
def test_rows_without_a_label_are_dropped_in_every_format_and_the_rest_keep_their_numbers(
    tmp_path, name, content
):
    (tmp_path / name).write_text(content)
    rows = train_rows(labelled_config(train=str(tmp_path / name), drop_unlabelled=True))
    assert [(row["text"], row.number) for row in rows] == [("x", 1), ("z", 3)]
    with pytest.raises(InputError, match=rf"{name}: row 3( .line 4.)? has no value in column 'missing'"):
        cell_text(rows[1], "missing", source="all of them", number=2)


def test_several_files_are_one_source_whose_rows_know_their_file(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"q": "x"}, {"q": "y"}])
    (tmp_path / "b.csv").write_text("q\nz\n")
    more = {"columns": {"train": {"query": "q"}}}
    listed = config(train=[one, str(tmp_path / "b.csv")], limit={"train": 3}, **more)
    assert [(row["query"], row.number) for row in train_rows(listed)] == [("x", 1), ("y", 2), ("z", 1)]
    assert train_name(listed) == f"{one}, {tmp_path / 'b.csv'}"
    named = config(train={"mine": [one, str(tmp_path / "b.csv")], "all": str(tmp_path / "*.csv")}, **more)
    assert [(row["query"], row["source"]) for row in train_rows(named)] == [
        ("x", "mine"),
        ("y", "mine"),
        ("z", "mine"),
        ("z", "all"),
    ]


@pytest.mark.parametrize(
    ("task", "written_to_json"),
    [
        ({"kind": "classification", "text": ["text"]}, '{"text": "x", "label": 0, "topic": "tax"}'),
        (
            {"kind": "classification", "text": ["text"], "labels": ["no", "yes"]},
            '{"text": "x", "label": "yes", "topic": "tax"}',
        ),
        (
            {"kind": "causal-lm", "prompt": "{text}", "response": "label"},
            '{"text": "x", "label": "yes", "topic": "tax"}',
        ),
    ],
)
def test_names_of_classes_outlive_a_file_of_json_lines(tmp_path, task, written_to_json):
    """In which rows are held out to tune on: ids where their order counts, names everywhere else."""
    names = {"label": ["yes", "no"], "topic": ["law", "tax"]}
    features = {column: {"names": of_column, "_type": "ClassLabel"} for column, of_column in names.items()}
    table = pyarrow.table({"text": ["x"], "label": [0], "topic": [1]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    values = {
        "model": {"path": "m"},
        "task": task,
        "data": {"train": str(tmp_path / "a.parquet"), "test": "t"},
    }
    (row,) = train_rows(RunConfig.from_dict(values))
    assert (json.dumps(row), row.number) == (written_to_json, 1)


def test_a_prepared_row_keeps_its_place_and_takes_text_for_truth(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nis it so,False\nis it,True\nor not,\n")
    found = config(train=str(tmp_path / "a.csv"), prepare={"train": "boolq"}, limit={"train": 2})
    rows = train_rows(found)
    assert [(row["answer"], row.number) for row in rows] == [("false", 1), ("true", 2)]
    whole = config(train=str(tmp_path / "a.csv"), prepare={"train": "boolq"})
    with pytest.raises(InputError, match=r"a\.csv: row 3 .line 4. is not one of boolq: it has no 'answer'"):
        train_rows(whole)


@pytest.mark.parametrize("test", ["test.jsonl", 0.2])
def test_rows_to_be_answered_are_read_as_the_test_rows_are_also_where_these_are_a_share(tmp_path, test):
    asked = write(tmp_path / "a.jsonl", [{"question": "q"}])
    side = "test" if test == "test.jsonl" else "train"
    found = config(train="t.jsonl", test=test, columns={side: {"query": "question"}})
    assert asked_rows(found, asked) == [{"question": "q", "query": "q"}]
