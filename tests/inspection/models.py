"""Models and attention for the tests of inspection: with sharp maps, and with maps made to order."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from perceiver import Perceiver
from perceiver.attention import Attention, BlockSpec, Residual
from perceiver.decoders.base import LOGITS
from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.encoders.base import Encoder
from perceiver.inspection.maps.capture import Capture, capture
from perceiver.inspection.maps.record import Layer
from perceiver.latents import Schedule
from perceiver.mechanisms.base import MechanismFactory
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.queries.learned import Learned
from perceiver.queries.text import Text
from perceiver.roles import CROSS, DECODE, SELF, Role
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.generation import BeamSearch, Generation
from perceiver.tokenizer import EOS, SPECIAL, WordTokenizer, split_words
from perceiver.types import Answer, Axis, Batch, Box, Grid, JoinedTokens, KeyMask, Mention, Picture, Span, Tokens
from tests.models import DIM, NUM_CLASSES, PERCEIVER_IO, direct, small_inputs, small_perceiver

VOCAB_SIZE, MAX_LENGTH, NUM_WORDS = 31, 13, 7
TEXT = "there is a small red circle and two large blue squares , one of them left of the green star ."
CROSS_HEADS = BlockSpec(num_heads=3, qk_dim=3 * 5, v_dim=3 * 7)
DECODE_HEADS = BlockSpec(num_heads=5, qk_dim=5 * 2, v_dim=5 * 3)
WORD_HEADS = BlockSpec(num_heads=2, qk_dim=2 * 3, v_dim=2 * 5)
ROLES = {role.name: role for role in (CROSS, SELF, DECODE)}


def perceiver(**overrides) -> Perceiver:
    """Three cross-attends, the last two with shared weights, interleaved with self-attention; pooled."""
    return sharpen(small_perceiver(**({"cross_attention": CROSS_HEADS} | overrides)))


def perceiver_io(**overrides) -> Perceiver:
    """One cross-attend; a query per class."""
    schedule = Schedule(num_self_attends=2, **PERCEIVER_IO)
    return perceiver(**({"schedule": schedule, "decoder": query_decoder()} | overrides))


def perceiver_text(num_layers: int = 2, **overrides) -> Perceiver:
    """One cross-attend; words read each other and the latents."""
    return perceiver_io(decoder=text_decoder(num_layers), **overrides)


def perceiver_joint(*names: str, **overrides) -> Perceiver:
    """A query per class, and words; `names` give another order."""
    decoders = {"label": query_decoder(), "caption": text_decoder()}
    joint = JointDecoder(decoders={name: decoders[name] for name in names or decoders})
    return perceiver_io(decoder=joint, **overrides)


def direct_text(**overrides) -> Perceiver:
    """Without latents: words read the tokens, which read each other."""
    return perceiver_text(memory=direct(), **overrides)


MODELS = pytest.mark.parametrize(
    "make", [perceiver, perceiver_io, perceiver_text, direct_text], ids=lambda make: make.__name__
)


def some_masks() -> dict[str, Tensor]:
    """The second image is real in its upper left 7×5 pixels, so in 3×2 of its cells; the third sample lacks depth."""
    image = torch.ones(3, 11, 13, dtype=torch.bool)
    image[1] = False
    image[1, :7, :5] = True
    return {"image": image, "depth": torch.tensor([True, True, False])}


MODELS_AND_MASKS = pytest.mark.parametrize(
    ("make", "masks"),
    [
        pytest.param(make, masks, id=f"{make.__name__}, {'masked' if masks else 'whole'}")
        for make, masks in (
            (perceiver, some_masks()),
            (perceiver_io, None),
            (perceiver_text, some_masks()),
            (direct_text, None),
            (direct_text, some_masks()),
        )
    ],
)


class IdentityEncoder(Encoder):
    """Tokens [_, _, dim] without positions: of `grid`, or steps of time where it is None."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.grid = grid

    def forward(self, raw: Tensor, mask: Tensor | None = None) -> Tokens:
        length = raw.shape[1]
        return Tokens(raw, mask, self.grid or Grid((length,), (Axis("time", "s", 0.0, 0.1 * length),)))

    def example_input(self) -> Tensor:
        return torch.rand(2, 3, self.dim)


