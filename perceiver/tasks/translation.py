"""Translation of a text: BLEU and chrF as computed by sacrebleu (Post 2018), and the rate of exact matches.

BLEU (Papineni et al. 2002) is that of the corpus, from 0 to 100. It depends on how texts are split into words, which
sacrebleu's signature specifies; the signatures are logged. chrF (Popović 2015) is the F-score of character n-grams,
from 0 to 100.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from statistics import fmean

from sacrebleu import BLEU, CHRF

from perceiver.tasks.generation import Generation
from perceiver.tasks.text_generation import TextGeneration
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tokenizer import Tokenizer
from perceiver.types import Batch, Box

WORD_AXIS, TOKEN_AXIS = "word", "place"
"""The axis in whose units facts give the words of an input text, and that of its tokens."""

log = logging.getLogger(__name__)


class Translation(TextGeneration):
    """Translations of a text. Metrics: `BLEU`, `chrF`, `exact_match`, and those of `TextGeneration`.

    Where the facts of a sample have the alignment of the target's words with those of the input, maps are compared with
    it (`perceiver.inspection.evaluation.localization`).

    Args:
        input_tokenizer: of the input text.
        modality: the input text.
        lowercase: whether texts are compared in lower case.
        tokenizer, label_smoothing, monitor, generation, output: see `TextGeneration`.
    """

    answer_key = "translation"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        input_tokenizer: Tokenizer,
        modality: str,
        label_smoothing: float,
        lowercase: bool,
        monitor: str,
        generation: Generation,
        output: str = "logits",
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            measure=TranslationMetrics(lowercase=lowercase),
            label_smoothing=label_smoothing,
            texts_per_sample=1,
            monitor=monitor,
            generation=generation,
            output=output,
        )
        self.input_tokenizer = input_tokenizer
        self.modality = modality

    def located(self, boxes: tuple[Box, ...], batch: Batch, row: int) -> tuple[Box, ...]:
        """Return boxes along the tokens of the input text, given those along its words."""
        if not boxes or self.modality not in batch.inputs:
            return boxes
        words = self.input_tokenizer.words(batch.inputs[self.modality][row, 0].tolist())
        found = []
        for box in boxes:
            start, stop = map(round, box.ranges[WORD_AXIS])
            places = [place for word in words[start:stop] for place in word.positions]
            if places:  # not truncated
                found.append(replace(box, ranges={TOKEN_AXIS: (float(min(places)), float(max(places) + 1))}))
        return tuple(found)


class TranslationMetrics:
    """BLEU, chrF and exact matches of translations.

    Args:
        lowercase: whether texts are compared in lower case.
    """

    def __init__(self, *, lowercase: bool) -> None:
        self.lowercase = lowercase
        self.logged: set[str] = set()

    def __call__(self, texts: Sequence[ScoredText]) -> dict[str, float]:
        """Return the metrics of a corpus by name."""
        hypotheses = [one.text for one in texts]
        references = [list(column) for column in zip_longest(*(one.references for one in texts))]  # None: fewer
        scores = {"BLEU": BLEU(lowercase=self.lowercase), "chrF": CHRF(lowercase=self.lowercase)}
        found = {name: metric.corpus_score(hypotheses, references).score for name, metric in scores.items()}
        signatures = ", ".join(f"{name} {metric.get_signature()}" for name, metric in scores.items())
        if signatures not in self.logged:
            self.logged.add(signatures)
            log.info("translations are scored by %s", signatures)
        return {**found, "exact_match": fmean(map(self._is_exact, texts))}

    def of_text(self, text: ScoredText) -> dict[str, float]:
        """Return scores of one translation."""
        score = CHRF(lowercase=self.lowercase).sentence_score(text.text, list(text.references)).score
        return {"chrF": score, "exact_match": self._is_exact(text)}

    def _is_exact(self, text: ScoredText) -> float:
        def normalized(one: str) -> str:
            return " ".join((one.lower() if self.lowercase else one).split())

        return float(normalized(text.text) in map(normalized, text.references))
