"""Errors that a user can mend, in one sentence each."""

import difflib
import functools
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import get_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedValueType,
)

from perceiver.data.files import UnreadableError
from perceiver.runtime.signals import INTERRUPTED
from perceiver.runtime.summary import note
from perceiver.runtime.synonyms import MOVED, OURS, SHORT, SYNONYMS

P = ParamSpec("P")
T = TypeVar("T")


class ConfigError(Exception):
    """A config that cannot work; the message names the key and what to write instead."""


class PositionError(Exception):
    """A run cannot be continued at its place in the data, since data, order or batches are others than they were."""


PLUGINS = {"submitit_slurm": "slurm", "optuna": "optuna"}
"""Choices of Hydra's own groups, and which of our extras brings them."""
OFF = {
    "attention": "attention.every_n_epochs=0 switches it off",
    "logger": "logger=none switches it off",
    "schedule": "schedule=constant leaves the learning rate as it is",
    "callbacks": "callbacks=[] leaves out all",
}
"""What to write instead of leaving out a part that every run has."""
USER_ERRORS: tuple[type[Exception], ...] = (
    ConfigError,
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
    UnreadableError,
    PositionError,
    OSError,
)


def explain(error: BaseException) -> str:
    """An error that a user can mend, in one sentence."""
    text, cause = one_line(error), error.__cause__
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if plugin := PLUGINS.get(choice):
            return f"{group}={choice} is a plugin of Hydra: uv run --extra {plugin} …, or pip install -e '.[{plugin}]'"
        options = (
            nearest(choice, list(error.options)) if error.options else f", which would be conf/{group}/{choice}.yaml"
        )
        return f"{group}={choice}: no such choice{options}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not readable as key=value; a value with special characters needs quotes: 'key=\"…\"'"
    if isinstance(error, ConfigCompositionException):
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            asked = re.match(r"Could not override '(.+?)'", text)
            return _explain_unknown_key(cause, asked[1] if asked else None)
        if gone := re.match(r"Could not delete from config. '(.+?)'", text):
            return f"~{gone[1]}: there is no such key to leave out"
        if gone := re.match(r"Could not delete '(.+?)'", text):
            return f"~{gone[1]}: nothing of that group is chosen by itself; {OFF.get(gone[1], f'{gone[1]}=null')}"
        if other := re.match(r"Could not override '(.*?)'\. (?:Did you mean to override (.*?\?))?", text):
            added = re.search(r"To append to your default list use (\S+)", text)
            hint = f"; did you mean {other[2]}" if other[2] else ""
            return f"{other[1]!r}: no such key{hint}{f' To add it: {added[1]}' if added and hint else ''}"
        return text
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", text):
        key = error.full_key if isinstance(error, MissingMandatoryValue) else missing[1]
        return f"{key} must be given: {key}=…"
    if isinstance(error, InterpolationKeyError) and (wanted := re.search(r"'([\w.]+)' not found", text)):
        group = wanted[1].partition(".")[0]
        root = None if error.parent_node is None else error.parent_node._get_root()
        if wanted[1] == "seed":
            return "seed must be given: seed=…"
        if isinstance(root, DictConfig) and root.get(group) is None:
            return f"{error.full_key} needs {wanted[1]}, but no {group} is chosen; choose one of conf/{group}"
        fitting = "conf/experiment has choices that go together"
        return f"{error.full_key} needs {wanted[1]}, which the chosen {group} does not have; {fitting}"
    if isinstance(error, InterpolationResolutionError):
        problem = re.sub(r"^\w+ raised while resolving interpolation: | full_key: .*$", "", text)
        node, key = error.parent_node, (error.full_key or "").rpartition(".")[0]
        # What a resolver refuses mostly stands elsewhere, and was handed to it.
        root = None if node is None else node._get_root()
        return _with_whole_key(key, node, problem) or f"{key}: {about('', root, problem)}"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(error, None)
    if isinstance(error, UnsupportedValueType) and "--resolve" in sys.argv:
        return "--resolve: OmegaConf cannot print lists that are computed; leave --resolve out"
    return text


def _explain_unknown_key(error: OmegaConfBaseException, asked: str | None) -> str:
    """`asked`: the whole key that was set; unknown is a first part of it, or a key of the value that it was given."""
    parent = error.parent_node
    if not isinstance(parent, DictConfig):
        return one_line(error)
    key, found_up_to = str(error.key), str(error.full_key)
    full_key = found_up_to if asked is None or found_up_to.startswith(f"{asked}.") else asked
    if full_key == found_up_to and key in _accepted(parent):
        return f"{full_key}: not in conf, but {parent['_target_']} takes it: +{full_key}=…"
    root = parent._get_root()
    assert isinstance(root, DictConfig)
    beside = found_up_to.removesuffix(key)
    short = [name.removeprefix(beside) for name in SHORT if name.startswith(beside) and beside]
    close = [beside + name for name in difflib.get_close_matches(key, [*_names(parent), *short], n=1)]
    hint = _about_unknown(root, full_key, close)
    if hint is None and (found_up_to == key or parent is root):
        hint = "train.py --cfg job shows all there are"
    elif hint is None:
        there = f"there are: {', '.join(_names(parent))}"
        bare = "takes no keys" if "_target_" in parent else "is not set"
        hint = there if _names(parent) else f"{found_up_to.removesuffix(f'.{key}')} {bare}"
    return f"{full_key}: no such key; {hint}"


