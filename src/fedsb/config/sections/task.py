"""The section `task`: a class of keys for each kind of task, and the list of kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fedsb.common.registry import Registry
from fedsb.config.base import Section
from fedsb.config.labels import label_name


class TaskSection(Section):
    """A task's keys. Those of another package's task are a class of its own with a `kind` of its own."""

    model_class: ClassVar[str] = "CausalLM"
    """What follows AutoModelFor in the name of transformers' class for its models."""
    multi_label: ClassVar[bool] = False
    """Whether an example may have several labels or none."""
    kind: str
    """Or that of an installed package's task, with its keys."""

    @property
    def classifies(self) -> bool:
        """Whether the model gets a classification head; else it is a causal language model."""
        return self.model_class != "CausalLM"

    @property
    def columns(self) -> list[str] | None:
        """The columns that it reads of a row; None: it does not say, and is for simulated runs alone."""
        return None

    @property
    def classes_are_of_rows(self) -> bool:
        """Whether only the training rows say which classes there are."""
        return self.classifies and getattr(self, "labels", None) is None

    def found(self, names: list[str] | None) -> dict[str, Any]:
        """The keys that say what training rows said: the names of the model's outputs, None of a number."""
        return {"labels": names}


def _class_names(value: Any) -> Any:
    """Classes as `label_name` has them, each once."""
    if not isinstance(value, list):
        return value
    if any(name is None or isinstance(name, list | dict) for name in value):
        raise ValueError(f"expected names of classes, found {value}; put names in quotes")
    names = [label_name(name) for name in value]
    if len(set(names)) < len(names):
        raise ValueError(f"expected every class once, found {value}")
    return names


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Classes = Annotated[list[str], Field(min_length=2), BeforeValidator(_class_names)]
OneOrTwoTexts = Annotated[list[str], Field(min_length=1, max_length=2), BeforeValidator(_as_list)]


class ClassificationConfig(TaskSection):
    model_class = "SequenceClassification"
    kind: Literal["classification"] = "classification"
    text: OneOrTwoTexts
    """One or two text columns."""
    label: str = "label"
    """Label column: classes, or numbers."""
    labels: Classes | None = None
    """Classes in the order of their ids; null: those of the training rows. Parties that keep their rows to
    themselves must agree on them here. Put "no", "yes", "010" in quotes: YAML reads false, true, 8."""
    regression: bool | None = None
    """true: labels are numbers, whole ones too, scored by correlation; false: classes; null: numbers if they
    are not all whole, or if `metric` is a correlation."""
    metric: Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"] | None = None
    """The one to lead with and to tune by; null: accuracy, or pearson of a regression. f1: of the second of
    two classes."""

    @property
    def regresses(self) -> bool | None:
        """Whether the config says that labels are numbers (True) or classes (False); None: the rows do."""
        if self.labels is not None:
            return False
        correlates = True if self.metric in ("pearson", "spearman") else None
        return correlates if self.regression is None else self.regression

    @property
    def columns(self) -> list[str]:
        return [*self.text, self.label]

    @property
    def classes_are_of_rows(self) -> bool:
        return self.labels is None and not self.regresses

    def found(self, names: list[str] | None) -> dict[str, Any]:
        return {"regression": True} if names is None else {"labels": names}

    @model_validator(mode="after")
    def _classes_or_numbers(self) -> ClassificationConfig:
        if self.regression and self.labels is not None:
            raise ValueError("labels lists classes, and regression: true says numbers; leave one of them out")
        return self


