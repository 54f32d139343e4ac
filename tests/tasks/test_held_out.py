"""Test rows as a share of the training rows: every class on both sides, groups whole, the same each time."""

from collections import Counter

import pytest

from fedsb.config import RunConfig
from fedsb.errors import InputError
from fedsb.tasks.held_out import hold_out, num_repeated

PRIVATE = {"unit": "example", "epsilon": 3.0}


def config(share=0.1, *, privacy=None, kind="classification", **data) -> RunConfig:
    task = {"kind": kind, "text": ["text"]} if kind == "classification" else {
        "kind": kind, "prompt": "{text}", "response": "label"
    }  # fmt: skip
    values = {"model": {"path": "m"}, "task": task, "data": {"train": "a.csv", "test": share, **data}}
    return RunConfig.from_dict(values | {"privacy": privacy})


def rows(count, *, rare=10, patients=None):
    """One row of `rare` has the label yes; patient i has the rows i, i + patients, ..."""
    return [
        {"text": f"t{i}", "label": "yes" if i % rare == 0 else "no", "patient": f"p{i % (patients or count)}"}
        for i in range(count)
    ]


def test_each_class_has_its_share_on_both_sides_and_no_row_is_on_two():
    split = hold_out(config(0.2), table := rows(200), "a.csv")
    assert sorted([*split.train, *split.test]) == list(range(200))
    assert split == (sorted(split.train), sorted(split.test))
    assert Counter(table[i]["label"] for i in split.test) == {"no": 36, "yes": 4}


def test_the_draw_depends_on_its_own_seed_alone():
    table = rows(200)
    one = hold_out(config(), table, "a.csv")
    assert hold_out(config().model_copy(update={"seed": 7}), table, "a.csv") == one
    assert hold_out(config(split_seed=1), table, "a.csv") != one


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_rows_of_a_group_stay_together(share, kind):
    table = rows(300, rare=7, patients=60)
    split = hold_out(config(share, kind=kind, group="patient"), table, "a.csv")
    patients = [{table[i]["patient"] for i in side} for side in split]
    assert not patients[0] & patients[1]
    assert len(split.test) / 300 == pytest.approx(share, abs=0.03)
    if kind == "classification":
        yes = Counter(table[i]["label"] for i in split.test)["yes"] / len(split.test)
        assert yes == pytest.approx(43 / 300, abs=0.06)


@pytest.mark.parametrize("group", [None, "patient"])
def test_with_privacy_one_row_decides_about_no_other(group):
    pytest.importorskip("opacus", reason="needs the extra: pip install 'fedsb[dp]'")
    table = rows(200, patients=50)
    before = hold_out(config(0.2, privacy=PRIVATE, group=group), table, "a.csv")
    assert len(before.test) == pytest.approx(40, abs=16)
    for changed in ({"label": "maybe"}, {"patient": "another"}, {"text": "else"}):
        after = hold_out(
            config(0.2, privacy=PRIVATE, group=group), [{**table[0], **changed}, *table[1:]], "a.csv"
        )
        assert set(after.test) - {0} == set(before.test) - {0}


@pytest.mark.parametrize(
    ("share", "table", "data", "message"),
    [
        (0.1, rows(30, rare=30), {}, r"needs two rows of each class, and 1 of the classes have one"),
        (0.1, rows(12, rare=6), {}, r"class of it, without|1 of 2 classes without a test row"),
        (0.1, rows(40, patients=1), {"group": "patient"}, r"leaves a side without a group"),
        (0.5, rows(40, rare=2, patients=2), {"group": "patient"}, r"classes without a (training|test) row"),
        (0.1, rows(40), {"group": "patent"}, r"data\.group names the column 'patent'.*mean 'patient'"),
        (0.1, [*rows(40), {"text": "t", "label": "no"}], {"group": "patient"}, r"row 41 has no value"),
    ],
)  # fmt: skip
def test_a_share_that_leaves_a_side_or_a_class_empty_is_refused(share, table, data, message):
    with pytest.raises(InputError, match=message) as caught:
        hold_out(config(share, **data), table, "a.csv")
    assert "t1" not in str(caught.value)


@pytest.mark.parametrize("share", [0, -0.1, 0.51, 1, True])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(InputError, match=r"data\.test: expected a file, or a share above 0 and at most 0\.5"):
        config(share)


@pytest.mark.parametrize("keys", [{"columns": {"test": {"a": "b"}}}, {"prepare": {"test": "arc"}}])
def test_keys_of_a_test_file_do_not_go_with_a_share_nor_a_group_with_a_file(keys):
    with pytest.raises(InputError, match=r"test is the share 0\.1 of the training rows"):
        config(**keys)
    with pytest.raises(InputError, match=r"group keeps rows together where test is a share"):
        config("test.csv", group="patient")


def test_a_config_without_test_rows_holds_out_a_tenth():
    values = {"model": {"path": "m"}, "task": {"kind": "classification", "text": "t"}, "data": {"train": "a"}}
    assert RunConfig.from_dict(values).data.test == 0.1


def test_repeated_examples_are_counted():
    train = [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    assert num_repeated(train, [{"input_ids": [1, 2]}, {"input_ids": [1, 2]}, {"input_ids": [2, 1]}]) == 2
