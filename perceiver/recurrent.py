"""Recurrent layers, LSTM or GRU, over sequences with masks."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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
        for name in ("hidden_dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
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
    if torch.compiler.is_exporting():
        return _run_steps(layers, x, state, mask)
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


def _run_steps(
    layers: nn.GRU | nn.LSTM, x: Tensor, state: RecurrentState | None, mask: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    """Do the same as `run_layers` in evaluation, step by step: a graph of fixed length cannot hold packed sequences."""
    num_states, directions = 2 if isinstance(layers, nn.LSTM) else 1, ["", "_reverse"][: 1 + layers.bidirectional]
    if state is None:
        zeros = x.new_zeros(layers.num_layers * len(directions), x.shape[0], layers.hidden_size)
        state = (zeros,) * num_states
    cell = torch.lstm_cell if isinstance(layers, nn.LSTM) else torch.gru_cell
    after: list[list[Tensor]] = []
    for layer in range(layers.num_layers):
        outputs = []
        for direction in directions:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(layers, f"{name}_l{layer}{direction}") for name in names]
            now = [part[len(after)] for part in state]
            steps, hidden = list(enumerate(x.unbind(1))), {}
            for step, inputs in reversed(steps) if direction else steps:
                before: Any = tuple(now) if num_states == 2 else now[0]
                new = cell(inputs, before, *weights)
                is_real = None if mask is None else mask[:, step, None]
                pairs = zip(new if isinstance(new, tuple) else (new,), now, strict=True)
                now = [one if is_real is None else torch.where(is_real, one, other) for one, other in pairs]
                hidden[step] = now[0]
            outputs.append(torch.stack([hidden[step] for step in range(len(steps))], dim=1))
            after.append(now)
        x = torch.cat(outputs, dim=2)
    out = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
    return out, tuple(torch.stack(parts) for parts in zip(*after, strict=True))
