"""Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) over the batches of all processes together."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from perceiver.processes import are_several, of_its_own


class BatchNorm(nn.BatchNorm2d):
    """Several processes normalise as one would with all their samples; without others it is torch's batch norm.

    A process without samples takes part with a batch of none. Torch's own `SyncBatchNorm` is for GPUs only.
    """

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        if not (self.training and are_several()):
            return super().forward(features)
        values = features.float()
        dims, shape = (0, 2, 3), (-1, 1, 1)
        num_local = values.new_tensor([values.numel() // self.num_features])
        totals = _summed(torch.cat([values.sum(dims), num_local]))
        num = totals[-1].detach()
        centered = values - (totals[:-1] / num).reshape(shape)
        variance = _summed(centered.square().sum(dims)) / num
        self._keep(totals[:-1].detach() / num, variance.detach() * num / (num - 1))
        normed = centered * (variance + self.eps).rsqrt().reshape(shape)
        return (normed * self.weight.reshape(shape) + self.bias.reshape(shape)).to(features.dtype)

    @torch.no_grad()
    def _keep(self, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"]) -> None:
        """Move the running statistics, which evaluation goes by."""
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            assert self.momentum is not None
            running.lerp_(value, self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1


def _summed(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over all processes, with gradients to all of them."""
    return all_reduce(values, group=of_its_own())  # type: ignore[no-untyped-call]
