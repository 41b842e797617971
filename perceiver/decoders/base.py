"""The contract of a decoder: memory and queries -> outputs by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from perceiver.types import IncrementalDecoder, Memory

LOGITS = "logits"
"""The name of the output of a decoder with a single one."""


class Decoder(nn.Module, ABC):
    """Computes outputs from the memory; its attention declares the role `DECODE` or `DECODE_SELF`."""

    @property
    def needs_target_tokens(self) -> tuple[str, ...]:
        """The autoregressive outputs, whose queries are the tokens before each predicted one."""
        return ()

    @abstractmethod
    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the outputs by name.

        Args:
            memory: one row per sample.
            queries: output -> token ids [rows, length], for those in `needs_target_tokens`; the same number of
                sequences for each sample, those of one sample in succession.
        """

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Start generating an output in `needs_target_tokens`, one sequence per row of the memory.

        Raises:
            ValueError: the decoder does not generate this output.
        """
        raise ValueError(f"{type(self).__name__} generates no output {output!r}")
