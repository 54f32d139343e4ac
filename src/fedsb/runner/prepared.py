"""A prepared run: one value with all that stays as it is from the first round to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsb.common.cores import Use
from fedsb.config import RunConfig
from fedsb.config.private_defaults import notes_on_defaults
from fedsb.errors import InputError
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import draw_calibration, needs_data
from fedsb.federation.start.settings import Start
from fedsb.methods import Method
from fedsb.models.devices import slow_bfloat16
from fedsb.models.digest import base_digest, layer_digest
from fedsb.report.cuts import cut_notes, length_lines
from fedsb.report.progress import Progress
from fedsb.runner.arguments import (
    RoundRules,
    method_of,
    needs_weights_at_server,
    round_rules,
    start_of,
)
from fedsb.runner.checkpoint import RunState
from fedsb.runner.clients import RemoteClients
from fedsb.runner.continued import notes
from fedsb.runner.earlier_run import check_starts_from, earlier_run
from fedsb.runner.prepare_data import (
    Data,
    batches_of,
    cut_record,
    prepare_data,
    prepare_server_data,
    protected_batches,
)
from fedsb.runner.prepare_model import BaseModel, prepare_base, prepare_shapes
from fedsb.runner.prepare_privacy import prepare_privacy
from fedsb.runner.private_run import PrivateRun
from fedsb.runner.secure_settings import secure_rules
from fedsb.runner.site_data import score_notes
from fedsb.runner.split_record import kept_split
from fedsb.runner.started_on import check_same, first_config, started_on
from fedsb.runner.threads import settle_threads
from fedsb.runner.trial import try_rows


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run before its first round.

    Attributes:
        start: how its factors start, unprotected.
        remote: clients on other machines; None in a simulated run.
        inputs: what it is started on, as the checkpoint has it.
        earlier: the end of the run that this one starts from; None where it has a start of its own.
        layers_digest: of the base weights the adapter is made for; None where they are elsewhere.
    """

    config: RunConfig
    folder: Path
    method: Method
    rules: RoundRules
    start: Start
    data: Data
    base: BaseModel
    privacy: PrivateRun | None
    progress: Progress
    remote: RemoteClients | None
    inputs: Mapping[str, Any]
    earlier: RunState | None
    layers_digest: str | None


def prepare(
    config: RunConfig,
    folder: Path,
    progress: Progress,
    remote: RemoteClients | None = None,
    saved: RunState | None = None,
) -> Prepared:
    """Rows, base model and privacy of the config.

    Args:
        saved: where a run is resumed, its state: it was started on the same, and its ledger is whole.

    Raises:
        InputError: one of them is wrong.
    """
    use, method, secure = Use(), method_of(config), secure_rules(config, remote.run if remote else "")
    rules = replace(round_rules(config), secure=secure)
    earlier = earlier_run(config) if saved is None else None
    progress.stage("reading data")
    if remote is None:
        data = prepare_data(config, kept_split(folder, config) if saved is not None else None)
    else:
        data = prepare_server_data(config, remote.parts, remote.experts, remote.client_tests)
    config = data.settled(config)
    progress.sites(data.sites)
    for note in score_notes(config, data.sites, data.client_tests, at_nodes=remote is not None):
        progress.stage(note)
    _say(config, data, progress)
    slow = slow_bfloat16(config.model.dtype, config.training.autocast, config.model.device)
    if remote is None and slow:
        progress.stage(slow)
    progress.stage(f"loading {Path(config.model.path).name}")
    base, weights, layers = _base_model(config, data, remote)
    for note in base.notes:
        progress.stage(note)
    if remote is None:
        config, note = settle_threads(config, base.model, use)
        progress.stage(note)
    progress.stage("trying two rows")
    try_rows(config, data, base)
    inputs = started_on(config, data, weights)
    if earlier is not None:
        check_starts_from(earlier, config, data, base, weights)
    for line in _resumed(saved, inputs, config) if saved is not None else ():
        progress.stage(line)
    if config.privacy is not None:
        progress.stage("calibrating noise")
    sizes, tests = (dict(enumerate(map(len, parts))) for parts in (data.parts, data.client_tests))
    owners = dict(enumerate(data.owners))
    privacy = prepare_privacy(config, sizes, folder, tests=tests, owners=owners)
    if privacy is not None:
        privacy.check_ledger(saved.metrics[-1].get("epsilon") if saved else None)
    return Prepared(
        config=config,
        folder=folder,
        method=method,
        rules=rules,
        start=replace(start_of(config, data.parts), secure=secure),
        data=data,
        base=base,
        privacy=privacy,
        progress=progress,
        remote=remote,
        inputs=inputs,
        earlier=earlier,
        layers_digest=layers,
    )


def _say(config: RunConfig, data: Data, progress: Progress) -> None:
    """How the rows were read and split, how long they are, and what is cut from them."""
    for note in (*notes_on_defaults(config), *data.task.notes, *data.notes):
        progress.stage(note)
    lengths = cut_record(config, data, shown=False)
    for line in length_lines(lengths):
        progress.stage(f"tokens {line}")
    for note in cut_notes(lengths):
        progress.stage(f"warning: {note}")


def _resumed(saved: RunState, inputs: Mapping[str, Any], config: RunConfig) -> Iterator[str]:
    """What to say of a run that is resumed.

    Raises:
        InputError: it was started on other inputs.
    """
    if other := check_same(saved.started_on, inputs, config):
        yield other
    yield from notes(first_config(saved.started_on), config)


def _base_model(
    config: RunConfig, data: Data, remote: RemoteClients | None
) -> tuple[BaseModel, str | None, str | None]:
    """The base, the digest of its weights and head, and that of its target layers."""
    if remote is not None and not needs_weights_at_server(config):
        return prepare_shapes(config, data), remote.base_digest, None
    base = prepare_base(config, data)
    weights = base_digest(base.model, base.task_head)
    if remote is not None and remote.base_digest not in (None, weights):
        raise InputError(
            f"model.path: the server's base model has the digest {weights}, the nodes' {remote.base_digest}: "
            "not the same weights. Give the server or the nodes the other's model folder"
        )
    return base, weights, layer_digest(base.targets)


def calibration_of(
    data: Data, base: BaseModel, start: Start, method: Method, head: Mapping[str, Any]
) -> Calibration:
    """The examples that the start may look at: public ones, all of each client's if it protects them itself,
    or an equal draw."""
    batches, losses = batches_of(data, base.device), data.task.losses
    if data.public is not None:
        return Calibration({0: list(range(len(data.public)))}, data.public, batches, losses, public=True)
    if start.private is not None:
        computation = protected_batches(data, base.model, base.device, start.private.max_length)
        return Calibration(dict(enumerate(data.parts)), data.train, *computation)
    looks = needs_data(start, method, head)
    draw = draw_calibration(data.parts, start.samples, seed=start.seed) if looks else {}
    return Calibration(draw, data.train, batches, losses)
