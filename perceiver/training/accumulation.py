"""The batches of one optimizer step, accumulated and of all processes, and the mean over all their terms.

One large batch, its parts accumulated, and its parts on several processes give the same step. Lightning averages the
batches' means, whatever their sizes. Here each mean is weighted by its number of terms relative to the first batch's,
since a sum of terms could overflow in half precision, and the accumulated gradient is corrected to the mean over the
total before its norm is measured.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from perceiver.processes import all_gather, is_distributed


class Part(NamedTuple):
    """One of the batches.

    Attributes:
        of_all: its mean loss over all processes.
        terms: of how many terms that is the mean.
        loss, ids: of this process: its mean loss, and its samples.
    """

    of_all: Float[Tensor, ""]
    terms: Float[Tensor, ""]
    loss: Float[Tensor, ""]
    ids: list[str]


class Accumulation:
    """What was accumulated since the last optimizer step, in the order in which it came."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def add(self, loss: Float[Tensor, ""], terms: Float[Tensor, ""], ids: list[str]) -> Float[Tensor, ""]:
        """Take in a batch of this process: its mean loss, over how many terms, and its samples.

        Returns:
            The weight of the loss in the accumulated gradient.
        """
        loss = loss.detach()
        total, of_all, world_size = terms, torch.where(terms > 0, loss, 0.0), 1
        if is_distributed():
            totals = torch.stack([terms, of_all * terms])
            distributed.all_reduce(totals)
            total, of_all = totals[0], totals[1] / _or_one(totals[0])
            world_size = distributed.get_world_size()  # over which gradients are averaged
        self.parts.append(Part(of_all, total, loss, ids))
        return terms * world_size / self._unit

    @property
    def _unit(self) -> Float[Tensor, ""]:
        """How many terms have weight 1: those of the first batch that has any."""
        unit = self.parts[0].terms
        for part in self.parts[1:]:
            unit = torch.where(unit > 0, unit, part.terms)
        return _or_one(unit)

    @property
    def terms(self) -> Float[Tensor, ""]:
        return torch.stack([part.terms for part in self.parts]).sum()

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The mean over all terms."""
        mean, terms = self.parts[0].of_all, self.parts[0].terms
        for part in self.parts[1:]:
            terms = terms + part.terms
            mean = mean + (part.of_all - mean) * (part.terms / _or_one(terms))
        return mean

    def correction(self, num_batches: int) -> float:
        """By what to multiply the gradient of the weighted losses, which was divided by `num_batches`."""
        return float(num_batches * self._unit / _or_one(self.terms))

    @property
    def is_finite(self) -> Tensor:
        return torch.stack([part.of_all.isfinite() for part in self.parts]).all()

    def nonfinite_samples(self) -> list[str]:
        """The samples of all processes whose loss is not finite, or else all samples. All processes must ask."""
        own = [(sample, bool(part.loss.isfinite())) for part in self.parts for sample in part.ids]
        read = [one for of_process in all_gather(own) for one in of_process]
        return [sample for sample, finite in read if not finite] or [sample for sample, _ in read]


def _or_one(terms: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A number of terms to divide by."""
    return torch.where(terms > 0, terms, 1.0)
