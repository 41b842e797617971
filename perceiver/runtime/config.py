"""Checks of a composed config before anything is built, and the resolvers that it uses."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from perceiver.runtime.errors import NODE_HINT, ConfigError, explain, one_line
from perceiver.runtime.nodes import import_target, is_valid, keyword_type, select, targets, type_adapter
from perceiver.runtime.suggestions import must_be_chosen, nearest, unknown_key
from perceiver.runtime.synonyms import ALIASES

SETTINGS: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "ckpt_path": str | None,
    "init.from": str | None,
    "init.strict": bool,
    "freeze": list[str],
    "unfreeze_at_epoch": Annotated[int, Field(ge=1)] | None,
    "optimizer.layer_decay": Annotated[float, Field(gt=0.0, le=1.0)] | None,
    "optimizer.lr_scale": dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None,
    "pretrained": str | None,
    "variant": Literal["transformers", "deepmind"],
    "compile": bool,
    "on_nonfinite": Literal["stop", "skip"],
    "decay_embeddings": bool,
    "matmul_precision": Literal["highest", "high", "medium"],
    "num_threads": Annotated[int, Field(ge=1)] | None,
}
"""The types of the values of a run's config that are not keywords of what a node builds, by key."""
PARTS = ("data", "loader", "model", "task", "optimizer", "schedule", "trainer", "checkpointing", "attention", "logger")
"""The keys at the root that each build one object."""
ROOT_KEYS = (*(key.partition(".")[0] for key in SETTINGS), *PARTS, "tokenizer", "input_tokenizer", "callbacks")
"""All keys at the root: the tokenizers are optional, and `callbacks` builds any number of objects."""
IMPORT_HINT = "code of your own is imported from the current folder and from PYTHONPATH"


def register_resolvers() -> None:
    """Register the resolvers of conf with OmegaConf."""
    OmegaConf.register_new_resolver("grid", grid, replace=True)
    OmegaConf.register_new_resolver("mel_grid", mel_grid, replace=True)
    OmegaConf.register_new_resolver("frames", frames, replace=True)
    OmegaConf.register_new_resolver("product", product, replace=True)
    OmegaConf.register_new_resolver("count_classes", count_classes, replace=True)


def count_classes(root: Any) -> int:
    """Number of class folders on disk."""
    from perceiver.data.sources.folders import find_classes

    return len(find_classes(Path(str(root))))


def grid(image_size: int | Sequence[int], stride: int | Sequence[int]) -> list[int]:
    """Number of cells along each axis that cover an image or a video.

    Args:
        image_size: the side of a square image, or the size along each axis: height and width, or frames, height, width.
        stride: size of a cell, or that along each axis.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
    steps = list(stride) if isinstance(stride, Sequence) else [stride] * len(sides)
    if len(sides) != len(steps) or not all(isinstance(x, int) and x >= 1 for x in (*sides, *steps)):
        raise ValueError(f"image_size={image_size} in cells of {stride} pixels: must be whole numbers, at least 1")
    return [-(-side // step) for side, step in zip(sides, steps, strict=True)]


def mel_grid(n_mels: int, num_frames: int, stride: int | Sequence[int]) -> list[int]:
    """Rows and columns of the cells that cover a spectrogram of `n_mels` bands.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    try:
        return grid([n_mels, num_frames], stride)
    except ValueError:
        raise ValueError(f"n_mels={n_mels} in cells of {stride}: must be whole numbers, at least 1") from None


