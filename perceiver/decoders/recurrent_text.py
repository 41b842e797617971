"""An autoregressive recurrent decoder with attention to the memory.

Its order is that of Luong et al. (2015, arXiv:1508.04025, section 3): recurrent layers compute h from the embedded
token, attention of h to the memory gives the context c, and an attentional vector a predicts the next token:

    a = tanh(W [c; h])      logits = V a

With input feeding (section 3.3), a is also an input of the next step. Without it, no step depends on the attention of
another, so that a whole text takes one call of the layers and one of the attention. Bahdanau et al. (2015) attend
before the recurrent layer instead. Deviations: c is the output of the project's `Attention`, with its projections; a is
as wide as the embeddings, so that V can be the embeddings; the memory is normalized (Ba et al. 2016), without which the
first state and the scores start too small to depend on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceiver.attention import Attention, BlockSpec, KeyValueCache
from perceiver.decoders.base import LOGITS, Decoder, given_token_ids
from perceiver.queries.text import Text
from perceiver.recurrent import RecurrentSpec, RecurrentState, run_layers
from perceiver.roles import DECODE
from perceiver.types import IncrementalDecoder, Memory, QueryKind

Initial: TypeAlias = Literal["zeros", "mean", "ends"]
"""What the first state is computed from: nothing, the mean of the memory, or its first and last real element, which
hold the ends of an encoder that runs in both directions."""


@dataclass
class DecoderState:
    """The state of texts before their next token.

    Attributes:
        recurrent: of the layers.
        attentional: the attentional vectors of the last token, if they are fed back.
        memory: its projected keys and values.
    """

    recurrent: RecurrentState
    attentional: Float[Tensor, "batch 1 dim"] | None
    memory: KeyValueCache = field(default_factory=lambda: KeyValueCache(grows=False))


class RecurrentTextDecoder(Decoder):
    """Memory and token ids -> `logits` of the next token at each position.

    Args:
        dim: width of the memory.
        queries: embeds the token ids.
        recurrent: sizes of the layers.
        attention: sizes of the attention; None for none: then only the first state depends on the memory.
        input_feeding: whether the attentional vector is an input of the next step.
        teacher_forcing: probability in training that a step gets the correct token rather than the likeliest one
            (Bengio et al. 2015). Less than 1 is slower, as steps depend on each other.
        initial: see `Initial`.
        tied: whether the embeddings are also the weights of the output layer (Press & Wolf 2017).

    Raises:
        ValueError: `teacher_forcing` is not in [0, 1], or `initial` is unknown.
    """

    def __init__(
        self,
        *,
        dim: int,
        queries: Text,
        recurrent: RecurrentSpec,
        attention: BlockSpec | None,
        input_feeding: bool,
        teacher_forcing: float,
        initial: Initial,
        tied: bool,
    ) -> None:
        super().__init__()
        if not 0.0 <= teacher_forcing <= 1.0:
            raise ValueError(f"teacher_forcing={teacher_forcing} must be in [0, 1]")
        if initial not in ("zeros", "mean", "ends"):
            raise ValueError(f"initial={initial!r} must be zeros, mean or ends")
        hidden_dim = recurrent.hidden_dim
        self.norm = nn.LayerNorm(dim)
        self.recurrent = recurrent
        self.input_feeding = input_feeding
        self.teacher_forcing = teacher_forcing
        self.initial: Initial = initial
        self.queries = queries
        self.dropout = nn.Dropout(recurrent.dropout)
        if initial != "zeros":
            size = recurrent.num_states * recurrent.num_layers * hidden_dim
            self.first = nn.Linear(dim * (2 if initial == "ends" else 1), size)
        input_dim = queries.dim * (2 if input_feeding else 1)
        self.layers = recurrent.layers(input_dim, recurrent.num_layers)
        self.attention = (
            None if attention is None else Attention(query_dim=hidden_dim, input_dim=dim, spec=attention, role=DECODE)
        )
        self.combine = nn.Linear(hidden_dim * (1 if attention is None else 2), queries.dim)
        self.head = nn.Linear(queries.dim, queries.embedding.num_embeddings)
        if tied:
            self.head.weight = queries.embedding.weight

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        return {LOGITS: "token_ids"}

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        ids = given_token_ids(queries)
        memory = self.normalized(memory).repeat(ids.shape[0] // memory.values.shape[0])
        state = self.start(memory)
        if not self.input_feeding and not (self.training and self.teacher_forcing < 1.0):
            return {LOGITS: self.step(memory, ids, state)}
        logits: list[Tensor] = []
        for place in range(ids.shape[1]):
            given = ids[:, place : place + 1]
            if self.training and place and self.teacher_forcing < 1.0:
                correct = torch.rand(given.shape, device=given.device) < self.teacher_forcing
                given = given.where(correct, logits[-1].argmax(dim=-1))
            logits.append(self.step(memory, given, state, place))
        return {LOGITS: torch.cat(logits, dim=1)}

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        return RecurrentText(self, memory) if output == LOGITS else super().incremental_decoder(memory, output)

    def normalized(self, memory: Memory) -> Memory:
        """Return the memory as the decoder reads it."""
        return replace(memory, values=self.norm(memory.values))

    def start(self, memory: Memory) -> DecoderState:
        """Return the state before the first token, from a normalized memory."""
        layers, width = self.recurrent.num_layers, self.recurrent.hidden_dim
        if self.initial == "zeros":
            shape = (self.recurrent.num_states, layers, memory.values.shape[0], width)
            states = memory.values.new_zeros(shape)
        else:
            read = memory.mean() if self.initial == "mean" else ends_of(memory)
            states = rearrange(
                self.first(read).tanh(),
                "batch (states layers width) -> states layers batch width",
                layers=layers,
                width=width,
            ).contiguous()
        fed = memory.values.new_zeros(memory.values.shape[0], 1, self.queries.dim) if self.input_feeding else None
        return DecoderState(states.unbind(), fed)

    def step(
        self, memory: Memory, ids: Int[Tensor, "batch length"], state: DecoderState, start: int = 0
    ) -> Float[Tensor, "batch length vocab"]:
        """Return logits of the next token after each of `ids`, and update the state.

        Args:
            memory: normalized, one row for each text.
            ids: token ids; one for each text with input feeding.
            state: before them.
            start: position of the first.
        """
        x = self.dropout(self.queries(ids, start).values)
        if state.attentional is not None:
            x = torch.cat([x, state.attentional], dim=-1)
        hidden, state.recurrent = run_layers(self.layers, x, state.recurrent)
        if self.attention is not None:
            context = self.attention(hidden, memory.values, mask=memory.mask, cache=state.memory)
            hidden = torch.cat([context, hidden], dim=-1)
        attentional = self.combine(self.dropout(hidden)).tanh()
        if self.input_feeding:
            state.attentional = attentional
        return self.head(self.dropout(attentional))


def ends_of(memory: Memory) -> Float[Tensor, "batch ends"]:
    """Return the first and the last real element of a memory, concatenated; zeros where there is none."""
    values, mask = memory.values, memory.mask
    if mask is None:
        return torch.cat([values[:, 0], values[:, -1]], dim=1)
    first = mask.int().argmax(dim=1)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    ends = torch.stack([first, last], dim=1)[..., None]
    found = values.gather(1, ends.expand(-1, -1, values.shape[2])).where(mask.any(dim=1)[:, None, None], 0.0)
    return found.flatten(1)


class RecurrentText:
    """Texts in generation, one per row."""

    def __init__(self, decoder: RecurrentTextDecoder, memory: Memory) -> None:
        self.decoder = decoder
        self.memory = decoder.normalized(memory)
        self.length = 0
        self.state = decoder.start(self.memory)

    def next(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append a token to each text, and return logits of the next one."""
        logits = self.decoder.step(self.memory, ids[:, None], self.state, self.length)
        self.length += 1
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Continue with some of the texts, in any order, each any number of times."""
        state = self.state
        self.memory = self.memory.select(rows)
        state.memory.select(rows)
        state.recurrent = tuple(part[:, rows] for part in state.recurrent)
        if state.attentional is not None:
            state.attentional = state.attentional[rows]
