"""The latent array reads the tokens by cross-attention and is processed by self-attention.

Perceiver (Jaegle et al. 2021, section 3.1) and the encoder of Perceiver IO (Jaegle et al. 2022, section 3.1) are two
settings of one schedule: a sequence of `num_blocks` blocks of `num_self_attends` self-attention layers; before each of
the first `num_cross_attends` blocks, the latents read the tokens:

    Perceiver      num_cross_attends=8  num_blocks=8  cross_sharing=all_but_first  block_sharing=all
    Perceiver IO   num_cross_attends=1  num_blocks=8  cross_sharing=none           block_sharing=all
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from einops import repeat
from torch import Tensor, nn

from perceiver.attention import (
    BlockSpec,
    CrossBlock,
    SelfBlock,
    add_nothing_to_columns,
    attend_to_equal_places,
    run_block,
)
from perceiver.positions import SharedPositions
from perceiver.roles import CROSS, SELF
from perceiver.types import JoinedTokens, Memory

Sharing: TypeAlias = Literal["none", "all", "all_but_first"]
"""Which repetitions share their weights."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers of cross-attends and self-attention blocks, and which of them share weights.

    Attributes:
        reads: for each cross-attend, the modalities whose tokens it reads; None: all read all. A cross-attend whose
            modalities are missing adds nothing but biases. With [[image], [text], [image]], latents describe the image
            before they read the text, and attention is not divided between many tokens and few (as in Q-Former, Li et
            al. 2023, arXiv:2301.12597, whose queries read the text in layers of their own).

    Raises:
        ValueError: a count is out of range, or `reads` does not name modalities for each cross-attend.
    """

    num_cross_attends: int
    num_blocks: int
    num_self_attends: int
    cross_sharing: Sharing = "none"
    block_sharing: Sharing = "none"
    reads: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_blocks", 1), ("num_self_attends", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 1 <= self.num_cross_attends <= self.num_blocks:
            raise ValueError(f"num_cross_attends={self.num_cross_attends} must be 1 to num_blocks={self.num_blocks}")
        if self.reads is not None and (len(self.reads) != self.num_cross_attends or not all(self.reads)):
            raise ValueError(
                f"reads={[list(names) for names in self.reads]} must name the modalities of each of "
                f"num_cross_attends={self.num_cross_attends}"
            )


def shared_index(repetition: int, sharing: Sharing) -> int:
    """Return the index of the weights of a repetition."""
    return {"none": repetition, "all": 0, "all_but_first": min(repetition, 1)}[sharing]


class LatentArray(nn.Module):
    """Tokens -> memory through the bottleneck of learned latents.

    Args:
        num_latents, dim: shape of the array. Initial values: normal, deviation 0.02, truncated at ±2 (appendix C).
        input_dim: width of the tokens.
        cross_attention, self_attention: sizes of the two kinds of block.
        activation_checkpointing: see `run_block`.
        shared_positions: if given, latents start at places spread over the shared axes, whose features replace their
            first columns, and each cross-attention prefers tokens at the place of a latent: in these columns, which
            are also the first ones of tokens, the weights of queries and keys start with the same random matrix, and
            no block adds to them at first, so that queries of a decoder find a latent at its place. All stay trainable.
            Without it, attention starts diffuse and averages over places, so that no gradient relates
            the modalities at one place.
        sharpness: of this preference, see `attend_to_equal_places`.

    Raises:
        ValueError: `num_latents` is less than 1, or `dim` less than the width of the shared positions.
    """

    def __init__(
        self,
        *,
        num_latents: int,
        dim: int,
        input_dim: int,
        cross_attention: BlockSpec,
        self_attention: BlockSpec,
        schedule: Schedule,
        activation_checkpointing: bool = False,
        shared_positions: SharedPositions | None = None,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        if num_latents < 1:
            raise ValueError(f"num_latents={num_latents} must be at least 1")
        self.schedule = schedule
        self.activation_checkpointing = activation_checkpointing
        self.array = nn.Parameter(torch.empty(num_latents, dim))
        nn.init.trunc_normal_(self.array, std=0.02, a=-2.0, b=2.0)
        num_cross = shared_index(schedule.num_cross_attends - 1, schedule.cross_sharing) + 1
        self.cross_blocks = nn.ModuleList(
            CrossBlock(query_dim=dim, input_dim=input_dim, spec=cross_attention, role=CROSS) for _ in range(num_cross)
        )
        num_blocks = shared_index(schedule.num_blocks - 1, schedule.block_sharing) + 1
        self.self_blocks = nn.ModuleList(
            nn.Sequential(
                *(SelfBlock(dim=dim, spec=self_attention, role=SELF) for _ in range(schedule.num_self_attends))
            )
            for _ in range(num_blocks)
        )
        if shared_positions is not None:
            self._initialize_at_places(shared_positions, sharpness)

    @property
    def modalities(self) -> set[str]:
        """The modalities that the schedule names."""
        return {name for names in self.schedule.reads or () for name in names}

    @property
    def ordered_blocks(self) -> list[nn.Module]:
        """The blocks in the order of their first application."""
        found: dict[nn.Module, None] = {}
        for repetition in range(self.schedule.num_blocks):
            if repetition < self.schedule.num_cross_attends:
                found[self.cross_blocks[shared_index(repetition, self.schedule.cross_sharing)]] = None
            found |= dict.fromkeys(self.self_blocks[shared_index(repetition, self.schedule.block_sharing)].children())
        return list(found)

    @torch.no_grad()
    def _initialize_at_places(self, positions: SharedPositions, sharpness: float) -> None:
        """Start each latent at a place along the shared axes, and queries and keys with equal weights for places."""
        if positions.dim > self.array.shape[1]:
            raise ValueError(f"dim={self.array.shape[1]} is less than the {positions.dim} features of shared positions")
        self.array[:, : positions.dim] = positions.spread(len(self.array))
        for block in self.cross_blocks:
            assert isinstance(block, CrossBlock)
            attend_to_equal_places(block.attention, positions.dim, sharpness)
        for block in self.modules():
            if isinstance(block, CrossBlock | SelfBlock):
                add_nothing_to_columns((block.attention.out, block.mlp[-1]), positions.dim)

    def forward(self, tokens: JoinedTokens) -> Memory:
        latents: Tensor = repeat(self.array, "latents dim -> batch latents dim", batch=tokens.values.shape[0])
        checkpointing, reads = self.activation_checkpointing, self.schedule.reads
        for repetition in range(self.schedule.num_blocks):
            if repetition < self.schedule.num_cross_attends:
                cross_block = self.cross_blocks[shared_index(repetition, self.schedule.cross_sharing)]
                mask = tokens.mask if reads is None else tokens.mask_of(reads[repetition])
                latents = run_block(cross_block, latents, tokens.values, mask=mask, checkpointing=checkpointing)
            blocks = self.self_blocks[shared_index(repetition, self.schedule.block_sharing)]
            for block in blocks.children():
                latents = run_block(block, latents, checkpointing=checkpointing)
        return Memory(latents)
