"""From a composed config to plain values: resolvers, checks before anything is built, and errors in one sentence."""

import difflib
import functools
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_type_hints

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from perceiver.data.base import UnreadableError
from perceiver.data.image_folder import class_folders

P = ParamSpec("P")
T = TypeVar("T")

SETTINGS: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "ckpt_path": str | None,
    "compile": bool,
    "matmul_precision": Literal["highest", "high", "medium"],
    "num_threads": Annotated[int, Field(ge=1)] | None,
}
"""The values at the root of a run's config, and their types."""
PARTS = ("data", "loader", "model", "task", "optimizer", "schedule", "trainer", "attention", "logger")
"""The other keys at the root: each builds one thing. Besides them there is `callbacks`, which builds any number."""


class ConfigError(Exception):
    """A config that cannot work; the message names the key and what to write instead."""


USER_ERRORS: tuple[type[Exception], ...] = (
    ConfigError,
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
    UnreadableError,
    FileNotFoundError,
    PermissionError,
)


def register_resolvers() -> None:
    """Make `${grid:…}` and `${count_classes:…}` known to OmegaConf."""
    OmegaConf.register_new_resolver("grid", grid, replace=True)
    OmegaConf.register_new_resolver("count_classes", lambda root: len(class_folders(Path(root))), replace=True)


def grid(image_size: int | Sequence[int], stride: int) -> list[int]:
    """Rows and columns of cells of `stride` pixels that cover an image of a side, or of height and width.

    Raises:
        ValueError: a size is not a whole number of at least 1.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
    if len(sides) != 2 or not all(isinstance(size, int) and size >= 1 for size in (*sides, stride)):
        raise ValueError(f"image_size={image_size} in cells of {stride} pixels: these must be whole numbers from 1 on")
    return [-(-side // stride) for side in sides]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, checked: nothing missing, every key known to what it builds, every value of its type.

    Raises:
        ConfigError: with the key, and the nearest right name where a name is wrong.
    """
    register_resolvers()
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(plain, dict)
    config = {str(name): value for name, value in plain.items()}
    _check_root(config)
    check_parts(config)
    return config


def _check_root(config: dict[str, Any]) -> None:
    known = [*SETTINGS, *PARTS, "callbacks"]
    for name in config:
        if name not in known:
            raise ConfigError(f"{name}: a run has no such key{_nearest(name, known)}")
    for name, hint in SETTINGS.items():
        if name not in config:
            raise ConfigError(f"{name} must be given: {name}=…")
        _check_value(name, config[name], hint)
    for name in PARTS:
        if not isinstance(config.get(name), dict) or "_target_" not in config[name]:
            raise ConfigError(f"{name} must be one of the choices in conf/{name}: {name}=…")


def check_parts(config: dict[str, Any]) -> None:
    """Hold every node that builds something against the signature of what it builds.

    Raises:
        ConfigError: a key that the signature has not, or a value of another type.
    """
    for key, node in _targets(config, ""):
        _check_call(key, node)


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that builds something, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}" if key else str(name))


def _check_call(key: str, node: dict[str, Any]) -> None:
    try:
        target: Any = get_object(node["_target_"])
    except Exception as error:  # whatever the import of the module raises
        raise ConfigError(f"{key}._target_={node['_target_']}: cannot be imported") from error
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any:
            raise ConfigError(f"{key}.{name}: {target.__name__} takes no such key{_nearest(name, list(parameters))}")
        holds_parts = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if name in hints and not holds_parts:
            _check_value(f"{key}.{name}", value, hints[name])


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
        problems = dict.fromkeys(problem["msg"].removeprefix("Input ") for problem in error.errors())
        raise ConfigError(f"{key}={value!r}: {', or '.join(problems)}") from None
    if isinstance(value, str | bool) and type(read) in (int, float, bool) and type(read) is not type(value):
        raise ConfigError(f"{key}={value!r}: should be {type(read).__name__}, not {type(value).__name__}")


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(names))}"


