"""Which parameters decay, and how the learning rate goes over a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups for an optimizer: what decays by its `weight_decay`, and what does not decay.

    Weights of linear and convolutional layers decay; biases, norms, latents, queries, positions and embeddings do not.
    """
    decayed = {
        id(module.weight) for module in model.modules() if isinstance(module, DECAYED) and module.weight.requires_grad
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) in decayed]},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients together; of sharded ones a DTensor."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None and factor != 1.0:
            parameter.grad.mul_(factor)


def remove_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Have an optimizer leave everything as it is."""
    for parameter in parameters:
        parameter.grad = None


def undivided(value: Tensor) -> Tensor:
    """A DTensor as the tensor that it stands for; all its processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Schedule(Protocol):
    """Learning rate at a step, as a factor of the optimizer's `lr`."""

    def __call__(self, step: int, total_steps: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear rise over `warmup_steps`, then half a cosine down to `final_factor`.

    A run of fewer steps than four times `warmup_steps` warms up over a quarter of its steps.

    Raises:
        ValueError: `warmup_steps` is negative.
    """

    warmup_steps: int
    final_factor: float

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be at least 0")

    def __call__(self, step: int, total_steps: int) -> float:
        warmup = min(self.warmup_steps, total_steps // 4)
        if step < warmup:
            return (step + 1) / warmup
        return _cosine(step - warmup, total_steps - warmup, self.final_factor)


@dataclass(frozen=True, kw_only=True)
class FlatCosine:
    """Constant for `flat_fraction` of the run, then half a cosine down to `final_factor`.

    Perceiver IO's ImageNet recipe: flat for half of the run, no warm-up.

    Raises:
        ValueError: `flat_fraction` is not a fraction.
    """

    flat_fraction: float
    final_factor: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.flat_fraction <= 1.0:
            raise ValueError(f"flat_fraction={self.flat_fraction} must be in [0, 1]")

    def __call__(self, step: int, total_steps: int) -> float:
        flat = round(self.flat_fraction * total_steps)
        return 1.0 if step < flat else _cosine(step - flat, total_steps - flat, self.final_factor)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Multiplied by `factor` at each milestone, given as fractions of the run.

    Perceiver's ImageNet recipe: ÷ 10 at epochs 84, 102 and 114 of 120.

    Raises:
        ValueError: a milestone is not a fraction (but an epoch, say).
    """

    milestones: Sequence[float]
    factor: float

    def __post_init__(self) -> None:
        if not all(0.0 <= milestone <= 1.0 for milestone in self.milestones):
            raise ValueError(f"milestones={list(self.milestones)} must be fractions of the run, in [0, 1]")

    def __call__(self, step: int, total_steps: int) -> float:
        return self.factor ** sum(step >= milestone * total_steps for milestone in self.milestones)


def constant(step: int, total_steps: int) -> float:
    """The optimizer's `lr` throughout."""
    return 1.0


def _cosine(step: int, num_steps: int, final: float) -> float:
    progress = min(step / max(num_steps, 1), 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
