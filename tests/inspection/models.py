"""Models and attention for the tests of inspection: with sharp maps, and with maps made to order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceiver import Perceiver
from perceiver.attention import Attention, BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.inspection.capture import Capture, capture
from perceiver.inspection.record import Layer, Role
from perceiver.latents import LatentArray, Schedule
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.generation import BeamSearch, Generation
from perceiver.tokenizer import SPECIAL, WordTokenizer, words_in
from perceiver.types import Axis, Batch, Box, Grid, JoinedTokens, Mention, Picture, Span
from tests.models import DIM, NUM_CLASSES, PERCEIVER_IO, small_inputs, small_perceiver

VOCAB_SIZE, MAX_LENGTH, NUM_WORDS = 31, 13, 7
TEXT = "there is a small red circle and two large blue squares , one of them left of the green star ."
CROSS_HEADS = BlockSpec(num_heads=3, qk_dim=3 * 5, v_dim=3 * 7)
DECODE_HEADS = BlockSpec(num_heads=5, qk_dim=5 * 2, v_dim=5 * 3)
WORD_HEADS = BlockSpec(num_heads=2, qk_dim=2 * 3, v_dim=2 * 5)


def perceiver(**overrides) -> Perceiver:
    """Three cross-attends, the last two with shared weights, interleaved with self-attention; pooled."""
    return sharpened(small_perceiver(**({"cross_attention": CROSS_HEADS} | overrides)))


def perceiver_io(**overrides) -> Perceiver:
    """One cross-attend; each class asks for itself."""
    decoder = QueryDecoder(dim=DIM, num_classes=NUM_CLASSES, query_dim=13, attention=DECODE_HEADS, query_per_class=True)
    return perceiver(**({"schedule": Schedule(num_self_attends=2, **PERCEIVER_IO), "decoder": decoder} | overrides))


def perceiver_text(num_layers: int = 2, **overrides) -> Perceiver:
    """One cross-attend; words read each other and the latents."""
    return perceiver_io(decoder=text_decoder(num_layers), **overrides)


def reader_of_tokens() -> nn.ModuleList:
    """A latent array that reads tokens [_, _, 23] as they are, with no places, and a decoder that pools."""
    latents = LatentArray(
        num_latents=11,
        dim=17,
        input_dim=23,
        cross_attention=BlockSpec(num_heads=1),
        self_attention=BlockSpec(num_heads=1),
        schedule=Schedule(num_cross_attends=2, num_blocks=2, num_self_attends=1),
    )
    return nn.ModuleList([latents, PooledDecoder(dim=17, num_classes=5)])


def text_decoder(num_layers: int = 2) -> TextDecoder:
    return TextDecoder(
        dim=DIM,
        vocab_size=VOCAB_SIZE,
        max_length=MAX_LENGTH,
        word_dim=19,
        num_layers=num_layers,
        self_attention=WORD_HEADS,
        cross_attention=DECODE_HEADS,
        dropout=0.3,
        tied=False,
    )


def perceiver_pooled_io() -> Perceiver:
    return perceiver_io(decoder=PooledDecoder(dim=DIM, num_classes=NUM_CLASSES))


def captioning(generation: Generation | None = None) -> Captioning:
    """A task of few words, that chooses the likeliest unless told otherwise."""
    tokenizer = WordTokenizer(vocab_size=VOCAB_SIZE, max_length=MAX_LENGTH, lowercase=True, min_frequency=1)
    tokenizer.train([TEXT])
    return Captioning(
        tokenizer=tokenizer,
        label_smoothing=0.0,
        captions_per_sample=1,
        monitor="loss",
        generation=generation or beams(1),
    )


def beams(count: int) -> BeamSearch:
    return BeamSearch(num_beams=count, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0)


def captions(inputs: dict[str, Tensor], texts: Sequence[str] | None = None, **targets) -> Batch:
    """A batch for captioning."""
    count = len(next(iter(inputs.values())))
    texts = [TEXT] * count if texts is None else texts
    return Batch(
        inputs=inputs,
        targets={"caption": list(texts), "references": [[text] for text in texts], **targets},
        ids=[f"s/{number}" for number in range(count)],
    )


class EveryWord:
    """Facts by which every word of any text speaks of the same boxes, and words take turns with their kinds."""

    def __init__(self, *boxes: Box, kinds: Sequence[str] = ("colour", "shape")) -> None:
        self.boxes = boxes
        self.kinds = kinds

    def judged(self, text: str) -> dict[str, float]:
        return {"truth": 0.5}

    def mentions(self, text: str) -> list[Mention]:
        return [
            Mention(number, self.kinds[number % len(self.kinds)], list(self.boxes))
            for number, _ in enumerate(words_in(text))
        ]


def sharpened(model: Perceiver) -> Perceiver:
    """At initialisation all maps are nearly even, and a wrong one is hard to tell from a right one."""
    for attention in model.modules():
        if isinstance(attention, Attention):
            attention.query.weight.data *= 11
    return model


def some_masks() -> dict[str, Tensor]:
    """The second image is real in its upper left 7×5 pixels, so in 3×2 of its cells; the third sample lacks depth."""
    image = torch.ones(3, 11, 13, dtype=torch.bool)
    image[1] = False
    image[1, :7, :5] = True
    return {"image": image, "depth": torch.tensor([True, True, False])}


def some_words(batch: int = 3) -> Tensor:
    """Ids of words, none of them special."""
    return torch.randint(len(SPECIAL), VOCAB_SIZE, (batch, NUM_WORDS), generator=torch.Generator().manual_seed(1))


def look(
    model: Perceiver,
    inputs: dict[str, Tensor] | None = None,
    masks: dict[str, Tensor] | None = None,
    words: Tensor | None = None,
) -> Capture:
    """What `model` attends to; `words` are what a text decoder is asked with, some unless told otherwise."""
    inputs = small_inputs() if inputs is None else inputs
    if words is None and isinstance(model.decoder, TextDecoder):
        words = some_words(len(next(iter(inputs.values()))))
    with capture(model) as captured:
        model(inputs, masks, *([] if words is None else [words]))
    return captured


def some_scores(outputs: Tensor) -> Tensor:
    """Two scores of each sample: of classes, or of words, the first of which has two ids."""
    if outputs.ndim == 2:
        return outputs[:, [3, 7]]
    return torch.stack([outputs[:, 1, 11] + outputs[:, 2, 5], outputs[:, 5, 13]], dim=1)


def look_with_relevance(
    model: Perceiver, inputs: dict[str, Tensor], masks: dict[str, Tensor] | None = None
) -> tuple[Capture, Tensor]:
    """What `model` attends to, and how much `some_scores` hang on each token."""
    words = [some_words(len(next(iter(inputs.values()))))] if isinstance(model.decoder, TextDecoder) else []
    with capture(model, gradients=True) as captured:
        outputs = model(inputs, masks, *words)
        return captured, captured.relevance(some_scores(outputs))


def layer(role: Role, weights: Tensor) -> Layer:
    """A layer that has exactly these weights, [batch, heads, queries, keys], as long as their rows sum to one."""
    keys = torch.eye(weights.shape[-1]).expand(*weights.shape[:2], -1, -1)
    return Layer(role, weights.clamp_min(1e-30).log() * weights.shape[-1] ** 0.5, keys, mask=None, causal=False)


def captured_with(spans: dict[str, Span], **layers: Layer) -> Capture:
    """A capture made by hand."""
    made = Capture()
    made.layers = layers
    lay_out(made, spans)
    return made


def lay_out(captured: Capture, spans: dict[str, Span]) -> None:
    """Have the tokens that were read belong to these modalities."""
    read = captured.layers[captured.named("cross")[0]]
    captured.tokens = JoinedTokens(torch.zeros(read.num_rows, read.num_keys, 1), None, spans)


def grid(rows: int, columns: int, cell: int = 1) -> Grid:
    """A grid over an image with cells of some pixels' width."""
    return Grid((rows, columns), (Axis("y", "px", 0.0, rows * cell), Axis("x", "px", 0.0, columns * cell)))


def images_of(inputs: dict[str, Tensor]) -> dict[str, Picture]:
    """What there is to see of images."""
    return {name: Picture(raw, grid(*raw.shape[-2:]), "") for name, raw in inputs.items()}
