"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): likeness of n-grams, the rare ones weighing more.

Own and small: the library that has it, pycocoevalcap, was last released in 2020 and brings Java programs.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

ORDERS = 4
SIGMA = 6.0  # of the penalty for a length other than the reference's, in tokens
SCALE = 10.0

Ngram = tuple[str, ...]
Rarity = Callable[[Ngram], float]


def cider_d(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """The score of each hypothesis, given as tokens, against its own references; 0 to 10.

    How rare an n-gram is comes from all references here, so a score depends on the whole set; a set of one
    item has no rare n-grams and scores 0.
    """
    rarity = _rarity(references)
    return [_score(tokens, own, rarity) for tokens, own in zip(hypotheses, references, strict=True)]


def _rarity(references: Sequence[Sequence[Sequence[str]]]) -> Rarity:
    """log(N / the number of items of which some reference has the n-gram, at least 1)."""
    seen: Counter[Ngram] = Counter()
    for own in references:
        seen.update({gram for tokens in own for n in range(1, ORDERS + 1) for gram in _ngrams(tokens, n)})
    return lambda gram: math.log(len(references) / max(seen[gram], 1))


def _score(tokens: Sequence[str], own: Sequence[Sequence[str]], rarity: Rarity) -> float:
    total = 0.0
    for n in range(1, ORDERS + 1):
        vector = _vector(tokens, n, rarity)
        total += sum(
            _likeness(vector, _vector(reference, n, rarity)) * _penalty(len(tokens) - len(reference))
            for reference in own
        )
    return SCALE * total / (ORDERS * len(own))


def _vector(tokens: Sequence[str], n: int, rarity: Rarity) -> dict[Ngram, float]:
    return {gram: count * rarity(gram) for gram, count in Counter(_ngrams(tokens, n)).items()}


def _likeness(hypothesis: dict[Ngram, float], reference: dict[Ngram, float]) -> float:
    """Cosine, in which a hypothesis gains nothing by saying more often what the reference says once."""
    norms = math.hypot(*hypothesis.values()) * math.hypot(*reference.values())
    both = hypothesis.keys() & reference.keys()
    shared = sum(min(hypothesis[gram], reference[gram]) * reference[gram] for gram in both)
    return shared / norms if norms else 0.0


def _penalty(difference: int) -> float:
    return math.exp(-(difference**2) / (2 * SIGMA**2))


def _ngrams(tokens: Sequence[str], n: int) -> list[Ngram]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
