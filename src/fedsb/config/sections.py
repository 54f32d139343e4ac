"""The sections of a run's config: keys, types, defaults, and what rules a value out by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedsb.common.printable import LONGEST_SITE, is_site_name, printable
from fedsb.common.registry import Registry
from fedsb.config.base import NonNegative, Positive, Section
from fedsb.config.labels import label_name

NonEmpty = Annotated[list[str], Field(min_length=1)]


class ModelConfig(Section):
    path: str
    """Hub id or folder of the base model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen base. Bases and cores are float32 always."""
    load_in_4bit: bool = False
    """Keep the base in 4 bits (needs bitsandbytes and a device it works on)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    device_map: Literal["auto"] | None = None
    """auto: spread one model over all visible GPUs, block by block; null: the whole model on `device`."""
    check_memory: bool = True
    """Refuse a run that by the estimate (`fedsb doctor` shows it) does not fit; false: try all the same."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device_map takes all visible GPUs; leave device at auto, or device_map out")
        return self


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


class LimitConfig(Section):
    train: PositiveInt | None = None
    """Use the first so many training rows, of each source where there are several."""
    test: PositiveInt | None = None
    """Use the first so many test rows."""


Preparation = Literal["llm-adapters", "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc", "openbookqa"]
"""See tasks/commonsense.py."""


class PrepareConfig(Section):
    train: Preparation | None = None
    test: Preparation | None = None


class ColumnsConfig(Section):
    train: dict[str, str] = Field(default_factory=dict)
    """What the task calls a column -> what it is called in the data."""
    test: dict[str, str] = Field(default_factory=dict)


def _names_sources(value: Any) -> Any:
    """One message for what is neither a source, nor several, nor named ones."""
    many = list(value.values()) if isinstance(value, dict) else [value]
    several = [source for one in many for source in (one if isinstance(one, list) else [one])]
    if not several or not all(isinstance(source, str) and source for source in several):
        raise ValueError(
            f"expected a file or hub id, a list of such, or names with one each, found {value!r:.200}"
        )
    return value


Source = str | list[str]
Sources = Annotated[Source | dict[str, Source], BeforeValidator(_names_sources)]


Encoding = Literal[
    "utf-8", "utf-16", "windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254",
    "windows-1257", "iso-8859-1", "iso-8859-2", "iso-8859-15", "koi8-r", "mac-roman", "cp437", "cp850",
    "shift_jis", "euc-jp", "gb18030", "big5", "euc-kr",
]  # fmt: skip
DEFAULT_SHARE = 0.1
"""Of the training rows, held out as test rows where the config names none."""


class DataConfig(Section):
    train: Sources
    """Hub id, file (.jsonl, .json, .csv, .tsv, .parquet, .arrow), folder or pattern such as `site-*/*.csv`; a
    list of such; or several with a name each, which their rows then have in the column `source`."""
    test: (
        Annotated[float, Field(gt=0, le=0.5)] | Annotated[Source, BeforeValidator(_names_sources)] | None
    ) = DEFAULT_SHARE
    """As `train`, without names; or the share of the training rows to hold out, of each class alike. Never
    used to choose anything. null: 0.1; with evaluation.at_clients: true none, and the scores are those at the
    clients."""
    client_test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of its own rows that each client never trains on and is scored on; null: 0.1 where
    evaluation.at_clients is true. A client for whom it is under 5 rows trains on all and has no score."""
    group: str | None = None
    """Column whose rows stay together on one side of the share, such as a patient's id."""
    split_seed: int = 0
    """Draws the rows held out: the same for all seeds, methods and commands."""
    encoding: Encoding | None = None
    """Of CSV and TSV files without a byte order mark; null: UTF-8, or Windows-1252 where that is certain."""
    limit: LimitConfig = LimitConfig()
    prepare: PrepareConfig = PrepareConfig()
    """Bring the rows of known data sets into the form that a recipe's prompt is made for."""
    columns: ColumnsConfig = ColumnsConfig()
    drop_unlabelled: bool = False
    """Leave out rows without a label (SNLI and GLUE have some) instead of refusing them."""

    @field_validator("test", mode="before")
    @classmethod
    def _share_or_files(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, int | float) and not 0 < value <= 0.5):
            raise ValueError(f"expected a file, or a share above 0 and at most 0.5, found {value!r}")
        return value if isinstance(value, float) else _names_sources(value)

    @model_validator(mode="after")
    def _keys_of_a_share(self) -> DataConfig:
        if isinstance(self.test, float):
            if self.prepare.test or self.columns.test:
                raise ValueError(
                    f"test is the share {self.test:g} of the training rows, which prepare.train and "
                    "columns.train are for; leave prepare.test and columns.test out, or name a test file"
                )
        elif self.group is not None:
            raise ValueError(
                "group keeps rows together where test is a share, e.g. test: 0.1; leave group out, or take a "
                "share"
            )
        return self


