"""The structures that cross package borders: samples and batches, and tokens with a way back to their input.

Shape vocabulary of the whole code base: batch, tokens, latents, queries, keys, heads, dim, channels, classes, length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, Self, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Stage: TypeAlias = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Axis:
    """One axis of a token grid in physical units; its cells are equally wide between `start` and `stop`.

    `scale` says on which scale they are equally wide: `linear` in `unit`, or `mel` (then `start` and `stop` are Hz).
    """

    name: str
    unit: str
    start: float
    stop: float
    scale: Literal["linear", "mel"] = "linear"


@dataclass(frozen=True)
class Grid:
    """How a token sequence lies over its input: cells per axis (row-major) and what the axes measure."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def num_tokens(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Tokens:
    """What an encoder makes of one modality. `mask` is True where a token is real; None means all are."""

    values: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None
    grid: Grid


@dataclass(frozen=True)
class Span:
    """The place of one modality in the joined token sequence."""

    start: int
    stop: int
    grid: Grid


@dataclass(frozen=True)
class JoinedTokens:
    """All modalities of a batch as one sequence; `spans` finds each again."""

    values: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None
    spans: dict[str, Span]


@dataclass(frozen=True)
class Sample:
    """One item of a dataset.

    Attributes:
        inputs: modality name -> raw input as its encoder takes it (an image: channels height width, in [0, 1]).
        targets: name -> what is to be predicted or is known to be true (`label`, later `tags`, `captions`, `boxes`).
        id: where the sample comes from (a path, or `digits/17`): named in every error, caption and table.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    id: str


@dataclass
class Batch:
    """Samples, stacked.

    Attributes:
        inputs: modality name -> raw inputs, batch first.
        targets: name -> Tensor, batch first, or a list with one entry a sample where the entries are not tensors.
        ids: the samples' ids.
        masks: modality name -> Bool, True where the input is real: [batch] where a modality is missing for whole
            samples, [batch, *sizes of the input without channels] where inputs were padded to one size.
        unreadable: what was left out because it could not be read: one message a sample, naming it.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Any]
    ids: list[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with `function` applied to every tensor, those in lists of targets among them."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(child) for name, child in value.items()}
            if isinstance(value, list):
                return [apply(child) for child in value]
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, inputs=apply(self.inputs), targets=apply(self.targets), masks=apply(self.masks))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(lambda tensor: tensor.pin_memory())
