"""How well texts say what their references say: BLEU, ROUGE-L, CIDEr-D, and how much the texts differ among themselves.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (Vedantam et al. 2015) are those of the COCO caption
evaluation (Chen et al. 2015; `pycocoevalcap` 1.2) once its input is split into words, but for one thing: where no
n-gram of a length matches, BLEU for that length and above is 0. Theirs adds 1e-15 to the matches and 1e-9 to the
n-grams, which is 0.03 rather than 0 for BLEU-4 of three words that are right. `caption_words` splits into words.

CIDEr-D weighs n-grams by how few samples' references have them, so it says little of few samples or of samples that are
alike: an n-gram that all samples have weighs nothing, and if they have all the same, or if there is only one sample,
CIDEr-D is 0 whatever the hypotheses are.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log, prod
from statistics import fmean
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from perceiver.tokenizer import words_in

ORDERS = range(1, 5)
"""Lengths of the n-grams that are counted."""

ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

DROPPED = frozenset("'\"`‘’“”()[]{}.?!,:;-–—…")
CLITIC = re.compile(r"(?<=\w)(?=(?:n't|'(?:s|m|d|re|ve|ll))(?!\w))")

Words: TypeAlias = Sequence[str]


def caption_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation, for the metrics below.

    As the PTB tokenizer of the COCO caption evaluation has them for plain sentences: `isn't` is `is n't`, `man's` is
    `man 's`, `t-shirt` is one word, `&` and `%` stay. Other than there, brackets are dropped (there, they become words
    such as `-lrb-`), what has a mark inside falls apart (`10:30`, `1.50`, `u.s.`, `and/or`), and some words stay whole
    (`cannot`, `gonna`).
    """
    words = [word.group() for word in words_in(text.lower().replace("’", "'"))]
    return [part for word in words if word not in DROPPED for part in CLITIC.split(word)]


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """BLEU of the whole corpus for n-grams up to each length, without smoothing: 0 where no n-gram of a length matches.

    A hypothesis is compared with its reference of the closest length, the shorter of two, for the brevity penalty.
    """
    length = target = 0
    matches, grams = [0] * len(ORDERS), [0] * len(ORDERS)
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        target += min((abs(len(text) - len(hypothesis)), len(text)) for text in texts)[1]
        for place, order in enumerate(ORDERS):
            counts = Counter(_grams(hypothesis, order))
            by_text = [Counter(_grams(text, order)) for text in texts]
            matches[place] += sum(min(n, max(of.get(gram, 0) for of in by_text)) for gram, n in counts.items())
            grams[place] += counts.total()
    precisions = [matched / max(1, total) for matched, total in zip(matches, grams, strict=True)]
    brevity = exp(min(0.0, 1.0 - target / max(1, length)))
    return {f"BLEU-{order}": brevity * prod(precisions[:order]) ** (1.0 / order) for order in ORDERS}


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean F of the longest common subsequence; precision and recall may each be of another reference."""
    return fmean(_rouge_l(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True))


def _rouge_l(hypothesis: Words, references: Sequence[Words]) -> float:
    # As in the original, nothing is one empty word: it equals nothing and only that.
    hypothesis, *references = [text or [""] for text in (hypothesis, *references)]
    common = [_common(hypothesis, text) for text in references]
    precision = max(common) / len(hypothesis)
    recall = max(count / len(text) for count, text in zip(common, references, strict=True))
    return (1.0 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision) if recall else 0.0


def _common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, a row of the table at once as bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for word in second:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & every
    return len(first) - row.bit_count()


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean cosine of n-gram counts weighed by rarity, clipped, less where lengths differ; 10 is the most."""
    samples_with = Counter(
        gram
        for texts in references
        for gram in {gram for text in texts for order in ORDERS for gram in _grams(text, order)}
    )
    most = log(len(references))
    rarity = {gram: most - log(count) for gram, count in samples_with.items()}

    def weights(text: Words) -> list[dict[tuple[str, ...], float]]:
        counts = (Counter(_grams(text, order)) for order in ORDERS)
        return [{gram: n * rarity.get(gram, most) for gram, n in of_order.items()} for of_order in counts]

    def score(hypothesis: Words, texts: Sequence[Words]) -> float:
        weighed = weights(hypothesis)
        norms = [hypot(*of_order.values()) for of_order in weighed]
        scores = []
        for text in texts:
            cosines = map(_clipped_cosine, weighed, norms, weights(text))
            # In the original, numbers of bigrams: as far apart, unless a text is empty and the cosines are 0.
            apart = len(hypothesis) - len(text)
            scores.append(fmean(cosines) * exp(-(apart**2) / (2.0 * CIDER_SIGMA**2)))
        return 10.0 * fmean(scores)

    return fmean(score(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True))


