"""Parts of a model that are not trained: in the whole run, or in its first epochs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from perceiver.runtime.summary import note

SYNONYMS = {"latents": "memory"}
"""Another name of a part -> its name in the model."""


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is the name of a parameter, of a part that it is in, or a glob for its name."""
    pattern = SYNONYMS.get(pattern, pattern)
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def matching_names(model: nn.Module, pattern: str) -> set[str]:
    """Return the names of the parameters that a pattern selects; of tied ones all names, if it selects one of them.

    Raises:
        ValueError: it selects none; the message lists the parts.
    """
    every = list(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in every if matches(name, pattern)}
    if not chosen:
        raise ValueError(f"{pattern!r} matches no parameter; parts are {', '.join(part_names(model))}")
    return {name for name, parameter in every if id(parameter) in chosen}


def part_names(model: nn.Module) -> list[str]:
    """Return the names of the parts of a model that have parameters, and of those in dictionaries, such as encoders."""
    found = []
    for name, part in model.named_children():
        children = part.named_children() if isinstance(part, nn.ModuleDict) else ()
        for key, one in [(name, part), *((f"{name}.{child}", one) for child, one in children)]:
            if next(one.parameters(), None) is not None:
                found.append(key)
    return found


class Freezing:
    """Keeps parameters as they are, and the running statistics of batch norms all of whose parameters are kept.

    These batch norms are in evaluation mode. Parameters that are never trained require no gradient. Those that are
    trained from an epoch on do so from the start, since distributed training prepares the exchange of gradients once;
    until then their gradients are computed and removed. What is frozen depends on the epoch alone, so that a resumed
    run continues exactly.

    Attributes:
        active: whether the current epoch is one in which the parameters are frozen.

    Args:
        patterns: names of parts, as in the table of the model, or globs for names of parameters.
        until_epoch: the first epoch, counted from 0, in which they are trained; None: they never are.

    Raises:
        ValueError: an epoch without anything to freeze.
    """

    def __init__(self, *, patterns: Sequence[str] = (), until_epoch: int | None = None) -> None:
        if until_epoch is not None and not patterns:
            raise ValueError(f"unfreeze_at_epoch={until_epoch}: nothing is frozen; give freeze=[…]")
        self.patterns = tuple(patterns)
        self.until_epoch = until_epoch
        self.active = bool(patterns)

    def start(self, model: nn.Module) -> None:
        """Freeze the parameters of a new model.

        Raises:
            ValueError: a pattern matches no parameter, or nothing is left to train.
        """
        parameters = self.parameters(model)
        if self.until_epoch is None:
            for parameter in parameters:
                parameter.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(f"{list(self.patterns)} leaves no parameter to train")
        self.set_modes(model)

    def names(self, model: nn.Module) -> set[str]:
        """Return the names of the chosen parameters, see `matching_names`."""
        return {name for pattern in self.patterns for name in matching_names(model, pattern)}

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the chosen parameters."""
        names = self.names(model)
        return [parameter for name, parameter in model.named_parameters() if name in names]

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Freeze or release the parameters for the training steps of an epoch."""
        was_active = self.active
        self.active = bool(self.patterns) and (self.until_epoch is None or epoch < self.until_epoch)
        if was_active and not self.active:
            note(f"epoch {epoch}: what was frozen is trained")
        self.set_modes(model)

    def set_modes(self, model: nn.Module) -> None:
        """Put the batch norms of frozen parts of a model in training mode into evaluation mode, and others back."""
        if not self.patterns or not model.training:
            return
        names = self.names(model)
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and self._is_chosen(name, module, names):
                module.train(not self.active)

    def _is_chosen(self, name: str, norm: nn.Module, names: set[str]) -> bool:
        """Whether all parameters of a norm are chosen, or, if it has none, its running statistics."""
        if own := [f"{name}.{key}" for key, _ in norm.named_parameters()]:
            return names.issuperset(own)
        return any(matches(f"{name}.running_mean", pattern) for pattern in self.patterns)

    def remove_gradients(self, model: nn.Module) -> None:
        """Remove the gradients of parameters that are trained later, so that a step leaves them as they are."""
        if self.active and self.until_epoch is not None:
            for parameter in self.parameters(model):
                parameter.grad = None

    def restart_counts(self, optimizer: Optimizer) -> None:
        """Let a group whose parameters were never updated count its steps from 0, as timm's LAMB does by group."""
        if self.until_epoch is not None:
            for group in optimizer.param_groups:
                if not any(parameter in optimizer.state for parameter in group["params"]):
                    group.pop("step", None)
