"""Texts against several references each: BLEU, NIST, ROUGE-L, CIDEr, and METEOR where WordNet is installed.

BLEU is sacrebleu's (13a tokens, cased), ROUGE-L rouge-score's F1 with the best reference, METEOR nltk's. The
E2E challenge's own script, which papers quote, tokenizes otherwise, weighs ROUGE-L's recall more and has
METEOR 1.5: its numbers differ by a point or so, so compare within one kind only.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fedsb.errors import InputError
from fedsb.tasks.task import Measurement

BLEU_ORDERS = 4


def measure_texts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measurement:
    """bleu (0 to 100), nist, rouge_l (0 to 1), cider (0 to 10) and perhaps meteor (0 to 1) of the texts.

    Raises:
        InputError: a library is missing.
    """
    check_libraries()
    tokenize = _tokenizer()
    tokens = [tokenize(text) for text in hypotheses]
    tokenized = [[tokenize(text) for text in texts] for texts in references]
    means = {"rouge_l": _rouge_l(hypotheses, references), "cider": cider_d(tokens, tokenized)}
    if (meteor := _meteor(tokens, tokenized)) is not None:
        means["meteor"] = meteor
    counted = {
        "bleu": (_bleu_counts(hypotheses, references), _bleu),
        "nist": (nist_counts(tokens, tokenized), nist),
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
    for text, answers in zip(hypotheses, references, strict=True):
        score = metric.corpus_score([text], [[reference] for reference in answers])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.asarray(rows, dtype=np.int64)


def _bleu(counts: np.ndarray) -> float:
    from sacrebleu.metrics import BLEU

    numbers = [int(n) for n in counts]
    matched, said = numbers[:BLEU_ORDERS], numbers[BLEU_ORDERS : 2 * BLEU_ORDERS]
    return float(BLEU.compute_bleu(matched, said, numbers[-2], numbers[-1]).score)


def _rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in answers)
        for text, answers in zip(hypotheses, references, strict=True)
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
    return [meteor_score(answers, text) for text, answers in zip(tokens, references, strict=True)]


# CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): likeness of n-grams, the rare ones weighing more.
# The library that has it, pycocoevalcap, was last released in 2020 and brings Java programs.

CIDER_ORDERS = 4
SIGMA = 6.0  # of the penalty for a length other than the reference's, in tokens
SCALE = 10.0
Ngram = tuple[str, ...]
Rarity = Callable[[Ngram], float]


def cider_d(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """The score of each hypothesis, as tokens, against its references; 0 to 10.

    How rare an n-gram is comes from all references here, so a score depends on the whole set; a set of one
    item has no rare n-grams and scores 0.
    """
    rarity = _rarity(references)
    return [_score(tokens, answers, rarity) for tokens, answers in zip(hypotheses, references, strict=True)]


def _rarity(references: Sequence[Sequence[Sequence[str]]]) -> Rarity:
    """log(N / the number of items of which some reference has the n-gram, at least 1)."""
    seen: Counter[Ngram] = Counter()
    for answers in references:
        seen.update(
            {gram for tokens in answers for n in range(1, CIDER_ORDERS + 1) for gram in _ngrams(tokens, n)}
        )
    return lambda gram: math.log(len(references) / max(seen[gram], 1))


def _score(tokens: Sequence[str], references: Sequence[Sequence[str]], rarity: Rarity) -> float:
    total = 0.0
    for n in range(1, CIDER_ORDERS + 1):
        vector = _vector(tokens, n, rarity)
        total += sum(
            _likeness(vector, _vector(reference, n, rarity)) * _penalty(len(tokens) - len(reference))
            for reference in references
        )
    return SCALE * total / (CIDER_ORDERS * len(references))


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


# NIST (Doddington 2002): n-gram precision in which informative n-grams weigh more, as counts that add up.
#
# nltk's gives a number for a whole corpus in seconds and matches one reference at a time; intervals need
# thousands of numbers, and several references are one pool of n-grams.

NIST_ORDERS = 5
BETA = -math.log(2) / math.log(1.5) ** 2  # the penalty is 1/2 at two thirds of the references' length


def nist_counts(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """(items, 2 * NIST_ORDERS + 2): per item the information matched and the n-grams said, by n, then the
    length of the hypothesis and the mean length of its references. Rows may be added up; see `nist`."""
    information = _information(references)
    rows = [
        _row(tokens, answers, information) for tokens, answers in zip(hypotheses, references, strict=True)
    ]
    return np.asarray(rows, dtype=np.float64)


def nist(counts: np.ndarray) -> float:
    """The score of items whose counts add up to these."""
    matched, said = counts[:NIST_ORDERS], counts[NIST_ORDERS : 2 * NIST_ORDERS]
    length, reference_length = counts[2 * NIST_ORDERS :]
    if length == 0 or reference_length == 0:
        return 0.0
    precision = float(np.divide(matched, said, out=np.zeros(NIST_ORDERS), where=said > 0).sum())
    return precision * math.exp(BETA * math.log(min(length / reference_length, 1.0)) ** 2)


def _information(references: Sequence[Sequence[Sequence[str]]]) -> dict[Ngram, float]:
    """log2(how often its beginning occurs / how often it occurs), in all references."""
    counts: Counter[Ngram] = Counter()
    for tokens in (tokens for answers in references for tokens in answers):
        counts[()] += len(tokens)
        counts.update(gram for n in range(1, NIST_ORDERS + 1) for gram in _ngrams(tokens, n))
    return {gram: math.log2(counts[gram[:-1]] / count) for gram, count in counts.items() if gram}


def _row(
    tokens: Sequence[str], references: Sequence[Sequence[str]], information: dict[Ngram, float]
) -> list[float]:
    matched, said = [], []
    for n in range(1, NIST_ORDERS + 1):
        grams, most = Counter(_ngrams(tokens, n)), Counter[Ngram]()
        for reference in references:
            most |= Counter(_ngrams(reference, n))
        matched.append(sum(count * information[gram] for gram, count in (grams & most).items()))
        said.append(sum(grams.values()))
    return [*matched, *said, len(tokens), sum(map(len, references)) / len(references)]