def about_unknown_root(root: DictConfig, name: str) -> str:
    """What to say of a key at the root of a config that was added, and does not belong there."""
    close = difflib.get_close_matches(name, [other for other in _names(root) if other != name], n=1)
    return f"{name}: no such key; {_about_unknown(root, name, close) or 'train.py --cfg job shows all there are'}"


def _about_unknown(root: DictConfig, full_key: str, close: Sequence[str]) -> str | None:
    """What was meant by a key that is not there, as far as can be told.

    Args:
        root: the whole config.
        full_key: the key.
        close: keys beside it that are spelt alike.
    """
    if full_key in MOVED:
        return f"did you mean {MOVED[full_key]}?"
    leaf = full_key.rpartition(".")[2]
    ours = OURS.get(leaf.lower().replace("-", "_"))
    if "overrides" in root:  # of a command for finished runs
        ours = ours or next((key for key in SYNONYMS if key.rpartition(".")[2] == full_key), None)
        setting = ours if ours and re.fullmatch(r"\w+\.[\w.]+", ours) else full_key
        named = f"did you mean {close[0]}?" if close else f"there are: {', '.join(_names(root))}"
        return f"{named}; a setting of the run goes into overrides='[\"{setting}=…\"]'"
    group, _, below = full_key.partition(".")
    if group == "callbacks" and below and below.partition(".")[0] not in (root.get("callbacks") or {}):
        return f"choose it first: callbacks=[default,{below.partition('.')[0]}]"
    if full_key.startswith("model.encoders.") and full_key.split(".")[2] not in (
        OmegaConf.select(root, "model.encoders") or {}
    ):
        return f"choose it first: +encoder@{'.'.join(full_key.split('.')[:3])}=…"
    paths = list(_paths(root, ""))
    suggestions: Sequence[str] = [path for path in paths if path.rpartition(".")[2] == leaf and path != full_key][:3]
    if (
        not suggestions
        and ours
        and (SHORT.get(ours, ours) in paths or not re.fullmatch(r"\w+\.[\w.]+", ours) or "hydra" in ours)
    ):
        suggestions = [ours]
    if not suggestions and ours == "data.root":
        suggestions = ["data=image_folder data.root=…"]
    suggestions = suggestions or close
    return f"did you mean {' or '.join(suggestions)}?" if suggestions else None


def _names(node: DictConfig) -> list[str]:
    return [str(name) for name in node if name != "hydra" and not str(name).startswith("_")]


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
    """The message proper; an error from a worker process has it after the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1].rpartition("Error: ")[2]
    return " ".join(lines) or type(error).__name__


def _about_value_error(error: ValueError) -> str | None:
    """What to say of the errors of Hydra itself that are plain ones; None of any other.

    Its message about a group that is set to a number or null does not name that.
    """
    if str(error).startswith(("Only one of --", "The --resolve flag")):
        return one_line(error)
    if not str(error).startswith("Config group override must be"):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    override = frame.f_locals["override"]
    group = override.key_or_group
    return f"{override.input_line}: must name one of the choices in conf/{group}" + (
        f"; {OFF[group]}" if group in OFF else ""
    )


def explained(function: Callable[P, T]) -> Callable[P, T | None]:
    """`function`, ending the process with one sentence and status 1 at an error that the user can mend.

    A run of a sweep ends with its sentence alone; the sweep's summary names it, and sets the status. The wrapper stands
    around a Hydra main for errors of composition, and below it for those of the run. With `PERCEIVER_TRACEBACK=1` in
    the environment the traceback is shown instead.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on
        try:
            return function(*args, **kwargs)
        except USER_ERRORS as error:
            sentence: str | None = explain(error)
            if os.environ.get("PERCEIVER_TRACEBACK") == "1":
                raise
        except ValueError as error:
            sentence = _about_value_error(error)
            if sentence is None:
                raise
        except RuntimeError as error:
            if '"srun"' not in str(error):
                raise
            sentence = "launcher=slurm: there is no srun on this machine; submit from one of the cluster's"
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        note(f"error: {sentence}", logging.ERROR)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"error: {sentence}", file=sys.stderr)  # noqa: T201  (the other runs of the sweep go on)
            return None
        sys.exit(f"error: {sentence}")

    return wrapper


def about(key: str, node: Any, message: str) -> str:
    """A message about the node that stands under a key; where it begins with one of its values, with the whole key."""
    return _with_whole_key(key, node, message) or (f"{key}: {message}" if key else message)


def _with_whole_key(key: str, node: Any, message: str) -> str | None:
    """The message with the whole key of the value that it begins with, if that stands below the node."""
    found = re.match(r"(\w+)=(\[[^\]]*\]|[^\s:,]+)(.*)", message, flags=re.DOTALL)
    if found is None:
        return None
    name, value, rest = found.groups()
    wholes = [path for path, leaf in leaves(node, key) if path.endswith(f".{name}") and str(leaf) == value]
    return f"{' or '.join(wholes)}={value}{rest}" if wholes else None


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every plain value below a node, with its key."""
    if isinstance(node, dict | DictConfig):
        for name in map(str, node):
            not_here = isinstance(node, DictConfig) and (
                OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name)
            )
            if not not_here:
                yield from leaves(node[name], f"{key}.{name}" if key else name)
    else:
        yield key, node


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of a sentence about a wrong name: the right one that is most like it, or all there are."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(names))}"
