"""Queries of several outputs for one cross-attention (Perceiver IO, section 3.2 and appendix F)."""

from collections.abc import Mapping

import torch
from torch import nn

from perceiver.queries.base import Queries
from perceiver.types import Tokens

MIN_EMBEDDING = 4
"""Least width of the vector that identifies an output; that of modalities in `perceiver.model`."""


class Joined(nn.Module):
    """Queries by name of the output, padded to a common width with a learned vector that also identifies the output.

    Args:
        queries: output -> its queries.
        min_embedding: least width of the vector; DeepMind's multimodal decoder has 2.

    Raises:
        ValueError: there is no output, or some have shared positions in their first columns and others do not.
    """

    def __init__(self, *, queries: Mapping[str, Queries], min_embedding: int = MIN_EMBEDDING) -> None:
        super().__init__()
        if not queries:
            raise ValueError("queries={}: name at least one output")
        shared = [part.shared_positions for part in queries.values()]
        if any(one != shared[0] for one in shared):
            raise ValueError(f"queries={list(queries)}: shared_positions must be the same for all")
        self.shared_positions = shared[0]
        self.queries = nn.ModuleDict(queries)
        several = len(queries) > 1
        self.dim = max(part.dim for part in queries.values()) + (min_embedding if several else 0)
        self.embeddings = nn.ParameterDict(
            {name: torch.empty(self.dim - part.dim) for name, part in queries.items()} if several else {}
        )
        for embedding in self.embeddings.values():
            nn.init.trunc_normal_(embedding, std=0.02, a=-2.0, b=2.0)

    @property
    def by_output(self) -> dict[str, Queries]:
        return {name: part for name, part in self.queries.items() if isinstance(part, Queries)}

    def widen(self, output: str, tokens: Tokens) -> Tokens:
        """Pad the queries of an output to the common width."""
        if output not in self.embeddings:
            return tokens
        embedding = self.embeddings[output].to(tokens.values.dtype).expand(*tokens.values.shape[:2], -1)
        return Tokens(torch.cat([tokens.values, embedding], dim=-1), tokens.mask, tokens.grid)
