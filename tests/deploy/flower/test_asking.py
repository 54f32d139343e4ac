"""Answers that are lost on the way, and what is asked again."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from flwr.app import Error

from fedsb.deploy import asking
from fedsb.deploy.asking import Question
from fedsb.deploy.records import pack

NODE = 7


@dataclass
class ScriptedGrid:
    """`script`: what each look finds: whether the node is connected, and the answer to which question."""

    script: list
    asked: list = field(default_factory=list)

    def send(self, nodes):
        for node in nodes:
            self.asked.append(node)
            yield f"question {len(self.asked)}", node

    def get_node_ids(self):
        return [NODE] if self.script[0][0] else []

    def pull_messages(self, names):
        _, answered, error = (*self.script.pop(0), None)[:3]
        if answered not in names:
            return []
        content = None if error else pack({})
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=answered),
                has_error=lambda: error is not None,
                error=error,
                content=content,
            )
        ]


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(asking, "LOOK_SECONDS", 0.0)


def come_of(script, *, again=True):
    said, grid = [], ScriptedGrid([*script, (True, None)])
    ((node, answer),) = Question(grid, grid.send, said.append, again).answers([NODE], None)
    assert node == NODE
    return answer if isinstance(answer, str) else "answered", len(grid.asked), said


HERE, AWAY = (True, None), (False, None)
DIED = Error(8, "ClientApp stopped responding.")


def test_a_node_that_came_back_without_an_answer_is_asked_again():
    answer, asked, said = come_of([HERE, AWAY, AWAY, HERE, HERE, (True, "question 2")])
    assert (answer, asked) == ("answered", 2)
    assert said == ["node 7: it was away and came back; asking it again"]


def test_one_whose_answer_is_there_already_is_not():
    assert come_of([HERE, AWAY, (False, "question 1")])[:2] == ("answered", 1)


def test_a_client_process_that_died_is_asked_again_once():
    assert come_of([(True, "question 1", DIED), (True, "question 2")])[:2] == ("answered", 2)
    answer, asked, _ = come_of([(True, "question 1", DIED), (True, "question 2", DIED)])
    assert (answer, asked) == ("Flower error 8: ClientApp stopped responding.", 2)


def test_where_answers_cost_privacy_none_is_asked_for_twice():
    assert come_of([(True, "question 1", DIED)], again=False)[1] == 1
    answer, asked, _ = come_of([HERE, AWAY, HERE, HERE], again=False)
    assert (answer, asked) == ("its node went away and came back without an answer", 1)


def test_a_node_that_flower_takes_no_message_for_fails_at_once():
    answers = list(
        Question(ScriptedGrid([]), lambda nodes: [("", n) for n in nodes], print, True).answers([NODE], None)
    )
    assert answers == [(NODE, "its node is not connected")]
