"""Published models from a folder or from the Hugging Face Hub, without transformers.

A folder has `config.json` and `model.safetensors` or, pickled, `pytorch_model.bin`, which is read as tensors alone:
nothing in it is executed. Instead of one file, there may be several, which an index beside them lists. Neither
krasserm/perceiver-io's checkpoints nor DeepMind's, which are pickles of Haiku, are read.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from perceiver.model import Perceiver
from perceiver.pretrained.architectures import ARCHITECTURES, Config, Variant
from perceiver.pretrained.nodes import Node
from perceiver.pretrained.transformers import load
from perceiver.types import first_line

CONFIG, SAFETENSORS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
FILES = (SAFETENSORS, f"{SAFETENSORS}{INDEX}", PICKLED, f"{PICKLED}{INDEX}")
"""Files of weights, of which the first that exists is read: one with all, or the index of several."""
PREPROCESSING = "preprocessor_config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Published:
    """A published model as it is stored.

    Attributes:
        path: of the weights, or of their index.
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
        problem = f"its weights are not those of its config ({first_misfit(error)})"
        raise ValueError(f"{published.path}: {problem}") from error
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{published.path.parent}: {error}") from error
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
    if config.get("quantization_config"):
        problem = "quantization_config: quantized weights are not read; save them unquantized"
        raise ValueError(f"{folder / CONFIG}: {problem}")
    path = next((path for name in FILES if (path := folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: has neither {SAFETENSORS} nor {PICKLED}, nor the index of several files")
    weights = _read_sharded(path) if path.name.endswith(INDEX) else _read_weights(path)
    for name, value in weights.items():
        if problem := _problem(name, value):
            raise ValueError(f"{path}: weight {name!r} {problem}")
    return Published(path, found[0], config, preprocessing, weights)


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
        for weights in (SAFETENSORS, PICKLED):
            stem, _, suffix = weights.partition(".")
            files = [weights, f"{weights}{INDEX}"]
            patterns = [CONFIG, PREPROCESSING, *files, f"{stem}-*-of-*.{suffix}"]
            folder = Path(snapshot_download(name, allow_patterns=patterns))
            if any((folder / file).is_file() for file in files):
                break
        return folder
    except Exception as error:  # of the connection, of the server, of the cache
        hint = "without a network, copy its config.json and weights to a folder and give that"
        raise FileNotFoundError(
            f"{name}: no such folder, and not available from the Hub ({first_line(error)}); {hint}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # but a pipe, for example
        raise FileNotFoundError(f"{path}: no such file; a published model has one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must be an object")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == Path(SAFETENSORS).suffix:
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{path}: is not a readable file of weights ({unreadable_reason(error)})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: must hold tensors by name")
    return dict(weights)


def unreadable_reason(error: Exception) -> str:
    """Return in a line why weights cannot be read: torch recommends to execute what it refuses."""
    if isinstance(error, UnpicklingError):
        return "it is damaged, or holds objects other than tensors and plain values, which could execute code"
    return first_line(error)


def first_misfit(error: RuntimeError) -> str:
    """Return the first weight that is missing, left over or of another shape, from the error of `load_state_dict`."""
    _, first, *_ = [*str(error).splitlines(), ""]
    return first.strip()


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """Read weights that are stored in several files, which the index lists by weight.

    Raises:
        ValueError: it names a file outside of its folder, one is missing or damaged, or has other weights.
    """
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index}: weight_map must be an object with the file of each weight")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if file != Path(file).name or not (path := index.parent / file).is_file():
            raise ValueError(f"{index}: weight_map: {file!r} is no file in this folder")
        for name, value in _read_weights(path).items():
            if files.get(name) != file:
                raise ValueError(f"{path}: weight {name!r} is not listed for this file in {index.name}")
            weights[name] = value
    if missing := files.keys() - weights.keys():
        raise ValueError(f"{index.parent / files[min(missing)]}: lacks {min(missing)}, which {index.name} lists for it")
    return weights


def _problem(name: str, value: Tensor) -> str:
    """Return why a weight cannot be used; empty if it can."""
    if not name.isprintable():
        return "has a name that is not printable"
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        return "is no plain tensor"
    if name.endswith(".num_batches_tracked") and value.dtype == torch.int64:
        return ""
    if not value.is_floating_point():
        return f"is of type {str(value.dtype).removeprefix('torch.')}, not floating-point"
    return "" if value.float().isfinite().all() else "has values that are NaN or infinite"
