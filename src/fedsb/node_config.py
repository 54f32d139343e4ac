"""What one party decides on its own machine: its data, its limits, where it keeps things.

Nothing of it is sent to the server but the client's number and how many examples it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt

from fedsb.config import RunConfig
from fedsb.config_file import override, read_yaml
from fedsb.errors import InputError
from fedsb.section import Positive, Section, checked


class NodeDataConfig(Section):
    train: str
    """File of this party's training rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the run's config -> what this party's file calls it."""
    public: str | None = None
    id: str | None = None


class NodeModelConfig(Section):
    path: str | None = None
    """Folder of the base model on this machine; null: as the run's config names it."""
    device: str | None = None
    """auto, cpu, cuda, ...; null: as the run's config has it."""


class LimitsConfig(Section):
    """What a run may ask of this party's examples; more is refused."""

    largest_epsilon: Positive | None = None
    """Runs must protect single examples (privacy.unit: example) with at most this epsilon over all rounds.
    null: runs without such privacy are accepted too."""
    largest_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """null: below one over the number of examples, as always."""
    smallest_clip_norm: Positive | None = None
    """Below it, noise and rounding would be all that is sent. null: any."""
    lifetime_epsilon: Positive | None = None


class NodeConfig(Section):
    client: NonNegativeInt
    """This party's number in the federation, from 0; no two may have the same."""
    data: NodeDataConfig
    state: str
    """Folder this party keeps: its privacy ledger, its start factors, its audit file."""
    model: NodeModelConfig = NodeModelConfig()
    limits: LimitsConfig = LimitsConfig()
    key: str | None = None
    approved: list[str] = Field(default_factory=list)
    allow_unprotected: bool | None = None
    audit: bool = False
    """Write every byte that leaves to `sent/` in the state folder."""

    @staticmethod
    def from_yaml(path: str | Path, overrides: Sequence[str] = ()) -> NodeConfig:
        """Read a YAML file and apply `key.path=value` overrides. Relative paths count from its folder.

        Raises:
            InputError: the file, its YAML, a key or a value is wrong; one line per fault.
        """
        own = checked(NodeConfig, override(read_yaml(Path(path)), overrides), str(path))
        folder = Path(path).resolve().parent
        data = own.data.model_copy(update={"train": str(folder / own.data.train)})
        return own.model_copy(update={"data": data, "state": str(folder / own.state)})


def config_digest(config: RunConfig) -> str:
    return sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Refused(InputError):
    """A run asks for more than this party gives. The text is for the server, without any data."""


def check_limits(node: NodeConfig, config: RunConfig) -> None:
    """Refuse a run that asks for more than this party gives.

    Raises:
        Refused: what the run wants, what this party allows, and which key of which config says so.
    """
    limits, wanted = node.limits, config.privacy
    if node.client >= config.federation.clients:
        raise Refused(
            f"client: this party is number {node.client}, the run has {config.federation.clients} clients "
            f"(0 to {config.federation.clients - 1}); mend client here or federation.clients at the server"
        )
    if limits.largest_epsilon is not None:
        _check_epsilon(limits.largest_epsilon, config)
    delta = wanted.delta if wanted else None
    if limits.largest_delta is not None and (delta is None or delta > limits.largest_delta):
        raise Refused(_refusal("delta", f"at most {limits.largest_delta:g}", "largest_delta", delta))
    clip = wanted.clip_norm if wanted else None
    if limits.smallest_clip_norm is not None and clip is not None and clip < limits.smallest_clip_norm:
        raise Refused(
            _refusal("clip_norm", f"at least {limits.smallest_clip_norm:g}", "smallest_clip_norm", clip)
        )


def _check_epsilon(largest: float, config: RunConfig) -> None:
    wanted = config.privacy
    if wanted is None or wanted.unit != "example" or wanted.insecure_seed is not None:
        raise Refused(
            f"limits.largest_epsilon: this party takes part in runs that protect its examples with epsilon "
            f"{largest:g} or less; the run has no such privacy. Set privacy.unit: example and "
            "privacy.epsilon at the server, or lift the limit here"
        )
    if wanted.epsilon is None or wanted.epsilon > largest:
        raise Refused(_refusal("epsilon", f"at most {largest:g}", "largest_epsilon", wanted.epsilon))


def _refusal(key: str, allowed: str, limit: str, found: float | None) -> str:
    wants = "leaves it open" if found is None else f"wants {found:g}"
    return (
        f"limits.{limit}: this party allows privacy.{key} {allowed}, and the run {wants}; change "
        f"privacy.{key} at the server, or the limit here"
    )
