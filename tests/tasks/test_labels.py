"""Classes are named alike in a config and in every kind of file; numbers are made only for a regression."""

import pytest

from fedsb.config import RunConfig
from fedsb.config.labels import label_name
from fedsb.errors import InputError
from fedsb.tasks.labels import class_ids, label_set, targets
from fedsb.tasks.rows import read_rows
from fedsb.tasks.rows.cells import ClassId


def config(task: str) -> RunConfig:
    import yaml

    values = yaml.safe_load(f"{{kind: classification, text: [text], {task}}}")
    return RunConfig.from_dict({"model": {"path": "m"}, "data": {"train": "a", "test": "b"}, "task": values})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        ("-3.0", "-3"),
        ("0.0", "0"),
        (0.5, "0.5"),
        ("1.00", "1.00"),
        ("007", "007"),
        ("007.0", "007.0"),
        (True, "true"),
        ("TRUE", "true"),
        ("False", "false"),
        ("false", "false"),
        ("tRue", "tRue"),
        (" no ", "no"),
        (10**19, "1" + 19 * "0"),
        (1e19, "1" + 19 * "0"),
    ],
)
def test_names(value, name):
    assert label_name(value) == name
    assert label_name(name) == name


@pytest.mark.parametrize(
    ("labels", "content"),
    [
        ("[false, true]", '{"text": "x", "label": false}\n{"text": "y", "label": true}\n'),
        ("[false, true]", "text,label\nx,False\ny,True\n"),
        ("[false, true]", "text,label\nx,FALSE\ny,TRUE\n"),
        ("[1.0, 2.0]", "text,label\nx,1.0\ny,2.0\n"),
        ("[1.0, 2.0]", '{"text": "x", "label": 1}\n{"text": "y", "label": 2}\n'),
        ("[1, 2]", '{"text": "x", "label": 1.0}\n{"text": "y", "label": "2.0"}\n'),
        ('["no", "yes"]', "text,label\nx,no\ny, yes \n"),
        ('["007", "010"]', "text,label\nx,007\ny,010\n"),
        ("[2024-01-02, 2024-01-03]", "text,label\nx,2024-01-02\ny,2024-01-03\n"),
    ],
)
def test_classes_of_a_config_are_those_of_the_rows(tmp_path, labels, content):
    path = tmp_path / ("a.csv" if content.startswith("text") else "a.jsonl")
    path.write_text(content)
    names = config(f"labels: {labels}").task.labels
    assert class_ids(read_rows(str(path)), "label", names, "a") == [0, 1]


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        ("[no, yes]", "no"),
        ("[on, off]", "off"),
        ("[no, unsure, yes]", "Yes"),
        ("[007, 010]", "010"),
        ("[1.50, 2]", "1.50"),
    ],
)
def test_what_yaml_reads_as_something_else_gets_a_hint_to_quote_it(labels, label):
    names = config(f"labels: {labels}").task.labels
    with pytest.raises(InputError, match=r"a\.csv: row 1 .*task\.labels does not have .*in quotes") as caught:
        class_ids([{"label": label}], "label", names, "a.csv", listed=True)
    with pytest.raises(InputError) as plain:
        class_ids([{"label": "secret"}], "label", names, "a.csv", listed=True)
    assert "quotes" in str(caught.value)
    assert "quotes" not in str(plain.value)
    assert "secret" not in str(plain.value)


def test_a_files_own_classes_are_named_where_a_config_lists_others():
    (label, _) = ClassId.of(["negative", "positive"])
    with pytest.raises(InputError, match=r"\(0, 1\); fix .*; the file's own classes are negative, positive$"):
        class_ids([{"label": label}], "label", ["0", "1"], "a.parquet", listed=True)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("labels: [1, 1.0]", "every class once"),
        ("labels: [true, 'True']", "every class once"),
        ("labels: [a, null]", "names of classes"),
        ("labels: [a, [b]]", "names of classes"),
        ("labels: [a, b], regression: true", "leave one of them out"),
    ],
)
def test_wrong_lists_of_classes(task, message):
    with pytest.raises(InputError, match=rf"task.*{message}"):
        config(task)