class Joined(nn.Module):
    """Joins the tokens of a single modality."""

    def forward(self, name: str, tokens: Tokens) -> JoinedTokens:
        return JoinedTokens(tokens.values, tokens.mask, {name: Span(0, tokens.values.shape[1], tokens.grid)})


class ForeignAttention(nn.Module):
    """Attention with two heads whose queries and keys are not projected."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mechanism = ScaledDotProduct(role=Role("ask", "outputs", "tokens"))
        self.value = nn.Linear(dim, dim)
        self.residual = Residual()

    def forward(self, queries: Tensor, tokens: Tensor, mask: KeyMask | None) -> Tensor:
        by_head = [
            rearrange(x, "batch length (heads dim) -> batch heads length dim", heads=2)
            for x in (queries, tokens, self.value(tokens))
        ]
        return self.residual(queries, rearrange(self.mechanism(*by_head, mask), "b heads n dim -> b n (heads dim)"))


class ForeignModel(nn.Module):
    """A model that is not a Perceiver, but satisfies the contract: each class reads the tokens [_, _, 22], twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"signal": IdentityEncoder(22)})
        self.joined = Joined()
        self.queries = nn.Parameter(3 * torch.randn(NUM_CLASSES, 22))
        self.layers = nn.ModuleList(ForeignAttention(22) for _ in range(2))

    def forward(self, inputs, masks=None, queries=None, hidden=None) -> dict[str, Tensor]:
        (name,) = inputs
        return self.forward_tokens(self.joined(name, self.encoders[name](inputs[name], (masks or {}).get(name))))

    def forward_tokens(self, tokens: JoinedTokens, queries=None) -> dict[str, Tensor]:
        decoder_queries = self.queries.expand(len(tokens.values), -1, -1)
        for layer in self.layers:
            decoder_queries = layer(decoder_queries, tokens.values, tokens.mask)
        return {LOGITS: decoder_queries.sum(dim=-1)}


def query_decoder(num_queries: int = NUM_CLASSES) -> QueryDecoder:
    queries = Learned(num_queries=num_queries, dim=13)
    return QueryDecoder(dim=DIM, num_classes=NUM_CLASSES, queries=queries, attention=DECODE_HEADS)


def text_decoder(num_layers: int = 2, mechanism: MechanismFactory = ScaledDotProduct) -> TextDecoder:
    return TextDecoder(
        dim=DIM,
        queries=Text(vocab_size=VOCAB_SIZE, max_length=MAX_LENGTH, dim=19),
        num_layers=num_layers,
        self_attention=replace(WORD_HEADS, mechanism=mechanism),
        cross_attention=replace(DECODE_HEADS, mechanism=mechanism),
        dropout=0.3,
        tied=False,
    )


def perceiver_pooled_io() -> Perceiver:
    return perceiver_io(decoder=PooledDecoder(dim=DIM, num_classes=NUM_CLASSES))


def captioning(generation: Generation | None = None, **options) -> Captioning:
    """A task of few words, with greedy decoding by default."""
    tokenizer = WordTokenizer(vocab_size=VOCAB_SIZE, max_length=MAX_LENGTH, lowercase=True, min_frequency=1)
    tokenizer.train([TEXT])
    return Captioning(
        tokenizer=tokenizer,
        label_smoothing=0.0,
        captions_per_sample=1,
        monitor="loss",
        generation=generation or beams(1),
        **options,
    )


def of_class(label: int, *boxes: Box, name: str | None = None) -> Answer:
    return Answer(name or f"class {label}", (label,), LOGITS, label=label, boxes=boxes)


def word(queries: Sequence[int], ids: Sequence[int], name: str = "word") -> Answer:
    return Answer(name, tuple(queries), LOGITS, ids=tuple(ids))


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
    """Facts by which every word of any text refers to the same boxes, with alternating kinds."""

    def __init__(self, *boxes: Box, kinds: Sequence[str] = ("colour", "shape")) -> None:
        self.boxes = boxes
        self.kinds = kinds

    def scores(self, text: str) -> dict[str, float]:
        return {"truth": 0.5}

    def mentions(self, text: str) -> list[Mention]:
        return [
            Mention(number, self.kinds[number % len(self.kinds)], list(self.boxes))
            for number, _ in enumerate(split_words(text))
        ]