def explain(error: BaseException) -> str:
    """An error that a user can mend, in one sentence."""
    text, cause = one_line(error), error.__cause__
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        options = (
            _nearest(choice, list(error.options)) if error.options else f", which would be conf/{group}/{choice}.yaml"
        )
        return f"{group}={choice}: no such choice{options}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not readable as key=value; a value with special characters needs quotes: 'key=\"…\"'"
    if isinstance(error, ConfigCompositionException):
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            asked = re.match(r"Could not override '(.+?)'", text)
            return _explain_unknown_key(cause, asked[1] if asked else None)
        if other := re.match(r"Could not override '(.*?)'\. (?:Did you mean to override (.*?\?))?", text):
            return f"{other[1]!r}: no such key{f'; did you mean {other[2]}' if other[2] else ''}"
        return text
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", text):
        key = error.full_key if isinstance(error, MissingMandatoryValue) else missing[1]
        return f"{key} must be given: {key}=…"
    if isinstance(error, InterpolationResolutionError):
        problem = re.sub(r"^\w+ raised while resolving interpolation: | full_key: .*$", "", text)
        return f"{(error.full_key or '').rpartition('.')[0]}: {problem}"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(error, None)
    return text


def _explain_unknown_key(error: OmegaConfBaseException, asked: str | None) -> str:
    """`asked`: the whole key that was asked for, of which `error` found a first part to be unknown."""
    parent = error.parent_node
    if not isinstance(parent, DictConfig):
        return one_line(error)
    key, found_up_to = str(error.key), str(error.full_key)
    full_key = asked or found_up_to
    if full_key == found_up_to and key in _accepted(parent):
        return f"{full_key}: not in conf, but {parent['_target_']} takes it: +{full_key}=…"
    leaf = full_key.rpartition(".")[2]
    elsewhere = [path for path in _paths(parent._get_root(), "") if path.rpartition(".")[2] == leaf]
    names = [str(name) for name in parent if name != "hydra"]
    close = [found_up_to.removesuffix(key) + name for name in difflib.get_close_matches(key, names, n=1)]
    suggestions = elsewhere[:3] or close
    hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else f"there are: {', '.join(names)}"
    return f"{full_key}: no such key; {hint}"


def _accepted(node: DictConfig) -> Sequence[str]:
    """Keys that what a node builds would take."""
    return list(inspect.signature(get_object(node["_target_"])).parameters) if "_target_" in node else []


def _paths(node: Any, prefix: str) -> Iterator[str]:
    """Every key below a node whose value stands there, and is not taken over from another key."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for name in node:
            path = f"{prefix}.{name!s}" if prefix else str(name)
            if path != "hydra" and not OmegaConf.is_interpolation(node, str(name)):
                yield path
                yield from _paths(node._get_node(name), path)


def one_line(error: BaseException) -> str:
    """The message proper; an error from a worker process carries it behind the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1].rpartition("Error: ")[2]
    return " ".join(lines) or type(error).__name__


def _misused_group(error: ValueError) -> str | None:
    """What to say where a config group is set to a number or null; Hydra's own message does not name the group."""
    if not str(error).startswith("Config group override must be"):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    override = frame.f_locals["override"]
    return f"{override.input_line}: must name one of the choices in conf/{override.key_or_group}"


def explained(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, ending the process with one sentence and status 1 at an error that the user can mend.

    It stands around a Hydra main for errors of composition, and below it for those of the run. With
    `PERCEIVER_TRACEBACK=1` in the environment the traceback is shown instead.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on
        try:
            return function(*args, **kwargs)
        except USER_ERRORS as error:
            sentence: str | None = explain(error)
            if os.environ.get("PERCEIVER_TRACEBACK") == "1":
                raise
        except ValueError as error:
            sentence = _misused_group(error)
            if sentence is None:
                raise
        sys.exit(f"error: {sentence}")

    return wrapper