class HeadWarmupConfig(Section):
    rounds: PositiveInt = 3
    """Averaging rounds of the head alone."""
    steps: PositiveInt = 30
    """Full-batch AdamW steps per round on each client's cached features."""
    learning_rate: Positive = 0.01


class InitConfig(Section):
    kind: Literal["gradient", "weights", "orthonormal"] = "gradient"
    """gradient: SVD of the first update (LoRA-SB). weights: SVD of W0 (LoRA-XS), the default with privacy.
    orthonormal: a seed."""
    from_run: str | None = None
    """Folder of a finished run of the same method, rank, targets and base: start with its factors and head as
    they ended; the other keys here are then for `refresh_every` alone."""
    public: str | None = None
    """A file (or hub id) of rows that need no protection: gradient and head warm-up look at these alone."""
    private: bool = False
    """gradient, with privacy.unit example: SVD of a clipped and noised sum; no use of `rule` and `upload`."""
    budget_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """private: the epsilon that the start may spend, as a share of privacy.epsilon."""
    samples: PositiveInt = 1024
    """Calibration examples over all clients together, drawn equally from each."""
    rule: Literal["sign", "raw", "moments"] = "sign"
    """sign: AdamW's first step. raw: SGD's. moments: where small-batch gradients move at all; R0 = 0."""
    upload: Literal["factors", "sketch", "whole"] = "factors"
    """sign and raw: what a client sends of its gradient: its best factors of the bases' rank; a sketch, of
    which the server needs only the sum over clients; or all."""
    step_size: NonNegative | None = None
    """Learning rate of the estimated update, so the size of R0; null: training.learning_rate over the
    steps of the run; 0: R0 = 0."""
    batch_size: PositiveInt = 32
    """Examples per backward pass of the estimate; changes memory and speed, hardly the result."""
    head_warmup: HeadWarmupConfig | None = HeadWarmupConfig()
    """Train a fresh classification head on cached features first; null, the default with privacy: do not."""