def _clipped_cosine(hypothesis: dict[tuple[str, ...], float], norm: float, text: dict[tuple[str, ...], float]) -> float:
    product = sum(min(weight, text[gram]) * text[gram] for gram, weight in hypothesis.items() if gram in text)
    return product / (norm * hypot(*text.values())) if product else 0.0


def exact_match(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """The share of hypotheses that are one of their references."""
    pairs = zip(hypotheses, references, strict=True)
    return fmean(tuple(hypothesis) in {tuple(text) for text in texts} for hypothesis, texts in pairs)


def distinct_captions(hypotheses: Sequence[Words]) -> float:
    """How many different hypotheses there are, as a share of all: low where a model says the same of everything."""
    return len({tuple(hypothesis) for hypothesis in hypotheses}) / len(hypotheses)


def vocabulary_used(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """How many different words the hypotheses have, for each that the references have; may be over 1."""
    said = {word for hypothesis in hypotheses for word in hypothesis}
    return len(said) / max(1, len({word for texts in references for text in texts for word in text}))


def _grams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[place:] for place in range(order)), strict=False)


@dataclass(frozen=True)
class Record:
    """A text about a sample and what it is measured by.

    Attributes:
        hypothesis: the text.
        references: texts that say it right.
        judged: name of a metric -> the score that the sample's `perceiver.types.Facts` give to the text.
        group: the name of a part of the samples that is measured for itself, or empty.
    """

    hypothesis: str
    references: Sequence[str]
    judged: Mapping[str, float]
    group: str

    def __post_init__(self) -> None:
        if not self.references:
            raise ValueError(f"{self.hypothesis!r} has no references to be compared with")


class TextMetrics(Metric):
    """All metrics of this module, and the mean of each judged score over the records for which it is defined.

    Those of records with a group have its name in front: `<group>_<name>`. Without records there are no metrics.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    lines: list[UInt8[Tensor, " bytes"]]
    """A line of JSON a record, since only tensors are gathered from other processes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def update(self, records: Sequence[Record]) -> None:
        for record in records:
            line = json.dumps([record.hypothesis, list(record.references), dict(record.judged), record.group])
            self.lines.append(torch.frombuffer(bytearray(f"{line}\n", "ascii"), dtype=torch.uint8).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A process without records would give empty floats where the others give bytes, which cannot be gathered.
        if len(self.lines) == 0:
            self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        content = dim_zero_cat(self.lines).cpu().numpy().tobytes() if len(self.lines) > 0 else b""
        groups: dict[str, list[Record]] = {}
        for line in content.splitlines():
            record = Record(*json.loads(line))
            groups.setdefault(record.group, []).append(record)
        return {
            f"{group}_{name}" if group else name: torch.tensor(value, dtype=torch.float32, device=self.device)
            for group, records in sorted(groups.items())
            for name, value in _measured(records).items()
        }


def _measured(records: Sequence[Record]) -> dict[str, float]:
    hypotheses = [caption_words(record.hypothesis) for record in records]
    references = [[caption_words(text) for text in record.references] for record in records]
    judged: dict[str, list[float]] = {}
    for record in records:
        for name, share in record.judged.items():
            judged.setdefault(name, []).append(share)
    return {
        **bleu(hypotheses, references),
        "ROUGE-L": rouge_l(hypotheses, references),
        "CIDEr-D": cider_d(hypotheses, references),
        "exact_match": exact_match(hypotheses, references),
        "distinct_captions": distinct_captions(hypotheses),
        "vocabulary_used": vocabulary_used(hypotheses, references),
        **{name: fmean(shares) for name, shares in sorted(judged.items())},
    }
