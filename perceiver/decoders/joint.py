"""Several decoders on one memory (Perceiver IO, section 3.2: any number of outputs from the same latents)."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from perceiver.decoders.base import Decoder
from perceiver.mechanisms.base import Mechanism
from perceiver.types import IncrementalDecoder, Memory, QueryKind


class JointDecoder(Decoder):
    """The outputs of all decoders; the output `x` of the decoder `name` is called `name/x`.

    Those of a decoder that needs queries are left out if it gets none.

    Args:
        decoders: name -> decoder.

    Raises:
        ValueError: there is no decoder.
    """

    def __init__(self, *, decoders: Mapping[str, Decoder]) -> None:
        super().__init__()
        if not decoders:
            raise ValueError("decoders={}: name at least one")
        self.decoders = nn.ModuleDict(decoders)
        for name, decoder in decoders.items():
            for part in decoder.modules():
                if isinstance(part, Mechanism) and part.role is not None:
                    inner = part.role.decoder
                    part.role = replace(part.role, decoder=f"{name}/{inner}" if inner else name)

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        return {f"{name}/{output}": kind for name, part in self._parts() for output, kind in part.needs_queries.items()}

    @property
    def accepts_queries(self) -> dict[str, QueryKind]:
        return {f"{name}/{key}": kind for name, part in self._parts() for key, kind in part.accepts_queries.items()}

    def set_input_dim(self, input_dim: int) -> None:
        for _, part in self._parts():
            part.set_input_dim(input_dim)

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for name, decoder in self._parts():
            own = {
                key.removeprefix(f"{name}/"): part
                for key, part in (queries or {}).items()
                if key.startswith(f"{name}/")
            }
            if own or not decoder.needs_queries:
                outputs |= {f"{name}/{output}": values for output, values in decoder(memory, own).items()}
        return outputs

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        name, _, inner = output.partition("/")
        if name not in self.decoders:
            return super().incremental_decoder(memory, output)
        return dict(self._parts())[name].incremental_decoder(memory, inner)

    def _parts(self) -> list[tuple[str, Decoder]]:
        return [(name, part) for name, part in self.decoders.items() if isinstance(part, Decoder)]
