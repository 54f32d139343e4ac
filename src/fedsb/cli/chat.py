"""`fedsb chat`: a talk with a finished run's model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedsb.cli.options import evaluation_config
from fedsb.config.sections.task import ChatConfig
from fedsb.errors import InputError

if TYPE_CHECKING:
    from fedsb.runner.finished_model import FinishedModel

YOU, MODEL = "you> ", "model> "
CONVERSATION = "the conversation"
"""Its name in errors."""


@dataclass
class Talk:
    """A conversation so far; `begin` is what every one begins with."""

    finished: FinishedModel
    console: Console
    begin: list[dict[str, str]]
    messages: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0

    def again(self) -> None:
        """Forget what was said."""
        self.messages = list(self.begin)

    def ask(self, text: str) -> None:
        """Print the model's answer as it is made, and keep both. What cannot be asked is said and forgotten;
        Ctrl-C ends an answer, which is forgotten too."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except (InputError, KeyboardInterrupt) as error:
            self.messages.pop()
            reason = str(error).removeprefix(f"{CONVERSATION}: row 1: ") or "stopped"
            self._print(f"\n(not answered: {reason})\n")
            return
        self.messages.append({"role": "assistant", "content": answer.strip()})

    def _answer(self) -> str:
        from fedsb.tasks.generate import stream_text
        from fedsb.tasks.scoring.benchmark import decoding_of

        finished, task = self.finished, self.finished.task
        assert task.questions is not None, "a chat's task has questions"
        (example,) = task.questions([{"messages": self.messages}], CONVERSATION)
        decoding = decoding_of(finished.config, ends=task.ends)
        self._print(MODEL)
        self.answers += 1
        answer = stream_text(
            finished.model,
            finished.tokenizer,
            example["prompt_ids"],
            decoding,
            self._print,
            number=self.answers,
        )
        self._print("\n")
        return answer

    def _print(self, text: str) -> None:
        self.console.print(text, end="", markup=False, highlight=False)


def chat_in_terminal(run: Path, system: str | None, overrides: Sequence[str], console: Console) -> None:
    """Read lines until /quit or the end of the input.

    Raises:
        InputError: the run is not finished, or no chat.
    """
    from fedsb.runner.finished_model import check_finished, load_finished

    check_finished(run)
    config = evaluation_config(run, None, overrides)
    if not isinstance(config.task, ChatConfig):
        raise InputError(
            f"{run}: the run is of task.kind: {config.task.kind}, which has no turns; take `fedsb "
            f"predict {run} FILE`"
        )
    console.print(f"loading {Path(config.model.path).name}", highlight=False, markup=False)
    begin = [] if system is None else [{"role": "system", "content": system}]
    talk = Talk(load_finished(run, config), console, begin)
    console.print("/new begins again, /quit or Ctrl-D ends", highlight=False, markup=False)
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited and called back then
    talk.again()
    while (line := _line()) is not None:
        if line == "/new":
            talk.again()
        elif line:
            talk.ask(line)


def _line() -> str | None:
    """What is typed, without outer blanks; None where it ends."""
    try:
        line = input(YOU).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/quit" else line
