"""What methods cost on a model: numbers trained and sent, bytes. From the config alone, without weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from torch import nn

from fedsb.adapter.attached import check_rank
from fedsb.adapter.linear import features
from fedsb.cli.common import refuse_unused
from fedsb.cli.cost_beside import SECURE, Beside, check_beside
from fedsb.config.optimization_checks import chooses_ranks
from fedsb.config.sections.federation import FederationConfig
from fedsb.config.sections.method import InitConfig
from fedsb.errors import InputError
from fedsb.federation.secure.summands import ONCE
from fedsb.federation.start.ranks import MOST, most_basis_numbers
from fedsb.federation.start.sketches import sketched_numbers
from fedsb.methods import ALL, METHODS, Method, Shape, by_name
from fedsb.methods.averaging.stack import stacked_numbers
from fedsb.models.head import head_parameters, is_classifier
from fedsb.models.shapes import build_on_meta
from fedsb.models.targets import GROUPS, chosen_targets

BYTES_PER_NUMBER = 4
BYTES_PER_NUMBER_ONCE = 2
"""Bases, factors and sketches of gradients travel as bfloat16; whole gradients do not."""
CHOICES = {
    "init": get_args(InitConfig.model_fields["kind"].annotation),
    "upload": get_args(InitConfig.model_fields["upload"].annotation),
    "ranks": get_args(InitConfig.model_fields["ranks"].annotation),
    "upload_dtype": get_args(FederationConfig.model_fields["upload_dtype"].annotation),
}
OPTIONS = {
    "method.rank": "--rank",
    "method.heads": "--heads",
    "method.targets": "--targets",
    "method.name": "--methods",
    "model.path": "--model",
}
"""Config keys in messages of the modules below, and the options they are here."""


@dataclass(frozen=True)
class Question:
    """What `fedsb cost` was asked, beside the model.

    Attributes:
        clients: all take part in every round.
        init: start of the bases, as in `method.init.kind`.
        rank: for methods that name none in `methods`.
        rounds: None leaves out the totals.
        methods: `NAME` or `NAME:RANK`, separated by commas; None for all.
        targets: layer names separated by commas, or a group of `GROUPS`; None for the family's default.
        heads: of methods that train a core; None for each method's own.
        labels: classes of a sequence classification head; None for what the config says.
        upload: what a client sends of its gradient, as in `method.init.upload`.
        upload_dtype: what the numbers of an update travel as, as in `federation.upload_dtype`.
        beside: what travels beside a method's numbers.
        ranks: as in `method.init.ranks`; of a spectrum nobody knows before the run, so costs are the most.
    """

    clients: int
    init: str = "gradient"
    rank: int | None = None
    rounds: int | None = None
    methods: str | None = None
    targets: str | None = None
    heads: int | None = None
    labels: int | None = None
    upload: str = "factors"
    upload_dtype: str = "float32"
    beside: Beside = field(default_factory=Beside)
    ranks: str = "equal"


@dataclass(frozen=True)
class MethodCost:
    """One method on one model. Parameters are counted as numbers, classification head included.

    Attributes:
        once_parameters_per_client: bases that each client receives before the first round.
        once_upload_parameters_per_client: what a calibrating client sends of its gradient before that.
        paper_parameters_per_round: as in the tables of Singhal et al. 2025, head once.
        mask_bytes_per_round: of these, keys, shares and lists of secure aggregation.
        bytes_per_round: up and down, all clients.
        refresh_bytes: of new bases during a run, all clients, each time; None where there can be none.
        once_bytes: before the first round, all clients; all calibrate. A head's warm-up is not counted.
        total_bytes: `once_bytes` and all rounds.
    """

    rank: int
    heads: int
    exact: bool
    trained_parameters: int
    upload_parameters_per_client: int
    download_parameters_per_client: int
    once_parameters_per_client: int
    once_upload_parameters_per_client: int
    paper_parameters_per_round: float
    mask_bytes_per_round: int
    bytes_per_round: int
    refresh_bytes: int | None
    once_bytes: int
    total_bytes: int | None


@dataclass(frozen=True)
class CostTable:
    """The costs by method name, in the order of `methods.METHODS`.

    Attributes:
        target_layers: how many layers are adapted.
        left_out: methods nobody asked for by name and that do not fit, with the reason.
    """

    model: str
    clients: int
    rounds: int | None
    init: str
    upload: str
    ranks: str
    target_layers: int
    head_parameters: int
    methods: dict[str, MethodCost]
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As the contract's JSON; without `rounds` there are no totals."""
        document = asdict(self)
        if self.rounds is None:
            del document["rounds"]
            for cost in document["methods"].values():
                del cost["total_bytes"]
        return document


