"""A checked config -> the objects of a run; a checkpoint -> the same objects with its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from perceiver.data.module import DataModule
from perceiver.model import Perceiver
from perceiver.tasks.base import Task
from perceiver.training.config import ConfigError
from perceiver.training.module import TrainingModule

TRUSTED_PACKAGES = ("perceiver", "torch", "lightning", "timm")
"""Where the `_target_`s of a config that comes out of a checkpoint may lie."""


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
        data.prepare_data()
        class_names = dataset.class_names
    module = TrainingModule(
        model=model,
        task=task,
        optimizer=construct(config, "optimizer"),
        schedule=construct(config, "schedule"),
        description={"config": config, "class_names": class_names},
    )
    return Parts(data=data, model=model, task=task, module=module)


def construct(config: dict[str, Any], key: str, **parts: Any) -> Any:
    """Instantiate one node; what a constructor refuses becomes an error that names the key.

    Raises:
        ConfigError: the constructor raised ValueError or TypeError.
    """
    try:
        return instantiate(config[key], _convert_="all", **parts)
    except InstantiationException as error:
        raise ConfigError(f"{key}: {error.__cause__ or error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of a run says about it."""

    config: dict[str, Any]
    class_names: list[str]
    state: dict[str, torch.Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `experiments/train.py` without executing anything in it.

    Raises:
        ConfigError: it is missing, damaged, not one of ours, or names classes outside of the trusted packages.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description, state = content["description"], content["state_dict"]
    except Exception as error:  # damaged files raise anything; the message of a refused one is pages long
        raise ConfigError(f"{path}: not a readable checkpoint of a run ({str(error).splitlines()[0]})") from error
    for target in _targets(description["config"]):
        if target.partition(".")[0] not in TRUSTED_PACKAGES:
            raise ConfigError(
                f"{path}: its config builds {target!r}, which is in none of {', '.join(TRUSTED_PACKAGES)}"
            )
    return Checkpoint(config=description["config"], class_names=description["class_names"], state=state)


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for child in node.values() for target in _targets(child)]
    return [target for child in node for target in _targets(child)] if isinstance(node, list) else []
