"""The batches of one optimizer step, over accumulation and processes, and the mean loss over all their terms.

One large batch, its parts accumulated, and its parts on several processes give the same step. Lightning averages the
batches' means, whatever their sizes. Here each mean is weighted by its number of terms relative to the first batch's,
since a sum of terms could overflow in half precision, and the accumulated gradient is corrected to the mean over the
total before its norm is computed.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from perceiver.processes import all_gather, is_distributed


class AccumulatedBatch(NamedTuple):
    """The loss of a batch.

    Attributes:
        mean_loss, terms: mean loss over all processes, and its number of terms.
        local_loss, ids: mean loss and samples of this process.
    """

    mean_loss: Float[Tensor, ""]
    terms: Float[Tensor, ""]
    local_loss: Float[Tensor, ""]
    ids: list[str]


class Accumulation:
    """The batches since the last optimizer step, in order."""

    def __init__(self) -> None:
        self.batches: list[AccumulatedBatch] = []

    def add(self, loss: Float[Tensor, ""], terms: Float[Tensor, ""], ids: list[str]) -> Float[Tensor, ""]:
        """Add a batch of this process: mean loss, number of terms, samples.

        Returns:
            The weight of the loss in the accumulated gradient.
        """
        loss = loss.detach()
        total, mean, world_size = terms, torch.where(terms > 0, loss, 0.0), 1
        if is_distributed():
            sums = torch.stack([terms, mean * terms])
            distributed.all_reduce(sums)
            total, mean = sums[0], sums[1] / _nonzero(sums[0])
            world_size = distributed.get_world_size()  # gradients are averaged over processes
        self.batches.append(AccumulatedBatch(mean, total, loss, ids))
        return terms * world_size / self._reference_terms

    @property
    def _reference_terms(self) -> Float[Tensor, ""]:
        """The number of terms that has weight 1: that of the first batch that has any."""
        reference = self.batches[0].terms
        for batch in self.batches[1:]:
            reference = torch.where(reference > 0, reference, batch.terms)
        return _nonzero(reference)

    @property
    def terms(self) -> Float[Tensor, ""]:
        return torch.stack([batch.terms for batch in self.batches]).sum()

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The mean over all terms."""
        mean, terms = self.batches[0].mean_loss, self.batches[0].terms
        for batch in self.batches[1:]:
            terms = terms + batch.terms
            mean = mean + (batch.mean_loss - mean) * (batch.terms / _nonzero(terms))
        return mean

    def correction(self, num_batches: int) -> float:
        """The factor that makes the sum of weighted gradients, divided by `num_batches`, the mean over all terms."""
        return float(num_batches * self._reference_terms / _nonzero(self.terms))

    @property
    def is_finite(self) -> Tensor:
        return torch.stack([batch.mean_loss.isfinite() for batch in self.batches]).all()

    def nonfinite_samples(self) -> list[str]:
        """The samples of all processes whose loss is not finite, or else all samples. A collective operation."""
        own = [(sample, bool(batch.local_loss.isfinite())) for batch in self.batches for sample in batch.ids]
        samples = [pair for of_process in all_gather(own) for pair in of_process]
        return [sample for sample, finite in samples if not finite] or [sample for sample, _ in samples]


def _nonzero(terms: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A number of terms as a divisor: 1 in place of 0."""
    return torch.where(terms > 0, terms, 1.0)
