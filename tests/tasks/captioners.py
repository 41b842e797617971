"""Small captioners of anything, and a small language."""

from functools import partial

import torch
from torch import nn

from perceiver.attention import BlockSpec
from perceiver.data.collate import collate
from perceiver.decoders.text import TextDecoder
from perceiver.direct import Direct
from perceiver.encoders.text import TextEncoder
from perceiver.latents import LatentArray, Schedule
from perceiver.model import MemoryFactory, Perceiver
from perceiver.positions import LearnedPositions
from perceiver.queries.text import Text
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.generation import BeamSearch
from perceiver.tokenizer import WordTokenizer
from perceiver.types import Batch, Mention, Sample

SENTENCES = [
    *("a red square above two blue stars", "a small star", "two green circles, a cross", "nothing at all"),
    *("a large cross left of a red square", "blue", "there is a circle"),
]
VOCAB, MAX_LENGTH = 41, 17
"""The vocabulary has room for more words than there are."""


def word_tokenizer(max_length: int = MAX_LENGTH) -> WordTokenizer:
    tokenizer = WordTokenizer(vocab_size=VOCAB, max_length=max_length, lowercase=True, min_frequency=1)
    tokenizer.train(SENTENCES)
    return tokenizer


NUM_IDS = word_tokenizer().num_ids


def beam(num_beams: int = 1) -> BeamSearch:
    return BeamSearch(num_beams=num_beams, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0)


def captioning(**overrides) -> Captioning:
    defaults = {"tokenizer": word_tokenizer(), "label_smoothing": 0.0, "captions_per_sample": 1, "monitor": "CIDEr-D"}
    return Captioning(**(defaults | {"generation": beam()} | overrides))


def captioned(*texts: str, windows: tuple[int, ...] = ()) -> Batch:
    return Batch(
        inputs={},
        targets={"caption": list(texts), "references": [[text] for text in texts]},
        ids=[str(row) for row in range(len(texts))],
        windows=[("",) * count for count in windows],
    )


def text_encoder() -> TextEncoder:
    positions = LearnedPositions(shape=(MAX_LENGTH,), dim=23, init_std=0.1, anchored=True)
    return TextEncoder(vocab_size=VOCAB, dim=23, positions=positions)


ATTENTION = BlockSpec(num_heads=1, qk_dim=32, v_dim=32)
LATENTS = partial(
    LatentArray,
    num_latents=5,
    dim=31,
    cross_attention=ATTENTION,
    self_attention=ATTENTION,
    schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1),
)
DIRECT = partial(Direct, dim=31, num_layers=1, self_attention=ATTENTION)


def model_of(
    encoders: dict[str, nn.Module],
    vocab_size: int = VOCAB,
    max_length: int = MAX_LENGTH,
    memory: MemoryFactory = LATENTS,
) -> Perceiver:
    """A captioner of what the encoders read."""
    decoder = TextDecoder(
        dim=31,
        queries=Text(vocab_size=vocab_size, max_length=max_length, dim=29),
        num_layers=2,
        self_attention=ATTENTION,
        cross_attention=ATTENTION,
        dropout=0.0,
        tied=True,
    )
    return Perceiver(encoders=encoders, memory=memory, decoder=decoder)


def lively(model: Perceiver) -> Perceiver:
    """Weights from which every input is told apart, without any training."""
    for name, weights in model.named_parameters():
        if "decoder" in name:
            nn.init.normal_(weights, std=0.5)
    return model.eval()


def images(count: int = 5) -> Batch:
    return collate([image_sample(SENTENCES[row]) for row in range(count)])


def image_sample(text: str, num_views: int = 0) -> Sample:
    shape = (num_views, 3, 11, 13) if num_views else (3, 11, 13)
    windows = tuple(map(str, range(num_views)))
    return Sample({"image": torch.rand(shape)}, {"caption": text, "references": [text]}, text, windows=windows)


class KnownFacts:
    """Facts of a sample that know how long a text should be, and where its words are."""

    def __init__(self, boxes):
        self.boxes = boxes

    def scores(self, text):
        return {"lengths": len(text) / 100.0} if text else {}

    def mentions(self, text):
        return [Mention(word, "color", [self.boxes[word]]) for word in range(min(2, len(text.split())))]
