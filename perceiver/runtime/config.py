"""From a composed config to plain values, checked before anything is built."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from perceiver.data.sources.folders import class_folders
from perceiver.runtime.errors import OFF, ConfigError, about_unknown_root, explain, nearest, one_line
from perceiver.runtime.synonyms import OURS

SETTINGS: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "ckpt_path": str | None,
    "compile": bool,
    "on_nonfinite": Literal["stop", "skip"],
    "decay_embeddings": bool,
    "matmul_precision": Literal["highest", "high", "medium"],
    "num_threads": Annotated[int, Field(ge=1)] | None,
}
"""The values at the root of a run's config, and their types."""
PARTS = ("data", "loader", "model", "task", "optimizer", "schedule", "trainer", "checkpointing", "attention", "logger")
"""The other keys at the root: each builds one thing. Besides them there are `tokenizer`, which is needed for text only,
and `callbacks`, which builds any number."""
KNOWN = (*SETTINGS, *PARTS, "tokenizer", "callbacks")
WHERE_CODE_IS_FOUND = "code of your own is imported from the current folder, or from what PYTHONPATH names"


def register_resolvers() -> None:
    """Make the resolvers that conf uses known to OmegaConf."""
    OmegaConf.register_new_resolver("grid", grid, replace=True)
    OmegaConf.register_new_resolver("mel_grid", mel_grid, replace=True)
    OmegaConf.register_new_resolver("frames", frames, replace=True)
    OmegaConf.register_new_resolver("count_classes", lambda root: len(class_folders(Path(str(root)))), replace=True)


def grid(image_size: int | Sequence[int], stride: int | Sequence[int]) -> list[int]:
    """Rows and columns of cells that cover an image.

    Args:
        image_size: its side, or its height and width, in pixels.
        stride: height and width of a cell, or both in one.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    sides, steps = (list(x) if isinstance(x, Sequence) else [x, x] for x in (image_size, stride))
    if [len(sides), len(steps)] != [2, 2] or not all(isinstance(x, int) and x >= 1 for x in (*sides, *steps)):
        raise ValueError(f"image_size={image_size} in cells of {stride} pixels: these must be whole numbers from 1 on")
    return [-(-side // step) for side, step in zip(sides, steps, strict=True)]


def mel_grid(n_mels: int, num_frames: int, stride: int | Sequence[int]) -> list[int]:
    """Rows and columns of cells that cover a spectrogram of `n_mels` bands.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    try:
        return grid([n_mels, num_frames], stride)
    except ValueError:
        raise ValueError(f"n_mels={n_mels} in cells of {stride}: these must be whole numbers from 1 on") from None


def frames(seconds: float, sample_rate: int, hop_length: int) -> int:
    """Frames that cover a sound: one for each hop of `hop_length` samples that is begun.

    Raises:
        ValueError: any of them is not positive.
    """
    if min(seconds, sample_rate, hop_length) <= 0:
        problem = f"seconds={seconds} at {sample_rate} Hz in hops of {hop_length} samples"
        raise ValueError(f"{problem}: these must be more than 0")
    return -(-round(seconds * sample_rate) // hop_length)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, checked: nothing missing, every key known to what it builds, every value of its type.

    Raises:
        ConfigError: with the key, and the nearest right name where a name is wrong.
    """
    for name in cfg:
        if str(name) not in KNOWN:
            raise ConfigError(about_unknown_root(cfg, str(name)))
    for group in PARTS:
        if group not in cfg:
            raise ConfigError(_about_missing(group))
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(plain, dict)
    config = {str(name): value for name, value in plain.items()}
    _check_choices(config)
    _check_root(config)
    check_parts(config)
    return config


def _check_choices(config: dict[str, Any]) -> None:
    """Refuse a name that was set where one was to be chosen from a group."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for chosen in map(str, choices):
        package = chosen.rpartition("@")[2]
        node: Any = config
        for name in package.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, str):
            raise ConfigError(f"{package}={node}: is chosen from a group: {chosen}={node}")