def test_codes_with_leading_zeros_are_classes_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,0900\ny,0007\nz,0090\nx,0007\n")
    (tmp_path / "b.tsv").write_text("text\tlabel\nx\t0090\n")
    names, regression = label_set(read_rows(str(tmp_path / "a.csv")), "label", "a.csv")
    assert (names, regression) == (("0007", "0090", "0900"), False)
    assert class_ids(read_rows(str(tmp_path / "b.tsv")), "label", names, "b.tsv") == [1]


# Numbers

RATINGS = [{"label": value} for value in ("1", "5", "3", "2.0")]


@pytest.mark.parametrize(
    ("task", "regresses"),
    [
        ("metric: pearson", True),
        ("metric: spearman", True),
        ("regression: true", True),
        ("regression: false", False),
        ("regression: false, metric: accuracy", False),
        ("labels: [1, 2]", False),
        ("metric: accuracy", None),
        ("label: label", None),
    ],
)
def test_a_regression_of_whole_numbers_is_asked_for(task, regresses):
    assert config(task).task.regresses is regresses


def test_ratings_are_numbers_only_if_asked_for():
    assert label_set(RATINGS, "label", "a.csv") == (("1", "2", "3", "5"), False)
    assert label_set(RATINGS, "label", "a.csv", regression=True) == (None, True)
    assert targets(RATINGS, "label", "a.csv") == [1.0, 5.0, 3.0, 2.0]
    versions = [{"label": value} for value in ("1.0", "1.1", "2.0")]
    assert label_set(versions, "label", "a.csv", regression=False) == (("1", "1.1", "2"), False)


def test_numbers_are_the_same_in_files_of_all_formats(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,2\ny,0.5\n")
    (tmp_path / "b.jsonl").write_text('{"label": 2}\n{"label": 5e-1}\n')
    (tmp_path / "c.json").write_text('[{"label": "2"}, {"label": " +.5 "}]')
    for name in ("a.csv", "b.jsonl", "c.json"):
        rows = read_rows(str(tmp_path / name))
        assert targets(rows, "label", name) == [2.0, 0.5]
        assert name == "c.json" or label_set(rows, "label", name) == (None, True)


@pytest.mark.parametrize(
    "label", ["1,5", "high", "nan", "inf", "1_0", "0x1", "1 2", "1e999", True, float("inf"), "٣"]
)
def test_what_is_no_finite_number_is_refused_with_its_row(label):
    with pytest.raises(InputError, match=r"a\.csv: row 2: expected a finite number such as 2\.5") as caught:
        targets([{"label": 1}, {"label": label}], "label", "a.csv")
    assert str(label) not in str(caught.value).removeprefix("a.csv: row 2: expected a finite number")


def test_decimal_commas_are_no_names_unless_it_is_said():
    rows = [{"label": label} for label in ("1,5", "2", "-3,25")]
    with pytest.raises(
        InputError, match=r"a\.csv: .*'label' look like numbers with decimal commas; write 2\.5"
    ):
        label_set(rows, "label", "a.csv")
    assert label_set(rows, "label", "a.csv", regression=False) == (("-3,25", "1,5", "2"), False)


@pytest.mark.parametrize("label", ["a\0b", "\ud83d", ["x"], {"a": 1}, b"x", (1,)])
def test_labels_that_are_no_text_are_input_errors(label):
    with pytest.raises(InputError, match=r"a\.csv: row 1"):
        label_set([{"label": label}], "label", "a.csv")


@pytest.mark.parametrize("gap", ["nan", "NaN", "NA", "n/a", "None", "-inf", "-", "?"])
def test_measures_with_a_gap_are_no_classes_unless_it_is_said(gap):
    rows = [{"label": value} for value in ("0.5", "1", gap, "2.25")]
    with pytest.raises(InputError, match=r"row 3 has no number in column 'label'.*\(1 such rows\)"):
        label_set(rows, "label", "a.csv")
    assert label_set(rows, "label", "a.csv", regression=False)[0] is not None
    assert label_set([{"label": value} for value in ("1", "2", gap)], "label", "a.csv")[0] is not None
