"""What `--resume` needs: written after the start and after each round, atomically.

    checkpoint/state.json            the one entry point: names the other files and their hashes
    checkpoint/factors-00000.safetensors  the factors as they started (again after each refresh of the bases)
    checkpoint/round-00002.safetensors  the vector to broadcast next, and what was added to base weights

`state.json` is replaced last, so that whatever moment a run is killed at, it names whole files. It has a
digest of itself, and of what the run was started on: a run is resumed on the same rows and weights or not at
all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedsb.adapter import FACTOR_NAMES, Factors, LoraPair
from fedsb.common.files import finite, write_bytes, write_json
from fedsb.common.strict_json import parse_json
from fedsb.errors import InputError
from fedsb.federation.experts import ExpertState
from fedsb.federation.state import BaseChange, ServerState
from fedsb.federation.traffic import Traffic
from fedsb.methods import BaseUpdate

STATE = "state.json"


@dataclass
class RunState:
    """A run between two rounds."""

    state: ServerState
    factors: dict[str, Factors]
    traffic: list[Traffic]
    metrics: list[dict[str, Any]]
    draw: dict[int, list[int]]
    seconds: float
    factors_round: int = 0
    """The round after which the factors started."""
    hashes: dict[str, str] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """What stays with each client of a simulated run, in methods where something does."""
    started_on: dict[str, Any] = field(default_factory=dict)
    """What `started_on` says of the config, rows, weights and versions of the start."""


def save_checkpoint(folder: Path, saved: RunState) -> None:
    """Write this round's state, then point `state.json` at it, then remove the former one."""
    folder.mkdir(parents=True, exist_ok=True)
    start, name = _start_name(saved.factors_round), f"round-{saved.state.round:05d}.safetensors"
    if start not in saved.hashes:
        saved.hashes[start] = _write(folder / start, save(_flat(saved.factors)))
    own = {f"kept {c} {n}": t.contiguous() for c, of in saved.kept.items() for n, t in of.items()}
    content = save(_state_tensors(saved.state) | own)
    saved.hashes = {start: saved.hashes[start], name: _write(folder / name, content)}
    base = saved.state.base
    record = {
        "round": saved.state.round,
        "factors_round": saved.factors_round,
        "base": {name: getattr(base, name) for name in ("last_rank", "changed", "previous", "seen")},
        "experts": _experts_record(saved.state.experts),
        "files": saved.hashes,
        "seconds": saved.seconds,
        "draw": saved.draw,
        "ledger": [asdict(entry) for entry in saved.traffic],
        "metrics": saved.metrics,
        "layers": list(saved.factors),
        "started_on": saved.started_on,
    }
    write_json(folder / STATE, record | {"digest": _digest(record)})
    for old in folder.glob("*-?????.safetensors"):
        if old.name not in saved.hashes:
            old.unlink()


def _start_name(factors_round: int) -> str:
    return f"factors-{factors_round:05d}.safetensors"


def _state_tensors(state: ServerState) -> dict[str, Tensor]:
    """The vector, and by layer what was added to base weights: all of it, and the last addition."""
    tensors = {"vector": state.vector} | {f"total {n}": value for n, value in state.base.total.items()}
    tensors |= {f"memory {name}": value for name, value in state.memory.items()}
    for name, value in state.base.last.items():
        parts = value._asdict() if isinstance(value, LoraPair) else {"dense": value}
        tensors |= {f"last {part} {name}": tensor for part, tensor in parts.items()}
    if (experts := state.experts) is not None:
        tensors |= {"usage": experts.usage} | {f"cores {n}": core for n, core in experts.cores.items()}
        tensors |= {} if experts.gate is None else {"gate": experts.gate}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _experts_record(experts: ExpertState | None) -> dict[str, Any] | None:
    """What of a mixture is no tensor; numbers of clients and experts in lists, as JSON has text for keys."""
    if experts is None:
        return None
    counts = [[client, list(held.items())] for client, held in experts.counts.items()]
    return {"counts": counts, "opened": experts.opened, "holding": sorted(experts.holding)}


