"""The script that puts rows of several tasks into one file."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "mixture_rows.py"))
main = SCRIPT["main"]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def glue(tmp_path: Path) -> list[str]:
    """The four tasks as files, SNLI with a row that has no label."""
    one = [{"sentence": f"s{i}", "label": i % 2} for i in range(30)]
    two = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "label": i % 2} for i in range(12)]
    nli = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": [0, 1, 2, -1][i % 4]} for i in range(40)]
    files = {"sst2": one, "cola": one, "mrpc": two, "snli": nli}
    paths = {name: lines(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    return [word for name, path in paths.items() for word in ("--of", f"{name}={path},{path}")]


def test_nine_classes_say_their_task_and_come_in_turn(glue, tmp_path) -> None:
    main(["classes", str(tmp_path / "out"), "--rows", "10", "--test", "4", *glue])
    train, test = (read(tmp_path / "out" / f"{part}.jsonl") for part in ("train", "test"))
    assert (len(train), len(test)) == (38, 16), "of twelve rows of MRPC four are for the test"
    assert [row["source"] for row in train[:4]] == ["sst2", "cola", "mrpc", "snli"]
    assert all(row["label"].startswith(f"{row['source']} ") for row in train)
    assert {row["second"] == "" for row in train if row["source"] in ("sst2", "cola")} == {True}
    assert {row["label"] for row in train if row["source"] == "snli"} <= {
        "snli entailment",
        "snli neutral",
        "snli contradiction",
    }
    assert read(tmp_path / "out" / "test-mrpc.jsonl") == [row for row in test if row["source"] == "mrpc"]


def test_rows_of_one_place_are_not_in_both_parts(glue, tmp_path) -> None:
    main(["classes", str(tmp_path / "out"), "--rows", "10", "--test", "4", *glue])
    train, test = (read(tmp_path / "out" / f"{part}.jsonl") for part in ("train", "test"))
    seen = {(row["source"], row["first"]) for row in train}
    assert not seen & {(row["source"], row["first"]) for row in test}


def test_three_texts_and_the_same_rows_each_time(tmp_path) -> None:
    story = "One. Two. Three. Four. Five. Six. Seven."
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join([story, "Short. One.", story]))
    meals = lines(tmp_path / "meals.jsonl", [{"mr": f"m{i}", "ref": f"r{i}"} for i in range(9)])
    sums = lines(tmp_path / "sums.jsonl", [{"question": f"{i}?", "answer": str(i)} for i in range(9)])
    places = {"stories": tmp_path / "stories.txt", "restaurants": meals, "sums": sums}
    of = [word for name, path in places.items() for word in ("--of", f"{name}={path}")]
    for out in ("a", "b"):
        main(["texts", str(tmp_path / out), "--rows", "5", "--test", "1", *of])
    rows = read(tmp_path / "a" / "train.jsonl")
    assert rows == read(tmp_path / "b" / "train.jsonl")
    (told,) = (row for row in rows if row["source"] == "stories")
    assert told == {"question": "One. Two.", "answer": "Three. Four. Five.", "source": "stories"}
    assert {(row["question"][0], row["answer"][0]) for row in rows if row["source"] == "restaurants"} == {
        ("m", "r")
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "question": "Warm?",
                "choices": {"label": ["A", "B"], "text": ["ice", "fire"]},
                "answerKey": "B",
            },
            {"question": "Warm?\nA) ice\nB) fire", "answer": "B"},
        ),
        (
            {"question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "x", "answer_idx": "A"},
            {"question": "Which?\nA) x\nB) y", "answer": "A"},
        ),
    ],
)
def test_choices_are_lettered(row, expected) -> None:
    assert SCRIPT["a_choice"](row) == expected


def test_a_place_for_no_task_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["texts", str(tmp_path), "--of", "news=x.jsonl"])
    assert "expected NAME=TRAIN,TEST with one of stories, restaurants, sums" in capsys.readouterr().err
