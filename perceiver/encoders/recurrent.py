"""Recurrent layers over the tokens of any encoder: LSTM or GRU, in both directions, over time at decreasing rates.

The pyramid is that of Listen, Attend and Spell (Chan et al. 2016, arXiv:1508.01211, eq. 5): between two layers, each
pair of successive outputs is concatenated, which halves the number of tokens. An odd last one is paired with zeros.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from perceiver.encoders.base import Encoder, check_sizes
from perceiver.types import Grid, Picture, Sound, Tokens

RecurrentState: TypeAlias = tuple[Tensor, ...]
"""The hidden state of all layers [layers, batch, hidden_dim]; of an LSTM also the cell state."""


@dataclass(frozen=True, kw_only=True)
class RecurrentSpec:
    """The sizes of recurrent layers.

    Attributes:
        cell: `gru` (Cho et al. 2014) or `lstm` (Hochreiter & Schmidhuber 1997).
        hidden_dim: width of the hidden state, in each direction.
        num_layers: layers.
        dropout: probability that a channel is dropped from the input of each layer, and from the output of a decoder.

    Raises:
        ValueError: `cell` is unknown, a size is less than 1, or `dropout` is not in [0, 1).
    """

    cell: Literal["gru", "lstm"]
    hidden_dim: int
    num_layers: int
    dropout: float

    def __post_init__(self) -> None:
        check_sizes(hidden_dim=self.hidden_dim, num_layers=self.num_layers)
        if self.cell not in ("gru", "lstm"):
            raise ValueError(f"cell={self.cell!r} must be gru or lstm")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")

    @property
    def num_states(self) -> int:
        """Number of tensors of a `RecurrentState`."""
        return 2 if self.cell == "lstm" else 1

    def layers(self, input_dim: int, num_layers: int, *, bidirectional: bool = False) -> nn.GRU | nn.LSTM:
        """Build layers, without dropout of their input."""
        kind = nn.LSTM if self.cell == "lstm" else nn.GRU
        return kind(
            input_dim,
            self.hidden_dim,
            num_layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=self.dropout if num_layers > 1 else 0.0,
        )


def run_layers(
    layers: nn.GRU | nn.LSTM,
    x: Float[Tensor, "batch length input_dim"],
    state: RecurrentState | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], RecurrentState]:
    """Run recurrent layers over the real elements of sequences alone, as if the others were not there.

    Args:
        layers: an LSTM or GRU.
        x: inputs.
        state: the state before the first element; None for zeros.
        mask: True where an element is real, at any positions.

    Returns:
        The outputs, zeros where the mask is False; and the state after the last element.
    """
    before = state if state is None or isinstance(layers, nn.LSTM) else state[0]
    # cuDNN has no backward pass in evaluation, which relevance needs.
    explained = x.is_cuda and not layers.training and torch.is_grad_enabled()
    with torch.backends.cudnn.flags(enabled=False) if explained else nullcontext():
        if mask is None or mask.is_meta:
            out, after = layers(x, before)
        else:
            first = mask.int().argsort(dim=1, descending=True, stable=True)[..., None]  # real ones first, in order
            real = x.masked_fill(~mask[..., None], 0.0).take_along_dim(first, dim=1)
            lengths = mask.sum(dim=1).clamp_min(1).cpu()
            packed = pack_padded_sequence(real, lengths, batch_first=True, enforce_sorted=False)
            packed_out, after = layers(packed, before)
            padded, _ = pad_packed_sequence(packed_out, batch_first=True, total_length=x.shape[1])
            out = padded.take_along_dim(first.argsort(dim=1), dim=1).masked_fill(~mask[..., None], 0.0)
    return out, after if isinstance(after, tuple) else (after,)


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
    values = rearrange(F.pad(tokens.values, (0, 0, 0, missing)), "batch (pairs two) dim -> batch pairs (two dim)", two=2)
    mask = None
    if tokens.mask is not None:
        pairs = rearrange(F.pad(tokens.mask, (0, missing)), "batch (pairs two) -> batch pairs two", two=2)
        mask = pairs.any(dim=2)
    stop = axis.value(2 * count / shape[number])
    changed = [replace(one, stop=stop) if one is axis else one for one in axes]
    sizes = [count if other == number else size for other, size in enumerate(shape)]
    return Tokens(values, mask, Grid(tuple(sizes), tuple(changed)))
