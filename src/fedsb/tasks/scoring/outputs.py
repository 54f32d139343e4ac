"""A generation's outputs on disk: what was answered is not asked again, after a kill or for new marks.

A first line with the key of what is asked of which model, then a line per prompt, synced after every batch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsb.common.strict_json import parse_json
from fedsb.errors import InputError
from fedsb.tasks.generate import Engine, Prompt, batches


def key_of(**facts: Any) -> str:
    """A digest of what decides the outputs."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def answered(
    prompts: Sequence[Prompt],
    engine: Engine,
    *,
    batch_size: int,
    path: Path | None,
    key: str,
    report: Callable[[int], None],
) -> list[str]:
    """The engine's answer to each prompt.

    Args:
        path: the file that keeps them, or None to keep nothing.
        key: of the model and the question; answers that were kept under another are thrown away.
        report: told after each batch how many prompts it had.
    """
    done = _kept(path, key) if path is not None else {}
    for number, indices in enumerate(batches(prompts, batch_size)):
        if not all(i in done for i in indices):
            texts = engine([prompts[i] for i in indices], number)
            outputs = dict(zip(indices, texts, strict=True))
            if path is not None:
                _append(path, [{"index": i, "output": text} for i, text in outputs.items()])
            done |= outputs
        report(len(indices))
    return [done[i] for i in range(len(prompts))]


def _kept(path: Path, key: str) -> dict[int, str]:
    """What was answered under this key; the file is left open to more, without a torn last line."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    whole = lines[:-1]  # what follows the last newline was cut off, or is empty
    if not whole or whole[0] != json.dumps({"key": key}).encode():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _append(path, [{"key": key}])
        return {}
    if lines[-1]:
        with open(path, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in whole))
    try:
        entries = [parse_json(line.decode()) for line in whole[1:]]
        return {int(entry["index"]): str(entry["output"]) for entry in entries}
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: a line is no answer; remove the file to ask again") from None


def _append(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "ab") as file:
        file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode())
        file.flush()
        os.fsync(file.fileno())
