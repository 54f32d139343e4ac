"""A mapping of tensors that keeps them in files: the running sums of the update estimate, off memory."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from hashlib import sha256
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class SpilledTensors(MutableMapping[str, Tensor]):
    """One file per name in `folder`. Reading gives a new tensor on the CPU; deleting removes the file."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._names: dict[str, str] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{sha256(name.encode()).hexdigest()[:24]}.safetensors"

    def __getitem__(self, name: str) -> Tensor:
        device = self._names[name]
        return load_file(self._path(name))["t"].to(device)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        save_file({"t": tensor.contiguous()}, self._path(name))
        self._names[name] = str(tensor.device)

    def __delitem__(self, name: str) -> None:
        del self._names[name]
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