def check_used(
    methods: str | None,
    *,
    rank: int | None,
    heads: int | None,
    init: str | None,
    upload: str | None,
    ranks: str | None,
) -> None:
    """Refuse options that no method that was asked for looks at.

    Raises:
        InputError: names the option.
    """
    if init not in (None, "gradient"):
        refuse_unused({"--upload": upload, "--ranks": ranks}, "it is about gradients, --init gradient")
    if methods is None:
        return
    with _named_as_options():
        asked = [method for method, _ in parse_methods(methods, rank or 1)]
    if all(":" in entry for entry in methods.split(",")):
        refuse_unused({"--rank": rank}, "since every one of --methods has a rank of its own")
    if not any(method.has_core for method in asked):
        refuse_unused({"--heads": heads}, "since none of --methods trains a core")
    if not any(method.has_core and method.bases == "init" for method in asked):
        unused = {"--init": init, "--upload": upload, "--ranks": ranks}
        refuse_unused(unused, "since none of --methods has bases to choose")


def costs(model: str, question: Question) -> CostTable:
    """The costs on the model of that hub id or folder, of which only config.json is read.

    Raises:
        InputError: an unknown model, method or layer, or a number that does not fit.
    """
    _check(question)
    with _named_as_options():
        asked = parse_methods(question.methods, question.rank)
        skeleton = build_on_meta(model, num_labels=question.labels)
        targets = chosen_targets(skeleton, _targets(question.targets))
        head = sum(p.numel() for p in head_parameters(skeleton).values()) if is_classifier(skeleton) else 0
        fitting, left_out = _fitting(asked, targets, question)
    shapes = [Shape(*features(layer)) for layer in targets.values()]
    return CostTable(
        model=model,
        clients=question.clients,
        rounds=question.rounds,
        init=question.init,
        upload=question.upload,
        ranks=question.ranks,
        target_layers=len(shapes),
        head_parameters=head,
        methods={m.name: method_cost(m, rank, shapes, head, question) for m, rank in fitting},
        left_out=left_out,
    )


def method_cost(
    method: Method, rank: int, shapes: Sequence[Shape], head: int, question: Question
) -> MethodCost:
    """The cost over target layers of those shapes and a head of so many numbers."""
    heads, clients, rounds = method.heads_of(question.heads), question.clients, question.rounds
    layers = [method.cost(shape, rank, heads, clients) for shape in shapes]
    up, whole = head + sum(n.up for n in layers), head + sum(n.down for n in layers)
    extra, beside = question.beside.copies * up, question.beside
    up, down = up + extra, whole + extra
    once_down, once_up = _once(method, rank, heads, shapes, question)
    masks = beside.round_bytes(clients, up)
    per_round = clients * (getattr(torch, question.upload_dtype).itemsize * up + BYTES_PER_NUMBER * down)
    paper = head + sum(n.paper for n in layers)
    once = clients * (BYTES_PER_NUMBER_ONCE * once_down + _bytes_per_number_up(question) * once_up)
    once += beside.start_bytes(clients, once_up) if once_up else 0
    deals_ranks = question.ranks == "spectrum" and chooses_ranks(method)
    refreshes = method.refreshes and not beside.options and not deals_ranks
    return MethodCost(
        rank=rank,
        heads=heads,
        exact=method.exact,
        trained_parameters=head + sum(n.trained for n in layers),
        upload_parameters_per_client=up,
        download_parameters_per_client=down,
        once_parameters_per_client=once_down,
        once_upload_parameters_per_client=once_up,
        paper_parameters_per_round=int(paper) if paper == int(paper) else paper,
        mask_bytes_per_round=masks,
        bytes_per_round=per_round + masks,
        refresh_bytes=clients * BYTES_PER_NUMBER * whole + once if refreshes else None,
        once_bytes=once,
        total_bytes=None if rounds is None else rounds * (per_round + masks) + once,
    )


def _bytes_per_number_up(question: Question) -> int:
    """Of what a client sends of its gradient."""
    if question.beside.threshold is not None:
        return ONCE[0] // 8
    return BYTES_PER_NUMBER if question.upload == "whole" else BYTES_PER_NUMBER_ONCE


