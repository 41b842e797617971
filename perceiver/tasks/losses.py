"""Cross-entropy with class weights and focal modulation (Lin et al. 2017, arXiv:1708.02002).

The focal loss multiplies the loss of each target by (1 - p)^γ, p being the probability given to it; γ = 0 is plain
cross-entropy. Unlike theirs it is a mean over samples, not over positive anchors, and has no α but the weights.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ClassWeights: TypeAlias = float | Sequence[float] | str | None
"""One for all classes, one for each, or `balanced`."""


def weights_by_class(name: str, value: ClassWeights, num_classes: int) -> Float[Tensor, " classes"] | None:
    """A setting as one weight for each class; NaN for `balanced`, until classes are counted.

    Raises:
        ValueError: it is not one positive number, or one for each class.
    """
    if value is None:
        return None
    if value == "balanced":
        return torch.full((num_classes,), torch.nan)
    if not isinstance(value, str):
        weights = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        if len(weights) in (1, num_classes) and bool(((weights > 0.0) & weights.isfinite()).all()):
            return weights.expand(num_classes).clone()
    raise ValueError(f"{name}={value} must be one positive number, one for each of {num_classes} classes, or balanced")


def check_focal_gamma(focal_gamma: float) -> None:
    """Refuse what makes no focal loss.

    Raises:
        ValueError: it is less than 0.
    """
    if not focal_gamma >= 0.0:
        raise ValueError(f"focal_gamma={focal_gamma} must be at least 0")


def total_weight(
    targets: Float[Tensor, "batch classes"], class_weights: Float[Tensor, " classes"] | None
) -> Float[Tensor, ""] | int:
    """What the mean over a batch divides by: the samples' number, or the sum of their classes' weights.

    A sample of several classes counts by their shares, one of no class as 1.
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
    """Of one class a sample, `targets` being its distribution; the mean by `total_weight`."""
    log_probabilities = outputs.float().log_softmax(dim=1)
    losses = -_modulated(log_probabilities, focal_gamma)
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
    """Of independent classes: the mean over samples and classes, what applies times its weight."""
    logits = outputs.float()
    positive = _modulated(F.logsigmoid(logits), focal_gamma) * positive_weight.float()
    negative = _modulated(F.logsigmoid(-logits), focal_gamma)
    return -(targets * positive + (1.0 - targets) * negative).mean()


def _modulated(log_probabilities: Float[Tensor, "*shape"], focal_gamma: float) -> Float[Tensor, "*shape"]:
    if focal_gamma == 0.0:
        return log_probabilities
    # At least the smallest number there is: the power's derivative at 0 may be infinite.
    rest = (-torch.expm1(log_probabilities)).clamp_min(torch.finfo(log_probabilities.dtype).tiny)
    return rest**focal_gamma * log_probabilities
