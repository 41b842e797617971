"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of batches.

Each sample is mixed with the one before it, all its inputs by one weight. CutMix cuts the same share of each input
around the same relative place. Each place of a mixed input is the weighted mean of what is real there, and is not real
where nothing is: beyond the end of the shorter of two sounds, mixup leaves the longer one as it is. Labels or tags are
mixed by the share of the real places that is a sample's own, the mean over its inputs that have any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.types import Batch

LEAST_WEIGHT = 1e-4
"""What mixup gives either part at least, so that one that is alone at a place can be told from none."""


class Mixing:
    """Mixes the inputs of a batch and its `label`, which becomes a distribution over classes, or its `tags`.

    Args:
        num_classes: classes.
        mixup, cutmix: parameter α of the Beta distribution of the method's weight; 0 for none. With both, each batch
            gets one of them, with equal chance.
    """

    def __init__(self, *, num_classes: int, mixup: float, cutmix: float) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0.0:
                raise ValueError(f"{name}={alpha} must be at least 0")
        self.num_classes = num_classes
        self.methods = [(mix, alpha) for mix, alpha in ((mix_up, mixup), (cut_mix, cutmix)) if alpha > 0.0]

    def __call__(self, batch: Batch) -> Batch:
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
        mixed, weights = mix(batch, float(torch.distributions.Beta(alpha, alpha).sample()))
        name = "tags" if "tags" in batch.targets else "label"
        own = batch.targets[name] if name == "tags" else F.one_hot(batch.targets[name], self.num_classes)
        own = own.float()
        return replace(mixed, targets={**batch.targets, name: partner(own).lerp(own, weights[:, None])})


def partner(values: Tensor) -> Tensor:
    """What each sample is mixed with."""
    return values.roll(1, dims=0)


def mix_up(batch: Batch, weight: float) -> tuple[Batch, Float[Tensor, " batch"]]:
    """The batch with inputs that are averages of two, `weight` being that of a sample's own; and its real share."""
    weight = min(max(weight, LEAST_WEIGHT), 1.0 - LEAST_WEIGHT)
    return _mixed(batch, {name: torch.full((1,) * (own.ndim - 2), weight) for name, own in batch.inputs.items()})


def cut_mix(batch: Batch, weight: float) -> tuple[Batch, Float[Tensor, " batch"]]:
    """The batch with inputs of which a box is another's; and the real share that is a sample's own, about `weight`."""
    centre = torch.rand(max(own.ndim - 2 for own in batch.inputs.values())).tolist()
    return _mixed(
        batch, {name: (~_box(own.shape[2:], 1.0 - weight, centre)).float() for name, own in batch.inputs.items()}
    )


def _mixed(batch: Batch, own_weights: Mapping[str, Float[Tensor, "..."]]) -> tuple[Batch, Float[Tensor, " batch"]]:
    """Every input mixed by the weights of a sample's own at each place; and what share of the real places that is."""
    inputs, masks, shares = dict(batch.inputs), dict(batch.masks), []
    for name, own in batch.inputs.items():
        weights = own_weights[name].to(own)
        if name not in masks:
            inputs[name] = partner(own).lerp(own, weights)
            shares.append(weights.mean().expand(len(own)))
            continue
        mask = masks[name].reshape(*masks[name].shape, *[1] * (own.ndim - 1 - masks[name].ndim))
        mask = mask.expand(-1, *own.shape[2:])
        of_own, of_partner = mask * weights, partner(mask) * (1.0 - weights)
        total = of_own + of_partner
        masks[name] = total > 0.0
        local = of_own / total.where(masks[name], 1.0)
        real = own.masked_fill(~mask[:, None], 0.0)
        inputs[name] = partner(real).lerp(real, local[:, None]).masked_fill(~masks[name][:, None], 0.0)
        # NaN of an input that neither has, which counts for nothing.
        shares.append(local.flatten(1).sum(dim=1) / masks[name].flatten(1).sum(dim=1))
    share = torch.stack(shares).nanmean(dim=0)
    return replace(batch, inputs=inputs, masks=masks), share.nan_to_num(0.5)


def _box(sizes: Sequence[int], share: float, centre: Sequence[float]) -> Bool[Tensor, "..."]:
    """True in a box of `share` of the volume around `centre` (in units of the sides), cut at the borders."""
    box = torch.ones(*sizes, dtype=torch.bool)
    for axis, (size, middle) in enumerate(zip(sizes, centre, strict=False)):
        half = share ** (1.0 / len(sizes)) / 2.0
        cells = torch.arange(size).reshape(-1, *[1] * (len(sizes) - axis - 1))
        box &= (cells >= round((middle - half) * size)) & (cells < round((middle + half) * size))
    return box
