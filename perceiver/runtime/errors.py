"""Errors that a user can correct, and the one sentence that is printed for each."""

import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
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

from perceiver.runtime.nodes import leaves, select
from perceiver.runtime.signals import INTERRUPTED
from perceiver.runtime.suggestions import ALTERNATIVES, must_be_chosen, nearest, unknown_key
from perceiver.runtime.summary import note
from perceiver.runtime.synonyms import SHORT_KEYS

P = ParamSpec("P")
T = TypeVar("T")


class ConfigError(Exception):
    """A config that cannot work; the message names the key, its value, and what to write instead."""


class PositionError(Exception):
    """A run cannot be resumed at its position in the data, since data, order or batches have changed."""


PLUGINS = {"submitit_slurm": "slurm", "optuna": "optuna"}
"""Choices of Hydra's own groups, and the extras of this package that install them."""
NODE_HINT = "it is a node, whose values are set by their own keys"
USER_ERRORS: tuple[type[Exception], ...] = (
    ConfigError,
    HydraException,
    OmegaConfBaseException,
    PositionError,
    OSError,
)


def is_user_error(error: BaseException) -> bool:
    """Whether a user can correct an error; those of data, of parts and of Lightning are imported for others only."""
    if isinstance(error, USER_ERRORS):
        return True
    from perceiver.data.files import UnreadableError
    from perceiver.types import UnsuitableError

    if isinstance(error, UnreadableError | UnsuitableError):
        return True
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(error, MisconfigurationException)


