"""Cross-entropy with class weights and focal modulation (Lin et al. 2017, arXiv:1708.02002).

The focal loss multiplies the loss of each target by (1 - p)^γ, p being its probability; γ = 0 is plain
cross-entropy. Unlike theirs it is a mean over samples, not over positive anchors, and has no α but the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ClassWeights: TypeAlias = float | Sequence[float] | str
"""One weight for all classes, one for each, or `balanced`."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Options of the loss of a task over classes.

    Attributes:
        label_smoothing: share of the target that is spread over all classes; of independent classes, targets are moved
            to half of it and to its complement.
        class_weights: of one class per sample: factor of the loss of each class, the loss being the weighted mean, as
            torch's is; or `balanced`: samples / (classes · samples of the class) in training. None for none.
        positive_weight: of independent classes: factor of the loss of what applies, for all classes or one for each; or
            `balanced`: training samples without the class / those with it.
        focal_gamma: γ of the focal loss; 0 for cross-entropy.

    Raises:
        ValueError: a value is out of range.
    """

    label_smoothing: float = 0.0
    class_weights: ClassWeights | None = None
    positive_weight: ClassWeights = 1.0
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")
        if not self.focal_gamma >= 0.0:
            raise ValueError(f"focal_gamma={self.focal_gamma} must be at least 0")

    @property
    def is_balanced(self) -> bool:
        """Whether a weight depends on how often each class occurs in training."""
        return "balanced" in (self.class_weights, self.positive_weight)


def weights_by_class(name: str, value: ClassWeights, num_classes: int) -> Float[Tensor, " classes"]:
    """Expand a setting to one weight for each class; NaN for `balanced`, until classes are counted.

    Raises:
        ValueError: it is neither one positive number, nor one for each class, nor `balanced`.
    """
    if value == "balanced":
        return torch.full((num_classes,), torch.nan)
    if not isinstance(value, str):
        weights = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        if len(weights) in (1, num_classes) and bool(((weights > 0.0) & weights.isfinite()).all()):
            return weights.expand(num_classes).clone()
    raise ValueError(f"{name}={value} must be one positive number, one for each of {num_classes} classes, or balanced")


def total_weight(
    targets: Float[Tensor, "batch classes"], class_weights: Float[Tensor, " classes"] | None
) -> Float[Tensor, ""] | int:
    """Return the divisor of the mean over a batch: the number of samples, or the sum of the weights of their classes.

    A sample of several classes counts by their shares, one without a class as 1.
    """
    if class_weights is None:
        return len(targets)
    return (1.0 + (targets * (class_weights.float() - 1.0)).sum(dim=1)).sum()


def softmax_cross_entropy(
    outputs: Float[Tensor, "batch classes"],
    targets: Float[Tensor, "batch classes"],
    *,
    label_smoothing: float,
    class_weights: Float[Tensor, " classes"] | None,
    focal_gamma: float,
) -> Float[Tensor, ""]:
    """Return the loss of one class per sample, whose distribution is `targets`: the mean by `total_weight`."""
    log_probabilities = outputs.float().log_softmax(dim=1)
    losses = -_focal(log_probabilities, focal_gamma)
    if class_weights is not None:
        losses = losses * class_weights.float()
    smooth = targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[1]
    return (smooth * losses).sum() / total_weight(targets, class_weights)


def sigmoid_cross_entropy(
    outputs: Float[Tensor, "batch classes"],
    targets: Float[Tensor, "batch classes"],
    *,
    positive_weight: Float[Tensor, " classes"],
    focal_gamma: float,
) -> Float[Tensor, ""]:
    """Return the loss of independent classes: the mean over samples and classes, with weights of what applies."""
    logits = outputs.float()
    positive = _focal(F.logsigmoid(logits), focal_gamma) * positive_weight.float()
    negative = _focal(F.logsigmoid(-logits), focal_gamma)
    return -(targets * positive + (1.0 - targets) * negative).mean()


def _focal(log_probabilities: Float[Tensor, "*shape"], focal_gamma: float) -> Float[Tensor, "*shape"]:
    """Multiply log p by (1 - p)^γ."""
    if focal_gamma == 0.0:
        return log_probabilities
    # Clamped to the smallest positive number: the derivative of the power at 0 may be infinite.
    rest = (-torch.expm1(log_probabilities)).clamp_min(torch.finfo(log_probabilities.dtype).tiny)
    return rest**focal_gamma * log_probabilities
