"""Metrics of generated texts against references: BLEU, ROUGE-L, CIDEr-D, and the diversity of the texts.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (Vedantam et al. 2015) are those of the COCO caption
evaluation (Chen et al. 2015; `pycocoevalcap` 1.2) on the same words, with one deviation: where no
n-gram of a length matches, BLEU for that length and above is 0. Theirs adds 1e-15 to the matches and 1e-9 to the
n-grams, which is 0.03 rather than 0 for BLEU-4 of three words that are right. `caption_words` splits into words.

CIDEr-D weighs n-grams by their rarity among the references of all samples, so it means little for few or similar
samples: an n-gram that all samples have has weight 0, and with identical references, or with one sample, CIDEr-D is 0
whatever the hypotheses are.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log, nan, prod
from statistics import fmean
from typing import Protocol, TypeAlias

from perceiver.tokenizer import split_words

ORDERS = range(1, 5)
"""Lengths of the n-grams that are counted."""

ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

DROPPED = frozenset("'\"`‘’“”()[]{}.?!,:;-–—…")
CLITIC = re.compile(r"(?<=\w)(?=(?:n't|'(?:s|m|d|re|ve|ll))(?!\w))")

Words: TypeAlias = Sequence[str]


def caption_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation, for the metrics below.

    Plain sentences are split as by the PTB tokenizer of the COCO caption evaluation: `isn't` is `is n't`, `man's` is
    `man 's`, `t-shirt` is one word, `&` and `%` stay. Deviations: brackets are dropped (there, they become words such
    as `-lrb-`), words with a mark inside are split (`10:30`, `1.50`, `u.s.`, `and/or`), and some contractions are not
    (`cannot`, `gonna`).
    """
    words = split_words(text.lower().replace("’", "'"))
    return [part for word in words if word not in DROPPED for part in CLITIC.split(word)]


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """Return corpus BLEU for n-grams up to each length, without smoothing: 0 where no n-gram of a length matches.

    A hypothesis is compared with its reference of the closest length, the shorter of two, for the brevity penalty.
    """
    length = target = 0
    matches, grams = [0] * len(ORDERS), [0] * len(ORDERS)
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        target += min((abs(len(text) - len(hypothesis)), len(text)) for text in texts)[1]
        for place, order in enumerate(ORDERS):
            counts = Counter(_ngrams(hypothesis, order))
            by_text = [Counter(_ngrams(text, order)) for text in texts]
            matches[place] += sum(min(n, max(of.get(gram, 0) for of in by_text)) for gram, n in counts.items())
            grams[place] += counts.total()
    precisions = [matched / max(1, total) for matched, total in zip(matches, grams, strict=True)]
    brevity = exp(min(0.0, 1.0 - target / max(1, length)))
    return {f"BLEU-{order}": brevity * prod(precisions[:order]) ** (1.0 / order) for order in ORDERS}


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the mean F-score of longest common subsequences; precision and recall may be of different references."""
    return fmean(_rouge_l(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True))


def _rouge_l(hypothesis: Words, references: Sequence[Words]) -> float:
    # As in the original, an empty text has one empty word, which equals only another one.
    hypothesis, *references = [text or [""] for text in (hypothesis, *references)]
    common = [_lcs_length(hypothesis, text) for text in references]
    precision = max(common) / len(hypothesis)
    recall = max(count / len(text) for count, text in zip(common, references, strict=True))
    return (1.0 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision) if recall else 0.0


def _lcs_length(first: Words, second: Words) -> int:
    """Return the length of the longest common subsequence, with a row of the table in one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for word in second:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & every
    return len(first) - row.bit_count()


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the mean clipped cosine of TF-IDF weighted n-gram counts with a length penalty, times 10."""
    samples_with = Counter(
        gram
        for texts in references
        for gram in {gram for text in texts for order in ORDERS for gram in _ngrams(text, order)}
    )
    most = log(len(references))
    rarity = {gram: most - log(count) for gram, count in samples_with.items()}

    def weights(text: Words) -> list[dict[tuple[str, ...], float]]:
        counts = (Counter(_ngrams(text, order)) for order in ORDERS)
        return [{gram: n * rarity.get(gram, most) for gram, n in of_order.items()} for of_order in counts]

    def score(hypothesis: Words, texts: Sequence[Words]) -> float:
        weighed = weights(hypothesis)
        norms = [hypot(*of_order.values()) for of_order in weighed]
        scores = []
        for text in texts:
            cosines = map(_clipped_cosine, weighed, norms, weights(text))
            # The original takes the difference of numbers of bigrams, which is equal unless a text is empty.
            apart = len(hypothesis) - len(text)
            scores.append(fmean(cosines) * exp(-(apart**2) / (2.0 * CIDER_SIGMA**2)))
        return 10.0 * fmean(scores)

    return fmean(score(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True))


def _clipped_cosine(hypothesis: dict[tuple[str, ...], float], norm: float, text: dict[tuple[str, ...], float]) -> float:
    product = sum(min(weight, text[gram]) * text[gram] for gram, weight in hypothesis.items() if gram in text)
    return product / (norm * hypot(*text.values())) if product else 0.0


def exact_match(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the share of hypotheses that equal one of their references."""
    pairs = zip(hypotheses, references, strict=True)
    return fmean(tuple(hypothesis) in {tuple(text) for text in texts} for hypothesis, texts in pairs)