def sharpen(model: Perceiver) -> Perceiver:
    """Scale the queries: at initialization all maps are nearly uniform, and errors are hard to detect."""
    for attention in model.modules():
        if isinstance(attention, Attention):
            attention.query.weight.data *= 11
    return model


def without_end(model: nn.Module) -> nn.Module:
    """Make the end of a text unlikely, since an untrained model might write nothing."""
    for part in model.modules():
        if isinstance(part, TextDecoder):
            part.head.bias.data[EOS] = -9.0
    return model


def some_words(batch: int = 3) -> Tensor:
    """Ids of words, none of them special."""
    return torch.randint(len(SPECIAL), VOCAB_SIZE, (batch, NUM_WORDS), generator=torch.Generator().manual_seed(1))


def decoder_queries(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """The queries of a decoder of texts for these ids; none for any other decoder."""
    return dict.fromkeys(model.decoder.needs_queries, ids)


def forward_record(
    model: Perceiver,
    inputs: dict[str, Tensor] | None = None,
    masks: dict[str, Tensor] | None = None,
    words: Tensor | None = None,
) -> Capture:
    """The attention of a forward pass; `words` are the queries of a text decoder, by default `some_words`."""
    inputs = small_inputs() if inputs is None else inputs
    words = some_words(len(next(iter(inputs.values())))) if words is None else words
    with capture(model) as captured:
        model(inputs, masks, decoder_queries(model, words))
    return captured


def some_scores(outputs: dict[str, Tensor]) -> Tensor:
    """Two scores of each sample: of classes, or of words, the first of which has two ids."""
    (logits,) = outputs.values()
    if logits.ndim == 2:
        return logits[:, [3, 7]]
    return torch.stack([logits[:, 1, 11] + logits[:, 2, 5], logits[:, 5, 13]], dim=1)


def capture_relevance(
    model: Perceiver, inputs: dict[str, Tensor], masks: dict[str, Tensor] | None = None
) -> tuple[Capture, Tensor]:
    """The attention of a forward pass, and the relevance of each token for `some_scores`."""
    words = some_words(len(next(iter(inputs.values()))))
    with capture(model, gradients=True) as captured:
        outputs = model(inputs, masks, decoder_queries(model, words))
        return captured, captured.relevance(some_scores(outputs))


def layer(role: str, weights: Tensor, mask: KeyMask | None = None) -> Layer:
    """A layer that has exactly these weights, [batch, heads, queries, keys], as long as their rows sum to one."""
    keys = torch.eye(weights.shape[-1]).expand(*weights.shape[:2], -1, -1)
    queries = weights.clamp_min(1e-30).log() * weights.shape[-1] ** 0.5
    share = torch.full(weights.shape[:1] + weights.shape[2:3], 0.5)
    return Layer(ROLES[role], ScaledDotProduct(), queries, keys, mask, False, share, has_residual=True)


def captured_with(spans: dict[str, Span], **layers: Layer) -> Capture:
    """A capture made by hand."""
    made = Capture()
    made.layers = layers
    made.outputs = {LOGITS: torch.zeros(next(iter(layers.values())).num_rows, 1)}
    set_tokens(made, spans)
    return made


def set_tokens(captured: Capture, spans: dict[str, Span]) -> None:
    """Set the modalities of the tokens that were read."""
    read = captured.layers[captured.input_layers[0]]
    captured.tokens = JoinedTokens(torch.zeros(read.num_rows, read.num_keys, 1), read.mask, spans)


def grid(rows: int, columns: int, cell: int = 1) -> Grid:
    """A grid over an image with cells of some pixels' width."""
    return Grid((rows, columns), (Axis("y", "px", 0.0, rows * cell), Axis("x", "px", 0.0, columns * cell)))


def images_of(inputs: dict[str, Tensor]) -> dict[str, Picture]:
    """The pictures of images."""
    return {name: Picture(raw, grid(*raw.shape[-2:]), "") for name, raw in inputs.items()}


def computed_weights(monkeypatch) -> list[int]:
    """Collects the numbers of weights that are computed at once from here on."""
    sizes, original = [], ScaledDotProduct.weights

    def weights(*args, **options):
        found = original(*args, **options)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(ScaledDotProduct, "weights", weights)
    return sizes
