"""Rows and a tiny model for each kind of task, made here: what a table's small form runs on where nobody
names others. Nothing is learned from them but that everything runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsb.cli.quickstart import MODEL_DIR
from fedsb.cli.quickstart.notes import DEPARTMENTS, train_and_test
from fedsb.common.files import write_bytes, write_jsonl, write_text

Rows = list[dict[str, Any]]
DONE = "made.json"
"""Written last: all is there."""
PIXELS = 16


def make_inputs(kind: str, folder: Path) -> tuple[str, Path]:
    """(model, folder of the data) of this kind, written into the folder unless they are there."""
    data, model = folder / "data", folder / "model"
    ours = kind in ("pairs", "sentences")
    if not (folder / DONE).is_file():
        data.mkdir(parents=True, exist_ok=True)
        ROWS[kind](data)
        if not ours:
            (_vision if kind == "images" else _language)(model)
        write_text(folder / DONE, json.dumps({"kind": kind}) + "\n")
    return str(MODEL_DIR if ours else model), data


# Rows


def _pairs(data: Path) -> None:
    """Two triage notes; the label is how far apart their departments lie."""
    labels = ("entailment", "neutral", "contradiction", "contradiction", "neutral")
    for name, notes in zip(("train", "validation"), train_and_test(1200, 400, 7), strict=True):
        write_jsonl(data / f"{name}.jsonl", [_pair(a, b, labels) for a, b in _neighbours(notes)])


def _pair(a: dict[str, str], b: dict[str, str], labels: Sequence[str]) -> dict[str, Any]:
    apart = (DEPARTMENTS.index(a["department"]) - DEPARTMENTS.index(b["department"])) % len(DEPARTMENTS)
    return {"premise": a["note"], "hypothesis": b["note"], "label": labels[apart]}


def _neighbours(notes: Rows) -> list[tuple[dict[str, str], dict[str, str]]]:
    return list(zip(notes, [*notes[1:], notes[0]], strict=True))


def _sentences(data: Path) -> None:
    """Single notes and pairs of them, with two classes."""
    for folder, test, seed in (("cola", "validation", 8), ("sst2", "validation", 9), ("mrpc", "test", 10)):
        (data / folder).mkdir(exist_ok=True)
        for name, notes in zip(("train", test), train_and_test(600, 200, seed), strict=True):
            rows = [_same(a, b) if folder == "mrpc" else _first_two(a) for a, b in _neighbours(notes)]
            write_jsonl(data / folder / f"{name}.jsonl", rows)


def _same(a: dict[str, str], b: dict[str, str]) -> dict[str, Any]:
    return {
        "sentence1": a["note"],
        "sentence2": b["note"],
        "label": int(a["department"] == b["department"]),
    }


def _first_two(note: dict[str, str]) -> dict[str, Any]:
    return {"sentence": note["note"], "label": int(note["department"] in DEPARTMENTS[:2])}


ASKED = {
    "boolq": ("Please answer the following question with true or false, question: is {a} more than {b}?", ""),
    "piqa": ("Please choose the correct solution to the question: which is {a}?", "solution"),
    "hellaswag": ("Please choose the correct ending to complete the given sentence: {b} and then", "ending"),
    "winogrande": ("Please choose the correct answer to fill in the blank: _ is {a}", "option"),
    "ARC-Easy": ("Please choose the correct answer to the question: which is {a}?", "answer"),
    "openbookqa": ("Please choose the correct answer to the question: what is {a}?", "answer"),
}
OFFERED = {"solution": 2, "ending": 4, "option": 2, "answer": 4}


def _choices(data: Path) -> None:
    """Questions about numbers in the forms of LLM-Adapters' commonsense sets."""
    for name, (asked, family) in ASKED.items():
        rng = random.Random(f"choices {name}")
        (data / name).mkdir(exist_ok=True)
        for part, count in (("train", 80), ("test", 40)):
            rows = [_question(rng, asked, family) for _ in range(count)]
            write_text(data / name / f"{part}.json", json.dumps(rows, indent=1) + "\n")


