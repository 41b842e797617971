"""Perceiver = encoders -> join -> memory -> decoder.

One class for Perceiver (Jaegle et al. 2021, arXiv:2103.03206) and Perceiver IO (Jaegle et al. 2022, arXiv:2107.14795):
they differ in the schedule (`perceiver.latents`) and in the decoder. With `Direct` instead of a latent array it is an
encoder–decoder without bottleneck.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceiver.decoders.base import Decoder
from perceiver.encoders.base import Encoder
from perceiver.encoders.norm import BatchNorm
from perceiver.positions import SharedPositions
from perceiver.processes import is_distributed
from perceiver.queries.tokens import cells_at
from perceiver.types import Grid, IncrementalDecoder, JoinedTokens, Memory, Span, Tokens, cell_centers

MODALITY_DIM = 4
"""Least width of a modality embedding (Perceiver, section 4.2; DeepMind's `min_padding_size`)."""


class Join(nn.Module):
    """Concatenates the tokens of several modalities.

    The tokens of each modality are padded to a common width with a learned vector, which also identifies the modality
    (Perceiver IO, section 3.1 and appendix F). With one modality there is no padding. Shared positions come first.

    Args:
        dims: modality -> width of its tokens.
        positions: shared positions, if any.
        masking: modality -> probability that a token, all but its shared positions, is replaced by a learned vector of
            the modality (Perceiver IO, section 4.3): in training, or, if it is 1, always.

    Raises:
        ValueError: a probability is not in [0, 1], or that of no modality.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        positions: SharedPositions | None = None,
        masking: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.masking = dict(masking or {})
        for name, probability in self.masking.items():
            if name not in dims:
                raise ValueError(f"token_masking: no encoder for modality {name!r}; this model reads {list(dims)}")
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"token_masking.{name}={probability} must be in [0, 1]")
        several = len(dims) > 1
        self.positions = positions
        width = max(dims.values()) + (MODALITY_DIM if several else 0)
        self.dim = width + (0 if positions is None else positions.dim)
        self.embeddings = nn.ParameterDict(
            {name: torch.empty(width - dim) for name, dim in dims.items()} if several else {}
        )
        self.mask_tokens = nn.ParameterDict({name: torch.empty(width) for name in self.masking})
        for vector in (*self.embeddings.values(), *self.mask_tokens.values()):
            nn.init.trunc_normal_(vector, std=0.02, a=-2.0, b=2.0)

    def forward(
        self, tokens: Mapping[str, Tokens], hidden: Mapping[str, Bool[Tensor, "batch *shape"]] | None = None
    ) -> JoinedTokens:
        """Join the tokens of each modality; those in a hidden cell are masked, see `Perceiver.forward`."""
        hidden = {name: cells for name, cells in (hidden or {}).items() if name in tokens}
        values, spans, start = [], {}, 0
        for name, part in tokens.items():
            values.append(self._widen(name, part))
            spans[name] = Span(start, start + part.values.shape[1], part.grid)
            start += part.values.shape[1]
        joined = values[0] if len(values) == 1 else torch.cat(values, dim=1)
        if not hidden and all(part.mask is None for part in tokens.values()):
            return JoinedTokens(values=joined, mask=None, spans=spans)
        masks = {name: _explicit_mask(part) for name, part in tokens.items()}
        # Only here: the mask of an encoder defines the extent of its positions.
        masks |= {name: masks[name] & ~_in_cells(tokens[name].grid, cells) for name, cells in hidden.items()}
        mask = torch.cat(list(masks.values()), dim=1)
        # A weight of zero times a value that is not finite is NaN.
        return JoinedTokens(values=joined.masked_fill(~mask[..., None], 0.0), mask=mask, spans=spans)

    def _widen(self, name: str, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        values = tokens.values
        if name in self.embeddings:
            embedding = self.embeddings[name].to(values.dtype)
            values = torch.cat([values, embedding.expand(*values.shape[:2], -1)], dim=-1)
        if name in self.masking:
            values = self._masked(name, values)
        return values if self.positions is None else torch.cat([self.positions.of_tokens(tokens), values], dim=-1)

    def _masked(self, name: str, values: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Replace tokens by the learned vector of their modality."""
        probability = self.masking[name] if self.training else float(self.masks_all(name))
        is_masked = torch.full((*values.shape[:2], 1), probability == 1.0, device=values.device)
        if 0.0 < probability < 1.0:
            is_masked = torch.rand(is_masked.shape, device=values.device) < probability
        return torch.where(is_masked, self.mask_tokens[name].to(values.dtype), values)

    def masks_all(self, name: str) -> bool:
        """Whether all tokens of a modality are always replaced, so that their values are not needed."""
        return self.masking.get(name) == 1.0


def _explicit_mask(tokens: Tokens) -> Bool[Tensor, "batch tokens"]:
    if tokens.mask is not None:
        return tokens.mask
    return torch.ones(tokens.values.shape[:2], dtype=torch.bool, device=tokens.values.device)


def _in_cells(grid: Grid, cells: Bool[Tensor, "batch *shape"]) -> Bool[Tensor, "batch tokens"]:
    """Return the value of `cells`, a grid over the same input, at the center of each token.

    Raises:
        ValueError: the grids have different numbers of axes.
    """
    places = cell_centers(grid.shape, cells.device)[None]
    return cells.flatten(1)[:, cells_at(places, cells.shape[1:])[0]]


class MemoryFactory(Protocol):
    """Builds the memory, a `LatentArray` or `Direct`, for tokens of a given width.

    One that reads modalities by name has an attribute `modalities`.
    """

    def __call__(self, *, input_dim: int) -> nn.Module: ...


class Perceiver(nn.Module):
    """The model, composed from parts; a perceiver.types.Model.

    Args:
        encoders: modality name -> encoder. The names are the keys of `inputs`.
        memory: builds the part that maps joined tokens to the memory of the decoder.
        decoder: computes the outputs from the memory.
        modality_dropout: in training, probability that a modality of a sample is masked; one is always kept (Perceiver,
            section 4.2: dropping video improved audio + video).
        shared_positions: of all tokens along axes that modalities have in common, in addition to those of encoders.
        token_masking: see `Join`. A modality whose tokens are all replaced need not be given.
        ties: parameter -> another one of the same shape, which takes its place, by their names in this module: an
            embedding as weights of an output layer (Press & Wolf 2017), for example.

    Raises:
        ValueError: there is no encoder, or none of a modality that the memory reads by name, a probability is out of
            range, or parameters cannot be tied.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, Encoder],
        memory: MemoryFactory,
        decoder: Decoder,
        modality_dropout: float = 0.0,
        shared_positions: SharedPositions | None = None,
        token_masking: Mapping[str, float] | None = None,
        ties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("a Perceiver needs at least one encoder")
        if not 0.0 <= modality_dropout < 1.0:
            raise ValueError(f"modality_dropout={modality_dropout} must be in [0, 1)")
        self.encoders = nn.ModuleDict(encoders)
        self.join = Join({name: encoder.dim for name, encoder in encoders.items()}, shared_positions, token_masking)
        self.memory = memory(input_dim=self.join.dim)
        if unknown := set(getattr(self.memory, "modalities", ())) - set(encoders):
            raise ValueError(f"reads name {sorted(unknown)}, for which there is no encoder, only for {list(encoders)}")
        self.decoder = decoder
        self.decoder.set_input_dim(self.join.dim)
        self.modality_dropout = modality_dropout
        self.ties = dict(ties or {})
        self.tie()

    def tie(self) -> None:
        """Make tied parameters the same object, as they are unless one is replaced (`load_state_dict(assign=True)`).

        Raises:
            ValueError: one does not exist, or shapes differ.
        """
        for name, source in self.ties.items():
            try:
                before, parameter = self.get_parameter(name), self.get_parameter(source)
            except AttributeError as error:
                raise ValueError(f"ties={{{name}: {source}}}: {error}") from error
            if before.shape != parameter.shape:
                shapes = f"{list(before.shape)} and {list(parameter.shape)}"
                raise ValueError(f"ties={{{name}: {source}}}: their shapes {shapes} differ")
            module, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(module), attribute, parameter)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Bool[Tensor, "batch *shape"]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs by name.

        Args:
            inputs: modality name -> raw input, batch first; any subset of the encoders' modalities.
            masks: modality name -> True where the input is real: [batch] where samples lack the modality, or
                [batch, *sizes without channels] where the input is padded.
            queries: output -> token ids or places, for outputs in the decoder's `needs_queries`.
            hidden: modality name -> True in the cells of a grid over the input, of any resolution, whose tokens are
                masked after they were encoded: their positions and those of others stay the same.

        Raises:
            ValueError: an input has no encoder, or there is none.
        """
        return self.forward_tokens(self.tokens(inputs, masks, hidden), queries)

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the outputs from tokens: `forward` after the encoders."""
        return self.decoder(replace(self.memory(tokens), tokens=tokens), queries)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Bool[Tensor, "batch *shape"]] | None = None,
    ) -> Memory:
        """Compute the memory that the decoder reads; arguments as in `forward`."""
        return self.memory(self.tokens(inputs, masks, hidden))

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Start generating an output token by token; see `Decoder.incremental_decoder`."""
        return self.decoder.incremental_decoder(memory, output)

    def tokens(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Bool[Tensor, "batch *shape"]] | None = None,
    ) -> JoinedTokens:
        """Encode and join all modalities; arguments as in `forward`."""
        masks = {} if masks is None else masks
        known = list(self.encoders)
        for name in (*inputs, *masks):
            if name not in self.encoders:
                raise ValueError(f"no encoder for modality {name!r}; this model reads {known}")
        if not inputs:
            raise ValueError(f"inputs are empty; this model reads {known}")
        tokens, zero = {}, torch.tensor(0.0)
        for name in known:
            if name in inputs:
                tokens[name] = self._tokens(name, inputs[name], masks.get(name))
            elif self.join.masks_all(name):
                tokens[name] = self._example(name, batch=next(iter(inputs.values())).shape[0])
            elif self.training:
                zero = zero + self._zero_with_gradient(name)
        if self.training and self.modality_dropout and len(tokens) > 1:
            tokens = drop_modalities(tokens, self.modality_dropout)
        joined = self.join(tokens, hidden)
        if len(tokens) == len(known):
            return joined
        return replace(joined, values=joined.values + zero.to(joined.values))

    def _tokens(self, name: str, raw: Tensor, mask: Tensor | None) -> Tokens:
        """Encode one modality; tokens of samples that lack it are masked."""
        if mask is not None and mask.ndim == 1:
            mask = mask.reshape(-1, *[1] * (raw.ndim - 2)).expand(-1, *raw.shape[2:])
        return self.encoders[name](raw, mask)

    def _example(self, name: str, batch: int) -> Tokens:
        """Return tokens whose values are not needed."""
        encoder, like = self.encoders[name], self.join.mask_tokens[name]
        assert isinstance(encoder, Encoder)
        raw = encoder.example_input()
        raw = raw.to(like if raw.is_floating_point() else like.device)
        return encoder(raw.expand(batch, *raw.shape[1:]))

    def _zero_with_gradient(self, name: str) -> Float[Tensor, ""]:
        """Return a zero that gives all parameters of a modality that no sample has a zero gradient.

        Processes whose samples have it wait for this one in the exchange of gradients and of batch statistics.
        """
        encoder = self.encoders[name]
        vectors = [group[name] for group in (self.join.embeddings, self.join.mask_tokens) if name in group]
        parts = [*encoder.parameters(), *vectors]
        if is_distributed():
            norms = [part for part in encoder.modules() if isinstance(part, BatchNorm)]
            parts += [norm(norm.weight.new_zeros(0, norm.num_features, 1, 1).requires_grad_()) for norm in norms]
        sums = [part.sum() for part in parts if part.requires_grad]
        return 0.0 * torch.stack(sums).sum() if sums else torch.tensor(0.0)


def mask_absent(tokens: Tokens, present: Bool[Tensor, " batch"]) -> Tokens:
    """Mask all tokens of the samples that lack the modality."""
    return Tokens(values=tokens.values, mask=_explicit_mask(tokens) & present[:, None], grid=tokens.grid)


def drop_modalities(tokens: Mapping[str, Tokens], probability: float) -> dict[str, Tokens]:
    """Mask each modality of each sample with the given probability, but never all that a sample has."""
    masks = [_explicit_mask(part) for part in tokens.values()]
    there = torch.stack([mask.any(dim=1) for mask in masks])
    chance = torch.rand(there.shape, device=there.device)
    # Of the modalities of a sample, the one with the highest draw is always kept.
    kept = (chance >= probability) | (
        chance.masked_fill(~there, -1.0).argmax(dim=0) == torch.arange(len(masks), device=there.device)[:, None]
    )
    return {name: mask_absent(part, present) for (name, part), present in zip(tokens.items(), kept, strict=True)}
