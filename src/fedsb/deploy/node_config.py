"""What one party decides on its own machine: its data, its limits, what it approved, where it keeps things.

Nothing of it is sent to the server but the client's number and how many examples it has.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from fedsb.config import RunConfig
from fedsb.config.base import Positive, Section, checked
from fedsb.config.sections.data import Encoding
from fedsb.config.sections.privacy import PrivacyConfig
from fedsb.config.sections.task import CausalLmConfig
from fedsb.config.yaml_file import override, read_yaml
from fedsb.errors import InputError
from fedsb.tasks.prompts import parse_template

log = logging.getLogger("fedsb")


class NodeDataConfig(Section):
    train: str
    """File of this party's training rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the run's config -> what this party's file calls it. A run may use these columns and no
    others; empty: any column, which no limit allows."""
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = None
    """Names these rows in the privacy ledger, `state/ledgers/ID.jsonl`, which all runs on them share. Keep it
    when rows are added or the file is moved. null: made of the file's name and place."""
    encoding: Encoding | None = None
    """Of this party's CSV or TSV file, if it is not UTF-8 and fedsb cannot tell it; null: by its bytes."""
    expert: str | None = None
    """The expert that all of these rows are of, in runs that train several; null: as the run's config
    has it, by a column of the rows (which `columns` must then list) or by this party's number."""
    public: str | None = None
    """File of rows that this party's owner declares public: the start of a run with method.init.public looks
    at these alone; null: there are none."""


class NodeModelConfig(Section):
    path: str | None = None
    """Folder of the base model on this machine; null: as the run's config names it."""
    device: str | None = None
    """auto, cpu, cuda, ...; null: as the run's config has it."""


class LimitsConfig(Section):
    """What a run may ask of this party's examples; more is refused. With any limit, runs must protect single
    examples (privacy.unit: example), `data.columns` must be listed, and `approved` decides."""

    largest_epsilon: Positive | None = None
    """At most this epsilon over all rounds of a run. null: lifetime_epsilon, if that is set."""
    lifetime_epsilon: Positive | None = None
    """All runs on these rows together may spend this epsilon, at largest_delta or else at the largest delta
    that one of them had. null: largest_epsilon, so that one run may spend it all."""
    largest_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """null: below one over the number of examples, as always."""
    smallest_clip_norm: Positive | None = None
    """Below it, noise and rounding would be all that is sent. null: any."""

    smallest_cohort: Annotated[int, Field(ge=2)] | None = None
    """Updates leave under masks alone (federation.secure_aggregation), in sums over so many parties or more,
    whose keys lie in `peers`; other runs are refused. It is no limit on what sums tell. null: no minimum."""

    @property
    def of_a_run(self) -> float | None:
        """The largest epsilon of one run."""
        return self.lifetime_epsilon if self.largest_epsilon is None else self.largest_epsilon

    @property
    def of_all_runs(self) -> float | None:
        """The largest epsilon of all runs together."""
        return self.largest_epsilon if self.lifetime_epsilon is None else self.lifetime_epsilon


class NodeConfig(Section):
    client: NonNegativeInt
    """This party's number in the federation, from 0; no two may have the same."""
    data: NodeDataConfig
    state: str
    """Folder this party keeps: its privacy ledger, its start factors, its audit file."""
    key: str | None = None
    """File of this party's private key, whose public part the server registered; it signs every answer. null:
    answers are not signed, which servers with registered keys refuse."""
    peers: str | None = None
    """Folder of all parties' public keys (client-K.pub), got from their owners and not from the server: with
    secure aggregation this party masks its updates with holders of these keys alone. null: the server's word
    is taken, which could then play the others' part."""
    model: NodeModelConfig = NodeModelConfig()
    limits: LimitsConfig = LimitsConfig()
    allow_unprotected: bool | None = None
    """Whether updates may leave that this party adds no noise to: of runs without privacy, or with
    privacy.unit: client, which trusts the server. null: only if there is no limit."""
    give_scores: bool | None = None
    """Whether runs with evaluation.at_clients are scored on held-out rows of this party, of which counts
    leave (rows, predictions and right answers of each class; the sum of losses), noised and charged in
    private runs. null: only if there is no limit. false: it trains on all its rows, and has no score."""
    approved: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] | None = None
    """Digests of the run configs that this party takes part in; `fedsb deploy check` prints a config's. null:
    any, if there is no limit; with a limit, none."""
    audit: bool = False
    """Write every byte that leaves to `sent/` in the state folder."""

    @staticmethod
    def from_yaml(path: str | Path, overrides: Sequence[str] = ()) -> NodeConfig:
        """Read a YAML file and apply `key.path=value` overrides. Relative paths count from its folder.

        Raises:
            InputError: the file, its YAML, a key or a value is wrong; one line per fault.
        """
        node = checked(NodeConfig, override(read_yaml(Path(path)), overrides), str(path))
        folder = Path(path).resolve().parent
        files = {"train": str(folder / node.data.train)}
        if node.data.public is not None:
            files["public"] = str(folder / node.data.public)
        data, key = node.data.model_copy(update=files), node.key and str(folder / node.key)
        found = {"data": data, "state": str(folder / node.state), "key": key}
        return node.model_copy(update=found | {"peers": node.peers and str(folder / node.peers)})

    @property
    def limited(self) -> bool:
        """Whether its owner set any limit on what a run may learn."""
        limits = self.limits.model_dump(exclude={"smallest_cohort"})
        return any(value is not None for value in limits.values())

    @property
    def gives_unprotected(self) -> bool:
        """Whether updates without noise of this party's own may leave."""
        return not self.limited if self.allow_unprotected is None else self.allow_unprotected

    @property
    def gives_scores(self) -> bool:
        """Whether counts over held-out rows may leave."""
        return not self.limited if self.give_scores is None else self.give_scores