def _question(rng: random.Random, asked: str, family: str) -> dict[str, str]:
    a, b = rng.sample(range(10, 99), 2)
    if not family:
        answer, offer, shape = str(a > b).lower(), "", "true/false"
    else:
        count = OFFERED[family]
        right, numbers = rng.randrange(count), rng.sample([n for n in range(10, 99) if n != a], count)
        numbers[right] = a
        answer = f"{family}{right + 1}"
        offer = " ".join(f"{family.capitalize()}{i}: {n}" for i, n in enumerate(numbers, start=1)) + "\n\n"
        shape = "/".join(f"{family}{i}" for i in range(1, count + 1))
    return {
        "instruction": f"{asked.format(a=a, b=b)}\n\n{offer}Answer format: {shape}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def _sums(data: Path) -> None:
    """Sums in words, answered as in GSM8K."""
    rng = random.Random("sums")
    for name, count in (("train", 400), ("test", 40)):
        write_jsonl(data / f"{name}.jsonl", [_sum(rng) for _ in range(count)])


def _sum(rng: random.Random) -> dict[str, Any]:
    a, b, what = rng.randint(2, 30), rng.randint(2, 30), rng.choice(("pens", "books", "eggs", "coins"))
    question = f"Ann has {a} {what} and gets {b} more. How many {what} has she now?"
    return {"question": question, "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}


def _restaurants(data: Path) -> None:
    """Restaurants by their attributes, and in a sentence."""
    rng = random.Random("restaurants")
    for name, count in (("trainset", 450), ("devset", 40), ("testset_w_refs", 60)):
        lines = [",".join(f'"{cell}"' for cell in _restaurant(rng)) for _ in range(count)]
        write_text(data / f"{name}.csv", "\n".join(["mr,ref", *lines]) + "\n")


def _restaurant(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(("The Mill", "Blue Spice", "The Punter", "Zizzi", "The Vaults", "Cotto"))
    food, area = (
        rng.choice(("Italian", "French", "Indian", "English")),
        rng.choice(("riverside", "city centre")),
    )
    return f"name[{name}], food[{food}], area[{area}]", f"{name} serves {food} food in the {area} area."


def _images(data: Path) -> None:
    """Images of one colour each with noise, in a folder for each colour."""
    import io

    import numpy as np
    from PIL import Image

    from fedsb.common.seeding import numpy_generator

    rng = numpy_generator(0, "made images")
    colours = {"blue": (40, 40, 160), "green": (40, 140, 60), "grey": (100, 100, 100), "red": (160, 50, 40)}
    for part, count in (("train", 60), ("test", 20)):
        for name, colour in colours.items():
            (data / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.asarray(colour) + rng.integers(-60, 60, (PIXELS, PIXELS, 3))
                buffer = io.BytesIO()
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
                write_bytes(data / part / name / f"{number}.png", buffer.getvalue())


ROWS: dict[str, Callable[[Path], None]] = {
    "pairs": _pairs,
    "sentences": _sentences,
    "choices": _choices,
    "sums": _sums,
    "restaurants": _restaurants,
    "images": _images,
}


# Models


def _language(folder: Path) -> None:
    """A decoder of two layers over bytes, with weights as they are drawn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from fedsb.common.seeding import scoped_global_seed

    letters = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    size["num_attention_heads"] = 4
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(letters), max_position_embeddings=512, **size, **ends)
    with scoped_global_seed(0, "made model"):
        LlamaForCausalLM(config).save_pretrained(folder)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)


def _vision(folder: Path) -> None:
    """A vision transformer of two layers, with weights as they are drawn, and its image processor."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from fedsb.common.seeding import scoped_global_seed

    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size["num_attention_heads"] = 2
    config = ViTConfig(**size, image_size=PIXELS, patch_size=8, initializer_range=0.2)
    with scoped_global_seed(0, "made model"):
        ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": PIXELS, "width": PIXELS}).save_pretrained(folder)
