"""The command line of Hydra's main functions: options on either side, texts as typed, and `run=DIR` to resume."""

import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from perceiver.runtime.config import is_optional, type_of
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import config_sources, is_started_by_first, renew_rendezvous
from perceiver.runtime.overrides import expand_short_key, first_of_sweep, quote_texts, quoted, text_value
from perceiver.runtime.signals import end_with_parent

P = ParamSpec("P")
T = TypeVar("T")

OPTIONS_WITH_VALUES = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--experimental-rerun", "--info", "-i"),
)
"""Hydra's options that take a value."""
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""The values of `--info`. Without one it means `all`, but Hydra would read the first override as its value."""


def command_line(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap a Hydra main so that texts are read as typed, and code of the user is imported from the current folder.

    The folder is the last place that is searched, so that it replaces no installed package.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        options, given = options_and_overrides(sys.argv[1:])
        overrides = [expand_short_key(override) for override in given]
        script = Path(inspect.getfile(inspect.unwrap(main)))
        conf = script.parents[1] / "conf"

        @functools.cache
        def config() -> dict[str, Any]:
            return compose_loosely(conf, script.stem, options, overrides)

        conf_file = conf / f"{script.stem}.yaml"
        if conf_file.is_file() and "overrides" in OmegaConf.load(conf_file):  # a command for finished runs
            for added in (override for override in overrides if re.match(r"\+(?!\+?hydra)", override)):
                raise ConfigError(f"{added}: no such key; a setting of the run goes into overrides='[\"{added}\"]'")
        sys.argv[1:] = [*options, *(for_hydra(override, config) for override in overrides)]
        return main(*args, **kwargs)

    return wrapper


def for_hydra(override: str, config: Callable[[], dict[str, Any]]) -> str:
    """Return an override with quotes around texts, and with null in place of leaving out an optional key.

    Hydra itself cannot leave out values that are null already or interpolated.
    """
    if re.fullmatch(r"~[\w.]+", override) and is_optional(config(), override[1:]):
        return f"{override[1:]}=null"
    return quote_texts(override, lambda key: type_of(config(), key))


def compose_loosely(conf: Path, name: str, options: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the config of a command line before Hydra does, for the types of its keys.

    It is empty if that fails; Hydra will raise the error.
    """
    values = dict(pairwise(options))
    folder = values.get("--config-dir", values.get("-cd"))
    path = [] if folder is None else [f"hydra.searchpath=[{quoted(str(Path(folder).absolute()))}]"]
    given = [first for override in overrides if "=" in override and (first := first_of_sweep(override)) is not None]
    left_out = [override for override in overrides if override.startswith("~") and "@" in override]
    try:
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            name = values.get("--config-name", values.get("-cn", name))
            cfg = compose(name, overrides=[*path, *given, *left_out])
        content = OmegaConf.to_container(cfg, resolve=False)
    except Exception:
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def options_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate options and overrides, since Hydra takes options on one side of the overrides only."""
    options: list[str] = []
    overrides: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if options and options[-1] in OPTIONS_WITH_VALUES:
            options.append(argument)
        elif name.startswith("--") and equals:
            options += [name, value]
        elif argument in ("--info", "-i") and following not in INFO:
            options += [argument, "all"]
        else:
            (options if argument.startswith("-") else overrides).append(argument)
    return options, overrides


def resumable(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap a Hydra main so that `run=DIR` stands for the overrides of the run in DIR, which is resumed there."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if is_started_by_first():
            end_with_parent(signal.SIGTERM)
        renew_rendezvous()
        sys.argv[1:] = expand_run(sys.argv[1:])
        return main(*args, **kwargs)

    return wrapper


def expand_run(arguments: Sequence[str]) -> list[str]:
    """Replace `run=DIR` by the overrides and options with which that run is resumed in its directory.

    Raises:
        ConfigError: there is no run in DIR, or the command line is that of a sweep.
    """
    runs = [argument for argument in arguments if argument.startswith("run=")]
    if not runs:
        return list(arguments)
    folder = Path(text_value(runs[-1])).absolute()
    saved = folder / ".hydra" / "overrides.yaml"
    if folder.is_file():
        raise ConfigError(f"{runs[-1]}: is a checkpoint; a new run starts from it with ckpt_path={folder}")
    if not saved.is_file():
        raise ConfigError(f"{runs[-1]}: no run directory, as it has no .hydra/overrides.yaml")
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise ConfigError(f"{runs[-1]}: resumes one run; leave out -m")
    options, given = options_and_overrides([argument for argument in arguments if argument not in runs])
    replaced = {_key(argument) for argument in given} | {"ckpt_path"}
    before = [str(override) for override in OmegaConf.load(saved) if _key(str(override)) not in replaced]
    last = [] if "ckpt_path" in map(_key, given) else ["ckpt_path=last"]
    hydra_file = folder / ".hydra" / "hydra.yaml"
    if hydra_file.is_file():
        more_options, more = config_sources(OmegaConf.load(hydra_file).hydra)
        options = [*more_options, *options]  # of two, Hydra takes the last
        before += [override for override in more if _key(override) not in replaced]
    return [*options, *before, *given, *last, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(folder))}"]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
