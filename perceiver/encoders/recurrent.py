"""Recurrent layers over the tokens of any encoder: LSTM or GRU, in both directions, over time at decreasing rates.

The pyramid is that of Listen, Attend and Spell (Chan et al. 2016, arXiv:1508.01211, eq. 5): between two layers, each
pair of successive outputs is concatenated, which halves the number of tokens. An odd last one is paired with zeros.
"""

from dataclasses import replace
from math import ceil

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.encoders.base import Encoder
from perceiver.recurrent import RecurrentSpec, run_layers
from perceiver.types import Grid, Picture, Sound, Tokens


class RecurrentEncoder(Encoder):
    """Updates the tokens of another encoder by recurrent layers, in the order of its tokens.

    Args:
        encoder: makes the tokens.
        recurrent: sizes of the layers.
        bidirectional: whether each layer runs in both directions, whose outputs are concatenated.
        pyramid: whether the number of tokens is halved before each layer but the first; the tokens must then have one
            axis, or one with more than one cell.
    """

    def __init__(self, *, encoder: Encoder, recurrent: RecurrentSpec, bidirectional: bool, pyramid: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid
        self.dim = recurrent.hidden_dim * (2 if bidirectional else 1)
        widths = [encoder.dim, *[self.dim * (2 if pyramid else 1)] * (recurrent.num_layers - 1)]
        self.layers = nn.ModuleList(recurrent.layers(width, 1, bidirectional=bidirectional) for width in widths)
        self.dropout = nn.Dropout(recurrent.dropout)

    def forward(self, raw: Tensor, mask: Tensor | None = None) -> Tokens:
        tokens = self.encoder(raw, mask)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.GRU | nn.LSTM)
            if self.pyramid and number:
                tokens = concatenate_pairs(tokens)
            values, _ = run_layers(layer, self.dropout(tokens.values), mask=tokens.mask)
            tokens = replace(tokens, values=values)
        return tokens

    def picture(self, raw: Tensor) -> Picture | None:
        return self.encoder.picture(raw)

    def sound(self, raw: Tensor) -> Sound | None:
        return self.encoder.sound(raw)

    def example_input(self) -> Tensor:
        return self.encoder.example_input()


def concatenate_pairs(tokens: Tokens) -> Tokens:
    """Concatenate each two successive tokens; an odd last one is followed by zeros, beyond the end of its axis.

    Raises:
        ValueError: the grid has several axes with more than one cell.
    """
    shape, axes = tokens.grid.shape, tokens.grid.axes
    long = [number for number, size in enumerate(shape) if size > 1]
    if len(long) > 1:
        raise ValueError(f"pyramid=true needs tokens along one axis, not a grid of shape {list(shape)}")
    number = long[0] if long else len(shape) - 1
    count, axis = ceil(shape[number] / 2), axes[number]
    missing = 2 * count - shape[number]
    values = rearrange(
        F.pad(tokens.values, (0, 0, 0, missing)), "batch (pairs two) dim -> batch pairs (two dim)", two=2
    )
    mask = None
    if tokens.mask is not None:
        pairs = rearrange(F.pad(tokens.mask, (0, missing)), "batch (pairs two) -> batch pairs two", two=2)
        mask = pairs.any(dim=2)
    stop = axis.value(2 * count / shape[number])
    changed = [replace(one, stop=stop) if one is axis else one for one in axes]
    sizes = [count if other == number else size for other, size in enumerate(shape)]
    return Tokens(values, mask, Grid(tuple(sizes), tuple(changed)))
