"""Models and attention for the tests of inspection: with sharp maps, and with maps made to order."""

import torch
from torch import Tensor

from perceiver import Perceiver
from perceiver.attention import Attention, BlockSpec, CrossBlock, SelfBlock
from perceiver.decoders.base import Decoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.inspection.capture import Capture, Layer, Role, capture
from perceiver.latents import Schedule
from perceiver.types import Axis, Grid, Picture, Span
from tests.models import DIM, NUM_CLASSES, PERCEIVER_IO, small_inputs, small_perceiver

CROSS_HEADS = BlockSpec(num_heads=3, qk_dim=3 * 5, v_dim=3 * 7)
DECODE_HEADS = BlockSpec(num_heads=5, qk_dim=5 * 2, v_dim=5 * 3)


class CausalDecoder(Decoder):
    """Queries that read each other causally and then the latents, as a text decoder does."""

    def __init__(self, *, dim: int, query_dim: int) -> None:
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(7, query_dim))
        self.self_block = SelfBlock(dim=query_dim, spec=DECODE_HEADS)
        self.cross_block = CrossBlock(query_dim=query_dim, input_dim=dim, spec=DECODE_HEADS)

    def forward(self, latents: Tensor) -> Tensor:
        queries = self.self_block(self.queries.expand(latents.shape[0], -1, -1), causal=True)
        return self.cross_block(queries, latents)


def perceiver(**overrides) -> Perceiver:
    """Three cross-attends, the last two with shared weights, interleaved with self-attention; pooled."""
    return sharpened(small_perceiver(**({"cross_attention": CROSS_HEADS} | overrides)))


def perceiver_io(**overrides) -> Perceiver:
    """One cross-attend; each class asks for itself."""
    decoder = QueryDecoder(dim=DIM, num_classes=NUM_CLASSES, query_dim=13, attention=DECODE_HEADS, query_per_class=True)
    return perceiver(**({"schedule": Schedule(num_self_attends=2, **PERCEIVER_IO), "decoder": decoder} | overrides))


def perceiver_causal() -> Perceiver:
    return perceiver_io(decoder=CausalDecoder(dim=DIM, query_dim=13))


def perceiver_pooled_io() -> Perceiver:
    return perceiver_io(decoder=PooledDecoder(dim=DIM, num_classes=NUM_CLASSES))


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


def look(model: Perceiver, inputs: dict[str, Tensor] | None = None, masks: dict[str, Tensor] | None = None) -> Capture:
    """What `model` attends to."""
    with capture(model) as captured:
        model(small_inputs() if inputs is None else inputs, masks)
    return captured


def layer(role: Role, weights: Tensor) -> Layer:
    """A layer that has exactly these weights, [batch, heads, queries, keys], as long as their rows sum to one."""
    keys = torch.eye(weights.shape[-1]).expand(*weights.shape[:2], -1, -1)
    return Layer(role, weights.clamp_min(1e-30).log() * weights.shape[-1] ** 0.5, keys, mask=None, causal=False)


def captured_with(spans: dict[str, Span], **layers: Layer) -> Capture:
    """A capture made by hand."""
    made = Capture()
    made.spans, made.layers = spans, layers
    return made


def grid(rows: int, columns: int, cell: int = 1) -> Grid:
    """A grid over an image with cells of some pixels' width."""
    return Grid((rows, columns), (Axis("y", "px", 0.0, rows * cell), Axis("x", "px", 0.0, columns * cell)))


def images_of(inputs: dict[str, Tensor]) -> dict[str, Picture]:
    """What there is to see of images."""
    return {name: Picture(raw, grid(*raw.shape[-2:]), "") for name, raw in inputs.items()}
