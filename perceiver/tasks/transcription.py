"""Transcription: what is heard in a recording, in order, scored by word and character error rates.

    WER = (substitutions + insertions + deletions) / words of the reference

with the fewest edits between transcript and reference (`edit_distance`), both summed over the corpus, as computed by
NIST's sclite and jiwer. CER is the same over characters, spaces included. Both are 1 where nothing is written, and
exceed 1 where more errors are written than there are words.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from perceiver.tasks.edit_distance import Edits, edits
from perceiver.tasks.generation import Generation
from perceiver.tasks.text_generation import TextGeneration
from perceiver.tasks.text_metrics import ScoredText
from perceiver.tokenizer import Tokenizer

PUNCTUATION = re.compile(r"[^\w\s'-]|_|(?<!\w)['-]|['-](?!\w)")
"""All but letters, digits, spaces, and apostrophes and hyphens within a word."""


class TranscriptMetrics:
    """Error rates of transcripts; of several references, a transcript is compared with the one of the fewest edits.

    `WER` is the sum of `substitutions`, `insertions` and `deletions`, each as a share of the reference's words;
    `exact_match` is the share of transcripts whose words have no error.

    Args:
        lowercase: whether texts are compared in lower case.
        punctuation: whether texts are compared with their punctuation.
    """

    def __init__(self, *, lowercase: bool, punctuation: bool) -> None:
        self.lowercase = lowercase
        self.punctuation = punctuation

    def __call__(self, texts: Sequence[ScoredText]) -> dict[str, float]:
        """Return the metrics of a corpus by name."""
        by_text = [self._edits(one, str.split) for one in texts]
        words, characters = _total(by_text), _total(self._edits(one, list) for one in texts)
        return {
            "WER": _rate(words.total, words.length),
            "CER": _rate(characters.total, characters.length),
            "substitutions": _rate(words.substitutions, words.length),
            "insertions": _rate(words.insertions, words.length),
            "deletions": _rate(words.deletions, words.length),
            "exact_match": sum(one.total == 0 for one in by_text) / len(by_text),
        }

    def of_text(self, text: ScoredText) -> dict[str, float]:
        """Return scores of one transcript."""
        words = self._edits(text, str.split)
        return {"WER": _rate(words.total, words.length), "edits": words.total, "words": words.length}

    def _edits(self, text: ScoredText, split: Callable[[str], list[str]]) -> Edits:
        found = split(self.normalized(text.text))
        return min((edits(split(self.normalized(one)), found) for one in text.references), key=lambda one: one.total)

    def normalized(self, text: str) -> str:
        """Return a text as it is compared, with single spaces between words."""
        text = text.lower() if self.lowercase else text
        text = text.replace("’", "'")
        return " ".join((text if self.punctuation else PUNCTUATION.sub(" ", text)).split())


def _total(parts: Iterable[Edits]) -> Edits:
    return Edits(*map(sum, zip(*parts, strict=True)))


def _rate(count: int, length: int) -> float:
    """Return a count as a share of the length of the references, infinite if that is 0."""
    return count / length if length else math.inf if count else 0.0


class Transcription(TextGeneration):
    """Transcripts that are written token by token (Chan et al. 2016). Metrics: those of `measure` and `TextGeneration`.

    Args:
        measure: of transcripts.
        tokenizer, label_smoothing, monitor, generation, output: see `TextGeneration`.
    """

    answer_key = "transcript"
    averages_windows = False

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        measure: TranscriptMetrics,
        label_smoothing: float,
        monitor: str,
        generation: Generation,
        output: str = "logits",
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            measure=measure,
            label_smoothing=label_smoothing,
            texts_per_sample=1,
            monitor=monitor,
            generation=generation,
            output=output,
        )