class MultiLabelConfig(TaskSection):
    """Texts to any number of classes each."""

    model_class = "SequenceClassification"
    multi_label = True
    kind: Literal["multi-label"]
    text: OneOrTwoTexts
    """One or two text columns."""
    label: str | Annotated[list[str], Field(min_length=2)] = "label"
    """A column with a list of classes; or, with `label_separator`, with their names in one text; or a list of
    columns, one for each class, of 0 and 1 or false and true."""
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the classes of a text such as `fever;cough`; an empty cell has none."""
    labels: Classes | None = None
    """Classes in the order of their ids; null: those of the training rows, or the columns of `label`."""
    metric: Literal["micro_f1", "macro_f1", "exact_match"] | None = None
    """The one to lead with and to tune by, at a threshold of 0.5; null: micro_f1."""

    @property
    def columns(self) -> list[str]:
        return [*self.text, *(self.label if isinstance(self.label, list) else [self.label])]

    @property
    def classes_are_of_rows(self) -> bool:
        return self.labels is None and not isinstance(self.label, list)

    @model_validator(mode="after")
    def _columns_are_the_classes(self) -> MultiLabelConfig:
        if not isinstance(self.label, list):
            return self
        if self.labels is not None or self.label_separator is not None:
            raise ValueError("label lists a column for each class; leave labels and label_separator out")
        if len(set(self.label)) < len(self.label):
            raise ValueError(f"expected every column once, found {self.label}")
        return self


class TokenClassificationConfig(TaskSection):
    """Spans of a text to entity types: words with BIO tags, or a text with spans of characters."""

    model_class = "TokenClassification"
    kind: Literal["token-classification"]
    tokens: str | None = None
    """Column with a list of words; then `tags` has as many."""
    tags: str = "tags"
    """With `tokens`: O, B-TYPE and I-TYPE as text, or class labels of a Parquet file or the hub."""
    text: str | None = None
    """Column with a text, in place of `tokens`; then `spans` says where its entities are."""
    spans: str = "spans"
    """With `text`: a list of {start, end, label}; characters from 0, `end` is the first one behind."""
    labels: Annotated[list[str], Field(min_length=1), BeforeValidator(_class_names)] | None = None
    """Entity types, without B- and I-, in the order of their ids; null: those of the training rows. Parties
    that keep their rows to themselves must agree on them here."""
    metric: Literal["entity_f1", "token_accuracy"] | None = None
    """The one to lead with and to tune by; null: entity_f1."""

    @property
    def columns(self) -> list[str]:
        return [self.tokens, self.tags] if self.tokens is not None else [str(self.text), self.spans]

    def found(self, names: list[str] | None) -> dict[str, Any]:
        return {"labels": [name[2:] for name in names or () if name.startswith("B-")]}

    @model_validator(mode="after")
    def _words_or_text(self) -> TokenClassificationConfig:
        if (self.tokens is None) == (self.text is None):
            raise ValueError("expected tokens (a column of lists of words) or text (a column of texts)")
        if self.tokens is None and self.tags != "tags":
            raise ValueError("tags goes with tokens; with text name spans")
        if self.text is None and self.spans != "spans":
            raise ValueError("spans goes with text; with tokens name tags")
        return self


class ImageClassificationConfig(TaskSection):
    """Images to classes."""

    model_class = "ImageClassification"
    kind: Literal["image-classification"]
    image: str = "image"
    """Column of the image: a path within the folder of the rows' file, or the file's bytes. A folder with a
    subfolder for each label has the columns `image` and `label`."""
    label: str = "label"
    """Label column."""
    labels: Classes | None = None
    """Classes in the order of their ids; null: those of the training rows. Parties that keep their rows to
    themselves must agree on them here."""
    metric: Literal["accuracy", "f1", "macro_f1", "matthews"] | None = None
    """The one to lead with and to tune by; null: accuracy. f1: of the second of two classes."""

    @property
    def columns(self) -> list[str]:
        return [self.image, self.label]


class AnswerSection(TaskSection):
    """What tasks share that learn to answer."""

    max_new_tokens: PositiveInt = 64
    """Longest answer generated in evaluation."""
    allow_cut_responses: bool = False
    """Take rows, too, of whose response training.max_length leaves nothing."""


class CausalLmConfig(AnswerSection):
    kind: Literal["causal-lm"]
    prompt: str
    """Template with {column} placeholders, {column:optional} where a row may lack it: then empty. The loss is
    on the response only."""
    response: str
    """Column of the text to learn."""


class ChatConfig(AnswerSection):
    """Conversations; which columns hold them, and in which form, is seen from the rows."""

    kind: Literal["chat"]
    train_on: Literal["all", "last"] = "all"
    """The loss is on all of the assistant's turns, or on the last one of each conversation."""
    template: Literal["plain"] | None = None
    """null: the tokenizer's own chat template, or plain where it has none. plain: "User: ...", a blank line
    and "Assistant: ..." with the end token behind each answer."""
    max_new_tokens: PositiveInt = 256
    """Longest answer generated in evaluation."""

    @property
    def columns(self) -> list[str]:
        return []


class TaskFamily(NamedTuple):
    """The tasks of one kind.

    Attributes:
        section: their keys; `kind` is a Literal of one name.
        make: (section, tokenizer, training rows, *, source, max_length) -> `fedsb.tasks.Task`; `source` names
            the rows in errors. None for the package's own, see `fedsb.tasks.make_task`.
    """

    section: type[TaskSection]
    make: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        """The kind."""
        return str(get_args(self.section.model_fields["kind"].annotation)[0])


OWN_SECTIONS = (
    ClassificationConfig,
    MultiLabelConfig,
    TokenClassificationConfig,
    ImageClassificationConfig,
    CausalLmConfig,
    ChatConfig,
)
FAMILIES = Registry("fedsb.tasks", TaskFamily, [TaskFamily(section) for section in OWN_SECTIONS])


def _of_its_kind(values: Any) -> Any:
    """The section that the key `kind` names."""
    if isinstance(values, TaskSection):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"expected keys such as kind, found {type(values).__name__}")
    kind = values.get("kind")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        fault = PydanticCustomError("unknown_kind", f"expected one of {', '.join(FAMILIES.names())}")
        raise ValidationError.from_exception_data("task", [{"type": fault, "loc": ("kind",), "input": kind}])
    return family.section.model_validate(values)


TaskConfig = Annotated[
    SerializeAsAny[
        ClassificationConfig
        | MultiLabelConfig
        | TokenClassificationConfig
        | ImageClassificationConfig
        | CausalLmConfig
        | ChatConfig
        | TaskSection
    ],
    BeforeValidator(_of_its_kind),
]