def _experts_of(tensors: dict[str, Tensor], record: dict[str, Any] | None) -> ExpertState | None:
    if record is None:
        return None
    return ExpertState(
        counts={client: {e: number for e, number in held} for client, held in record["counts"]},
        usage=tensors["usage"],
        opened=record["opened"],
        holding=frozenset(record["holding"]),
        cores={n.removeprefix("cores "): t for n, t in tensors.items() if n.startswith("cores ")},
        gate=tensors.get("gate"),
    )


def _state_of(tensors: dict[str, Tensor], record: dict[str, Any]) -> ServerState:
    total = {n.removeprefix("total "): value for n, value in tensors.items() if n.startswith("total ")}
    last: BaseUpdate = {
        n.removeprefix("last dense "): v for n, v in tensors.items() if n.startswith("last dense ")
    }
    for name in [n.removeprefix("last B ") for n in tensors if n.startswith("last B ")]:
        last[name] = LoraPair(tensors[f"last B {name}"], tensors[f"last A {name}"])
    facts = record["base"] | {"seen": {int(client): at for client, at in record["base"]["seen"].items()}}
    experts = _experts_of(tensors, record["experts"])
    memory = {n.removeprefix("memory "): t for n, t in tensors.items() if n.startswith("memory ")}
    return ServerState(record["round"], tensors["vector"], BaseChange(total, last, **facts), experts, memory)


def load_checkpoint(folder: Path) -> RunState | None:
    """The newest whole state, or None if the run was stopped before its first checkpoint.

    Raises:
        InputError: a file is missing, changed or unreadable.
    """
    if not (folder / STATE).exists():
        return None
    try:
        record = parse_json((folder / STATE).read_text(encoding="utf-8"))
        if record.pop("digest") != _digest(record):
            raise ValueError("it was changed or cut off")
        tensors = {name: _read(folder / name, digest) for name, digest in record["files"].items()}
        start = _start_name(record["factors_round"])
        of_round = next(t for name, t in tensors.items() if name != start)
        state = _state_of(of_round, record)
        factors = _nested(tensors[start], record["layers"])
        traffic = [Traffic(**entry) for entry in record["ledger"]]
        draw = {int(client): indices for client, indices in record["draw"].items()}
        return RunState(
            state,
            factors,
            traffic,
            record["metrics"],
            draw,
            record["seconds"],
            record["factors_round"],
            record["files"],
            _kept(of_round),
            record["started_on"],
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder / STATE}: cannot read this checkpoint ({type(error).__name__}: {error}). Restore the "
            "folder from a copy, or start again with another --out."
        ) from error


def _kept(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    kept: dict[int, dict[str, Tensor]] = {}
    for name in (name for name in tensors if name.startswith("kept ")):
        _, client, factor = name.split(" ", 2)
        kept.setdefault(int(client), {})[factor] = tensors[name]
    return kept


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of the state as JSON, which has the order of its keys and text for every key."""
    return hashlib.sha256(json.dumps(finite(record)).encode()).hexdigest()


def _write(path: Path, content: bytes) -> str:
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{path}: this file of the checkpoint is missing. Restore it, or start again.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{path}: this file of the checkpoint was changed or cut off. Restore it, or start again."
        )
    return load(content)


def _flat(factors: dict[str, Factors]) -> dict[str, Tensor]:
    return {
        f"{layer}.{name}": value.detach().cpu().contiguous()
        for layer, part in factors.items()
        for name, value in part._asdict().items()
        if value is not None
    }


def _nested(tensors: dict[str, Tensor], layers: list[str]) -> dict[str, Factors]:
    return {
        layer: Factors(**{name: tensors.get(f"{layer}.{name}") for name in FACTOR_NAMES})  # type: ignore[arg-type]
        for layer in layers
    }
