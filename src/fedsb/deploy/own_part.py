"""What stays with a node in methods where something does: kept in the run's folder, as of its last round.

A server that was stopped asks a round again. Both ends of the last round are kept, so that the round begins
where it began before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fedsb.common.files import write_bytes
from fedsb.errors import InputError, UpdateRejected
from fedsb.federation.client import Kept

FILE = "own.safetensors"


@dataclass(frozen=True)
class OwnPart:
    """The file of one run.

    Attributes:
        folder: the run's, at this node.
        digest: of the run's config, 64 hexadecimal digits; a file of another's is refused.
    """

    folder: Path
    digest: str

    def before(self, round_number: int) -> Kept:
        """What was kept when this round began; empty before the first.

        Raises:
            UpdateRejected: the round is long over.
            InputError: the file is of another run, or cannot be read.
        """
        file = self.folder / FILE
        if not file.exists():
            return {}
        try:
            tensors = load_file(file)
            last, digest = int(tensors.pop("round")), bytes(tensors.pop("digest").tolist()).hex()
        except Exception as error:
            raise InputError(
                f"{file}: cannot be read ({type(error).__name__}); restore it, or remove it to begin anew"
            ) from None
        if digest != self.digest:
            raise InputError(f"{file}: is of a run with another config; remove it")
        if round_number < last:
            raise UpdateRejected(
                f"wrong round: what this client keeps is of round {last}, the message is of {round_number}"
            )
        end = "after " if round_number > last else "before "
        return {name.removeprefix(end): t for name, t in tensors.items() if name.startswith(end)}

    def keep(self, round_number: int, after: Kept) -> None:
        """Keep what a round left, in one write."""
        before = {f"before {name}": tensor for name, tensor in self.before(round_number).items()}
        facts = {
            "round": torch.tensor(round_number),
            "digest": torch.tensor(list(bytes.fromhex(self.digest)), dtype=torch.uint8),
        }
        content = save(before | {f"after {name}": t.contiguous() for name, t in after.items()} | facts)
        write_bytes(self.folder / FILE, content, private=True)
