"""A run's model as a folder of `config.json` and `model.safetensors`, in which nothing can be executed.

It holds what a checkpoint holds of a model and its data, without the state of training.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from shutil import copymode
from typing import Any

from safetensors.torch import load_file, save_file

from perceiver.pretrained.folder import CONFIG, SAFETENSORS
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.training.checkpoint import Checkpoint, check_types
from perceiver.training.trust import check_trust

FORMAT = "perceiver run"
TRAINED_ON = "trained_on"


def write_run_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the folder, which `read_run_folder` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    # Copies: tied weights share their memory, which the format does not allow.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.state.items()}
    save_file({**tensors, TRAINED_ON: checkpoint.trained_on}, folder / SAFETENSORS, metadata={"format": "pt"})
    names = [field.name for field in fields(checkpoint) if field.name not in ("state", TRAINED_ON)]
    values = {name: getattr(checkpoint, name) for name in names}
    content = json.dumps({"format": FORMAT, **values}, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(content, encoding="utf-8")
    copymode(folder / CONFIG, folder / SAFETENSORS)  # which safetensors creates for its user alone


def is_run_folder(folder: Path) -> bool:
    """Whether a folder was written by `write_run_folder`, by the format that its config states."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_run_folder(folder: Path, trusted: Sequence[str] | None = ()) -> Checkpoint:
    """Read the folder; see `check_trust` for `trusted`, None if nothing of its config is built.

    Raises:
        ConfigError: a file is missing or damaged, or the config builds classes that are not trusted.
    """
    try:
        values: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        values.pop("format")
        state = load_file(folder / SAFETENSORS)
        checkpoint = check_types(**values, **{TRAINED_ON: state.pop(TRAINED_ON)}, state=state)
    except Exception as error:  # of the file, of its format, of a type, of a key that is missing
        raise ConfigError(f"{folder}: not a readable folder of a run ({one_line(error)})") from error
    if trusted is not None:
        check_trust(checkpoint.config, trusted, folder / CONFIG)
    return checkpoint
