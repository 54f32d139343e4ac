"""Texts against several references each: BLEU, NIST, ROUGE-L, CIDEr, and METEOR where WordNet is installed.

BLEU is sacrebleu's (13a tokens, cased), ROUGE-L rouge-score's F1 with the best reference, METEOR nltk's. The
E2E challenge's own script, which papers quote, tokenizes otherwise, weighs ROUGE-L's recall more and has
METEOR 1.5: its numbers differ by a point or so, so compare within one kind only.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fedsb.errors import InputError
from fedsb.tasks.intervals import Measurement
from fedsb.tasks.scoring.cider import cider_d
from fedsb.tasks.scoring.nist import nist, nist_counts

BLEU_ORDERS = 4


def measure_texts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measurement:
    """bleu (0 to 100), nist, rouge_l (0 to 1), cider (0 to 10) and perhaps meteor (0 to 1) of the texts.

    Raises:
        InputError: a library is missing.
    """
    check_libraries()
    tokenize = _tokenizer()
    tokens = [tokenize(text) for text in hypotheses]
    wanted = [[tokenize(text) for text in own] for own in references]
    means = {"rouge_l": _rouge_l(hypotheses, references), "cider": cider_d(tokens, wanted)}
    if (meteor := _meteor(tokens, wanted)) is not None:
        means["meteor"] = meteor
    counted = {
        "bleu": (_bleu_counts(hypotheses, references), _bleu),
        "nist": (nist_counts(tokens, wanted), nist),
    }
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in means.items()}
    return Measurement(len(hypotheses), partial(_metrics, counted, arrays))


def _metrics(
    counted: Mapping[str, tuple[np.ndarray, Callable[[np.ndarray], float]]],
    means: dict[str, np.ndarray],
    indices: np.ndarray,
) -> dict[str, float]:
    sums = {name: score(counts[indices].sum(axis=0)) for name, (counts, score) in counted.items()}
    return sums | {name: float(values[indices].mean()) for name, values in means.items()}


def check_libraries() -> None:
    """InputError if one that is needed is missing."""
    missing = [
        name for name in ("nltk", "rouge_score", "sacrebleu") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError(
            f"score: text needs {', '.join(missing)}, not installed here; pip install 'fedsb[eval]'"
        )


def _tokenizer() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    split = Tokenizer13a()
    return lambda text: split(text).split()


def _bleu_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(items, 10): matched n-grams, n-grams said, length, nearest reference's length."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    rows = []
    for text, own in zip(hypotheses, references, strict=True):
        found = metric.corpus_score([text], [[reference] for reference in own])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.asarray(rows, dtype=np.int64)


def _bleu(counts: np.ndarray) -> float:
    from sacrebleu.metrics import BLEU

    numbers = [int(n) for n in counts]
    found = BLEU.compute_bleu(
        numbers[:BLEU_ORDERS], numbers[BLEU_ORDERS : 2 * BLEU_ORDERS], numbers[-2], numbers[-1]
    )
    return float(found.score)


def _rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in own)
        for text, own in zip(hypotheses, references, strict=True)
    ]


def _meteor(
    tokens: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float] | None:
    """None without WordNet, which nltk keeps apart: python -m nltk.downloader wordnet."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return [meteor_score(own, text) for text, own in zip(tokens, references, strict=True)]
