"""Initialization of a model with the weights of an earlier one, such as a pre-training: all that fit."""

import logging
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor

from perceiver.commands.finished_run import is_published, locate_checkpoint
from perceiver.model import Perceiver
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.summary import show
from perceiver.training.build import Parts
from perceiver.training.checkpoint import Checkpoint, read_checkpoint, weight_problem
from perceiver.training.published import read_published
from perceiver.types import Resizable

MODEL = "model."
"""Prefix of the weights of the model among those of a checkpoint."""
MAX_KEYS, MAX_ROWS = 3, 12
"""Weights in an error, and rows of the table for a part of the model."""
Origin: TypeAlias = Literal["loaded", "resized", "new", "unused"]
"""Where a weight comes from: the earlier model, the same of another size, or initialization; or it is not needed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weight:
    """A weight of the new model or of the earlier one.

    Attributes:
        name: in the model.
        origin: see `Origin`.
        value: in the new model; if `unused`, in the earlier one.
        before: its shape in the earlier model, if this has it.
    """

    name: str
    origin: Origin
    value: Tensor
    before: tuple[int, ...] | None

    @property
    def shapes(self) -> str:
        """The shape, and that in the earlier model if it is another."""
        shape = tuple(self.value.shape)
        return f"{list(shape)}" if self.fits else f"{list(shape)}, not {list(self.before or ())}"

    @property
    def fits(self) -> bool:
        """Whether the earlier model does not have it in another shape."""
        return self.before in (None, tuple(self.value.shape))


def initialize_from(parts: Parts, source: str, *, variant: str = "transformers", strict: bool = False) -> list[Weight]:
    """Load every weight and statistic of an earlier model that the new one has in the same shape.

    Learned positions of another grid are interpolated, those of texts of another length cut or continued by new ones
    (`perceiver.types.Resizable`). A table lists what is loaded, resized, new and unused. Nothing is loaded of what the
    optimizer or the task keeps, and nothing of a config is built.

    Args:
        parts: of the new run.
        source: run directory, of which the best checkpoint is read, or checkpoint; or a published model.
        variant: of a published model.
        strict: whether anything that is not the same in both models is an error.

    Returns:
        The weights of the new model in order, then those of the earlier one that are not used.

    Raises:
        ConfigError: it cannot be read, its texts have other token ids, neither an encoder nor the memory fits, a weight
            is not finite or of another kind of number, or, with `strict`, not all fits. What does not fit is in the
            table, which is then printed, too.
    """
    checkpoint = _read(source, variant)
    _check_vocabularies(parts, checkpoint, source)
    before = {key.removeprefix(MODEL): value for key, value in checkpoint.state.items() if key.startswith(MODEL)}
    weights = compare(parts.model, before)
    by_part = _by_part(weights)
    different = [weight for weight in weights if weight.origin != "loaded"]
    if strict and different:
        _show(by_part, source)
        raise ConfigError(f"init.strict=true: not all weights of init.from={source} fit: {_listed(different)}")
    if not any(weight.origin == "loaded" and not weight.name.startswith("decoder.") for weight in weights):
        _show(by_part, source)
        hint = "choose the encoders and the memory of that run, as by its experiment=…"
        if is_published(source):
            hint = f"pretrained={source} trains its own model"
        problem = f"neither an encoder nor the memory fits this model: {_listed(different)}"
        raise ConfigError(f"init.from={source}: {problem}; {hint}")
    _check_values(before, weights, source)
    _load(parts.model, before, weights)
    _warn_of_parts(by_part, source)
    warn_of_frozen(parts, {weight.name for weight in weights if weight.origin == "new"})
    _warn_of_classes(checkpoint.class_names, parts.description["class_names"], weights, source)
    _show(by_part, source)
    return weights


def compare(model: Perceiver, before: Mapping[str, Tensor]) -> list[Weight]:
    """Compare the weights of a model with earlier ones by name, see `initialize_from`."""
    found = []
    for name, value in model.state_dict().items():
        origin: Origin = "new"
        if name in before and before[name].shape == value.shape:
            origin = "loaded"
        elif name in before and _resized(model, name, before[name]) is not None:
            origin = "resized"
        found.append(Weight(name, origin, value, tuple(before[name].shape) if name in before else None))
    own = {weight.name for weight in found}
    return found + [Weight(name, "unused", value, None) for name, value in before.items() if name not in own]


def _resized(model: Perceiver, name: str, value: Tensor) -> Tensor | None:
    """Return a weight computed from that of another size, if its module can."""
    module, _, parameter = name.rpartition(".")
    owner = model.get_submodule(module)
    return owner.resized(parameter, value) if isinstance(owner, Resizable) else None


@torch.no_grad()
def _load(model: Perceiver, before: Mapping[str, Tensor], weights: list[Weight]) -> None:
    state = {weight.name: before[weight.name] for weight in weights if weight.origin == "loaded"}
    for weight in weights:
        if weight.origin == "resized":
            value = _resized(model, weight.name, before[weight.name])
            assert value is not None
            state[weight.name] = value
    model.load_state_dict(state, strict=False)


def _read(source: str, variant: str) -> Checkpoint:
    if is_published(source):
        return read_published(source, variant, key="init.from", trusted=None)[0]
    return read_checkpoint(locate_checkpoint(source, None, "init.from", "checkpoint")[0])


def _check_vocabularies(parts: Parts, checkpoint: Checkpoint, source: str) -> None:
    for key, name in (("vocabulary", "tokenizer"), ("input_vocabulary", "input_tokenizer")):
        now, before = parts.description[key], getattr(checkpoint, key)
        if None not in (now, before) and now != before:
            raise ConfigError(
                f"init.from={source}: its {name} was trained on other texts, so that its token ids differ"
            )


def _listed(weights: list[Weight]) -> str:
    """Return the first weights with origin and shape, and the number of the others."""
    listed = ", ".join(f"{weight.name} ({weight.origin}: {weight.shapes})" for weight in weights[:MAX_KEYS])
    return f"{listed} and {len(weights) - MAX_KEYS} more" if len(weights) > MAX_KEYS else listed


def _check_values(before: Mapping[str, Tensor], weights: list[Weight], source: str) -> None:
    for weight in weights:
        if weight.origin not in ("loaded", "resized"):
            continue
        if problem := weight_problem(before[weight.name], weight.value):
            raise ConfigError(f"init.from={source}: {weight.name} {problem}")


def warn_of_frozen(parts: Parts, new: Container[str]) -> None:
    """Warn of parameters that stay as they were initialized, of those with the names `new`."""
    model, freezing = parts.model, parts.freezing
    kept = [name for name in sorted(freezing.names(model)) if name in new]
    if kept and freezing.until_epoch is None:
        problem = f"{len(kept)} parameters with new weights, such as {kept[0]}, which are never trained"
        log.warning("freeze=[%s]: %s", ",".join(freezing.patterns), problem)


def _warn_of_parts(parts: Mapping[str, list[Weight]], source: str) -> None:
    """Warn of parts that start with new weights where the earlier model has others, and of new encoders."""
    for name, part in parts.items():
        if misfits := [weight for weight in part if weight.origin == "new" and not weight.fits]:
            total = sum(weight.origin != "unused" for weight in part)
            problem = f"{len(misfits)} of the {total} weights of {name} do not fit and are new"
            first = misfits[0]
            log.warning("init.from=%s: %s, such as %s, which is %s", source, problem, first.name, first.shapes)
        elif name.startswith("encoders.") and all(weight.origin == "new" for weight in part):
            log.warning("init.from=%s: it has no %s, which starts with new weights", source, name)


def _warn_of_classes(before: list[str], now: list[str], weights: list[Weight], source: str) -> None:
    """Warn if an output layer is that of as many other classes."""
    loaded = [weight for weight in weights if weight.origin == "loaded" and weight.name.startswith("decoder.")]
    has_head = any(weight.value.shape[:1] == (len(now),) for weight in loaded)
    if before != now and len(before) == len(now) and has_head:
        problem = f"its classes are {', '.join(before[:3])}, …, not {', '.join(now[:3])}, …"
        log.warning("init.from=%s: %s; the output layer starts with the weights of the former", source, problem)


def _by_part(weights: list[Weight]) -> dict[str, list[Weight]]:
    """Group weights by part of the model; encoders are parts of their own."""
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        names = weight.name.split(".")
        found.setdefault(".".join(names[: 2 if names[0] == "encoders" else 1]), []).append(weight)
    return found


@rank_zero_only
def _show(parts: Mapping[str, list[Weight]], source: str) -> None:
    """Print the origin of the weights of each part: a row for those that are loaded, and one for each other module."""
    table = Table(title=f"initialization from {source}", title_justify="left")
    for column in ("weights", "origin", "shape", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for name, part in parts.items():
        modules = list(_modules(part, name.count(".") + 1))
        loaded = [weight for module in modules if module[0].origin == "loaded" for weight in module]
        others = [module for module in modules if module[0].origin != "loaded"]
        if loaded:
            table.add_row(name, "loaded", f"{len(loaded)} of {len(part)} weights" if others else "", _size(loaded))
        for module in others[:MAX_ROWS]:
            table.add_row(_common_name(module), *_origin(module), _size(module))
        if rest := [weight for module in others[MAX_ROWS:] for weight in module]:
            table.add_row(f"… and {len(rest)} more weights of {name}", "", "", _size(rest))
    show(table)


def _modules(weights: list[Weight], depth: int) -> Iterator[list[Weight]]:
    """Divide the weights of a module into its modules until all of one have one origin."""
    first = weights[0]
    if len(weights) == 1 or all(weight.origin == first.origin and weight.fits for weight in weights):
        yield weights
        return
    children: dict[str, list[Weight]] = {}
    for weight in weights:
        children.setdefault(".".join(weight.name.split(".")[: depth + 1]), []).append(weight)
    for child in children.values():
        yield from _modules(child, depth + 1)


def _origin(module: list[Weight]) -> tuple[str, str]:
    """Return the origin of the weights of a module, and the shapes of a single one."""
    return module[0].origin, module[0].shapes if len(module) == 1 else f"{len(module)} weights"


def _common_name(module: list[Weight]) -> str:
    names = [weight.name.split(".") for weight in module]
    common = takewhile(lambda level: len(set(level)) == 1, zip(*names, strict=False))
    return ".".join(level[0] for level in common)


def _size(weights: list[Weight]) -> str:
    return f"{sum(weight.value.numel() for weight in weights):,}"
