"""Images in rows: what a cell may hold, where files may lie, and how their bytes become RGB.

A cell is a path, the bytes of a file, `{bytes, path}` as the library `datasets` writes it, or a data URI
in base64 (RFC 2397). A path counts from the folder of the rows' file and must stay in it, links followed: a
file of rows from elsewhere may name any file of this machine. No message shows a cell.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsb.errors import InputError
from fedsb.tasks.rows import is_missing, like, place
from fedsb.tasks.rows.cells import PlacedRow
from fedsb.tasks.task import Row

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that are opened; Pillow knows others, some of which run programs."""
MOST_PIXELS = 89_478_485
"""Of one image; more is a decompression bomb by Pillow's own limit."""
LARGEST_FILE = 1 << 28
"""Bytes of one image's file."""
DATA_URI = "data:image/*;base64,"
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Picture:
    """An image's file: its bytes, or the path that they are read from when they are needed."""

    held: bytes | None = None
    path: Path | None = None

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            InputError: there is no such file, or it is too large.
        """
        if self.held is not None:
            return self.held
        try:
            assert self.path is not None
            if not self.path.is_file():
                raise InputError("names no file")
            if self.path.stat().st_size > LARGEST_FILE:
                raise InputError(f"names a file of more than {LARGEST_FILE:,} bytes")
            return self.path.read_bytes()
        except OSError as error:
            raise InputError(f"names a file that cannot be read ({type(error).__name__})") from None

    @cached_property
    def digest(self) -> str:
        """64 hex digits that differ where the bytes do."""
        return hashlib.sha256(self.content()).hexdigest()

    @property
    def data_uri(self) -> str:
        """The file as a text that a row can hold wherever it lies."""
        return DATA_URI + base64.b64encode(self.content()).decode()

    def __str__(self) -> str:
        return self.digest


def with_picture(row: Row, column: str, *, source: str, number: int) -> Row:
    """The row with the image's file in place of what names it.

    Raises:
        InputError: the cell holds none, or a path that leaves the folder.
    """
    return like(row, {**row, column: picture_of(row, column, source=source, number=number)})


def picture_of(row: Row, column: str, *, source: str, number: int) -> Picture:
    """The image's file of a row. source, number: of a row that does not know them.

    Raises:
        InputError: as `with_picture`.
    """
    cell, where = row.get(column), f"{place(row, source, number)}, column {column!r}"
    if isinstance(cell, Picture):
        return cell
    if isinstance(cell, Mapping) and {"bytes", "path"} & cell.keys():
        cell = cell.get("path") if is_missing(cell.get("bytes")) else cell["bytes"]
    if is_missing(cell):
        raise InputError(f"{where}: has no image; fill it or remove the row")
    if isinstance(cell, bytes | bytearray):
        return Picture(held=bytes(cell))
    if not isinstance(cell, str):
        raise InputError(f"{where}: expected a path, bytes, or bytes and path of an image; fix the row")
    if cell.startswith("data:"):
        return Picture(held=_of_uri(cell, where))
    named = row.source if isinstance(row, PlacedRow) else source
    return Picture(path=_inside(Path(named), cell, where))


def _of_uri(text: str, where: str) -> bytes:
    head, _, body = text.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        raise InputError(f"{where}: expected a data URI in base64; fix the row") from None


def _inside(source: Path, name: str, where: str) -> Path:
    """The file of that name in the folder of the rows."""
    try:
        folder = (source if source.is_dir() else source.parent).resolve()
        file = (folder / name).resolve()
        if not Path(name).is_absolute() and file.is_relative_to(folder):
            return file
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, links in a circle
        raise InputError(f"{where}: expected the path of an image; fix the row") from None
    raise InputError(
        f"{where}: the path leads out of the folder of the rows, whose files alone are read; put the images "
        "below it and name them relative to it"
    )


def rgb_of(picture: Picture, where: str) -> Any:
    """The image as Pillow has it in RGB: upright by its Exif note, the first frame of several; an alpha
    channel is dropped, 16 bits of grey become 8.

    Raises:
        InputError: no image of `FORMATS`, a damaged one, too many pixels, or numbers of no known range.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(picture.content()), formats=FORMATS)
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise Image.DecompressionBombError
            upright = ImageOps.exif_transpose(image)
            return _rgb(upright if upright is not None else image)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{where}: an image of more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except MemoryError:
        raise InputError(f"{where}: an image for which there is too little memory; make it smaller") from None
    except Exception as error:  # each format has kinds of its own
        raise InputError(
            f"{where}: no whole image of {', '.join(FORMATS)} ({type(error).__name__}); replace or remove it"
        ) from None


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("I", "F"):
        raise InputError("an image of 32-bit numbers of no known range; save it with 8 or 16 bits")
    if image.mode in SIXTEEN_BITS:
        grey = np.asarray(image).astype(np.uint16)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