def _once(
    method: Method, rank: int, heads: int, shapes: Sequence[Shape], question: Question
) -> tuple[int, int]:
    """(down, up) per client before the first round: bases and gradient, where the start is a gradient's."""
    if question.init != "gradient" or not method.has_core or method.bases != "init":
        return 0, 0
    basis_rank, down = heads * rank, sum(heads * rank * sum(shape) for shape in shapes)
    if question.ranks == "spectrum" and chooses_ranks(method):
        basis_rank, down = MOST * basis_rank, most_basis_numbers(shapes, rank, heads)
    return down, sum(_gradient_numbers(shape, basis_rank, question.upload) for shape in shapes)


def _gradient_numbers(shape: Shape, basis_rank: int, upload: str) -> int:
    """Numbers of one layer's gradient as a client sends it."""
    if upload == "whole":
        return shape.out * shape.n_in
    return sketched_numbers(shape, basis_rank) if upload == "sketch" else stacked_numbers(shape, basis_rank)


def parse_methods(text: str | None, rank: int | None) -> list[tuple[Method, int]]:
    """`fed-sb:200,fedit` -> methods with their ranks, in the order of `METHODS`.

    Raises:
        InputError: a bad entry, an unknown or repeated method, a method without a rank.
    """
    entries = METHODS.names() if text is None else [e.strip() for e in text.split(",")]
    ranks: dict[str, tuple[Method, int]] = {}
    for entry in entries:
        method, its_rank = _parse_entry(entry, rank)
        if method.name in ranks:
            raise InputError(f"--methods: expected each method once, found {method.name} twice")
        ranks[method.name] = method, its_rank
    return [ranks[name] for name in METHODS.names() if name in ranks]


def _parse_entry(entry: str, rank: int | None) -> tuple[Method, int]:
    parts = re.fullmatch(r"([^:]+)(?::0*([1-9]\d*))?", entry)
    if parts is None:
        raise InputError(
            "--methods: expected NAME or NAME:RANK with a whole rank of 1 or more, separated by commas "
            f"({ALL[0].name}:200,{ALL[1].name}:32), found {entry!r}"
        )
    method = by_name(parts[1])
    its_rank = int(parts[2]) if parts[2] else rank
    if its_rank is None:
        raise InputError(f"--rank: needed for {method.name}; give --rank R or {method.name}:R in --methods")
    return method, its_rank


def _fitting(
    asked: Sequence[tuple[Method, int]], targets: dict[str, nn.Module], question: Question
) -> tuple[list[tuple[Method, int]], dict[str, str]]:
    """The methods whose rank fits the layers and that go with what travels beside their numbers; the others
    with the reason, refused if they were named."""
    misfits: dict[str, str] = {}
    for method, rank in asked:
        heads = method.heads_of(question.heads)
        if reason := question.beside.misfit(method):
            misfits[method.name] = reason
            continue
        try:
            check_rank(targets, rank, heads=heads)
        except InputError as error:
            variant = f"{method.name} with {heads} heads" if heads > 1 else method.name
            misfits[method.name] = f"{variant}: {_as_options(str(error))}"
    if misfits and (question.methods is not None or len(misfits) == len(asked)):
        raise InputError(next(iter(misfits.values())))
    return [(m, rank) for m, rank in asked if m.name not in misfits], misfits


def _check(question: Question) -> None:
    for name in ("rank", "clients", "rounds", "heads", "labels"):
        value = getattr(question, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected 1 or more, found {value}")
    for name, choices in CHOICES.items():
        if (value := getattr(question, name)) not in choices:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: expected one of {', '.join(choices)}, found {value!r}")
    check_beside(question.beside, question.clients, question.upload_dtype)
    if question.beside.threshold is not None and question.init == "gradient" and question.upload != "sketch":
        raise InputError(
            f"--upload: {question.upload} of each client would reach the server as they are; with {SECURE} "
            "take sketch, of which it needs the sum alone"
        )
    if question.targets is not None and not _targets(question.targets):
        raise InputError(f"--targets: expected layer names such as q_proj,v_proj, found {question.targets!r}")


@contextmanager
def _named_as_options() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(_as_options(str(error))) from error


def _as_options(message: str) -> str:
    for key, option in OPTIONS.items():
        message = message.replace(key, option)
    return message


def _targets(text: str | None) -> Sequence[str] | str | None:
    """Layer names, or the name of a group; None where there are none."""
    names = [part.strip() for part in (text or "").split(",") if part.strip()]
    return names[0] if len(names) == 1 and names[0] in GROUPS else names or None
