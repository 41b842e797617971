"""What a config out of a checkpoint may build: a file from anywhere must not run what its author likes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from perceiver.runtime.config import WHERE_CODE_IS_FOUND, targets
from perceiver.runtime.errors import ConfigError
from perceiver.training.optimization import Schedule

TRUSTED_PACKAGES = ("perceiver", "torch", "torchaudio", "lightning", "timm")
TRUSTED_KINDS = (nn.Module, Optimizer, LRScheduler, Trainer, Callback, Strategy)
"""What a config that comes out of a checkpoint may name: classes of these packages that are of one of these kinds, and
any class or schedule of our own. `torch.hub.load`, say, is neither. A user adds packages with `trusted`."""
NEVER_TRUSTED = (*sys.stdlib_module_names, *sys.builtin_module_names, *TRUSTED_PACKAGES, "hydra", "omegaconf")
"""Packages of which no more can be trusted: some of their functions run whatever they are given."""


def check_trust(config: Mapping[str, Any], trusted: Sequence[str], path: Path) -> None:
    """Refuse a config from a file that would call what is not trusted.

    Args:
        config: from a checkpoint.
        trusted: packages of the user's own, or modules of these, of which it may name any class or function.
        path: of the checkpoint.

    Raises:
        ConfigError: it would, or `trusted` names what cannot be.
    """
    for package in trusted:
        if package.partition(".")[0] in NEVER_TRUSTED:
            problem = "only packages of your own, or ones that you know, can be trusted beside those that are"
            raise ConfigError(f"trusted=[{package}]: {problem}")
    for key, node in targets(config):
        target = str(node["_target_"])
        if is_trusted(target, trusted):
            continue
        problem = f"{path}: its config builds {target!r} as {key}"
        imported = any(is_below(target, package) for package in trusted)
        home = home_of(target) if imported else target
        if not home:
            raise ConfigError(f"{problem}, which cannot be imported; {WHERE_CODE_IS_FOUND}")
        wanted = home.partition(".")[0]
        if wanted in NEVER_TRUSTED or not wanted.isidentifier():
            raise ConfigError(f"{problem}, which is no class of {', '.join(TRUSTED_PACKAGES)}")
        raise ConfigError(f"{problem}; if that code is yours, give trusted=[{','.join([*trusted, wanted])}]")


def trust_needed(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a config names that would not be trusted in a checkpoint, and the packages that must be trusted for it.

    For what no package can be trusted for there are none. The config must be one that was built in this process.
    """
    needed = {}
    for target in (str(node["_target_"]) for _, node in targets(config)):
        if not is_trusted(target):
            packages = {name.partition(".")[0] for name in (target, home_of(target))}.difference(NEVER_TRUSTED)
            needed[target] = sorted(packages) if is_trusted(target, [*packages]) else []
    return needed


def is_below(name: str, package: str) -> bool:
    """Whether something is a package or module, or in it."""
    return name == package or name.startswith(f"{package}.")


def home_of(target: str) -> str:
    """The module in which what has this name was defined; empty where it cannot be imported."""
    try:
        return str(getattr(get_object(target), "__module__", None) or "")
    except Exception:  # whatever an import raises
        return ""


def is_trusted(target: str, trusted: Sequence[str] = ()) -> bool:
    """Whether a name from a file may be called; `trusted` are packages or modules of the user's own."""
    own = any(is_below(target, package) for package in trusted)
    if not own and target.partition(".")[0] not in TRUSTED_PACKAGES:
        return False
    home = home_of(target)
    if not home:
        return False
    if any(is_below(home, package) for package in trusted):
        return True
    found, package = get_object(target), home.partition(".")[0]
    if package == "perceiver":
        return isinstance(found, type) or home == Schedule.__module__
    return isinstance(found, type) and package in TRUSTED_PACKAGES and issubclass(found, TRUSTED_KINDS)