class ExpertsConfig(Section):
    """The experts of a method that mixes several cores: whose data each is for, and what chooses."""

    by: str | None = None
    """Column of the rows that names each row's expert; clients hold the experts of their rows."""
    count: Annotated[int, Field(ge=2)] | None = None
    """Find so many groups of clients by their cores, after `warmup_rounds` in which all train one."""
    warmup_rounds: PositiveInt = 1
    """count: rounds before the groups are found; they count as hard rounds."""
    folders: Annotated[dict[str, str], Field(min_length=2)] | None = None
    """Name -> folder of a PEFT LoRA: experts from elsewhere, which stay as they are."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """by, client_experts: the experts in the order of their numbers; null: the training rows' values, sorted,
    or the numbers. Parties that keep their rows to themselves must agree on them here."""
    hard_rounds: NonNegativeInt | None = None
    """Rounds in which each example trains its own expert alone, before the gate; null: all but two."""
    train: Literal["router", "both"] = "router"
    """In the rounds after: the gate, or the gate and the experts."""
    route: Literal["sequence", "token", "request"] = "sequence"
    """Each layer's gate chooses by a sequence's mean (of a prompt, where there is one) or by each token;
    request: one gate over the base's states chooses one expert for all layers, as servers of LoRAs do."""
    start: Literal["statistics", "zero"] = "statistics"
    """The gate after the hard rounds: a linear discriminant made of sums over the clients' rows, or zero."""
    top_k: PositiveInt | None = None
    """Outside training: mix only so many experts; null: all."""
    entropy: float = 0.0
    """Weight of the routes' entropy in the loss: above 0 sharpens them, below 0 flattens them."""
    balance: NonNegative = 0.0
    """Weight of a loss against experts that the federation used much in the last round."""
    keep: NonNegative = 0.0
    """train: both: weight of the squared distance from the cores of the hard rounds."""

    @field_validator("names", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        return [str(name) for name in value] if isinstance(value, list) else value

    @property
    def terms(self) -> dict[str, float]:
        """What the gate rounds add to the loss."""
        return {"entropy": self.entropy, "balance": self.balance, "keep": self.keep}


class MethodConfig(Section):
    name: str = "fed-sb"
    rank: PositiveInt = 64
    """Rank of the factors; with several heads, of one head."""
    heads: PositiveInt | None = None
    """Blocks of the core, each rank x rank, over bases of rank heads * rank; null: the method's own."""
    refresh_every: PositiveInt | None = None
    """Fold B R A into the base after so many rounds and start new bases from a new estimate; null: never."""
    residual_rank: PositiveInt | None = None
    """Rank kept of the residual, for a method that sends one; null: all of it, which is exact."""
    alpha: Positive | None = None
    """LoRA's alpha of the baselines (scale alpha / rank; null: scale 1). Fed-SB has none."""
    targets: Literal["all-linear", "attention", "mlp"] | NonEmpty | None = None
    """Names of layers to adapt (endings will do); null: the model family's default; all-linear: every linear
    layer of the repeated blocks; attention, mlp: those of one kind."""
    options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Keys that this method alone has, where it has any."""
    personal: bool = False
    """Give each client a core of its own besides the shared one: it trains in the same steps, never leaves
    the client, and goes on there in its next round. Of methods that train one core."""
    experts: ExpertsConfig | None = None
    """Several cores and what chooses between them; null: one core."""
    init: InitConfig = InitConfig()


class IidPartition(Section):
    kind: Literal["iid"] = "iid"


class DirichletPartition(Section):
    kind: Literal["dirichlet"]
    column: str | None = None
    """The column whose values are dealt; null: the class label."""
    alpha: Annotated[float, Field(gt=0, le=1e9)] = 0.5
    """Smaller is more skewed."""
    min_size: PositiveInt = 8
    """Every client gets at least so many examples."""


class ColumnPartition(Section):
    kind: Literal["by-column"]
    column: str
    """Each client has the rows of one value, or of several; with more clients than values, the clients of a
    value share its rows."""


class ShardsPartition(Section):
    kind: Literal["shards"]
    column: str | None = None
    """The column by whose values rows are sorted; null: the class label."""
    shards_per_client: PositiveInt = 2


PartitionConfig = Annotated[
    IidPartition | DirichletPartition | ColumnPartition | ShardsPartition, Field(discriminator="kind")
]


class RobustConfig(Section):
    """Against poisoned clients, in the start too. Needs `weighting: uniform`: how many examples a client has
    is its own claim."""

    average: Literal["mean", "median", "trimmed-mean"] = "mean"
    """In place of the mean, number by number (Yin et al. 2018, arXiv 1803.01498), for methods that average
    factors. The server then holds all updates of a round: cohort x numbers x 4 bytes."""
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """trimmed-mean: share of the updates left out at each end, one at least."""
    norm_bound: Positive | None = None
    """Largest L2 norm of update minus broadcast, over all its numbers; null: any. In the start's head warm-up
    what lies further off is scaled back."""
    over_bound: Literal["reject", "scale"] = "reject"
    """What is done with a larger one: left out with the reason, or scaled back to the bound."""


class FederationConfig(Section):
    clients: PositiveInt = 3
    sites: list[str] | None = None
    """A name for each client, for people to read; null: the column's values where kind: by-column deals the
    rows of a run without privacy, else their numbers."""
    clients_per_round: PositiveInt | None = None
    """How many take part in a round; null: all."""
    rounds: PositiveInt = 3
    partition: PartitionConfig = IidPartition()
    client_ranks: list[PositiveInt] | None = None
    """A rank for each client, at most method.rank; null: method.rank for all."""
    client_experts: list[NonNegativeInt] | None = None
    """The number of each client's expert, in a method with experts; null: as method.experts has it."""
    client_heads: list[PositiveInt] | None = None
    """How many heads of the core each client trains in a round (which ones is drawn again); null: all."""
    padding: Literal["all", "owners"] = "all"
    """Mixed ranks or heads: average each entry over all clients (exact), or over those that trained it."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's update in the mean; with privacy.unit: client the default is uniform."""
    processes: PositiveInt = 1
    """Simulated runs: train the clients of a round side by side in so many processes, each with a base model
    of its own: on the GPUs in turn (model.device: auto), or on a share of the cores."""
    upload_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the numbers of an update travel as; broadcasts are float32. 16 bits halve the upload: float16
    has 11 binary digits and ends at 65504 (more is an error), bfloat16 has 8 digits and float32's range."""
    robust: RobustConfig | None = None
    """Checks against poisoned updates; null: none."""
    client_timeout_seconds: Positive | None = None
    """A client whose local training takes longer is left out of the round; null: no limit of its own."""
    deadline_seconds: Positive | None = 3600.0
    """Clients on other machines or in other processes: a round waits no longer than this for an answer; null:
    an hour for other machines, no limit for processes here."""
    min_updates: PositiveInt = 1
    """With fewer usable updates in a round the run stops, and can be resumed."""

    @field_validator("sites")
    @classmethod
    def _sites_can_be_read(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if wrong := next((name for name in value if not is_site_name(name)), None):
            raise ValueError(
                f"expected names of 1 to {LONGEST_SITE} printable characters, found {printable(wrong, 80)!r}"
            )
        if len({name.lower() for name in value}) < len(value) or "" in value:
            raise ValueError("expected a name of its own for each client, no two alike and none empty")
        return value


class TrainingConfig(Section):
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    epochs: Positive = 1
    """Passes over the client's data per round; fractions are allowed."""
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    """Batches per optimizer step."""
    max_length: PositiveInt | Literal["auto"] = "auto"
    """Tokens per example; longer ones are cut. auto: enough for 99 of 100 training examples, and for all if
    128 will do; 128 where rows must not choose it, with privacy and over the network."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over the whole run, not again each round."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the whole run in which the rate rises from zero."""
    personal_rate: Positive = 1.0
    """Learning rate of what stays with a client (method.personal, or of its method), over learning_rate."""
    weight_decay: NonNegative = 0.0
    grad_clip: Positive | None = None
    """Largest gradient norm over all trained numbers."""
    autocast: Literal["bfloat16"] | None = None
    gradient_checkpointing: bool = False
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    """Weight of an example's loss by its class: a number for each class, or balanced: one over how often the
    class occurs in all training rows (simulated runs without privacy)."""
    group_by_length: bool = False
    """Batches of like length: less padding, so faster; the order stays random otherwise."""
    packing: bool = False
    """causal-lm, chat: put a batch's short examples into one row, where each sees itself alone. The same
    losses and steps, faster; a model that would not keep them apart is refused before the start."""

    @property
    def tokens(self) -> int:
        """max_length as a number, which `auto` has become once the rows are read."""
        assert self.max_length != "auto"
        return self.max_length

    @field_validator("max_length", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value > 0):
            raise ValueError(f"expected a whole number above 0, or auto, found {value!r:.200}")
        return value

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_by_name(cls, value: Any) -> Any:
        """Classes by the names that rows have for them: 1 and true are "1" and "true"."""
        if value in (None, "balanced"):
            return value
        numbers = value.values() if isinstance(value, dict) else [None]
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ValueError(
                f"expected balanced, or a number above 0 for each class, e.g. {{yes: 4, no: 1}}, found "
                f"{value!r:.200}"
            )
        return {label_name(name): number for name, number in value.items()}


class PrivacyConfig(Section):
    unit: Literal["example", "client"] = "example"
    """Whose presence is hidden: one example of a client (noise by the client), or a whole client (noise by
    the server)."""
    epsilon: Positive | None = None
    """The budget: noise is chosen for it, and a run ends where it is used up."""
    noise_multiplier: Positive | None = None
    """Noise over sensitivity; null: calibrated to epsilon."""
    delta: Positive | None = None
    """null: 1e-5, or a tenth of one over the number of units if that is less."""
    clip_norm: Positive = 1.0
    """Largest L2 norm of one example's gradient, or of one client's update. auto: begins at 1 and follows the
    median, as `quantile: 0.5` does."""
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Let the clip norm follow this quantile of the gradients' norms in a round's steps, or of the updates'
    norms over rounds; a noised count pays for it out of the same budget. null: fixed."""
    insecure_seed: int | None = None
    """For tests alone: noise that repeats. The run is then marked as not private."""
    ledger: str | None = None
    """Simulated runs: a .jsonl file that all private runs on these rows share; each is charged there too, and
    `fedsb privacy --ledger FILE` says what they cost together. null: the run's own ledger alone."""

    @model_validator(mode="before")
    @classmethod
    def _auto_is_the_median(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("clip_norm") != "auto":
            return values
        begins = {key: value for key, value in values.items() if key != "clip_norm"}
        return {**begins, "quantile": values.get("quantile") or 0.5}

    @model_validator(mode="after")
    def _some_noise(self) -> PrivacyConfig:
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("set epsilon (the noise is then calibrated) or noise_multiplier")
        return self


class BenchmarkConfig(Section):
    """A data set to score on after the run, asked with the task's own prompt."""

    data: str
    """Hub id or file."""
    score: Literal["exact", "gsm8k", "math", "choice", "likelihood", "text"]
    """How answers are marked. gsm8k: the number in them; math: the formula; choice: the choice named (formats
    of LLM-Adapters); likelihood: the likeliest of the choices the prompt offers, nothing being generated;
    text: BLEU and others, rows of one prompt being its references; exact: the whole text."""
    prepare: Preparation | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    """What the task calls a column -> what it is called in this data."""
    limit: PositiveInt | None = None
    """Use the first so many rows."""
    max_new_tokens: PositiveInt | None = None
    """null: task.max_new_tokens."""


class GenerationConfig(Section):
    """How benchmarks are answered."""

    engine: Literal["transformers", "vllm"] = "transformers"
    temperature: NonNegative = 0.0
    """0: greedy; else sampled, from the run's seed."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: PositiveInt | None = None
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts at which an answer ends."""
    beams: PositiveInt = 1
    length_penalty: float = 1.0
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_way(self) -> GenerationConfig:
        if self.beams > 1 and (self.temperature > 0 or self.engine == "vllm"):
            raise ValueError("beams are searched by transformers without sampling; set beams: 1")
        return self


class EvaluationConfig(Section):
    every: PositiveInt | None = 1
    """Rounds between evaluations; the first and the last are always evaluated. null: never; a server of
    clients elsewhere then reads no test rows, and no base weights unless the method needs them."""
    batch_size: PositiveInt = 64
    generate: PositiveInt | None = None
    """causal-lm, chat: score exact match of greedy answers on the first so many test rows."""
    at_clients: bool | None = None
    """Score the model at each client, too, on rows of its own; the server gets counts alone. null: where
    data.client_test sets rows aside. Not with privacy."""
    baselines: list[Literal["local", "pooled"]] = Field(default_factory=list)
    """at_clients: models to compare with on the same rows. local: what each client trains alone, for as many
    rounds; pooled: what all training rows train in one place (simulated runs)."""
    benchmarks: dict[str, BenchmarkConfig] = Field(default_factory=dict)
    """causal-lm, chat: what `fedsb evaluate --run` scores the finished run on, by name."""
    generation: GenerationConfig = GenerationConfig()

    @field_validator("benchmarks")
    @classmethod
    def _names_are_file_names(cls, value: dict[str, BenchmarkConfig]) -> dict[str, BenchmarkConfig]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"{name!r} cannot name a benchmark: use letters, digits, - and _")
        return value
