"""From a composed config to objects: resolvers, checks before anything is built, and errors in one sentence."""

import difflib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from perceiver.data.base import UnreadableError
from perceiver.data.image_folder import class_folders

P = ParamSpec("P")
T = TypeVar("T")


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
    """Rows and columns of cells of `stride` pixels that cover an image of a side, or of height and width."""
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    return [-(-side // stride) for side in sides]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, checked: nothing missing, every key known to what it builds, every value of its type.

    Raises:
        ConfigError: with the key, and the nearest right name where a name is wrong.
    """
    register_resolvers()
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} must be given: {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key, node in _targets(plain, ""):
        _check_call(key, node)
    return {str(name): value for name, value in plain.items()}


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that builds something, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}" if key else str(name))


def _check_call(key: str, node: dict[str, Any]) -> None:
    target: Any = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise ConfigError(f"{key}.{name}: {target.__name__} takes no such key{_nearest(name, list(parameters))}")
        holds_parts = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if name in hints and not holds_parts:
            _check_value(f"{key}.{name}", value, hints[name])


def _check_value(key: str, value: Any, hint: Any) -> None:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError(f"{key}={value!r}: {problem[0].lower()}{problem[1:]}") from None


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(names))}"


def explain(error: BaseException) -> str:
    """An error that a user can mend, in one sentence."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={choice}: no such choice{_nearest(choice, list(error.options))}"
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(cause)
    if isinstance(error, InstantiationException) and cause is not None:
        key = str(error).rpartition("full_key: ")[2].strip()
        return f"{key}: {_last_line(cause)}"
    return _last_line(error)


def _explain_unknown_key(error: OmegaConfBaseException) -> str:
    name, parent = str(error.key), error.parent_node
    if not isinstance(parent, DictConfig):
        return _last_line(error)
    root = parent._get_root()
    full_key = str(error.full_key)
    elsewhere = [path for path in _paths(root, "") if path.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, [str(key) for key in parent], n=1, cutoff=0.6)
    prefix = full_key[: len(full_key) - len(name)]
    suggestions = [prefix + close[0]] if close else elsewhere[:3]
    hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else f"there are: {', '.join(map(str, parent))}"
    return f"{full_key}: no such key; {hint}"


def _paths(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for name in node:
            path = f"{prefix}.{name!s}" if prefix else str(name)
            yield path
            if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, str(name)):
                yield from _paths(node._get_node(name), path)


def _last_line(error: BaseException) -> str:
    """The message proper; an error from a worker process carries it behind the worker's traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1].rpartition("Error: ")[2]
    return " ".join(line.strip() for line in lines) or type(error).__name__


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
            if os.environ.get("PERCEIVER_TRACEBACK") == "1":
                raise
            sys.exit(f"error: {explain(error)}")

    return wrapper
