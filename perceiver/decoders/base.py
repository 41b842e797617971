"""What every decoder is: latents -> outputs."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class Decoder(nn.Module, ABC):
    """Reads an answer off the latents; behind them come the queries, where it does not ask by itself.

    Attributes:
        is_asked: whether queries must be handed to it, as by a task that `asks`.
    """

    is_asked: ClassVar[bool] = False

    @abstractmethod
    def forward(self, latents: Float[Tensor, "batch latents dim"], *args: Any, **kwargs: Any) -> Tensor: ...
