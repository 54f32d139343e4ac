"""The quickstart's notes and the model folder beside them."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedsb.cli.quickstart import MODEL_DIR
from fedsb.cli.quickstart.notes import (
    COMPLAINTS,
    DEPARTMENTS,
    HOSPITALS,
    generate,
    pretraining_text,
    train_and_test,
)


def _texts(examples: list[dict[str, str]]) -> set[str]:
    return {example["note"] for example in examples}


def test_a_seed_always_gives_the_same_notes():
    assert generate(50, 3) == generate(50, 3)
    assert generate(50, 3) == generate(200, 3)[:50]
    assert generate(50, 3) != generate(50, 5)


def test_pretraining_text_is_determined_by_its_seed_and_names_no_department():
    texts = pretraining_text(300, 0)
    assert texts == pretraining_text(300, 0)
    assert not any(name in text for name in DEPARTMENTS for text in texts)


def test_every_department_and_hospital_occurs():
    examples = generate(500, 0)
    assert all(set(example) == {"hospital", "note", "department"} for example in examples)
    assert {example["department"] for example in examples} == set(DEPARTMENTS) == set(COMPLAINTS)
    assert {example["hospital"] for example in examples} == set(HOSPITALS)


def test_departments_are_about_equally_frequent_overall():
    counts = Counter(example["department"] for example in generate(3000, 0))
    assert all(abs(count / 3000 - 0.2) < 0.04 for count in counts.values())


def test_each_hospital_has_its_own_commonest_department():
    commonest = set()
    for hospital in HOSPITALS:
        here = [e["department"] for e in generate(2000, 0) if e["hospital"] == hospital]
        department, count = Counter(here).most_common(1)[0]
        assert 0.3 < count / len(here) < 0.5
        commonest.add(department)
    assert commonest == set(DEPARTMENTS)


def test_no_note_mentions_a_complaint_of_its_department_beside_the_present_one():
    """The asides come from other departments, so the label is decided by one complaint."""
    for example in generate(500, 0):
        named = [c for c in COMPLAINTS[example["department"]] if "{" not in c and f" {c} " in example["note"]]
        assert len(named) <= 1, example


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_test_and_pretraining_notes_are_disjoint(seed: int):
    train, test = train_and_test(1500, 500, seed)
    assert len(_texts(train)) == 1500
    assert len(_texts(test)) == 500
    assert not _texts(train) & _texts(test)
    assert not (_texts(train) | _texts(test)) & set(pretraining_text(3000, seed))


def test_model_folder_is_small():
    files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_tokenizer_folder_loads_and_covers_every_note_within_its_length():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    encoded = tokenizer([example["note"] for example in generate(500, 0)])["input_ids"]
    assert max(map(len, encoded)) <= tokenizer.model_max_length
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in encoded)
    assert not any(tokenizer.unk_token_id in row for row in encoded)
    assert tokenizer.mask_token == "[MASK]"


def test_model_folder_loads_with_only_a_fresh_classifier():
    model, info = AutoModelForSequenceClassification.from_pretrained(
        MODEL_DIR, num_labels=len(DEPARTMENTS), dtype=torch.float32, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    batch = tokenizer([example["note"] for example in generate(4, 0)], padding=True, return_tensors="pt")
    logits = model(**batch).logits
    assert logits.shape == (4, len(DEPARTMENTS))
    assert logits.isfinite().all()
