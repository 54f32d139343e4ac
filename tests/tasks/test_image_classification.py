"""Images: every form of rows, what is refused, the families, and a run whose export classifies files."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import write_rows
from tiny_images import COLOURS, FAMILIES, SIZE, picture, png, save_family, write_folder

from fedsb import RunConfig, run
from fedsb.compare.split import write_split
from fedsb.errors import InputError
from fedsb.models import load_preprocessor
from fedsb.models.head import base_name, head_parameters
from fedsb.models.load import load_base
from fedsb.models.targets import choose_targets
from fedsb.report.progress import Silent
from fedsb.runner.export import export_lora, export_merged
from fedsb.runner.memory import Longest, estimate_memory
from fedsb.runner.predict import predict
from fedsb.runner.prepare_data import prepare_data
from fedsb.runner.prepare_model import prepare_base
from fedsb.runner.trial import try_rows
from fedsb.tasks.pictures import MOST_PIXELS, Picture, picture_of, rgb_of
from fedsb.tasks.rows import hub, read_rows
from fedsb.tasks.sources import train_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("vit") / "model")


def config_of(base: Path, train: Path, test: Path, **method: Any) -> RunConfig:
    return RunConfig.from_dict(
        {
            "model": {"path": str(base)},
            "task": {"kind": "image-classification"},
            "data": {"train": str(train), "test": str(test)},
            "method": {"rank": 4, "init": {"samples": 12}} | method,
            "federation": {"clients": 2, "rounds": 2},
            "training": {"learning_rate": 0.02, "batch_size": 4},
        }
    )


# Rows


def test_a_folder_for_each_label_is_read_in_turn(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 2)
    (folder / ".hidden").mkdir()
    (folder / "blue" / "notes.txt").write_text("no image")
    rows = read_rows(str(folder), limit=4)
    assert [row["label"] for row in rows] == ["blue", "green", "red", "blue"]
    assert rows[3] == {"image": "blue/1.png", "label": "blue"}


@pytest.mark.parametrize("form", ["path", "bytes", "datasets", "uri", "split"])
def test_every_form_of_rows_gives_the_same_pixels(base: Path, tmp_path: Path, form: str) -> None:
    """The last: as a comparison keeps its held-out rows, wherever the images lie."""
    folder = write_folder(tmp_path / "photos", 2)
    plain = prepare_data(config_of(base, folder, folder))
    rows = read_rows(str(folder))
    content = [(folder / str(row["image"])).read_bytes() for row in rows]
    labels = [row["label"] for row in rows]
    if form == "split":
        write_split(tmp_path / "other", train_rows(config_of(base, folder, folder)), [], 0)
        file = tmp_path / "other" / "train.jsonl"
    elif form in ("path", "uri"):
        cells = [row["image"] for row in rows] if form == "path" else [Picture(c).data_uri for c in content]
        pairs = zip(cells, labels, strict=True)
        file = write_rows(folder / "rows.jsonl", [{"image": c, "label": label} for c, label in pairs])
    else:
        file = tmp_path / "rows.parquet"
        _write_parquet(file, content, labels, form)
    data = prepare_data(config_of(base, file, file))
    ours, theirs = data.task.collate(data.train), plain.task.collate(plain.train)
    assert ours["pixel_values"].shape == (6, 3, SIZE, SIZE)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(data.task.collate([])["pixel_values"]) == 0


def _write_parquet(file: Path, content: list[bytes], labels: list[Any], form: str) -> None:
    import pyarrow
    from pyarrow import parquet

    cells = content if form == "bytes" else [{"bytes": c, "path": "x.png"} for c in content]
    parquet.write_table(pyarrow.table({"image": cells, "label": labels}), file)


def test_images_and_lists_of_classes_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, not what the library would decode, and names of classes within lists."""
    from datasets import ClassLabel, Dataset, Features, List
    from datasets import Image as ImageFeature

    classes = ClassLabel(names=["O", "B-X"])
    features = Features({"img": ImageFeature(), "tags": List(classes), "label": classes})
    rows = [{"img": {"bytes": png(picture("red", 0)), "path": None}, "tags": [0, 1], "label": 1}]
    monkeypatch.setattr(hub, "_from_hub", lambda *_: Dataset.from_list(rows, features=features))
    (row,) = read_rows("owner/name")
    assert picture_of(row, "img", source="", number=1).content() == png(picture("red", 0))
    assert [*map(str, row["tags"]), str(row["label"])] == ["O", "B-X", "B-X"]


