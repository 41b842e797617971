"""Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) over the real cells of the batches of all processes."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from perceiver.processes import backward_group, is_distributed


class BatchNorm(nn.BatchNorm2d):
    """Normalizes by the statistics of all real cells on all processes; torch's batch norm in one process without mask.

    A process without samples takes part with an empty batch. If no cell is real on any process, the running statistics
    are not updated. Torch's `SyncBatchNorm` is for GPUs only.
    """

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalize features; `mask` is True where a cell is real, and values elsewhere have no effect on real ones."""
        if not self.training or (mask is None and not is_distributed()):
            return super().forward(features)
        values, dims, shape = features.float(), (0, 2, 3), (-1, 1, 1)
        if mask is None:
            num_local = values.new_full((1,), values.numel() // self.num_features)
        else:
            num_local = mask.sum(dtype=values.dtype)[None]
            values = zero_masked(values, mask)
        totals = _sum_over_processes(torch.cat([values.sum(dims), num_local]))
        num = totals[-1].detach()
        mean = totals[:-1] / num.clamp_min(1.0)
        centered = values - mean.reshape(shape)
        if mask is not None:
            centered = zero_masked(centered, mask)
        variance = _sum_over_processes(centered.square().sum(dims)) / num.clamp_min(1.0)
        self._update_running_statistics(mean.detach(), variance.detach() * num / (num - 1.0).clamp_min(1.0), num > 0)
        normed = centered * (variance + self.eps).rsqrt().reshape(shape)
        return (normed * self.weight.reshape(shape) + self.bias.reshape(shape)).to(features.dtype)

    @torch.no_grad()
    def _update_running_statistics(
        self, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"], any_real: Bool[Tensor, ""]
    ) -> None:
        """Update the running statistics, which evaluation uses."""
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            assert self.momentum is not None
            running.lerp_(torch.where(any_real, value.to(running.dtype), running), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += any_real


def zero_masked(
    values: Float[Tensor, "batch channels *shape"], mask: Bool[Tensor, "batch *shape"] | None
) -> Float[Tensor, "batch channels *shape"]:
    """Set the values of masked positions to zero, also where they are not finite."""
    return values if mask is None else values.masked_fill(~mask[:, None], 0.0)


def _sum_over_processes(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum over all processes, with gradients to all of them."""
    return all_reduce(values, group=backward_group()) if is_distributed() else values  # type: ignore[no-untyped-call]