class Refused(InputError):
    """A run asks for more than this party gives. The text is for the server, without any data."""


def check_run(node: NodeConfig, config: RunConfig) -> None:
    """Refuse a run that asks for more than this party gives, or that its owner has not approved.

    Raises:
        Refused: what the run wants, what this party allows, and which key of which config says so.
    """
    check_limits(node, config)
    _check_columns(node, config)
    _check_approved(node, config)


# Limits


def check_limits(node: NodeConfig, config: RunConfig) -> None:
    """Refuse a run that protects this party's examples less than its owner wants.

    Raises:
        Refused: as `check_run`.
    """
    limits, privacy = node.limits, config.privacy
    if not node.client < config.federation.clients:
        raise Refused(
            f"client: this party is number {node.client}, the run has {config.federation.clients} clients "
            f"(0 to {config.federation.clients - 1}); fix client here or federation.clients at the server"
        )
    _check_cohort(node, config)
    if not (node.gives_unprotected or protects_examples(privacy)):
        raise Refused(unprotected_refusal(node))
    if privacy is None:
        return
    _check_peers(node, config)
    if privacy.ledger is not None:
        raise Refused("privacy.ledger: this party keeps its own; leave it out at the server")
    if node.limited:
        _check_epsilon(node, privacy.epsilon)
    delta, largest = privacy.delta, limits.largest_delta
    if largest is not None and (delta is None or not delta <= largest):
        raise Refused(_refusal("delta", f"at most {largest:g}", "largest_delta", delta))
    clip, smallest = privacy.clip_norm, limits.smallest_clip_norm
    if smallest is not None and privacy.quantile is not None:
        raise Refused(
            "limits.smallest_clip_norm: this party allows a clip norm that stays above it, and the run's "
            "follows its gradients; leave privacy.quantile out at the server (and clip_norm: auto), or the "
            "limit here"
        )
    if smallest is not None and not clip >= smallest:
        raise Refused(_refusal("clip_norm", f"at least {smallest:g}", "smallest_clip_norm", clip))


def _check_cohort(node: NodeConfig, config: RunConfig) -> None:
    smallest, federation = node.limits.smallest_cohort, config.federation
    if smallest is None:
        return
    if federation.secure_aggregation is None:
        raise Refused(
            f"limits.smallest_cohort: this party's updates leave in sums over {smallest} parties or more; "
            "set federation.secure_aggregation at the server"
        )
    if (cohort := federation.clients_per_round or federation.clients) < smallest:
        raise Refused(
            f"limits.smallest_cohort: this party takes part in sums over {smallest} parties or more, a "
            f"round of this run has {cohort}; ask more of them at the server"
        )
    if node.peers is None:
        raise Refused(
            "limits.smallest_cohort: a server could play the other parties itself; put the others' public "
            "keys into a folder and name it in peers in node.yaml here"
        )


def _check_peers(node: NodeConfig, config: RunConfig) -> None:
    """Noise that parties share is some other party's, and not the server's, if their keys are."""
    if config.sums_gradients and node.peers is None and not node.gives_unprotected:
        raise Refused(
            "privacy.noise: shared: a server could play the other parties itself and leave their noise out; "
            "put the others' public keys into a folder and name it in peers in node.yaml here"
        )


def protects_examples(privacy: PrivacyConfig | None) -> bool:
    """Whether each party's examples are covered by noise: its own, or its share and that of other parties,
    which are not the server (`_check_peers`)."""
    return privacy is not None and privacy.unit == "example" and privacy.insecure_seed is None