@pytest.mark.parametrize("outside", ["../secret.png", "/etc/secret.png", "link.png", "a/../../secret.png"])
def test_paths_stay_in_the_folder_of_the_rows(tmp_path: Path, outside: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png(picture("red", 0)))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    write_rows(tmp_path / "in" / "rows.jsonl", [{"image": outside, "label": "a"}])
    (row,) = read_rows(str(tmp_path / "in" / "rows.jsonl"))
    with pytest.raises(InputError, match=r"rows.jsonl: row 1, .*leads out of the folder") as fault:
        picture_of(row, "image", source="", number=0)
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize(
    "cell", [None, 5, "a\0b", "x" * 5000, "data:secret", "data:a;base64,!!", {"bytes": None}]
)
def test_a_cell_without_an_image_is_refused(tmp_path: Path, cell: Any) -> None:
    with pytest.raises(InputError, match=r"row 3, column 'image': ") as fault:
        rgb_of(picture_of({"image": cell}, "image", source=str(tmp_path), number=3), "row 3, column 'image'")
    assert "secret" not in str(fault.value)


def bomb(side: int) -> bytes:
    """A PNG that says it has so many pixels on each side, and holds none."""
    head = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"secret", "no whole image"),
        (b"", "no whole image"),
        (png(picture("red", 0))[:-40], "no whole image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no whole image"),
        (bomb(9_460), f"more than {MOST_PIXELS:,} pixels"),
        (bomb(60_000), f"more than {MOST_PIXELS:,} pixels"),
        (tiff(Image.new("I", (2, 2), 70_000)), "no known range"),
    ],
    ids=["text", "empty", "cut", "program", "bomb", "larger", "32 bits"],
)
def test_hostile_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as fault:
        rgb_of(Picture(held=content), "rows: row 1")
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)), (9, 9, 9)),
    ],
    ids=["grey", "alpha", "bits", "16 bits"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert rgb_of(Picture(held=png(image)), "x").getpixel((0, 0)) == expected


def test_a_photograph_is_turned_upright() -> None:
    image, buffer = Image.new("RGB", (4, 2)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert rgb_of(Picture(held=buffer.getvalue()), "x").size == (2, 4)


# Models


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_trains_and_comes_out_again(tmp_path: Path, family: str) -> None:
    """Two rows go through every stage; adapters are on query and value, and of the rest the head trains."""
    folder = save_family(tmp_path / "model", family)
    model = load_base(str(folder), tokenizer=None, num_labels=3, model_class="ImageClassification")
    assert set(head_parameters(model)) == {"classifier.weight", "classifier.bias"}
    assert hasattr(model, base_name(model))
    targets = choose_targets(model, None).layers
    assert {name.rsplit(".", 1)[-1] for name in targets} == {"q_proj", "v_proj"}
    photos = write_folder(tmp_path / "photos", 2)
    config = config_of(folder, photos, photos)
    data = prepare_data(config)
    assert try_rows(config, data, prepare_base(config, data)) == 2
    memory = estimate_memory(config, 3, Longest.of(data.train))
    assert memory is not None
    assert memory.activations > 0


def test_windows_of_images_are_no_examples_to_clip(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "swin")
    photos = write_folder(tmp_path / "photos", 2)
    values = config_of(folder, photos, photos, init={"kind": "weights"}).model_dump(mode="json")
    private = {"unit": "example", "epsilon": 3.0, "delta": 1e-3}
    values["method"]["init"]["head_warmup"] = None
    config = RunConfig.from_dict(values | {"privacy": private})
    with pytest.raises(InputError, match="rows of their own"):
        prepare_base(config, prepare_data(config))


def test_a_run_and_what_a_pipeline_makes_of_its_export(base: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    train, test = write_folder(tmp_path / "train", 6), write_folder(tmp_path / "test", 3, first=50)
    config = config_of(base, train, test)
    summary = run(config, out=tmp_path / "run").summary
    assert summary["final"]["accuracy"] > summary["base"]["accuracy"]
    assert export_lora(tmp_path / "run", tmp_path / "lora") == 4

    export_merged(tmp_path / "run", tmp_path / "merged")
    processor = load_preprocessor(str(tmp_path / "merged"), "ImageClassification")
    classify = pipeline("image-classification", model=str(tmp_path / "merged"), image_processor=processor)
    files = [(label, test / label / f"{i}.png") for label in COLOURS for i in range(50, 53)]
    right = [classify(str(file))[0]["label"] == label for label, file in files]
    assert np.mean(right) == summary["final"]["accuracy"]
    said = predict(tmp_path / "run", config, str(test), Silent())
    gold = [row["label"] for row in read_rows(str(test))]
    assert np.mean([a["label"] == b for a, b in zip(said, gold, strict=True)]) == summary["final"]["accuracy"]
