"""A model of the next word that is a table, and all that can be written with it."""

import itertools
import math
from functools import cache

import torch

from perceiver.tasks.generation import NEVER, BeamSearch, Generation, Sampling, Texts
from perceiver.tokenizer import EOS, PAD

CPU = torch.device("cpu")
VOCAB = 7
WORDS = [id for id in range(VOCAB) if id not in NEVER]
"""What may be written: EOS and three words."""
MAX_LENGTH = 5
BATCH = 3
EXHAUSTIVE = len(WORDS) ** (MAX_LENGTH - 1)
"""So many beams hold every text that there is."""


@cache
def following(sample: int, before: tuple[int, ...], vocab: int = VOCAB, sharpness: float = 2.0) -> torch.Tensor:
    """Log-probabilities of the next word: any numbers, another distribution behind each beginning of each sample."""
    seed = hash((sample, before, vocab)) % 2**31
    logits = sharpness * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(dim=0)


def talkative(sample: int, before: tuple[int, ...]) -> torch.Tensor:
    """As `following`, but seldom with an end."""
    return (following(sample, before) - 5.0 * (torch.arange(VOCAB) == EOS)).log_softmax(dim=0)


def sure(sample: int, before: tuple[int, ...]) -> torch.Tensor:
    """As `following`, but of most words nearly certain, so that a longer text is hardly less likely."""
    return following(sample, before, sharpness=7.0)


class TableWriter:
    """A model that is a function of the whole text so far, and keeps it as a real one keeps keys and values."""

    def __init__(self, width: int, samples: list[int], model=following):
        self.samples = [sample for sample in samples for _ in range(width)]
        self.width, self.model = width, model
        self.texts: list[tuple[int, ...]] = [()] * len(self.samples)

    def next(self, words):
        assert words.shape == (len(self.samples),)
        self.texts = [(*text, word) for text, word in zip(self.texts, words.tolist(), strict=True)]
        return torch.stack([self.model(*of_row) for of_row in zip(self.samples, self.texts, strict=True)])

    def select(self, rows):
        of_sample = [row // self.width for row in rows.tolist()]
        assert of_sample == [row // self.width for row in range(len(self.samples))], "rows of another sample"
        self.texts = [self.texts[row] for row in rows.tolist()]


def written(
    generation: Generation, *, samples=tuple(range(BATCH)), num_texts=1, max_length=MAX_LENGTH, model=following
):
    return generation(
        lambda width: TableWriter(width, list(samples), model),
        batch_size=len(samples),
        num_texts=num_texts,
        max_length=max_length,
        device=CPU,
    )


def beam(num_beams=1, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0) -> BeamSearch:
    return BeamSearch(
        num_beams=num_beams,
        length_penalty=length_penalty,
        presence_penalty=presence_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )


def sampling(temperature=1.0, top_k=0, top_p=1.0, presence_penalty=0.0, no_repeat_ngram_size=0) -> Sampling:
    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        presence_penalty=presence_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )


def texts_of(texts: Texts) -> list[list[tuple[int, ...]]]:
    """Each text that was found, without what is behind its end."""
    return [
        [
            tuple(itertools.takewhile(lambda word: word != PAD, row))
            for row, value in zip(of_sample, values, strict=True)
            if math.isfinite(value)
        ]
        for of_sample, values in zip(texts.ids.tolist(), texts.log_probabilities.tolist(), strict=True)
    ]


def log_probability(sample: int, text: tuple[int, ...], model=following) -> float:
    return sum(float(model(sample, text[:place])[text[place]]) for place in range(1, len(text)))
