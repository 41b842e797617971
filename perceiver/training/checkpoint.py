"""The checkpoint of a run: read without executing anything in it, and its weights loaded into a module."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver.data.files import refuse_special
from perceiver.runtime.checkpoints import damage
from perceiver.runtime.errors import ConfigError
from perceiver.training.build import DataInfo
from perceiver.training.module import TrainingModule


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        config: as plain values.
        data_info: class names and vocabulary.
        state: the weights.
        step, epoch: the last that were trained.
        interpolations: key -> interpolation, for values of the config that are computed from others.
        trained_on: fingerprints of the training samples, in their order, if they are known.
    """

    config: dict[str, Any]
    data_info: DataInfo
    state: dict[str, Tensor]
    step: int
    epoch: int
    interpolations: dict[str, str]
    trained_on: Tensor | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `experiments/train.py` without executing anything in it.

    Call `check_trust` before building its config.

    Raises:
        ConfigError: it is missing, damaged or not the checkpoint of a run.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    refuse_special(path)
    if problem := damage(path):
        raise ConfigError(f"{path}: the file is damaged or no checkpoint ({problem})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description = content["description"]
        checkpoint = Checkpoint(
            config=description["config"],
            data_info=DataInfo(description["class_names"], description.get("vocabulary")),
            state=content["state_dict"],
            step=int(content["global_step"]) - 1,
            epoch=int(content["epoch"]),
            interpolations=description.get("interpolations", {}),
            trained_on=description.get("trained_on"),
        )
        check_content(checkpoint)
    except Exception as error:  # damaged files raise anything; the message of a refused one is pages long
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{path}: not a readable checkpoint of a run ({problem})") from error
    return checkpoint


def check_content(checkpoint: Checkpoint) -> None:
    """Check the types of what was read, and that the config holds plain values.

    Raises:
        ValueError: a value is not valid.
    """
    names, fingerprints = checkpoint.data_info.class_names, checkpoint.trained_on
    for key, is_valid in {
        "config": isinstance(checkpoint.config, dict),
        "class_names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "vocabulary": isinstance(checkpoint.data_info.vocabulary, str | None),
        "state_dict": _is_dict_of(checkpoint.state, Tensor),
        "interpolations": _is_dict_of(checkpoint.interpolations, str),
        "trained_on": fingerprints is None or (isinstance(fingerprints, Tensor) and fingerprints.dtype == torch.int64),
        "global_step and epoch": min(checkpoint.step, checkpoint.epoch) >= 0,
    }.items():
        if not is_valid:
            raise ValueError(f"its {key} is not valid")
    if "${" in repr(checkpoint.config):  # a resolver could create a target that check_trust does not see
        raise ValueError("its config contains an interpolation")


def _is_dict_of(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def load_weights(module: TrainingModule, checkpoint: Checkpoint, path: Path) -> None:
    """Load the weights of a checkpoint into a module.

    Raises:
        ConfigError: they do not fit the model.
    """
    try:
        module.load_weights(checkpoint.state)
    except RuntimeError as error:
        _, first, *_ = [*str(error).splitlines(), ""]
        raise ConfigError(f"{path}: its weights are not those of this model ({first.strip()})") from error