def _check_root(config: dict[str, Any]) -> None:
    for name, hint in SETTINGS.items():
        if name not in config:
            raise ConfigError(f"{name} must be given: {name}=…")
        _check_value(name, config[name], hint)
    callbacks = config.get("callbacks") or {}
    chosen = [name for name, node in callbacks.items() if node is not None and "_target_" in node]
    for name, node in callbacks.items():
        if node is not None and "_target_" not in node:
            all_ = ",".join(["default", *(other for other in chosen if other != "progress_bar"), name])
            raise ConfigError(f"callbacks.{name} is set, but not chosen; choose it too: callbacks=[{all_}]")
    for name in PARTS:
        if not isinstance(config.get(name), dict) or "_target_" not in config[name]:
            raise ConfigError(_about_missing(name))


def _about_missing(group: str) -> str:
    return f"{group} must be one of the choices in conf/{group}: {group}=…" + (
        f"; {OFF[group]}" if group in OFF else ""
    )


def check_parts(config: dict[str, Any]) -> None:
    """Hold every node that builds something against the signature of what it builds.

    What was left out and may be None becomes None; a number where only a text fits becomes one.

    Raises:
        ConfigError: a key that the signature has not, or a value of another type.
    """
    for key, node in targets(config):
        _check_call(key, node)


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that builds something, at or below `node`, with its key."""
    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from targets(child, f"{key}.{name}" if key else str(name))


def _check_call(key: str, node: dict[str, Any]) -> None:
    target, hints = _target(key, node)
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any:
            ours = OURS.get(name)
            hint = f"; did you mean {ours}?" if ours else nearest(name, list(parameters))
            leave_out = "" if _is_added(f"{key}.{name}") else f"; '~{key}.{name}' leaves it out where a file sets it"
            raise ConfigError(f"{key}.{name}: {target.__name__} takes no such key{hint}{leave_out}")
        holds_parts = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if name in hints and not holds_parts:
            if type(value) in (int, float) and not fits(value, hints[name]) and fits(str(value), hints[name]):
                node[name] = value = str(value)  # a folder may have a number for a name
            _check_value(f"{key}.{name}", value, hints[name])
    for name, parameter in parameters.items():
        needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if needed and name not in node and not node.get("_partial_") and fits(None, hints.get(name)):
            node[name] = None  # left out with ~


def _target(key: str, node: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a node builds, and the types of its keywords."""
    try:
        target: Any = get_object(node["_target_"])
    except Exception as error:  # whatever the import of the module raises
        problem = f"{key}._target_={node['_target_']}: cannot be imported ({one_line(error.__cause__ or error)})"
        raise ConfigError(f"{problem}; {WHERE_CODE_IS_FOUND}") from error
    try:
        return target, get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # some of torch's are annotated with what only type checkers import
        return target, {}


def _is_added(key: str) -> bool:
    """Whether the command line has added a key."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(str(override).startswith("+") and str(override).lstrip("+").startswith(key) for override in typed)


def may_be_left_out(config: Mapping[str, Any], key: str) -> bool:
    """Whether null stands for leaving a key out."""
    if key in SETTINGS:
        return fits(None, SETTINGS[key])
    node = _above(config, key)
    if node is None or not fits(None, hint_of(config, key)):
        return False
    parameter = inspect.signature(_target(key, node)[0]).parameters[key.rpartition(".")[2]]
    return parameter.default in (parameter.empty, None)


def _above(config: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The node that hands what stands under a key to what it builds."""
    node: Any = config
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) and "_target_" in node else None


def hint_of(config: Mapping[str, Any], key: str) -> Any:
    """The type of what stands under a key, by what it is handed to; None where that is not known."""
    if key in SETTINGS:
        return SETTINGS[key]
    node = _above(config, key)
    try:
        return None if node is None else _target(key, node)[1].get(key.rpartition(".")[2])
    except (ConfigError, NameError, TypeError):
        return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as can be told; nothing is of None."""
    if hint is None:
        return False
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except (PydanticSchemaGenerationError, ValidationError):
        return False
    return True


def _check_value(key: str, value: Any, hint: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be a finite number")
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return
    try:
        read = adapter.validate_python(value)
    except ValidationError as error:
        problems = dict.fromkeys(
            "too few values" if problem["type"] == "missing" else problem["msg"].removeprefix("Input ")
            for problem in error.errors()
        )
        raise ConfigError(f"{key}={value!r}: {', or '.join(problems)}") from None
    if isinstance(value, str | bool) and type(read) in (int, float, bool) and type(read) is not type(value):
        raise ConfigError(f"{key}={value!r}: should be {type(read).__name__}, not {type(value).__name__}")


register_resolvers()  # before Hydra composes anything
