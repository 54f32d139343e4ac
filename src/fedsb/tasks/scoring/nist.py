"""NIST (Doddington 2002): n-gram precision in which informative n-grams weigh more, as counts that add up.

nltk's gives a number for a whole corpus in seconds and matches one reference at a time; intervals need
thousands of numbers, and several references are one pool of n-grams.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 5
BETA = -math.log(2) / math.log(1.5) ** 2  # the penalty is 1/2 at two thirds of the references' length

Ngram = tuple[str, ...]


def nist_counts(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """(items, 2 * ORDERS + 2): per item the information matched and the n-grams said, by n, then the length
    of the hypothesis and the mean length of its references. Rows may be added up; see `nist`."""
    information = _information(references)
    rows = [_row(tokens, own, information) for tokens, own in zip(hypotheses, references, strict=True)]
    return np.asarray(rows, dtype=np.float64)


def nist(counts: np.ndarray) -> float:
    """The score of items whose counts add up to these."""
    matched, said = counts[:ORDERS], counts[ORDERS : 2 * ORDERS]
    length, wanted = counts[2 * ORDERS :]
    if length == 0 or wanted == 0:
        return 0.0
    precision = float(np.divide(matched, said, out=np.zeros(ORDERS), where=said > 0).sum())
    return precision * math.exp(BETA * math.log(min(length / wanted, 1.0)) ** 2)


def _information(references: Sequence[Sequence[Sequence[str]]]) -> dict[Ngram, float]:
    """log2(how often its beginning occurs / how often it occurs), in all references."""
    counts: Counter[Ngram] = Counter()
    for tokens in (tokens for own in references for tokens in own):
        counts[()] += len(tokens)
        counts.update(gram for n in range(1, ORDERS + 1) for gram in _ngrams(tokens, n))
    return {gram: math.log2(counts[gram[:-1]] / count) for gram, count in counts.items() if gram}


def _row(tokens: Sequence[str], own: Sequence[Sequence[str]], information: dict[Ngram, float]) -> list[float]:
    matched, said = [], []
    for n in range(1, ORDERS + 1):
        grams, most = Counter(_ngrams(tokens, n)), Counter[Ngram]()
        for reference in own:
            most |= Counter(_ngrams(reference, n))
        matched.append(sum(count * information[gram] for gram, count in (grams & most).items()))
        said.append(sum(grams.values()))
    return [*matched, *said, len(tokens), sum(map(len, own)) / len(own)]


def _ngrams(tokens: Sequence[str], n: int) -> list[Ngram]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
