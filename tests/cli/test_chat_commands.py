"""A run on conversations, and what is done with its model: labels and answers to files, a talk, an export."""

import io
import json

import pytest
from chat_families import save_chat_model
from run_helpers import changed, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsb import RunConfig, run

ROWS = [
    {
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": f"what is {number} ?"},
            {"role": "assistant", "content": f"It is {number}."},
        ]
    }
    for number in range(8)
]
PAIRS = [{"instruction": f"what is {number} ?", "output": f"It is {number}."} for number in range(4)]


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A folder with a finished run, `done`."""
    folder = tmp_path_factory.mktemp("chat")
    save_chat_model(folder / "gemma", "gemma")
    write_rows(folder / "train.jsonl", ROWS), write_rows(folder / "test.jsonl", PAIRS)
    config = {
        "model": {"path": str(folder / "gemma")},
        "task": {"kind": "chat", "max_new_tokens": 6},
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "method": {"rank": 2, "init": {"kind": "weights"}},
        "federation": {"clients": 2, "rounds": 1},
        "training": {"batch_size": 4, "max_length": 96},
        "evaluation": {
            "generate": 2,
            "benchmarks": {"same": {"data": str(folder / "test.jsonl"), "score": "exact", "limit": 2}},
        },
    }
    write_config(folder / "run.yaml", config)
    run(RunConfig.from_dict(config), folder / "done")
    return folder


def test_a_run_says_what_it_reads_and_scores_the_last_answer(talk, tmp_path, fedsb):
    status, out, err = fedsb("run", talk / "run.yaml", "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert "train.jsonl: in 'messages', messages of role and content" in out
    assert "chat template: the tokenizer's own; an answer ends with '<end_of_turn>'" in out
    assert "its text goes before the first question" in out
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert final.keys() >= {"loss", "exact_match"}
    assert "same accuracy" in out
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["expected"] == "It is 0."
    status, out, _ = fedsb("doctor", talk / "run.yaml")
    assert "an answer ends with '<end_of_turn>'" in " ".join(out.split())


def test_predict_answers_questions_as_the_run_does(talk, tmp_path, fedsb):
    asked = write_rows(tmp_path / "asked.jsonl", [{"instruction": row["instruction"]} for row in PAIRS])
    status, out, err = fedsb("predict", talk / "done", asked)
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    samples = [json.loads(line) for line in (talk / "done" / "samples.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == [1, 2, 3, 4]
    assert [record["answer"] for record in records[:2]] == [sample["answer"].strip() for sample in samples]
    written = tmp_path / "preds.jsonl"
    assert fedsb("predict", talk / "done", asked, "--out", written)[0] == 0
    assert [json.loads(line) for line in written.read_text().splitlines()] == records
    assert "is there already" in fedsb("predict", talk / "done", asked, "--out", written)[2]


def test_predict_labels_rows_without_labels(world, tmp_path, fedsb):
    rows = [json.loads(line) for line in (world / "data" / "test.jsonl").read_text().splitlines()]
    file = write_rows(tmp_path / "notes.jsonl", [{"text": row["text"]} for row in rows])
    status, out, err = fedsb("predict", world / "done", file)
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    right = [record["label"] == row["label"] for record, row in zip(records, rows, strict=True)]
    final = json.loads((world / "done" / "summary.json").read_text())["final"]
    assert sum(right) / len(right) == pytest.approx(final["accuracy"])
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert max(record["probabilities"], key=record["probabilities"].get) == record["label"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"note": "x"}, "task.text names the column 'text', which is not there"),
        ({"text": None}, "has no value"),
    ],
)
def test_predict_refuses_a_file_that_does_not_fit(world, tmp_path, fedsb, row, reason):
    status, _, err = fedsb("predict", world / "done", write_rows(tmp_path / "x.jsonl", [row]))
    assert status == 2
    assert reason in err


def test_a_talk_goes_on_until_it_is_ended(talk, fedsb, monkeypatch):
    lines = "what is 1 ?\n\n<end_of_turn>\n/new\nwhat is 1 ?\n/quit\nnever asked\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status, out, err = fedsb("chat", talk / "done", "--system", "be kind")
    assert (status, err) == (0, "")
    first, second = [part.split("\n")[0] for part in out.split("model> ")[1:]]
    assert first == second  # after /new
    assert out.count("not answered: a message holds the special token '<end_of_turn>'") == 1
    assert "never asked" not in out


def test_a_talk_shows_what_a_terminal_would_obey_and_asks_what_training_did(talk, fedsb, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is 1 ?\n"))
    asked = []

    def stream(model, tokenizer, prompt, decoding, say, *, number):
        asked.append((tokenizer.decode(prompt), decoding.max_new_tokens))
        say("red \x1b[31m")
        return "red"

    monkeypatch.setattr("fedsb.tasks.generate.stream_text", stream)
    _, out, _ = fedsb("chat", talk / "done", "-s", "task.max_new_tokens=3")
    assert asked == [("<bos><start_of_turn>user\nwhat is 1 ?<end_of_turn>\n<start_of_turn>model\n", 3)]
    assert "red \\u001b[31m" in out
    assert "\x1b" not in out


def test_a_talk_needs_a_run_of_conversations(world, fedsb):
    status, _, err = fedsb("chat", world / "done")
    assert status == 2
    assert "task.kind: classification, which has no turns; take `fedsb predict" in err


def test_an_exported_model_stops_where_the_run_s_answers_end(talk, tmp_path, fedsb):
    assert fedsb("export", talk / "done", "--format", "merged", "--out", tmp_path / "merged")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    assert generation.eos_token_id == ends


def test_a_model_without_a_template_is_exported_with_the_one_it_was_trained_with(talk, tmp_path, fedsb):
    plain = changed(
        RunConfig.from_yaml(talk / "run.yaml").model_dump(mode="json"), task__template="plain", evaluation={}
    )
    run(RunConfig.from_dict(plain), tmp_path / "run")
    assert fedsb("export", tmp_path / "run", "--format", "merged", "--out", tmp_path / "merged")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    (row,) = ROWS[:1]
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert text == "<bos>System: be kind\n\nUser: what is 0 ?\n\nAssistant: It is 0.<eos>"
