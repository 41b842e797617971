"""The cost of a model: its parameters, and the floating-point operations of a forward pass."""

import copy
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver.tasks.base import Task
from perceiver.types import Batch


def count_parameters(module: nn.Module, frozen: Collection[nn.Parameter] | None = None) -> int:
    """Number of trainable and frozen parameters, or of those in `frozen`; shared ones count once."""
    chosen = None if frozen is None else {id(parameter) for parameter in frozen}
    return sum(parameter.numel() for parameter in module.parameters() if chosen is None or id(parameter) in chosen)


def flops_per_sample(model: nn.Module, task: Task, batch: Batch) -> int:
    """Floating-point operations of a training forward pass per sample; a multiplication and an addition count as two.

    Counted on the meta device with the unfused attention kernel, since the counter does not see into the CPU's fused
    one.
    """
    meta_model, meta_batch = copy.deepcopy(model).to("meta").eval().requires_grad_(False), batch.to("meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.average_windows(task.outputs(meta_model, meta_batch), meta_batch)  # also checks that the two fit
    return counter.get_total_flops() // len(batch)


def cost_metrics(model: nn.Module, task: Task, batch: Batch) -> dict[str, float]:
    """Parameters and FLOPs of a model, as metrics of its run."""
    return {
        "parameters": float(count_parameters(model)),
        "flops_per_sample": float(flops_per_sample(model, task, batch)),
    }
