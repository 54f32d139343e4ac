"""What libraries raise becomes an error that names the key; what is wrong with us stays what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedsb.common import stage as stage_module
from fedsb.common.stage import stage
from fedsb.errors import FedsbError, InputError, RunFailed


class PanicException(BaseException):
    """As compiled Rust raises, past Exception."""


def raises_in_a_library() -> None:
    torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(2, 2))


LIBRARY_ERRORS = {
    "an index": (raises_in_a_library, "IndexError: index out of range in self"),
    "a text": (lambda: json.loads("{"), "JSONDecodeError: Expecting property name"),
    "shapes": (lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), "RuntimeError: mat1 and mat2"),
    "a file": (lambda: Path("/nowhere/at/all").read_text(), "FileNotFoundError"),
}


@pytest.mark.parametrize("name", LIBRARY_ERRORS)
def test_a_library_error_names_the_key_and_keeps_its_cause(name: str) -> None:
    action, part = LIBRARY_ERRORS[name]
    with pytest.raises(InputError) as error, stage("model.path", "loading it", "take another"):
        action()
    assert str(error.value).startswith("model.path: loading it failed (")
    assert part in str(error.value)
    assert str(error.value).endswith("; take another")
    assert "\n" not in str(error.value)
    assert type(error.value.__cause__).__name__ in str(error.value)


def test_a_panic_is_an_error_and_an_interrupt_is_none() -> None:
    with (
        pytest.raises(InputError, match="PanicException: boom"),
        stage("model.path", "tokenizing", "no cure"),
    ):
        raise PanicException("boom")
    for interrupt in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(interrupt), stage("model.path", "tokenizing", "no cure"):
            raise interrupt


def test_text_that_may_hold_a_cell_is_left_out() -> None:
    with pytest.raises(InputError) as error, stage("data", "reading", "fix it", quotes=False):
        raise_from_a_library("Mrs Smith, 42")
    assert "Smith" not in str(error.value)
    assert "(ValueError)" in str(error.value)


def raise_from_a_library(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("kind", [InputError, RunFailed, FedsbError])
def test_our_own_errors_pass_as_they_are(kind: type[FedsbError]) -> None:
    mine = kind("method.rank: too high")
    with pytest.raises(kind) as error, stage("model.path", "loading", "no cure"):
        raise mine
    assert error.value is mine


def test_a_defect_in_our_code_is_no_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here this file stands for our package: what its own lines raise is a defect of it."""
    monkeypatch.setattr(stage_module, "PACKAGE", Path(__file__).parent)
    with pytest.raises(KeyError), stage("model.path", "loading", "no cure"):
        {}["no such name"]
    with pytest.raises(InputError), stage("model.path", "loading", "no cure"):
        raises_in_a_library()
    with pytest.raises(InputError), stage("model.path", "loading", "no cure"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)  # compiled code has no frame of its own


def test_what_failed_through_no_input_is_a_failed_run() -> None:
    with pytest.raises(RunFailed), stage("--out", "keeping the state", "make room", becomes=RunFailed):
        Path("/nowhere/at/all").write_text("")


def test_a_traceback_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(stage_module.DEBUG, raising=False)
    stage_module.show_if_debugging(ValueError("told"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(stage_module.DEBUG, "1")
    stage_module.show_if_debugging(ValueError("told"))
    assert "ValueError: told" in capsys.readouterr().err
