"""Optimizers with weight decay and learning rate by parameter group, and schedules of the learning rate."""

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from perceiver.attention import CrossBlock, SelfBlock
from perceiver.training.freezing import matching_names

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
BLOCKS = (CrossBlock, SelfBlock)
DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def build_optimizer(
    factory: OptimizerFactory,
    model: nn.Module,
    *,
    decay_embeddings: bool = False,
    layer_decay: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    later: Container[str] = (),
) -> Optimizer:
    """Build the optimizer of a model's parameters.

    One that has AdamW as a fallback, such as timm's Muon, updates the matrices of attention and MLP blocks; AdamW
    updates input and output layers, embeddings, norms and biases (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    Args:
        factory: parameter groups -> optimizer.
        model: whose parameters are trained.
        decay_embeddings, layer_decay, lr_scale, later: see `parameter_groups`.

    Raises:
        ValueError: see `lr_scales`.
    """
    groups = parameter_groups(
        model, decay_embeddings=decay_embeddings, layer_decay=layer_decay, lr_scale=lr_scale, later=later
    )
    for group in groups:
        if "lr_scale" in group:
            group["lr"] = trial_settings(factory)["lr"] * group["lr_scale"]
    if "fallback_lr_scale" in inspect.signature(factory).parameters:
        blocks = [block for block in model.modules() if isinstance(block, BLOCKS)]
        hidden = {id(layer.weight) for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
        split: list[dict[str, Any]] = []
        for group in groups:
            split.append(group | {"params": [p for p in group["params"] if id(p) in hidden]})
            split.append(group | {"params": [p for p in group["params"] if id(p) not in hidden], "use_fallback": True})
        groups = [group for group in split if group["params"]]
    return factory(groups)


def parameter_groups(
    model: nn.Module,
    *,
    decay_embeddings: bool = False,
    layer_decay: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    later: Container[str] = (),
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups: those with weight decay, then those without, by learning rate.

    Weights of linear and convolutional layers decay; biases and norms do not; latents, queries, learned positions and
    other embeddings do with `decay_embeddings`. A group whose learning rate is another than the optimizer's has its
    factor as `lr_scale`.

    Args:
        model: whose parameters are trained.
        decay_embeddings: whether embeddings have weight decay.
        layer_decay, lr_scale: see `lr_scales`.
        later: names of parameters that get groups of their own.

    Raises:
        ValueError: see `lr_scales`.
    """
    decayed: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_weight = isinstance(module, DECAYED) and name == "weight"
            is_embedding = not isinstance(module, DECAYED + NORMS)
            if is_weight or (is_embedding and decay_embeddings):
                decayed.add(id(parameter))
    scales = lr_scales(model, layer_decay=layer_decay, lr_scale=lr_scale or {})
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) not in decayed, scales[name], name in later)
            group = groups.setdefault(key, {"params": []})
            group["params"].append(parameter)
    for (is_exempt, scale, _), group in groups.items():
        group |= {"weight_decay": 0.0} if is_exempt else {}
        group |= {"lr_scale": scale} if scale != 1.0 else {}
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]  # stable: in the order of the model


def lr_scales(model: nn.Module, *, layer_decay: float | None, lr_scale: Mapping[str, float]) -> dict[str, float]:
    """Return the learning rate of each parameter by name, as a factor of the optimizer's `lr`.

    Layer-wise decay is that of ELECTRA (Clark et al. 2020, arXiv:2003.10555, table 6 and `_get_layer_lrs` of its code)
    and BEiT (Bao et al. 2022, arXiv:2106.08254): layer_decay ** (num_layers + 1 - layer). Encoders, join, latents and
    all else that is read before the first block are layer 0, the attention blocks of memory and decoder layers 1 to
    `num_layers` in the order in which they are first applied, and the rest of the decoder (queries, heads) layer
    num_layers + 1. A weight that is used in several layers belongs to the first.

    Args:
        model: a Perceiver.
        layer_decay: None for none.
        lr_scale: name of a part, or glob for names of parameters -> a further factor; the last one that matches a
            parameter counts.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for pattern, factor in lr_scale.items():
        try:
            factors |= dict.fromkeys(factors.keys() & matching_names(model, pattern), factor)
        except ValueError as error:
            raise ValueError(f"lr_scale.{pattern}={factor}: {error}") from error
    if layer_decay is None:
        return factors
    layers, last = _layers(model)
    return {
        name: factors[name] * layer_decay ** (last - layers.get(id(parameter), 0))
        for name, parameter in model.named_parameters()
    }


def _layers(model: nn.Module) -> tuple[dict[int, int], int]:
    """Return the layer of each parameter (by id) of memory and decoder that is not in layer 0, and the last layer."""
    assert isinstance(model.memory, nn.Module)
    assert isinstance(model.decoder, nn.Module)
    blocks = [*_blocks(model.memory), *_blocks(model.decoder)]
    last = len(blocks) + 1
    layers: dict[int, int] = {}
    before = {id(parameter) for part in (model.encoders, model.join) for parameter in part.parameters()}  # type: ignore[union-attr]
    for layer, part in [*enumerate(blocks, start=1), (last, model.decoder)]:
        for parameter in part.parameters():
            if id(parameter) not in before:
                layers.setdefault(id(parameter), layer)
    return layers, last


def _blocks(part: nn.Module) -> list[nn.Module]:
    """Return the attention blocks of a part of the model, in the order of their application."""
    return getattr(part, "ordered_blocks", None) or [block for block in part.modules() if isinstance(block, BLOCKS)]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients together; of sharded ones a DTensor."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None and factor != 1.0:
            parameter.grad.mul_(factor)


def remove_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Remove all gradients, so that an optimizer step changes nothing."""
    for parameter in parameters:
        parameter.grad = None


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor of a DTensor; a collective operation."""
    return value.full_tensor() if is_sharded_tensor(value) else value


def is_sharded_tensor(value: Tensor) -> TypeGuard["DTensor"]:
    """Whether a tensor is a DTensor, each process having a part of it."""
    from torch.distributed.tensor import DTensor  # takes seconds to import

    return isinstance(value, DTensor)


def fuse_on_cpu(optimizer: Optimizer) -> None:
    """Let torch's Adam and AdamW update all parameters on a CPU in one kernel instead of tensor by tensor.

    This takes a third of the time; results differ in the last bits. On GPUs torch chooses a fast implementation itself.
    A group that sets `fused` or `foreach` is left as it is.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        is_free = group["fused"] is None and not (group["foreach"] or group["differentiable"] or group["capturable"])
        if is_free and all(
            p.device.type == "cpu" and p.is_floating_point() and not is_sharded_tensor(p) for p in group["params"]
        ):
            group["fused"] = True


class Schedule(Protocol):
    """The learning rate at a step, as a factor of the optimizer's `lr`; configs fill in keyword arguments."""

    def __call__(self, step: int, total_steps: int) -> float: ...


def constant(step: int, total_steps: int) -> float:
    """The optimizer's `lr` throughout."""
    return 1.0


def warmup_cosine(step: int, total_steps: int, *, warmup_steps: int, final_factor: float) -> float:
    """Linear warmup (`_warmup`), then cosine decay."""
    return _warmup(step, total_steps, warmup_steps, partial(_cosine, final=final_factor))


def warmup_linear(step: int, total_steps: int, *, warmup_steps: int, final_factor: float) -> float:
    """Linear warmup (`_warmup`), then linear decay, as of BERT (Devlin et al. 2019)."""
    return _warmup(step, total_steps, warmup_steps, lambda at, num: 1.0 - (1.0 - final_factor) * _progress(at, num))


def warmup_stable_decay(
    step: int, total_steps: int, *, warmup_steps: int, decay_fraction: float, final_factor: float
) -> float:
    """Linear warmup (`_warmup`), then constant, and a decay over the last `decay_fraction` of the run.

    WSD of MiniCPM (Hu et al. 2024, arXiv:2404.06395). Its decay is 1 - √progress, the best of Hägele et al. 2024
    (arXiv:2405.18392). A run can be resumed from a checkpoint before the decay to any later end.

    Raises:
        ValueError: `decay_fraction` is not a fraction.
    """
    _check_fraction("decay_fraction", decay_fraction)

    def stable_decay(at: int, num_steps: int) -> float:
        decay = min(round(decay_fraction * total_steps), num_steps)
        return 1.0 - (1.0 - final_factor) * math.sqrt(_progress(max(at - (num_steps - decay), 0), decay))

    return _warmup(step, total_steps, warmup_steps, stable_decay)


def flat_cosine(step: int, total_steps: int, *, flat_fraction: float, final_factor: float) -> float:
    """Constant for `flat_fraction` of the run, then cosine decay.

    Perceiver IO's ImageNet recipe: constant for half of the run, no warmup.

    Raises:
        ValueError: `flat_fraction` is not a fraction.
    """
    _check_fraction("flat_fraction", flat_fraction)
    flat = round(flat_fraction * total_steps)
    return 1.0 if step < flat else _cosine(step - flat, total_steps - flat, final_factor)


def steps(step: int, total_steps: int, *, milestones: Sequence[float], factor: float) -> float:
    """Multiplied by `factor` at each milestone, given as fractions of the run.

    Perceiver's ImageNet recipe: ÷ 10 at epochs 84, 102 and 114 of 120.

    Raises:
        ValueError: a milestone is not a fraction, but an epoch, for example.
    """
    if not all(0.0 <= milestone <= 1.0 for milestone in milestones):
        raise ValueError(f"milestones={list(milestones)} must be fractions of the run, in [0, 1]")
    return float(factor ** sum(step >= milestone * total_steps for milestone in milestones))


def _warmup(step: int, total_steps: int, warmup_steps: int, decay: Callable[[int, int], float]) -> float:
    """Linear rise over `warmup_steps`, at most a quarter of the run, then `decay(step, num_steps)` of the rest.

    Raises:
        ValueError: `warmup_steps` is negative.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0")
    warmup = min(warmup_steps, total_steps // 4)
    return (step + 1) / warmup if step < warmup else decay(step - warmup, total_steps - warmup)


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value} must be in [0, 1]")


def _progress(step: int, num_steps: int) -> float:
    return min(step / max(num_steps, 1), 1.0)


def _cosine(step: int, num_steps: int, final: float) -> float:
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, num_steps)))


def is_torch_scheduler(schedule: Schedule | partial[LRScheduler]) -> bool:
    """Whether a schedule is one of torch's schedulers without its optimizer."""
    return isinstance(schedule, partial) and isinstance(schedule.func, type) and issubclass(schedule.func, LRScheduler)


def build_scheduler(
    schedule: Schedule | partial[LRScheduler],
    optimizer: Optimizer,
    *,
    total_steps: int,
    monitor_mode: Literal["min", "max"],
) -> LRScheduler:
    """Build the scheduler of the learning rate.

    For torch's schedulers, the total number of steps (`OneCycleLR`) and the direction in which the metric improves
    (`ReduceLROnPlateau`) are filled in if the config does not set them.

    Raises:
        ValueError: an argument is missing or contradicts the task, or the schedule ends before the run.
    """
    if not isinstance(schedule, partial) or not is_torch_scheduler(schedule):
        factor = cast(Schedule, schedule)
        if isinstance(factor, partial):  # without the checks that Hydra's partial repeats at every call
            factor = partial(factor.func, *factor.args, **factor.keywords)
        return LambdaLR(optimizer, lambda step: factor(step, total_steps))
    derived: dict[str, Any] = {}
    if "total_steps" in inspect.signature(schedule).parameters and "epochs" not in schedule.keywords:
        derived = {"total_steps": schedule.keywords.get("total_steps") or total_steps}
    if issubclass(schedule.func, ReduceLROnPlateau):  # type: ignore[arg-type]
        derived = {"mode": schedule.keywords.get("mode", monitor_mode)}
        if derived["mode"] != monitor_mode:
            raise ValueError(f"mode={derived['mode']}: the better direction of task.monitor is {monitor_mode}")
    try:
        scheduler = schedule(optimizer, **derived)
    except TypeError as error:  # an argument is missing
        raise ValueError(str(error)) from error
    own = getattr(scheduler, "total_steps", total_steps)
    if own < total_steps:
        raise ValueError(f"total_steps={own} are fewer than the {total_steps} optimizer steps of the run")
    base, *others = [group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    if not all(math.isclose(base, other, rel_tol=1e-6, abs_tol=1e-12) for other in others):
        raise ValueError(
            f"{type(scheduler).__name__} sets one learning rate for all parameters; choose another schedule, or leave "
            "out optimizer.layer_decay and optimizer.lr_scale"
        )
    return scheduler


def trial_settings(factory: OptimizerFactory) -> dict[str, Any]:
    """Return the settings of an optimizer by name, such as `lr`."""
    return factory([{"params": [nn.Parameter(torch.zeros(1))]}]).defaults


def check_optimizer(factory: OptimizerFactory) -> None:
    """Check the settings of an optimizer before training; not all optimizers check theirs.

    Raises:
        ValueError: a setting is out of range.
    """
    settings = trial_settings(factory)
    for name in ("lr", "weight_decay"):
        if settings.get(name, 0.0) < 0.0:
            raise ValueError(f"{name}={settings[name]} must be at least 0")
