"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of batches.

Each sample is mixed with its partner, the sample before it, all inputs with one weight. CutMix replaces the same share
of each input around the same relative position. A position of a mixed input is the weighted mean of what is real there,
and masked where neither is real: beyond the end of the shorter of two sounds, MixUp leaves the longer one unchanged.
Labels or tags are mixed by the share of the real positions that come from the sample itself, averaged over its inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.types import Batch

MIN_WEIGHT = 1e-4
"""The least MixUp weight of either sample, so that a mask can be derived from the weights."""


class Mixing:
    """Mixes the inputs of a batch and its `label`, which becomes a distribution over classes, or its `tags`.

    Args:
        num_classes: classes.
        mixup, cutmix: parameter α of the Beta distribution of the weight; 0 for none. With both, each batch gets one of
            them with equal probability.

    Raises:
        ValueError: α is negative.
    """

    def __init__(self, *, num_classes: int, mixup: float, cutmix: float) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0.0:
                raise ValueError(f"{name}={alpha} must be at least 0")
        self.num_classes = num_classes
        self.methods = [(mix, alpha) for mix, alpha in ((mix_up, mixup), (cut_mix, cutmix)) if alpha > 0.0]

    def __call__(self, batch: Batch) -> Batch:
        """Mix a batch.

        Raises:
            ValueError: samples have several windows, or an input is not real-valued with channels first.
        """
        if not self.methods or len(batch) == 0:
            return batch
        if batch.windows:
            raise ValueError("mixup and cutmix take samples of one window")
        for name, values in batch.inputs.items():
            if not values.is_floating_point() or values.ndim < 3:
                raise ValueError(
                    f"mixup and cutmix take real numbers, channels first; {name} is {values.dtype} {list(values.shape)}"
                )
        mix, alpha = self.methods[int(torch.randint(len(self.methods), ()))]
        mixed, shares = mix(batch, float(torch.distributions.Beta(alpha, alpha).sample()))
        name = "tags" if "tags" in batch.targets else "label"
        target = batch.targets[name] if name == "tags" else F.one_hot(batch.targets[name], self.num_classes)
        target = target.float()
        return replace(mixed, targets={**batch.targets, name: partner(target).lerp(target, shares[:, None])})


def partner(values: Tensor) -> Tensor:
    """Return the values of the sample that each sample is mixed with."""
    return values.roll(1, dims=0)


def mix_up(batch: Batch, weight: float) -> tuple[Batch, Float[Tensor, " batch"]]:
    """Average each sample, with the given weight, and its partner; also return the sample's share of what is real."""
    weight = min(max(weight, MIN_WEIGHT), 1.0 - MIN_WEIGHT)
    weights = {name: torch.full((1,) * (values.ndim - 2), weight) for name, values in batch.inputs.items()}
    return _mix(batch, weights)


def cut_mix(batch: Batch, weight: float) -> tuple[Batch, Float[Tensor, " batch"]]:
    """Replace a box of 1 - weight of each sample by its partner's; also return the sample's share of what is real."""
    center = torch.rand(max(values.ndim - 2 for values in batch.inputs.values())).tolist()
    weights = {name: (~_box(values.shape[2:], 1.0 - weight, center)).float() for name, values in batch.inputs.items()}
    return _mix(batch, weights)


def _mix(batch: Batch, weights: Mapping[str, Float[Tensor, "..."]]) -> tuple[Batch, Float[Tensor, " batch"]]:
    """Mix every input with the weights of the sample at each position; also return its share of what is real."""
    inputs, masks, shares = dict(batch.inputs), dict(batch.masks), []
    for name, values in batch.inputs.items():
        weight = weights[name].to(values)
        if name not in masks:
            inputs[name] = partner(values).lerp(values, weight)
            shares.append(weight.mean().expand(len(values)))
            continue
        mask = masks[name].reshape(*masks[name].shape, *[1] * (values.ndim - 1 - masks[name].ndim))
        mask = mask.expand(-1, *values.shape[2:])
        real_weight = mask * weight
        total = real_weight + partner(mask) * (1.0 - weight)
        masks[name] = total > 0.0
        share = real_weight / total.where(masks[name], 1.0)
        real = values.masked_fill(~mask[:, None], 0.0)
        inputs[name] = partner(real).lerp(real, share[:, None]).masked_fill(~masks[name][:, None], 0.0)
        # NaN for an input that neither sample has, which `nanmean` leaves out.
        shares.append(share.flatten(1).sum(dim=1) / masks[name].flatten(1).sum(dim=1))
    mean = torch.stack(shares).nanmean(dim=0)
    return replace(batch, inputs=inputs, masks=masks), mean.nan_to_num(0.5)


def _box(sizes: Sequence[int], share: float, center: Sequence[float]) -> Bool[Tensor, "..."]:
    """Return a mask of a box of `share` of the volume around `center` (in units of the sides), cut at the borders."""
    box = torch.ones(*sizes, dtype=torch.bool)
    for axis, (size, middle) in enumerate(zip(sizes, center, strict=False)):
        half = share ** (1.0 / len(sizes)) / 2.0
        places = torch.arange(size).reshape(-1, *[1] * (len(sizes) - axis - 1))
        box &= (places >= round((middle - half) * size)) & (places < round((middle + half) * size))
    return box
