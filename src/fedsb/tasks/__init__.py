"""Task families: what the rows mean, what is trained and how it is scored.

`classification` (one or two texts to a class or a number), `multi_label` (to several classes),
`token_classification` (to entities), `image_classification`, `causal_lm` (a prompt to a response) and
`chat_of` (conversations) each give a `Task`, a frozen record of functions. Tasks of other packages are found
by the entry-point group `fedsb.tasks` (docs/guides/adding-a-task.md).
"""

from collections.abc import Callable, Sequence
from typing import Any

from fedsb.config.sections.task import (
    FAMILIES,
    CausalLmConfig,
    ChatConfig,
    ClassificationConfig,
    ImageClassificationConfig,
    MultiLabelConfig,
    TokenClassificationConfig,
)
from fedsb.config.sections.task import TaskFamily as TaskFamily
from fedsb.config.sections.task import TaskSection as TaskSection
from fedsb.errors import InputError
from fedsb.tasks.causal_lm import causal_lm as causal_lm
from fedsb.tasks.causal_lm import causal_lm_of
from fedsb.tasks.chat.task import chat_of
from fedsb.tasks.classification import classification as classification
from fedsb.tasks.classification import classification_of
from fedsb.tasks.generate import generate_texts as generate_texts
from fedsb.tasks.image_classification import image_classification_of
from fedsb.tasks.labels import label_set as label_set
from fedsb.tasks.multi_label import multi_label_of
from fedsb.tasks.task import Batch as Batch
from fedsb.tasks.task import Example as Example
from fedsb.tasks.task import Row as Row
from fedsb.tasks.task import Task as Task
from fedsb.tasks.token_classification import token_classification_of

OWN: dict[type[TaskSection], Callable[..., Task]] = {
    ClassificationConfig: classification_of,
    MultiLabelConfig: multi_label_of,
    TokenClassificationConfig: token_classification_of,
    ImageClassificationConfig: image_classification_of,
    CausalLmConfig: causal_lm_of,
    ChatConfig: chat_of,
}
register = FAMILIES.register


def make_task(
    section: TaskSection, tokenizer: Any, rows: Sequence[Row], *, source: str, max_length: int
) -> Task:
    """The task that a config's section asks for.

    Raises:
        InputError: the rows or the tokenizer do not fit, or another package's task is not what it says.
    """
    family = FAMILIES.get(section.kind)
    make = OWN.get(type(section)) or (family and family.make)
    task = make(section, tokenizer, rows, source=source, max_length=max_length) if make else None
    if not isinstance(task, Task) or (task.num_labels is not None) != section.classifies:
        raise InputError(
            f"task.kind: {section.kind} makes {type(task).__name__}; expected a Task, with num_labels if and "
            f"only if its section says classifies, found {section.classifies}"
        )
    return task
