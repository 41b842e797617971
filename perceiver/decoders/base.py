"""The contract of a decoder: memory and queries -> outputs by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from perceiver.types import IncrementalDecoder, Memory

LOGITS = "logits"
"""The output of a decoder that has one."""


class Decoder(nn.Module, ABC):
    """Reads outputs off the memory; its attention declares the role `DECODE` or `DECODE_SELF`."""

    @property
    def needs_target_tokens(self) -> tuple[str, ...]:
        """The outputs that predict a sequence token by token, and so need the tokens before each as queries."""
        return ()

    @abstractmethod
    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            memory: a row a sample.
            queries: output -> token ids [rows, length], for those in `needs_target_tokens`. There may be several
                sequences for each sample, as many for each, one after the other.
        """

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        """Begin to generate one of the outputs in `needs_target_tokens`, a sequence for each row of the memory."""
        raise ValueError(f"{type(self).__name__} generates no output {output!r}")
