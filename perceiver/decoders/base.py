"""What every decoder is: latents -> outputs."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Decoder(nn.Module, ABC):
    """Reads an answer off the latents; behind them come the queries, where it does not ask by itself."""

    @abstractmethod
    def forward(self, latents: Float[Tensor, "batch latents dim"], *args: Any, **kwargs: Any) -> Tensor: ...
