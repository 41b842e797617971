"""A checked config -> the objects of a run; a checkpoint -> the same objects with its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim import Optimizer

from perceiver.data.module import DataModule
from perceiver.model import Perceiver
from perceiver.tasks.base import Task
from perceiver.training.config import targets
from perceiver.training.errors import ConfigError, about, one_line
from perceiver.training.module import OptimizerFactory, TrainingModule
from perceiver.training.optimization import Schedule

TRUSTED_PACKAGES = ("perceiver", "torch", "torchaudio", "lightning", "timm")
TRUSTED_KINDS = (nn.Module, Optimizer, Trainer, Callback)
"""What a config that comes out of a checkpoint may name: classes of these packages that are of one of these kinds, and
any class or schedule of our own. `torch.hub.load`, say, is neither."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    data: DataModule
    model: Perceiver
    task: Task
    module: TrainingModule


def build(config: dict[str, Any], class_names: list[str] | None = None) -> Parts:
    """Build data, model, task and training module.

    Args:
        config: a checked config (`perceiver.training.config.resolved`).
        class_names: known from a checkpoint; otherwise read from the data set, which must then be on disk.
    """
    dataset = construct(config, "data")
    data = construct(config, "loader", dataset=dataset)
    model: Perceiver = construct(config, "model")
    task: Task = construct(config, "task")
    if class_names is None:
        with blamed_on(config, "data"):
            data.prepare_data()
            class_names = dataset.class_names
            data.train_samples  # noqa: B018  (what is wrong on disk is found now)
    optimizer: OptimizerFactory = construct(config, "optimizer")
    with blamed_on(config, "optimizer"):
        try_optimizer(optimizer)
    module = TrainingModule(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=construct(config, "schedule"),
        description={"config": config, "class_names": class_names},
    )
    return Parts(data=data, model=model, task=task, module=module)


def construct(config: dict[str, Any], key: str, **parts: Any) -> Any:
    """Instantiate the node under a key; what a constructor refuses becomes an error that names the key.

    Raises:
        ConfigError: the constructor raised anything.
    """
    try:
        return instantiate(_below(config, key), _convert_="all", **parts)
    except InstantiationException as error:
        message, _, inner = str(error).partition("\nfull_key: ")
        path = ".".join(filter(None, (key, inner)))
        problem = one_line(error.__cause__ or InstantiationException(message))
        raise ConfigError(about(path, _below(config, path), problem)) from error


def _below(config: dict[str, Any], path: str) -> Any:
    """What stands under a path of keys, or the nearest above it that is there."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            break
        node = node[name]
    return node


@contextmanager
def blamed_on(config: dict[str, Any], key: str) -> Iterator[None]:
    """A ValueError from inside, or a file that is not there, becomes an error that names the key.

    Raises:
        ConfigError: in place of the ValueError.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(about(key, config[key], str(error))) from error


def try_optimizer(factory: OptimizerFactory) -> None:
    """Let an optimizer refuse its settings before training; not all of them look at theirs.

    Raises:
        ValueError: a setting is out of range.
    """
    settings = factory([{"params": [nn.Parameter(torch.zeros(1))]}]).defaults
    for name in ("lr", "weight_decay"):
        if settings.get(name, 0.0) < 0.0:
            raise ValueError(f"{name}={settings[name]} must be at least 0")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of a run says about it."""

    config: dict[str, Any]
    class_names: list[str]
    state: dict[str, torch.Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `experiments/train.py` without executing anything in it.

    Raises:
        ConfigError: it is missing, damaged, not one of ours, or its config names what is not trusted.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description = content["description"]
        checkpoint = Checkpoint(description["config"], description["class_names"], content["state_dict"])
    except Exception as error:  # damaged files raise anything; the message of a refused one is pages long
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{path}: not a readable checkpoint of a run ({problem})") from error
    for target in (str(node["_target_"]) for _, node in targets(checkpoint.config)):
        if not is_trusted(target):
            raise ConfigError(
                f"{path}: its config builds {target!r}, which is no class of {', '.join(TRUSTED_PACKAGES)}"
            )
    return checkpoint


def is_trusted(target: str) -> bool:
    """Whether a name from a file may be called."""
    if target.partition(".")[0] not in TRUSTED_PACKAGES:
        return False
    try:
        found = get_object(target)
    except Exception:  # whatever an import raises
        return False
    home = str(getattr(found, "__module__", ""))
    if home.partition(".")[0] == "perceiver":
        return isinstance(found, type) or home == Schedule.__module__
    return isinstance(found, type) and home.partition(".")[0] in TRUSTED_PACKAGES and issubclass(found, TRUSTED_KINDS)


def load_weights(module: TrainingModule, checkpoint: Checkpoint, path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        ConfigError: they are those of another model.
    """
    try:
        module.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        _, first, *_ = [*str(error).splitlines(), ""]
        raise ConfigError(f"{path}: its weights are not those of this model ({first.strip()})") from error
