"""Data sets of the hub."""

from collections.abc import Iterator
from typing import Any

from fedsb.errors import InputError
from fedsb.tasks.rows.find import EXTENSIONS, HUB_FORM, HUB_ID
from fedsb.tasks.rows.tables import with_classes

_TABLES = "refs/convert/parquet"


def read_hub(source: str, split: str) -> Iterator[dict[str, object]]:
    """The rows of a hub data set, with its class names."""
    match = HUB_ID.fullmatch(source)
    assert match is not None  # files_of has seen to it
    loaded = _load_dataset(source, match["name"], match["config"], match["split"] or split)
    inner = {name: getattr(f, "feature", f) for name, f in loaded.features.items()}
    labels = {name: f.names for name, f in inner.items() if type(f).__name__ == "ClassLabel"}
    for name, feature in loaded.features.items():
        if type(feature).__name__ == "Image":  # its bytes, not what the library would make of them
            loaded = loaded.cast_column(name, type(feature)(decode=False))
    return with_classes(loaded, labels, source)


def _load_dataset(source: str, name: str, config: str | None, split: str) -> Any:
    try:
        return _from_hub(name, config, split)
    except Exception as error:  # the library raises many kinds, none of them ours: one message for all
        first_line = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise InputError(
            f"{source}: no such local file, and the hub data set {name!r} (config {config or 'default'}, "
            f"split {split}) could not be loaded: {type(error).__name__}: {first_line}. "
            f"Check the id ({HUB_FORM}) and the network, or give a local file ({EXTENSIONS})"
        ) from error


def _from_hub(name: str, config: str | None, split: str) -> Any:
    """Data sets that come as a script are not run: the hub keeps a copy of theirs in tables."""
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, trust_remote_code=False)
    except RuntimeError as error:
        if "script" not in str(error).lower():
            raise
        return datasets.load_dataset(name, config, split=split, revision=_TABLES, trust_remote_code=False)
