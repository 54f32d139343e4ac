"""A mixture's experts: which there are, whose each example is, and how their factors start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsb.adapter import Factors
from fedsb.adapter.mixture import start_gate, with_experts
from fedsb.adapter.routing import Routing
from fedsb.common.seeding import torch_generator
from fedsb.config import RunConfig
from fedsb.config.method import gate_after
from fedsb.errors import InputError
from fedsb.federation.experts import Counts, ExpertsPlan, ExpertState, counted, shares
from fedsb.federation.local_model import Example
from fedsb.federation.partition import Parts
from fedsb.tasks import Row
from fedsb.tasks.rows import cell_text, require_columns

JITTER = 0.1
"""Standard deviation of a gate in front of equal experts: from zero, neither would ever move."""


def expert_names(config: RunConfig, rows: Sequence[Row], source: str) -> tuple[str, ...]:
    """The experts' names in the order of their numbers; none where there is one core.

    Raises:
        InputError: the column is missing or has one value.
    """
    experts = config.method.experts
    if experts is None:
        return ()
    if experts.names is not None:
        return tuple(experts.names)
    if experts.folders is not None:
        return tuple(experts.folders)
    if experts.by is None:
        assigned = config.federation.client_experts
        return tuple(map(str, range(experts.count or max(assigned or [0]) + 1)))
    names = tuple(sorted(set(_values(rows, experts.by, source))))
    if len(names) < 2:
        raise InputError(
            f"method.experts.by: column {experts.by!r} of {source} has one value; one expert is one core, so "
            "name a column with more values, or take a method without experts"
        )
    return names


def _values(rows: Sequence[Row], column: str, source: str) -> list[str]:
    require_columns(rows, [column], source=source, key="method.experts.by")
    return [cell_text(row, column, source=source, number=n).strip() for n, row in enumerate(rows, start=1)]


def numbers_of(column: str, names: Sequence[str], rows: Sequence[Row], source: str) -> list[int]:
    """The number of each row's expert.

    Raises:
        InputError: the column is missing, or a row's value is the name of none.
    """
    places = {name: number for number, name in enumerate(names)}
    values = _values(rows, column, source)
    for number, value in enumerate(values, start=1):
        if value not in places:
            raise InputError(
                f"{source}: row {number}: its value in column {column!r} is none of the {len(names)} "
                "experts; add it to method.experts.names, or take such rows out"
            )
    return [places[value] for value in values]


def with_own_experts(
    config: RunConfig,
    names: tuple[str, ...],
    rows: Sequence[Row],
    examples: list[Example],
    parts: Parts,
    source: str,
) -> list[Example]:
    """The training examples, each with the number of its expert where that is known before training.

    Raises:
        InputError: a row names no expert, or nobody has rows of one.
    """
    experts, assigned = config.method.experts, config.federation.client_experts
    if experts is None or (experts.by is None and assigned is None):
        return examples
    if experts.by is not None:
        numbers = numbers_of(experts.by, names, rows, source)
    else:
        assert assigned is not None
        of_example = {i: assigned[client] for client, part in enumerate(parts) for i in part}
        numbers = [of_example[i] for i in range(len(examples))]
    if idle := [name for number, name in enumerate(names) if number not in set(numbers)]:
        raise InputError(
            f"method.experts: no training row is of expert {idle[0]!r}; leave it out of names, or add rows"
        )
    return [example | {"expert": number} for example, number in zip(examples, numbers, strict=True)]


def with_known_experts(
    config: RunConfig, names: tuple[str, ...], rows: Sequence[Row], examples: list[Example]
) -> list[Example]:
    """The test examples, each with its expert's number if every row names one that exists."""
    experts = config.method.experts
    values = [row.get(experts.by) for row in rows] if experts is not None and experts.by else []
    places = {name: number for number, name in enumerate(names)}
    numbers = [places.get(str(value).strip()) for value in values]
    if not numbers or None in numbers:
        return examples
    return [example | {"expert": number} for example, number in zip(examples, numbers, strict=True)]


def counts_of(examples: Sequence[Example], parts: Parts) -> dict[int, Counts]:
    """Client -> its experts and its examples of each; empty where they are not known."""
    if not any("expert" in example for example in examples):
        return {}
    return {client: counted(examples[i]["expert"] for i in part) for client, part in enumerate(parts)}


def counts_said(
    config: RunConfig, names: Sequence[str], parts: Parts, said: Sequence[Sequence[int]]
) -> dict[int, Counts]:
    """As `counts_of`, of clients elsewhere, by what they say or what the config says of them.

    Raises:
        InputError: a client has rows of no expert, or counts of more than there are, or nobody holds one.
    """
    experts, assigned = config.method.experts, config.federation.client_experts
    if experts is None or (experts.by is None and assigned is None):
        return {}
    if assigned is not None:
        return {client: {assigned[client]: len(part)} for client, part in enumerate(parts)}
    counts: dict[int, Counts] = {}
    for client, numbers in enumerate(said):
        counts[client] = {expert: number for expert, number in enumerate(numbers) if number}
        if len(numbers) != len(names) or not counts[client]:
            raise InputError(
                f"method.experts.names: client {client} counts its rows of {len(numbers)} experts, the run "
                f"has {len(names)}; all parties need the run's config as it is"
            )
    if idle := set(range(len(names))) - {expert for held in counts.values() for expert in held}:
        raise InputError(f"method.experts: no client has rows of the expert {names[min(idle)]!r}")
    return counts


def plan_of(config: RunConfig, names: Sequence[str], width: int) -> ExpertsPlan | None:
    """What all parties know of the mixture; None where there is one core.

    Args:
        width: of the base model's states.
    """
    experts = config.method.experts
    if experts is None:
        return None
    pooled = width if experts.route == "request" else 0
    return ExpertsPlan(len(names), experts.keep > 0, experts.balance > 0, pooled)


def routing_for(config: RunConfig, names: tuple[str, ...], counts: Mapping[int, Counts]) -> Routing | None:
    """How the mixture routes; None where there is one core."""
    experts = config.method.experts
    if experts is None:
        return None
    return Routing(names, experts.route, experts.top_k, shares(counts, len(names)))


def start_experts(
    config: RunConfig, names: Sequence[str], factors: Mapping[str, Factors]
) -> dict[str, Factors]:
    """The start factors with a core for each expert, equal unless they come from elsewhere, and a gate."""
    experts = config.method.experts
    if experts is None:
        return dict(factors)
    count, rank = len(names), config.method.rank
    jitter = JITTER if gate_after(config) == 0 and experts.folders is None else 0.0
    made = {}
    for layer, part in factors.items():
        draw = torch_generator(config.seed, "gate", layer)
        gate = None if experts.route == "request" else start_gate(count, rank, jitter=jitter, generator=draw)
        made[layer] = with_experts(part, count, gate)
    return made


def expert_state(names: Sequence[str], counts: Mapping[int, Counts]) -> ExpertState | None:
    """What the server keeps of the mixture before its first round."""
    return ExpertState(counts, shares(counts, len(names))) if names else None


def with_counts(state: ExpertState, counts: Mapping[int, Counts]) -> ExpertState:
    """With the clients' experts, now that they are known."""
    return replace(state, counts=counts, usage=shares(counts, len(state.usage)))