def unprotected_refusal(node: NodeConfig) -> str:
    """Why this party gives no unprotected update."""
    limits = node.limits.model_dump(exclude={"smallest_cohort"})
    set_limits = [name for name, value in limits.items() if value is not None]
    key = f"limits.{set_limits[0]}" if set_limits else "allow_unprotected"
    largest = node.limits.of_a_run
    within = "" if largest is None else f" with epsilon {largest:g} or less"
    return (
        f"{key}: this party takes part in runs that protect its examples{within}; the run has no such "
        "privacy. Set privacy.unit: example and privacy.epsilon at the server, or allow_unprotected: true "
        "here"
    )


def _check_epsilon(node: NodeConfig, epsilon: float | None) -> None:
    """With limits of which none bounds epsilon, a run that names no epsilon could add hardly any noise."""
    largest = node.limits.of_a_run
    if largest is not None and (epsilon is None or not epsilon <= largest):
        limit = "lifetime_epsilon" if node.limits.largest_epsilon is None else "largest_epsilon"
        raise Refused(_refusal("epsilon", f"at most {largest:g}", limit, epsilon))
    if epsilon is None:
        raise Refused(
            "limits: this party has limits and the run leaves privacy.epsilon open; set privacy.epsilon at "
            "the server, or limits.largest_epsilon here"
        )


def _refusal(key: str, allowed: str, limit: str, value: float | None) -> str:
    wants = "leaves it open" if value is None else f"wants {value:g}"
    return (
        f"limits.{limit}: this party allows privacy.{key} {allowed}, and the run {wants}; change "
        f"privacy.{key} at the server, or the limit here"
    )


# Columns


def _check_columns(node: NodeConfig, config: RunConfig) -> None:
    listed = node.data.columns
    if not listed and node.limited:
        raise Refused(
            "data.columns: with limits this party must list the columns that runs may use; list them in "
            "node.yaml, e.g. columns: {text: note, label: label}"
        )
    used = columns_of(config, expert_known=node.data.expert is not None)
    others = [column for column in used if column not in listed]
    if listed and others:
        raise Refused(
            f"data.columns: the run uses the column {others[0][:60]!r}, which this party does not give; name "
            "another at the server, or list it in node.yaml here"
        )


def columns_of(config: RunConfig, *, expert_known: bool = False) -> list[str]:
    """The columns that a run reads of a party's rows.

    expert_known: the party says of which expert they are.
    """
    experts = config.method.experts
    more = [experts.by if experts and not expert_known else None, config.owner]
    return [*task_columns_of(config), *(column for column in more if column)]


def task_columns_of(config: RunConfig) -> list[str]:
    """Those that its task names; a chat's names none, and takes a conversation's from what there is."""
    task = config.task
    if isinstance(task, CausalLmConfig):
        pieces = parse_template(task.prompt)
        return [*(piece.column for piece in pieces if piece.column is not None), task.response]
    if task.columns is None:
        raise Refused(f"task.kind: {task.kind} does not say which columns it reads; it is for simulated runs")
    return task.columns


# Approval


ELSEWHERE: dict[str, Any] = {"data": {"train", "test", "group", "split_seed", "encoding"}}
"""Left out of a config's digest: what is about the server's files, which no node reads."""


def config_digest(config: RunConfig) -> str:
    """SHA-256 in hexadecimal of all that a server can set, but for `ELSEWHERE`. Equal for configs that mean
    the same, whether keys are written out or left at their defaults."""
    checked_again = RunConfig.model_validate(config.model_dump(mode="json"))  # 1 and 1.0 become one number
    values = checked_again.model_dump(mode="json", exclude=ELSEWHERE)
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def approves(node: NodeConfig, digest: str) -> bool:
    """Whether this party takes part in runs of the config with this digest."""
    return not node.limited if node.approved is None else digest in node.approved


def _check_approved(node: NodeConfig, config: RunConfig) -> None:
    digest = config_digest(config)
    if node.approved is None and not node.limited:
        _warn_unapproved(digest)
    if not approves(node, digest):
        raise Refused(
            f"approved: this party's owner has not approved the run's config, whose digest is {digest}. Look "
            "at the config with `fedsb deploy check node.yaml run.yaml`, then add the digest to approved in "
            "node.yaml"
        )


@lru_cache(maxsize=64)
def _warn_unapproved(digest: str) -> None:
    """Once for each config."""
    log.warning(
        "fedsb: node.yaml approves no configs by name, so this party takes part in any run; to take part in "
        "this one alone, set approved: [%s]",
        digest,
    )
