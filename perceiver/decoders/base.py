"""What every decoder is: latents -> outputs."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Decoder(nn.Module, ABC):
    """Reads an answer off the latents."""

    @abstractmethod
    def forward(self, latents: Float[Tensor, "batch latents dim"]) -> Tensor: ...
