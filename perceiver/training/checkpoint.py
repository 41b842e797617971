"""The checkpoint of a run: read without executing anything in it, and its weights loaded into a model.

torch stores a CRC-32 for each record but never verifies it, and most flipped bits would load without an error; here the
checksums are verified before loading.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ConfigDict, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from perceiver.data.files import CONTROL_CHARACTERS, refuse_special
from perceiver.pretrained.folder import first_misfit, unreadable_reason
from perceiver.runtime.errors import ConfigError
from perceiver.training.build import DataInfo

DOS_FOLDER = 0x10
"""The bit of a zip record's attributes that marks a folder."""


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
class Checkpoint:
    """The content of a checkpoint, whose types are checked.

    Attributes:
        config: as plain values.
        class_names, vocabulary, input_vocabulary: see `DataInfo`.
        state: the weights.
        step, epoch: the last that were trained.
        interpolations: key -> interpolation, for values of the config that are computed from others.
        trained_on: fingerprints of the training samples, in their order.
    """

    config: dict[str, Any]
    class_names: list[str]
    vocabulary: str | None
    input_vocabulary: str | None
    state: dict[str, Tensor]
    step: NonNegativeInt
    epoch: NonNegativeInt
    interpolations: dict[str, str]
    trained_on: Tensor

    @property
    def data_info(self) -> DataInfo:
        return DataInfo(self.class_names, self.vocabulary, self.input_vocabulary)


def find_damage(path: Path) -> str | None:
    """Verify the checksums of a checkpoint file, and return the problem, if any."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            # torch does not read a record that is marked as a folder, and leaves its tensor uninitialized.
            marked = next((info.filename for info in archive.infolist() if info.external_attr & DOS_FOLDER), None)
    except Exception as error:  # after a flipped bit zipfile raises any exception
        return str(error) or type(error).__name__
    if marked:
        return f"{marked} is marked as a folder"
    return f"the checksum of {record} does not match" if record else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `experiments/train.py` without executing anything in it.

    Call `check_trust` before building its config.

    Raises:
        ConfigError: it is missing, damaged or not the checkpoint of a run.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    refuse_special(path)
    if problem := find_damage(path):
        raise ConfigError(f"{path}: the file is damaged or no checkpoint ({problem})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description = content["description"]
        return check_types(
            config=description["config"],
            class_names=description["class_names"],
            vocabulary=description["vocabulary"],
            input_vocabulary=description.get("input_vocabulary"),  # absent before input texts had one of their own
            state=content["state_dict"],
            step=content["global_step"] - 1,
            epoch=content["epoch"],
            interpolations=description["interpolations"],
            trained_on=description["trained_on"],
        )
    except Exception as error:  # damaged files raise anything
        raise ConfigError(f"{path}: not a readable checkpoint of a run ({unreadable_reason(error)})") from error


def check_types(**values: Any) -> Checkpoint:
    """Return the content of a checkpoint from values that were read from a file.

    Raises:
        ValueError: one is missing, or not of its type.
    """
    try:
        checkpoint = Checkpoint(**values)
    except ValidationError as error:
        raise ValueError(f"its {error.errors()[0]['loc'][0]} is not valid") from error
    # `dumps` raises if the config contains itself; a resolver could create a target that check_trust does not see.
    if "${" in json.dumps(checkpoint.config, ensure_ascii=False):
        raise ValueError("its config contains an interpolation")
    for name, value in checkpoint.state.items():
        is_plain = value.layout == torch.strided and not (value.is_nested or value.is_quantized or value.is_meta)
        if not is_plain or CONTROL_CHARACTERS.search(name):
            raise ValueError(f"its weight {name!r} is not valid")
    if checkpoint.trained_on.dtype != torch.int64:
        raise ValueError("its trained_on is not valid")
    return checkpoint


class HasWeights(Protocol):
    """What the weights of a checkpoint are loaded into."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None: ...


def weight_problem(value: Tensor, own: Tensor) -> str:
    """Return why a weight cannot replace `own`: its kind of number differs, or it is not finite; otherwise ""."""
    if _kind(value) == _kind(own):
        return "" if value.isfinite().all() else "has values that are NaN or infinite"
    stored, wanted = (str(one.dtype).removeprefix("torch.") for one in (value, own))
    return f"is of type {stored}, and that of the model of type {wanted}"


def _kind(value: Tensor) -> tuple[bool, bool, bool]:
    return value.dtype == torch.bool, value.is_floating_point(), value.is_complex()


def load_weights(module: HasWeights, checkpoint: Checkpoint, path: Path) -> None:
    """Load the weights of a checkpoint into the parts of a run, or its module.

    Raises:
        ConfigError: they do not fit the model, or are not finite: whatever is computed with them would be NaN.
    """
    own = module.state_dict()
    for name, value in checkpoint.state.items():
        if name in own and (problem := weight_problem(value, own[name])):
            raise ConfigError(f"{path}: its weight {name} {problem}")
    try:
        module.load_weights(checkpoint.state)
    except RuntimeError as error:
        raise ConfigError(f"{path}: its weights are not those of this model ({first_misfit(error)})") from error