def explain(error: BaseException) -> str:
    """Return an error of the user as one sentence; errors of Hydra and OmegaConf are rewritten."""
    text = one_line(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not readable as key=value; a value with special characters needs quotes: 'key=\"…\"'"
    if isinstance(error, ConfigCompositionException):
        return _composition_error(error, text)
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", text):
        key = str(error.full_key) if isinstance(error, MissingMandatoryValue) else missing[1]
        short = {whole: short for short, whole in SHORT_KEYS.items()}
        return f"{key} must be given: {short.get(key, key)}=…"
    if isinstance(error, InterpolationKeyError) and (wanted := re.search(r"'([\w.]+)' not found", text)):
        return _missing_reference(error, wanted[1])
    if wrong := re.search(r"node `([\w.]+)` is not a container and thus cannot contain `(\w+)`", text):
        return f"{wrong[1]}: is set to a plain value; {NODE_HINT}: {wrong[1]}.{wrong[2]}=…"
    if isinstance(error, InterpolationResolutionError):
        problem = re.sub(r"^\w+ raised while resolving interpolation: | full_key: .*$", "", text)
        key, root = (error.full_key or "").rpartition(".")[0], error.parent_node and error.parent_node._get_root()
        # The value that a resolver refuses was mostly interpolated from another part of the config.
        config = OmegaConf.to_container(root, resolve=False) if root else None
        return _with_full_key(key, select(config, key), problem) or f"{key}: {about('', config, problem)}"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(error)
    if isinstance(error, UnsupportedValueType) and "--resolve" in sys.argv:
        return "--resolve: OmegaConf cannot print lists that are computed; leave --resolve out"
    return text


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if plugin := PLUGINS.get(choice):
        return f"{group}={choice} is a plugin of Hydra: uv run --extra {plugin} …, or pip install -e '.[{plugin}]'"
    hint = nearest(choice, list(error.options)) if error.options else f", which would be conf/{group}/{choice}.yaml"
    return f"{group}={choice}: no such choice{hint}"


def _composition_error(error: ConfigCompositionException, text: str) -> str:
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        typed = re.match(r"Could not override '(.+?)'", text)
        return _unknown_key(cause, typed[1] if typed else None)
    if key := re.match(r"Could not delete from config. '(.+?)'", text):
        return f"~{key[1]}: no such key to leave out"
    if group := re.match(r"Could not delete '(.+?)'", text):
        return f"~{group[1]}: nothing of that group is chosen; {ALTERNATIVES.get(group[1], f'{group[1]}=null')}"
    if twice := re.match(r"Multiple values for (.+?)\. To override", text):
        return f"+{twice[1]}: is chosen already; {twice[1]}=… without the + changes it"
    if other := re.match(r"Could not override '(.*?)'\. (?:Did you mean to override (.*?\?))?", text):
        added = re.search(r"To append to your default list use (\S+)", text)
        hint = f"; did you mean {other[2]}" if other[2] else ""
        return f"{other[1]!r}: no such key{hint}{f' To add it: {added[1]}' if added and hint else ''}"
    return text


def _missing_reference(error: InterpolationKeyError, reference: str) -> str:
    group = reference.partition(".")[0]
    root = None if error.parent_node is None else error.parent_node._get_root()
    if reference == "seed":
        return "seed must be given: seed=…"
    if isinstance(root, DictConfig) and root.get(group) is None:
        return f"{error.full_key} needs {reference}, but no {group} is chosen; choose one of conf/{group}"
    hint = "conf/experiment has choices that go together"
    return f"{error.full_key} needs {reference}, which the chosen {group} does not have; {hint}"


def _unknown_key(error: OmegaConfBaseException, typed: str | None = None) -> str:
    parent = error.parent_node
    return unknown_key(parent, str(error.full_key), typed) if isinstance(parent, DictConfig) else one_line(error)


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; of one in a worker process, without the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "worker process" in lines[0]:
        return lines[-1].rpartition("Error: ")[2]
    return " ".join(lines) or type(error).__name__


def about(key: str, node: Any, message: str) -> str:
    """Return a message about the node under a key, with the full key of the value that it begins with, if any."""
    return _with_full_key(key, node, message) or (f"{key}: {message}" if key else message)


def _with_full_key(key: str, node: Any, message: str) -> str | None:
    """Replace `name=value` at the beginning of a message by `full.key=value`; None if the node has no such value."""
    found = re.match(r"(\w+)=(\[[^\]]*\]|[^\s:,]+)(.*)", message, flags=re.DOTALL)
    if found is None:
        return None
    name, value, rest = found.groups()
    keys = [path for path, leaf in leaves(node, key) if path.endswith(f".{name}") and str(leaf) == value]
    return f"{' or '.join(keys)}={value}{rest}" if keys else None


def _hydra_value_error(error: ValueError) -> str | None:
    """Return the sentence for a ValueError that Hydra raises about the command line; None for any other."""
    if str(error).startswith(("Only one of --", "The --resolve flag")):
        return one_line(error)
    if not str(error).startswith("Config group override must be"):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)  # the message does not name the group
    override = frame.f_locals["override"]
    return f"{override.input_line}: {must_be_chosen(override.key_or_group)}"


def _sentence(error: Exception) -> str | None:
    """Return the sentence for an error of the user; None for other errors, and where the traceback is wanted."""
    if is_user_error(error):
        return None if os.environ.get("PERCEIVER_TRACEBACK") == "1" else explain(error)
    if isinstance(error, ValueError):
        return _hydra_value_error(error)
    if isinstance(error, RuntimeError) and '"srun"' in str(error):
        return "launcher=slurm: there is no srun on this machine; submit the job from a node of the cluster"
    return None


def report_user_errors(function: Callable[P, T]) -> Callable[P, T | None]:
    """Wrap a function so that an error of the user ends the process with one sentence and status 1.

    It wraps a Hydra main for errors of composition, and the function below it for those of the run. A run of a sweep
    only prints its sentence; the sweep's summary names it and sets the status. With `PERCEIVER_TRACEBACK=1` in the
    environment the traceback is shown instead.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
        note(f"error: {sentence}", logging.ERROR)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"error: {sentence}", file=sys.stderr)  # noqa: T201  (the other runs of the sweep follow)
            return None
        sys.exit(f"error: {sentence}")

    return wrapper
