"""REINFORCE (Williams 1992): gradients of an expected loss for modules that draw at random, by log-probabilities."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Reinforce(nn.Module):
    """Records the draws of a forward pass in training, and turns them into an auxiliary loss.

    Its gradient is an unbiased estimate of that of the expected loss with respect to the probabilities of the draws:
    the mean of (loss - baseline) ∇ log p (Xu et al. 2015, section 4.1), less `entropy` times that of the
    entropy. The baseline is the moving mean of the loss over earlier steps, in the first step that of the batch.

    Args:
        entropy: factor of the entropy of each draw, which is maximized.
        momentum: of the moving mean; 0.9 in the paper.
    """

    baseline: Float[Tensor, ""]
    num_steps: Float[Tensor, ""]

    def __init__(self, *, entropy: float, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum={momentum} must be at least 0 and less than 1")
        if entropy < 0.0:
            raise ValueError(f"entropy={entropy} must be at least 0")
        self.entropy = entropy
        self.momentum = momentum
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("num_steps", torch.zeros(()))
        self.records: list[tuple[Tensor, Tensor]] = []

    def record(self, log_probability: Float[Tensor, "rows *rest"], entropy: Float[Tensor, "rows *rest"]) -> None:
        """Record draws: several rows for each sample, those of one sample in succession."""
        if torch._C._current_graph_task_id() == -1:  # not recomputed in a backward pass
            self.records.append((log_probability, entropy))

    def train(self, mode: bool = True) -> "Reinforce":
        self.records.clear()  # those of a forward pass without a step
        return super().train(mode)

    def auxiliary_loss(self, losses: Float[Tensor, " batch"], terms: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """See `perceiver.types.HasAuxiliaryLoss`. Samples without a finite loss have no influence."""
        records, self.records = self.records, []
        is_valid = losses.isfinite() & (terms > 0)
        losses, terms = losses.where(is_valid, 0.0), terms.where(is_valid, 0.0)
        mean = (losses * terms).sum() / terms.sum().where(is_valid.any(), 1.0)
        baseline = self.baseline.where(self.num_steps > 0, mean)
        advantages = (losses - baseline) * terms
        self.baseline.copy_((self.momentum * baseline + (1 - self.momentum) * mean).where(is_valid.any(), baseline))
        self.num_steps += is_valid.any()
        total = losses.new_zeros(())
        for log_probability, entropy in records:
            of_samples = log_probability.reshape(len(losses), -1).sum(dim=1)
            total = total + (advantages * of_samples).sum() - self.entropy * entropy.sum()
        return total
