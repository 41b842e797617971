"""Which classes the config of a checkpoint may build, as a file from elsewhere must not execute arbitrary code."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from perceiver.runtime.config import IMPORT_HINT
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.nodes import targets
from perceiver.training.optimization import Schedule

TRUSTED_PACKAGES = ("perceiver", "torch", "torchaudio", "lightning", "timm")
"""The config of a checkpoint may name classes of these packages that are of one of `trusted_kinds`, and any class or
schedule of our own; not `torch.hub.load`, for example. Users add packages with `trusted`."""
TRAINING_CLASSES = frozenset(
    (
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "perceiver.runtime.checkpoints.LastCheckpoint",
        "perceiver.runtime.loggers.none.NoLogger",
        "perceiver.runtime.loggers.tensorboard.TensorBoard",
        "perceiver.runtime.loggers.wandb.WandB",
        "perceiver.training.atlas_callback.AtlasCallback",
        "perceiver.training.attention_callback.AttentionCallback",
        "perceiver.training.callbacks.MovingAverage",
        "perceiver.training.callbacks.ProgressBar",
        "perceiver.training.gallery_callback.GalleryCallback",
        "perceiver.training.sharding.ShardedStrategy",
        "timm.optim.Lamb",
        "timm.optim.Lion",
        "timm.optim.Muon",
    )
)
"""Trusted classes of conf that import Lightning or timm: known by name, since a prediction needs none of them."""
NEVER_TRUSTED = (*sys.stdlib_module_names, *sys.builtin_module_names, *TRUSTED_PACKAGES, "hydra", "omegaconf")
"""Packages that `trusted` may not name: some of their functions execute their arguments."""


def check_trust(config: Mapping[str, Any], trusted: Sequence[str], path: Path) -> None:
    """Check that the config of a checkpoint builds trusted classes only.

    Args:
        config: from a checkpoint.
        trusted: the user's own packages or modules, of which it may name any class or function.
        path: the checkpoint.

    Raises:
        ConfigError: it does not, or `trusted` names a package that cannot be trusted.
    """
    for package in trusted:
        if package.partition(".")[0] in NEVER_TRUSTED:
            problem = "only packages of your own, or ones that you know, can be added to those that are trusted"
            raise ConfigError(f"trusted=[{package}]: {problem}")
    for key, node in targets(config):
        target = str(node["_target_"])
        if is_trusted(target, trusted):
            continue
        problem = f"{path}: its config builds {target!r} as {key}"
        module = defining_module(target) if any(is_within(target, package) for package in trusted) else target
        if not module:
            raise ConfigError(f"{problem}, which cannot be imported; {IMPORT_HINT}")
        package = module.partition(".")[0]
        if package == "perceiver" and not defining_module(target):
            raise ConfigError(f"{problem}, which this version lacks; use the one that trained it, or train again")
        if package in NEVER_TRUSTED or not package.isidentifier():
            raise ConfigError(f"{problem}, which is no class of {', '.join(TRUSTED_PACKAGES)}")
        raise ConfigError(f"{problem}; if that code is yours, give trusted=[{','.join([*trusted, package])}]")


def untrusted_targets(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The targets that `check_trust` would refuse: target -> packages to trust, none if that would not help.

    The config must have been built in this process.
    """
    refused = {}
    for target in (str(node["_target_"]) for _, node in targets(config)):
        if not is_trusted(target):
            packages = {name.partition(".")[0] for name in (target, defining_module(target))}.difference(NEVER_TRUSTED)
            refused[target] = sorted(packages) if is_trusted(target, [*packages]) else []
    return refused


def is_trusted(target: str, trusted: Sequence[str] = ()) -> bool:
    """Whether a target may be called; `trusted` are the user's own packages or modules."""
    if target in TRAINING_CLASSES:
        return True
    own = any(is_within(target, package) for package in trusted)
    if not own and target.partition(".")[0] not in TRUSTED_PACKAGES:
        return False  # without importing it
    module = defining_module(target)
    if not module:
        return False
    if any(is_within(module, package) for package in trusted):
        return True
    found, package = get_object(target), module.partition(".")[0]
    if package == "perceiver":
        return isinstance(found, type) or module == Schedule.__module__
    return isinstance(found, type) and package in TRUSTED_PACKAGES and issubclass(found, trusted_kinds(package))


def trusted_kinds(package: str) -> tuple[type, ...]:
    """The kinds of classes of a trusted package of others that may be built."""
    kinds = (nn.Module, Optimizer, LRScheduler)
    if package != "lightning":
        return kinds
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.strategies import Strategy

    return (*kinds, Trainer, Callback, Strategy)


def is_within(name: str, package: str) -> bool:
    """Whether a name is that of a package or module, or of something in it."""
    return name == package or name.startswith(f"{package}.")


def defining_module(target: str) -> str:
    """The module that defines a target; empty if it cannot be imported."""
    try:
        return str(getattr(get_object(target), "__module__", None) or "")
    except Exception:  # an import may raise anything
        return ""
