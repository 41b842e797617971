"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of batches.

Each sample is mixed with the one before it, all its inputs by one weight, which is also that of the labels or tags.
CutMix cuts the same share of each input around the same relative place; where that is cut off by borders, labels go by
the mean over the inputs of what is left. What is real in a mixed input is what was real in the parts it is made of.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from perceiver.types import Batch


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
        if batch.views:
            raise ValueError("mixup and cutmix take samples of one view")
        for name, values in batch.inputs.items():
            if not values.is_floating_point() or values.ndim < 3:
                raise ValueError(
                    f"mixup and cutmix take real numbers, channels first; {name} is {values.dtype} {list(values.shape)}"
                )
        mix, alpha = self.methods[int(torch.randint(len(self.methods), ()))]
        mixed, weight = mix(batch, float(torch.distributions.Beta(alpha, alpha).sample()))
        name = "tags" if "tags" in batch.targets else "label"
        own = batch.targets[name] if name == "tags" else F.one_hot(batch.targets[name], self.num_classes)
        own = own.float()
        return replace(mixed, targets={**batch.targets, name: partner(own).lerp(own, weight)})


def partner(values: Tensor) -> Tensor:
    """What each sample is mixed with."""
    return values.roll(1, dims=0)


def mix_up(batch: Batch, weight: float) -> tuple[Batch, float]:
    """The batch with inputs that are averages of two, `weight` being the share of a sample's own; and that weight."""
    inputs = {name: partner(own).lerp(own, weight) for name, own in batch.inputs.items()}
    masks = {name: own | partner(own) for name, own in batch.masks.items()}
    return replace(batch, inputs=inputs, masks=masks), weight


def cut_mix(batch: Batch, weight: float) -> tuple[Batch, float]:
    """The batch with inputs of which a box is another's; and the share that is a sample's own, about `weight`."""
    centre = torch.rand(max(own.ndim - 2 for own in batch.inputs.values())).tolist()
    boxes = {name: _box(own.shape[2:], 1.0 - weight, centre) for name, own in batch.inputs.items()}
    inputs, masks = dict(batch.inputs), dict(batch.masks)
    for name, box in boxes.items():
        inside = box.to(inputs[name].device)
        inputs[name] = torch.where(inside, partner(inputs[name]), inputs[name])
        if name in masks:
            own = masks[name]
            masks[name] = own | partner(own) if own.ndim == 1 else torch.where(inside, partner(own), own)
    kept = [1.0 - float(box.float().mean()) for box in boxes.values()]
    return replace(batch, inputs=inputs, masks=masks), sum(kept) / len(kept)


def _box(sizes: Sequence[int], share: float, centre: Sequence[float]) -> Bool[Tensor, "..."]:
    """True in a box of `share` of the volume around `centre` (in units of the sides), cut at the borders."""
    box = torch.ones(*sizes, dtype=torch.bool)
    for axis, (size, middle) in enumerate(zip(sizes, centre, strict=False)):
        half = share ** (1.0 / len(sizes)) / 2.0
        cells = torch.arange(size).reshape(-1, *[1] * (len(sizes) - axis - 1))
        box &= (cells >= round((middle - half) * size)) & (cells < round((middle + half) * size))
    return box
