"""Outputs survive a kill: what was answered is not asked again, half a line is not taken for an answer."""

import json

import pytest

from fedsb.tasks.scoring.outputs import answered, key_of

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]


class Engine:
    """Answers with the prompt's tokens, and dies after so many batches."""

    def __init__(self, batches: int | None = None) -> None:
        self.batches, self.asked = batches, []

    def __call__(self, prompts, number):
        if self.batches is not None and len(self.asked) == self.batches:
            raise KeyboardInterrupt
        self.asked.append((number, prompts))
        return [" ".join(map(str, prompt)) for prompt in prompts]


def ask(engine, path, key="k", told=None):
    report = (told if told is not None else []).append
    return answered(PROMPTS, engine, batch_size=2, path=path, key=key, report=report)


WHOLE = ["1 2 3", "4", "5 6", "7 8 9 10", "11"]


def test_without_a_file():
    told = []
    assert ask(Engine(), None, told=told) == WHOLE
    assert told == [2, 2, 1]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_after_a_kill_only_the_rest_is_asked_with_the_same_batches(done, tmp_path):
    path = tmp_path / "new" / "x.outputs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Engine(done), path)
    rest, told = Engine(), []
    assert ask(rest, path, told=told) == WHOLE
    assert sum(told) == len(PROMPTS)
    assert rest.asked == Engine_batches()[done:]


def Engine_batches():
    whole = Engine()
    ask(whole, None)
    return whole.asked


def test_half_a_line_is_dropped_and_asked_again(tmp_path):
    path = tmp_path / "x.outputs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Engine(2), path)
    text = path.read_bytes()
    for cut in range(1, len(text.splitlines()[-1]) + 2):
        path.write_bytes(text[:-cut])
        assert ask(Engine(), path) == WHOLE
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {line["index"]: line["output"] for line in lines[1:]} == dict(enumerate(WHOLE))
        path.write_bytes(text)


def test_a_file_torn_within_its_first_line_is_begun_anew(tmp_path):
    path = tmp_path / "x.outputs.jsonl"
    path.write_text('{"key": "')
    assert ask(Engine(), path) == WHOLE


def test_answers_of_another_model_or_question_are_thrown_away(tmp_path):
    path = tmp_path / "x.outputs.jsonl"
    ask(Engine(), path, key="one")
    again = Engine()
    ask(again, path, key="one")
    assert again.asked == []
    ask(again, path, key="two")
    assert len(again.asked) == 3
    assert json.loads(path.read_text().splitlines()[0]) == {"key": "two"}


def test_keys_differ_with_what_they_are_of():
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a=[1])}) == 4
