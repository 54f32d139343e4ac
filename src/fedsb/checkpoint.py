"""What `--resume` needs: written after the start and after each round, atomically.

    checkpoint/state.json            the one entry point: names the other files and their hashes
    checkpoint/start.safetensors     the frozen factors, written once
    checkpoint/round-00002.safetensors  the vector to broadcast next

`state.json` is replaced last, so that whatever moment a run is killed at, it names whole files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedsb.adapter import FACTOR_NAMES, Factors
from fedsb.errors import InputError
from fedsb.files import write_bytes, write_json
from fedsb.server import ServerState
from fedsb.traffic import Ledger

STATE, START = "state.json", "start.safetensors"


@dataclass
class Saved:
    """A run between two rounds."""

    state: ServerState
    factors: dict[str, Factors]
    ledger: Ledger
    metrics: list[dict[str, Any]]
    draw: dict[int, list[int]]
    seconds: float
    hashes: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: Path, saved: Saved) -> None:
    """Write this round's vector, then point `state.json` at it, then remove the former one."""
    folder.mkdir(parents=True, exist_ok=True)
    if START not in saved.hashes:
        saved.hashes[START] = _write(folder / START, save(_flat(saved.factors)))
    name = f"round-{saved.state.round:05d}.safetensors"
    hashes = {
        START: saved.hashes[START],
        name: _write(folder / name, save({"vector": saved.state.vector.contiguous()})),
    }
    saved.hashes = hashes
    record = {
        "round": saved.state.round,
        "files": hashes,
        "seconds": saved.seconds,
        "draw": saved.draw,
        "ledger": saved.ledger.to_json(),
        "metrics": saved.metrics,
        "layers": list(saved.factors),
    }
    write_json(folder / STATE, record)
    for old in folder.glob("round-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path) -> Saved | None:
    """The newest whole state, or None if the run was stopped before its first checkpoint.

    Raises:
        InputError: a file is missing, changed or unreadable.
    """
    if not (folder / STATE).exists():
        return None
    try:
        record = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = {name: _read(folder / name, digest) for name, digest in record["files"].items()}
        vector = next(t["vector"] for name, t in tensors.items() if name != START)
        factors = _nested(tensors[START], record["layers"])
        ledger = Ledger.from_json(record["ledger"])
        draw = {int(client): indices for client, indices in record["draw"].items()}
        state = ServerState(record["round"], vector)
        return Saved(state, factors, ledger, record["metrics"], draw, record["seconds"], record["files"])
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder / STATE}: cannot read this checkpoint ({type(error).__name__}: {error}). Restore the "
            "folder from a copy, or start anew with another --out."
        ) from error


def _write(path: Path, content: bytes) -> str:
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{path}: this file of the checkpoint is missing. Restore it, or start anew.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{path}: this file of the checkpoint was changed or cut off. Restore it, or start anew."
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