def distinct_captions(hypotheses: Sequence[Words]) -> float:
    """Return the number of distinct hypotheses as a share of all: low where all samples get the same text."""
    return len({tuple(hypothesis) for hypothesis in hypotheses}) / len(hypotheses)


def vocabulary_used(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Return the number of distinct words in hypotheses over that in references; may exceed 1."""
    used = {word for hypothesis in hypotheses for word in hypothesis}
    return len(used) / max(1, len({word for texts in references for text in texts for word in text}))


def _ngrams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[place:] for place in range(order)), strict=False)


@dataclass(frozen=True)
class ScoredText:
    """A generated text about a sample, and what it is compared with.

    Attributes:
        text: as generated.
        references: correct texts.
        scores: name of a metric -> the score by the sample's `perceiver.types.Facts`.
        group: the name of a subset of the samples that is measured separately, or empty.
        confidence: geometric mean of the probabilities of its tokens.
    """

    text: str
    references: Sequence[str]
    scores: Mapping[str, float]
    group: str
    confidence: float = nan

    def __post_init__(self) -> None:
        if not self.references:
            raise ValueError(f"{self.text!r} has no references to be compared with")


class Measure(Protocol):
    """What texts are scored by."""

    def __call__(self, texts: "Sequence[ScoredText]") -> dict[str, float]:
        """Return the metrics of a corpus by name."""
        ...

    def of_text(self, text: "ScoredText") -> dict[str, float]:
        """Return the scores of one text in a table."""
        ...


def caption_metrics(texts: Sequence[ScoredText]) -> dict[str, float]:
    """Return all metrics of this module."""
    hypotheses = [caption_words(one.text) for one in texts]
    references = [[caption_words(text) for text in one.references] for one in texts]
    return {
        **bleu(hypotheses, references),
        "ROUGE-L": rouge_l(hypotheses, references),
        "CIDEr-D": cider_d(hypotheses, references),
        "exact_match": exact_match(hypotheses, references),
        "distinct_captions": distinct_captions(hypotheses),
        "vocabulary_used": vocabulary_used(hypotheses, references),
    }


def mean_scores(texts: Sequence[ScoredText]) -> dict[str, float]:
    """Return the mean of each score by facts over the texts for which it is defined, sorted by name."""
    scores: dict[str, list[float]] = {}
    for one in texts:
        for name, score in one.scores.items():
            scores.setdefault(name, []).append(score)
    return {name: fmean(values) for name, values in sorted(scores.items())}
