"""Published models from a folder or from the Hugging Face Hub, without transformers.

A folder has `config.json` and `model.safetensors` or, pickled, `pytorch_model.bin`, which is read as tensors alone:
nothing in it is executed. Neither krasserm/perceiver-io's checkpoints nor DeepMind's, which are pickles of Haiku, are
read.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver.model import Perceiver
from perceiver.pretrained.architectures import ARCHITECTURES, Config, Variant
from perceiver.pretrained.nodes import Node
from perceiver.pretrained.transformers import load

CONFIG, SAFETENSORS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
PREPROCESSING = "preprocessor_config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Published:
    """A published model as it is stored.

    Attributes:
        path: of the weights.
        architecture: name of its class in transformers.
        config: the content of `config.json`.
        preprocessing: the content of `preprocessor_config.json`, if there is one.
        weights: by their names in transformers.
    """

    path: Path
    architecture: str
    config: Config
    preprocessing: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by label, as far as the config has them."""
        names = self.config.get("id2label")
        if not isinstance(names, dict) or not all(str(key).isdigit() for key in names):
            return []
        return [str(names[key]) for key in sorted(names, key=int)]


def from_pretrained(source: str | Path, *, variant: Variant = "transformers") -> Perceiver:
    """Return a published model in evaluation mode; see `from_transformers` for its inputs and outputs.

    Args:
        source: a folder, or the name of a repository on the Hugging Face Hub such as `deepmind/vision-perceiver-conv`,
            which needs huggingface_hub.
        variant: whose code is followed where it differs, see `perceiver.pretrained.architectures`.

    Raises:
        FileNotFoundError: the folder or repository, or a file in it, does not exist or cannot be reached.
        ValueError: it is damaged, or none of the published models.
    """
    published = read(source)
    return build(published, variant)[0]


def build(published: Published, variant: Variant) -> tuple[Perceiver, Node]:
    """Build a model in evaluation mode, with the stored weights; return it and its node.

    Raises:
        ValueError: a weight is missing or has no place, or see `model_node`.
    """
    try:
        model, node = load(published.architecture, published.config, published.weights, variant)
    except RuntimeError as error:
        _, first, *_ = [*str(error).splitlines(), ""]
        raise ValueError(f"{published.path}: its weights are not those of its config ({first.strip()})") from error
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{published.path}: {error}") from error
    return model.eval(), node


def read(source: str | Path) -> Published:
    """Read a published model; arguments and errors are those of `from_pretrained`."""
    folder = locate(source)
    config = _read_json(folder / CONFIG)
    settings = folder / PREPROCESSING
    preprocessing = _read_json(settings) if settings.is_file() else {}
    names = config.get("architectures")
    found = [name for name in ARCHITECTURES if isinstance(names, list) and name in names]
    if not found:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{folder / CONFIG}: architectures={names} has none of the published models: {known}")
    path = next((path for name in (SAFETENSORS, PICKLED) if (path := folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: has neither {SAFETENSORS} nor {PICKLED}")
    return Published(path, found[0], config, preprocessing, _read_weights(path))


def locate(source: str | Path) -> Path:
    """Return the folder of a model, which may first be downloaded.

    Raises:
        FileNotFoundError: see `from_pretrained`.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(str(source)):
        folder = download(str(source))
    if not folder.is_dir():
        raise FileNotFoundError(f"{source}: no such folder, nor the name of a repository such as owner/name")
    return folder


def download(name: str) -> Path:
    """Return a folder with the files of a repository, from the cache of huggingface_hub if it has them.

    Raises:
        FileNotFoundError: huggingface_hub is not installed, or the repository does not exist or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        problem = "no such folder; to download it from the Hugging Face Hub, install huggingface_hub"
        raise FileNotFoundError(f"{name}: {problem} (pip install 'perceiver[hub]')") from error
    try:
        listed = snapshot_download(name, allow_patterns=[CONFIG, PREPROCESSING, SAFETENSORS])
        if not (Path(listed) / SAFETENSORS).is_file():
            listed = snapshot_download(name, allow_patterns=[CONFIG, PREPROCESSING, PICKLED])
        return Path(listed)
    except Exception as error:  # of the connection, of the server, of the cache
        first = str(error).strip().partition("\n")[0]
        hint = "without a network, copy its config.json and weights to a folder and give that"
        raise FileNotFoundError(f"{name}: no such folder, and not available from the Hub ({first}); {hint}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; a published model has one") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must be an object")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.name == SAFETENSORS:
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise anything; the message of a refused one is pages long
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: is not a readable file of weights ({first})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: must hold tensors by name")
    return dict(weights)
