"""What a run with a mixture leaves besides: mixture/, routing.json, and the scores of other routings."""

from __future__ import annotations

from typing import Any

from fedsb.adapter.attached import Attached
from fedsb.adapter.mixture import mixture_of
from fedsb.adapter.routing import routing_of
from fedsb.common.files import write_json
from fedsb.models.mixture_folder import write_mixture
from fedsb.runner.checkpoint import RunState
from fedsb.runner.chosen_lora import MIXTURE
from fedsb.runner.prepared import Prepared
from fedsb.runner.rounds import score
from fedsb.runner.routing_record import ROUTING, other_routings, routing_record, untrained_of


def finish_mixture(prepared: Prepared, attached: Attached, saved: RunState) -> dict[str, Any] | None:
    """Write both; what summary.json says of the mixture, None where there is none.

    experts: names. right, oracle, static: see `routing_record`; None where nothing is evaluated.
    """
    if routing_of(attached.model) is None:
        return None
    config, folder, mixture = prepared.config, prepared.folder, mixture_of(attached)
    write_mixture(
        folder / MIXTURE,
        mixture,
        base_model=config.model.path,
        base_weights=prepared.layers_digest,
        head=prepared.base.task_head,
    )
    record: dict[str, Any] = {"route": mixture.route, "experts": list(mixture.experts)}
    if config.evaluation.every is not None:
        record |= _measured(prepared, attached, saved)
    write_json(folder / ROUTING, record | {"untrained": untrained_of(saved.metrics)})
    scores = record.get("scores", {})
    found = {"right": record.get("right"), "oracle": scores.get("oracle"), "static": scores.get("static")}
    return {"experts": record["experts"], **found}


def _measured(prepared: Prepared, attached: Attached, saved: RunState) -> dict[str, Any]:
    """Routes of the test examples, and scores of the final model by routing."""
    data, size = prepared.data, prepared.config.evaluation.batch_size
    prepared.progress.stage("scoring the mixture's other routings")
    others = other_routings(attached, data.test, lambda _: score(prepared))
    record = routing_record(attached, data.test, data.task.collate, batch_size=size)
    return record | {"scores": {"routed": saved.metrics[-1]["eval"], **others}}
