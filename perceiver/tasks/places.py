"""Tasks with an output for each cell of an input: some places in training, all of them in evaluation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from perceiver.tasks.base import Task, explained_grid
from perceiver.types import Batch, Model, QueryKind, cell_centers


class PlacesTask(Task):
    """Interprets a dense output [batch, places, channels] (`DenseDecoder`); abstract.

    In training, places are drawn at random for each sample, as the target `places/<output>`: numbers of cells.

    Args:
        modality: the input whose cells the places are.
        num_places: places of each sample that are drawn in a training step.
        output: name of the output.

    Raises:
        ValueError: `num_places` is less than 1.
    """

    def __init__(self, *, modality: str, num_places: int, output: str) -> None:
        super().__init__()
        if num_places < 1:
            raise ValueError(f"num_places={num_places} must be at least 1")
        self.modality = modality
        self.num_places = num_places
        self.output = output

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "places"}

    def cells(self, raw: Tensor) -> tuple[int, ...]:
        """Return the grid of an input of the modality: by default all axes but channels."""
        return tuple(raw.shape[2:])

    def grid(self, batch: Batch) -> tuple[int, ...]:
        """Return the grid of the input.

        Raises:
            ValueError: the samples do not have it.
        """
        if self.modality not in batch.inputs:
            raise ValueError(f"modality={self.modality!r}: the samples have {', '.join(batch.inputs)}")
        return self.cells(batch.inputs[self.modality])

    @property
    def _key(self) -> str:
        return f"places/{self.output}"

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        """Draw the places, in training."""
        if not train:
            return batch
        num_cells, device = math.prod(self.grid(batch)), batch.inputs[self.modality].device
        places = torch.randint(num_cells, (len(batch), self.num_places), device=device)
        return replace(batch, targets={**batch.targets, self._key: places})

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        shape, raw = self.grid(batch), batch.inputs[self.modality]
        centers = cell_centers(shape, raw.device)
        chosen = batch.targets.get(self._key)
        return {self.output: centers.expand(len(raw), -1, -1) if chosen is None else centers[chosen]}

    def at_places(
        self, values: Shaped[Tensor, "batch cells *rest"], batch: Batch
    ) -> Shaped[Tensor, "batch places *rest"]:
        """Return the values of all cells at the places that were drawn, if any were."""
        chosen = batch.targets.get(self._key)
        return values if chosen is None else values[torch.arange(len(values), device=values.device)[:, None], chosen]

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Float[Tensor, "batch places axes"]]:
        """Return the places of a grid of at most `EXPLAINED_PLACES` cells."""
        raw, coarse = batch.inputs[self.modality], explained_grid(self.grid(batch))
        return {self.output: cell_centers(coarse, raw.device).expand(len(raw), -1, -1)}
