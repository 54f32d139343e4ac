"""The tensors in an adapter folder: safetensors, or the pickle of tensors alone that older folders have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedsb.errors import InputError

WEIGHTS, OLDER = "adapter_model.safetensors", "adapter_model.bin"


def weights_file(folder: Path) -> Path:
    """The file that peft would read: safetensors before a pickle.

    Raises:
        InputError: there is neither.
    """
    for name in (WEIGHTS, OLDER):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: no PEFT adapter here: {WEIGHTS} is missing")


def load_weights(file: Path) -> dict[str, Tensor]:
    """The file's tensors by their names in it, on the CPU. No code in it is run.

    Raises:
        InputError: it cannot be read, or a pickle holds more than the tensors of a state dict.
    """
    try:
        return load_file(file) if file.name == WEIGHTS else _unpickled(file)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "")[:300]
        raise InputError(f"{file.parent}: this adapter cannot be read: {reason}") from None
    except Exception:  # what torch.load makes of an old pickle, or of one with code in it
        raise InputError(
            f"{file}: a pickle with more than tensors in it, or an old one, which is not opened; save the "
            f"adapter again with peft's save_pretrained, which writes {WEIGHTS}"
        ) from None


def metadata_of(file: Path) -> dict[str, str]:
    """What the file says of itself; a pickle says nothing."""
    if file.name != WEIGHTS:
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes, the same each time: safetensors itself writes several metadata in any order."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": dict(metadata)} | json.loads(content[8:end]), separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[end:]


def _unpickled(file: Path) -> dict[str, Tensor]:
    size = file.stat().st_size
    with ZipFile(file) as zipped:  # what torch.save writes is not compressed, so that no file unfolds
        entries = zipped.infolist()
    if any(e.compress_type != ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("it is compressed, which torch.save does not do")
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(_is_plain(*entry) for entry in tensors.items()):
        raise ValueError("expected tensors by name and nothing else")
    if sum(tensor.nbytes for tensor in tensors.values()) > size:
        raise ValueError("its tensors say that they are larger than the file")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _is_plain(name: object, value: object) -> bool:
    """Whether this is a name and an ordinary tensor with numbers."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
    )
