"""Rows are dealt by a column's values for every kind of task, by classes where none is named."""

import pytest

from fedsb.common.seeding import numpy_generator
from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.federation.partition import dirichlet
from fedsb.runner.prepare_data import make_partition
from fedsb.tasks.rows import read_rows

TOPICS = ["law", "tax", "art"]
ROWS = [{"q": f"q{i}", "topic": TOPICS[i % 3], "year": 2000 + i % 2} for i in range(60)]
LM = {"kind": "causal-lm", "prompt": "{q}", "response": "topic"}
CLASSES = {"kind": "classification", "text": ["q"]}


def parts(partition, *, task=LM, labels=None, clients=3, rows=ROWS, seed=0):
    config = RunConfig.from_dict(
        {
            "seed": seed,
            "model": {"path": "m"},
            "task": task,
            "data": {"train": "train.csv", "test": "test.csv"},
            "federation": {"clients": clients, "partition": partition},
        }
    )
    return make_partition(config, rows, labels)


def mixes(found, column):
    return [{row[column] for row in (ROWS[i] for i in part)} for part in found]


BY_TOPIC = [
    {"kind": "dirichlet", "alpha": 0.5, "column": "topic", "min_size": 2},
    {"kind": "shards", "column": "topic", "shards_per_client": 1},
    {"kind": "by-column", "column": "topic"},
]


@pytest.mark.parametrize("partition", BY_TOPIC, ids=lambda partition: partition["kind"])
@pytest.mark.parametrize(
    "task", [LM, CLASSES, {**CLASSES, "regression": True}], ids=["lm", "classes", "numbers"]
)
def test_every_task_can_be_dealt_by_a_column(task, partition):
    labels = ["a", "b"] * 30 if task is CLASSES else None
    found = parts(partition, task=task, labels=labels)
    assert sorted(i for part in found for i in part) == list(range(60))
    assert found == parts(partition, task=task, labels=labels)
    if partition["kind"] == "dirichlet":
        topics, rng = [row["topic"] for row in ROWS], numpy_generator(0, "partition")
        assert found == dirichlet(topics, 3, alpha=0.5, min_size=2, rng=rng)
    else:  # each client one topic: labels, which alternate, play no part
        assert sorted(mixes(found, "topic"), key=str) == [{topic} for topic in sorted(TOPICS)]


def test_numbers_and_truths_are_values_too():
    found = parts({"kind": "by-column", "column": "year"}, clients=4)
    assert mixes(found, "year") == [{2000}, {2000}, {2001}, {2001}]
    assert [len(part) for part in found] == [15] * 4


def test_long_numbers_of_a_csv_file_are_as_many_clients_as_there_are(tmp_path):
    """They differ beyond the digits that a float has."""
    accounts = [f"9000000000000000000{i % 5}" for i in range(25)]
    (tmp_path / "a.csv").write_text("q,account\n" + "".join(f"q,{account}\n" for account in accounts))
    found = parts(
        {"kind": "by-column", "column": "account"}, rows=read_rows(str(tmp_path / "a.csv")), clients=5
    )
    assert found == [list(range(i, 25, 5)) for i in range(5)]


def test_a_column_goes_before_the_classes_and_classes_serve_without_one():
    labels = [str(i // 30) for i in range(60)]
    by_class = parts({"kind": "shards", "shards_per_client": 1}, task=CLASSES, labels=labels, clients=2)
    assert sorted(by_class) == [list(range(30)), list(range(30, 60))]
    by_year = {"kind": "shards", "shards_per_client": 1, "column": "year"}
    assert sorted(parts(by_year, task=CLASSES, labels=labels, clients=2))[0] == list(range(0, 60, 2))


@pytest.mark.parametrize(
    ("partition", "rows", "message"),
    [
        (
            {"kind": "dirichlet"},
            ROWS,
            r"partition\.column: dirichlet deals by class .*column: topic",
        ),
        ({"kind": "shards"}, ROWS, r"federation\.partition\.column: shards deals by class labels"),
        (
            {"kind": "dirichlet", "column": "topics"},
            ROWS,
            r"train\.csv: federation.* 'topics'.*'topic'",
        ),
        (
            {"kind": "by-column", "column": "topic"},
            [*ROWS, {"topic": None}],
            r"train\.csv: row 61 has no value",
        ),
        ({"kind": "shards", "column": "q"}, [*ROWS, {"q": ["x"]}], r"train\.csv: row 61, column 'q'"),
        (
            {"kind": "dirichlet", "column": "q", "min_size": 40},
            ROWS,
            r"federation\.clients: 60 .*too few .*120",
        ),
        (
            {"kind": "dirichlet", "column": "topic", "alpha": 1e-9, "min_size": 1},
            ROWS[:10],
            r"Dirichlet draws with alpha 1e-09 over 3 values .*Raise alpha",
        ),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_a_cure(partition, rows, message):
    with pytest.raises(InputError, match=message):
        parts(partition, rows=rows, clients=4 if len(rows) < 60 else 3)