def frames(seconds: float, sample_rate: int, hop_length: int) -> int:
    """Number of frames, of `hop_length` samples each, that cover a sound.

    Raises:
        ValueError: an argument is not positive.
    """
    if min(seconds, sample_rate, hop_length) <= 0:
        problem = f"seconds={seconds} at {sample_rate} Hz in hops of {hop_length} samples"
        raise ValueError(f"{problem}: must be more than 0")
    return -(-round(seconds * sample_rate) // hop_length)


def product(*sizes: int | Sequence[int]) -> int:
    """Product of numbers and of lists of numbers, such as the values of a patch of several channels."""
    return math.prod(math.prod(size) if isinstance(size, Sequence) else size for size in sizes)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain values, checked: nothing is missing, and every key and type is that of a signature.

    Raises:
        ConfigError: it is not valid; the message names the key, and the most similar right name of a wrong one.
    """
    for name in map(str, cfg):
        if name not in ROOT_KEYS:
            raise ConfigError(unknown_key(cfg, name))
    for name in PARTS:
        if name not in cfg:
            raise ConfigError(f"{name} {must_be_chosen(name)}")
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    _check_choices(config)
    _check_root(config)
    check_parts(config)
    return {str(name): value for name, value in config.items()}


def _check_choices(config: dict[str, Any]) -> None:
    """Refuse a plain value in place of a node that is chosen from a group."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for group in map(str, choices):
        key = group.rpartition("@")[2]
        if isinstance(value := select(config, key), str | int | float):
            raise ConfigError(f"{key}={value}: is chosen from a group: {group}={value}")


def _check_root(config: dict[str, Any]) -> None:
    for key, hint in SETTINGS.items():
        above, _, name = key.rpartition(".")
        node = select(config, above) if above else config
        if not isinstance(node, dict) or name not in node:
            raise ConfigError(f"{key} must be given: {key}=…")
        _check_value(key, node[name], hint)
    callbacks = {name: node for name, node in (config.get("callbacks") or {}).items() if node is not None}
    chosen = [name for name, node in callbacks.items() if "_target_" in node and name != "progress_bar"]
    for name, node in callbacks.items():
        if "_target_" not in node:
            choices = ",".join(["default", *chosen, name])
            raise ConfigError(f"callbacks.{name} is set, but not chosen; choose it too: callbacks=[{choices}]")
    for name in PARTS:
        if not isinstance(config[name], dict) or "_target_" not in config[name]:
            raise ConfigError(f"{name} {must_be_chosen(name)}")


def check_parts(config: dict[str, Any]) -> None:
    """Compare the keys and values of every node with a `_target_` with the signature of the target.

    A required keyword that is missing and may be None is set to None; a number or boolean where only a text is valid
    becomes one.

    Raises:
        ConfigError: the target has no such keyword, or a value is of another type.
    """
    for key, node in targets(config):
        target, hints = checked_import(key, node)
        parameters = inspect.signature(target).parameters
        has_kwargs = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, value in node.items():
            if name.startswith("_") or f"{key}.{name}" in SETTINGS:
                continue
            if name not in parameters and not has_kwargs:
                alias = ALIASES.get(name)
                hint = f"; did you mean {alias}?" if alias else nearest(name, list(parameters))
                leave_out = (
                    "" if _is_added(f"{key}.{name}") else f"; '~{key}.{name}' leaves it out where a file sets it"
                )
                raise ConfigError(f"{key}.{name}: {target.__name__} takes no such key{hint}{leave_out}")
            has_nodes = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
            if name in hints and not has_nodes:
                is_number = isinstance(value, int | float) and not is_valid(value, hints[name])
                if is_number and is_valid(json.dumps(value), hints[name]):
                    node[name] = value = json.dumps(value)  # the name of a folder, as typed
                _check_value(f"{key}.{name}", value, hints[name])
        for name, parameter in parameters.items():
            required = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
            if required and name not in node and not node.get("_partial_") and is_valid(None, hints.get(name)):
                node[name] = None  # left out with ~


def checked_import(key: str, node: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """`import_target` of the node under a key.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return import_target(node)
    except Exception as error:  # any that its module raises
        problem = f"{key}._target_={node['_target_']}: cannot be imported ({one_line(error.__cause__ or error)})"
        raise ConfigError(f"{problem}; {IMPORT_HINT}") from error


def _is_added(key: str) -> bool:
    """Whether the command line adds a key with +."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(str(override).startswith("+") and str(override).lstrip("+").startswith(key) for override in overrides)


def type_of(config: dict[str, Any], key: str) -> Any:
    """The type of the value under a key; None if unknown."""
    return SETTINGS[key] if key in SETTINGS else keyword_type(config, key)


def is_optional(config: dict[str, Any], key: str) -> bool:
    """Whether leaving a key out is the same as setting it to null."""
    if not is_valid(None, type_of(config, key)):
        return False
    if key in SETTINGS:
        return True
    above, _, name = key.rpartition(".")
    parameter = inspect.signature(import_target(select(config, above))[0]).parameters[name]
    return parameter.default in (parameter.empty, None)


def _check_value(key: str, value: Any, hint: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be a finite number")
    if (adapter := type_adapter(hint)) is None:
        return
    try:
        read = adapter.validate_python(value)
    except ValidationError as error:
        problems = dict.fromkeys(
            "too few values" if problem["type"] == "missing" else problem["msg"].removeprefix("Input ")
            for problem in error.errors()
        )
        needs_node = any(problem["type"] == "is_instance_of" for problem in error.errors())
        hint = f"; {NODE_HINT}: {key}.KEY=…" if needs_node and value is not None else ""
        raise ConfigError(f"{key}={value!r}: {', or '.join(problems)}{hint}") from None
    if isinstance(value, str | bool) and type(read) in (int, float, bool) and type(read) is not type(value):
        raise ConfigError(f"{key}={value!r}: should be {type(read).__name__}, not {type(value).__name__}")


register_resolvers()  # before Hydra composes a config
