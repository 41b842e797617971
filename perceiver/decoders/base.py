"""The contract of a decoder: memory and queries -> outputs by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from perceiver.types import IncrementalDecoder, Memory, QueryKind

LOGITS = "logits"
"""The name of the output of a decoder with a single one."""


class Decoder(nn.Module, ABC):
    """Computes outputs from the memory; its attention declares the role `DECODE` or `DECODE_SELF`."""

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        """The outputs for which queries must be given, and what they are."""
        return {}

    @property
    def accepts_queries(self) -> dict[str, QueryKind]:
        """The outputs for which queries may be given, and what they are."""
        return self.needs_queries

    def set_input_dim(self, input_dim: int) -> None:
        """Build what depends on the width of the input tokens; the model calls it once, when it knows them."""

    @abstractmethod
    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the outputs by name.

        Args:
            memory: one row per sample.
            queries: for each output in `needs_queries`, its places [batch, places, axes]; or token ids [rows, length],
                the same number of sequences for each sample, those of one sample in succession.
        """

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Start generating an output whose queries are token ids, one sequence per row of the memory.

        Raises:
            ValueError: the decoder does not generate this output.
        """
        raise ValueError(f"{type(self).__name__} generates no output {output!r}")


def given_token_ids(queries: Mapping[str, Tensor] | None) -> Tensor:
    """Return the token ids among the queries of a decoder with a single output.

    Raises:
        ValueError: they are missing.
    """
    if queries is None or LOGITS not in queries:
        raise ValueError(f"queries lack {LOGITS!r}: the token ids of the text")
    return queries[LOGITS]
