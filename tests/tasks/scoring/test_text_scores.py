"""Scores of texts against the libraries' own corpus scores and against sums done by hand."""

import math

import numpy as np
import pytest

from fedsb.errors import InputError
from fedsb.tasks.scoring.texts import cider_d, measure_texts, nist, nist_counts

HYPOTHESES = [
    "The Eagle is a cheap pub near the river .",
    "Loch Fyne serves Italian food, and children are welcome!",
    "Cotto",
    "There is a coffee shop called The Wrestlers in the city centre.",
]
REFERENCES = [
    ["The Eagle is a cheap pub by the river.", "Near the river there is a cheap pub, The Eagle."],
    ["Loch Fyne is a family-friendly place with Italian food."],
    ["Cotto is a pub.", "There is a pub called Cotto.", "Cotto, a pub."],
    [
        "The Wrestlers is a coffee shop in the city centre.",
        "There is a coffee shop called The Wrestlers in the city centre.",
    ],
]


@pytest.fixture(autouse=True)
def _libraries():
    pytest.importorskip("sacrebleu", reason="needs the extra: pip install 'fedsb[eval]'")
    pytest.importorskip("nltk", reason="needs the extra: pip install 'fedsb[eval]'")
    pytest.importorskip("rouge_score", reason="needs the extra: pip install 'fedsb[eval]'")


def words(texts):
    return [text.split() for text in texts]


def test_bleu_equals_sacrebleu_over_the_corpus():
    import sacrebleu

    width = max(map(len, REFERENCES))
    streams = [[own[i] if i < len(own) else None for own in REFERENCES] for i in range(width)]
    expected = sacrebleu.corpus_bleu(HYPOTHESES, streams).score
    measured = measure_texts(HYPOTHESES, REFERENCES)
    assert measured.all()["bleu"] == pytest.approx(expected)
    twice = [0, 0, 1, 3]
    streams = [[stream[i] for i in twice] for stream in streams]
    expected = sacrebleu.corpus_bleu([HYPOTHESES[i] for i in twice], streams).score
    assert measured.metrics(np.array(twice))["bleu"] == pytest.approx(expected)


def test_nist_equals_nltk_with_one_reference_each():
    from nltk.translate.nist_score import corpus_nist

    said, wanted = words(HYPOTHESES), [words(own[:1]) for own in REFERENCES]
    assert nist(nist_counts(said, wanted).sum(axis=0)) == pytest.approx(corpus_nist(wanted, said, 5))


def test_nist_by_hand_with_two_references():
    # References a b | a c (6 tokens with d d): counts a 2, b 1, c 1, d 2; a b 1, a c 1, d d 1.
    counts = nist_counts([["a", "c", "b"], ["d"]], [[["a", "b"], ["a", "c"]], [["d", "d"]]])
    total = 6
    unigrams = math.log2(total / 2) + 2 * math.log2(total / 1) + math.log2(total / 2)
    bigrams = math.log2(2 / 1)  # a c; "c b" occurs in no reference
    penalty = 1.0  # 4 tokens, the references have 2 + 2 on average
    expected = (unigrams / 4 + bigrams / 2) * penalty
    assert nist(counts.sum(axis=0)) == pytest.approx(expected)


def test_nist_penalty_is_a_half_at_two_thirds_of_the_length():
    counts = nist_counts([["a", "b"]], [[["a", "b", "c"]]]).sum(axis=0)
    whole = nist_counts([["a", "b"]], [[["a", "b", "c"]]]).sum(axis=0)
    whole[-1] = 2
    assert nist(counts) == pytest.approx(nist(whole) / 2)
    assert nist(np.zeros(12)) == 0.0


def test_cider_by_hand():
    # Two items. Item 1 says "a b", its reference is "a b"; item 2 says "a c", its reference is "c d".
    # All n-grams of the references occur in one item of two: every rarity is log 2, of unseen ones too.
    one, two = cider_d([["a", "b"], ["a", "c"]], [[["a", "b"]], [["c", "d"]]])
    assert one == pytest.approx(10 * (1 + 1) / 4)  # n = 1 and 2 alike, no n-grams of 3 and 4
    assert two == pytest.approx(10 * (1 / 2) / 4)  # unigrams: c of two each, 1 / (sqrt 2 sqrt 2)


def test_cider_does_not_pay_for_repeating_and_for_length():
    # Rarity log 2. Hypothesis a a a: vector (3), reference (1): clipped 1 * 1 / (3 * 1); two tokens too long.
    (score, _) = cider_d([["a", "a", "a"], ["z"]], [[["a"]], [["y"]]])
    assert score == pytest.approx(10 * math.exp(-4 / 72) / 3 / 4)


def test_cider_takes_the_mean_of_references_and_ignores_what_all_say():
    # "the" is in every item: rarity 0. References of item 1: "the a" and "the b".
    score, _ = cider_d([["the", "a"], ["the", "z"]], [[["the", "a"], ["the", "b"]], [["the", "y"]]])
    unigrams = (1 + 0) / 2  # a against a, a against b
    bigrams = (1 + 0) / 2
    assert score == pytest.approx(10 * (unigrams + bigrams) / 4)


def test_means_are_of_single_items_and_perfect_texts_score_best():
    perfect = measure_texts([own[0] for own in REFERENCES], REFERENCES)
    found = perfect.all()
    assert found["bleu"] == pytest.approx(100)
    assert found["rouge_l"] == pytest.approx(1)
    assert found["cider"] > measure_texts(HYPOTHESES, REFERENCES).all()["cider"]
    each = [measure_texts(HYPOTHESES, REFERENCES).metrics(np.array([i]))["rouge_l"] for i in range(4)]
    assert measure_texts(HYPOTHESES, REFERENCES).all()["rouge_l"] == pytest.approx(np.mean(each))
    assert each[3] == pytest.approx(1)


def test_empty_texts_score_nought():
    found = measure_texts(["", ""], [["a b"], ["c"]]).all()
    assert all(value == 0 for value in found.values())


def test_without_the_extra_there_is_a_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedsb\[eval\]'"):
        measure_texts(["a"], [["a"]])
