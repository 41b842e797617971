"""How a run is started: by hand, by torchrun, by SLURM or by a sweep; and one run directory for all its processes."""

import functools
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from perceiver.processes import end_with_parent
from perceiver.runtime.config import hint_of, may_be_left_out
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import as_typed, in_full, one_value_of, quoted, text_of
from perceiver.runtime.signals import INTERRUPTED, TERMINATED

TIME = "%Y-%m-%d_%H-%M-%S-%f"
P = ParamSpec("P")
T = TypeVar("T")


def run_name() -> str:
    """The name of a run's directory, the same in all processes that something else than the run itself has started.

    Under SLURM it is the job's, under torchrun the rendezvous's or, on one machine, the time at which that began;
    otherwise date and time. A job that is queued again, or restarted by torchrun, finds its directory by it.

    Raises:
        ConfigError: several machines have nothing in common by which to name it.
    """
    environment = os.environ
    if is_slurm():
        return "slurm_" + ".".join(filter(None, (environment["SLURM_JOB_ID"], environment.get("SLURM_STEP_ID"))))
    rendezvous = environment.get("TORCHELASTIC_RUN_ID")
    if rendezvous is None:
        return datetime.now().strftime(TIME)
    if rendezvous != "none":
        return f"torchrun_{rendezvous}"
    if environment["LOCAL_WORLD_SIZE"] != environment["WORLD_SIZE"]:
        raise ConfigError("torchrun on several machines needs a name for the run: torchrun --rdzv-id=NAME …")
    return f"torchrun_{_began(os.getppid()).strftime(TIME)}"


def _began(process: int) -> datetime:
    """When a process of this machine was started, to be told alike by all that ask."""
    ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    machine = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
    return datetime.fromtimestamp(int(machine["btime"]) + ticks / os.sysconf("SC_CLK_TCK"))


def is_slurm() -> bool:
    """Whether SLURM itself has started the processes of the run; it may also have started torchrun, which did."""
    return SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ


def is_restarted() -> bool:
    """Whether SLURM or torchrun start the run once more, after it was ended from outside."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def meet_anew() -> None:
    """Have processes that torchrun has started again on one machine meet at a port of their own.

    The store in which it has them meet still holds the addresses of those before, to which gloo would connect for ever.
    """
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if again == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(f"perceiver/{again}", str(free.getsockname()[1]))
    port = store.get(f"perceiver/{again}").decode()
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}


OPTIONS_WITH_VALUES = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--experimental-rerun", "--info", "-i"),
)
"""Hydra's options that take a value."""
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""The values of its `--info`; alone, which is the same as `all`, it would take the first override for its value."""


def command_line(main: Callable[P, T]) -> Callable[P, T]:
    """A Hydra main that takes texts as they are typed, and imports a user's own code from the current folder.

    That folder comes last, so that nothing in it takes the place of what is installed.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        options, given = options_and_overrides(sys.argv[1:])
        overrides = [in_full(override) for override in given]
        script = Path(inspect.getfile(inspect.unwrap(main)))

        @functools.cache
        def config() -> dict[str, Any]:
            return as_composed(script.parents[1] / "conf", script.stem, options, overrides)

        conf_file = script.parents[1] / "conf" / f"{script.stem}.yaml"
        of_finished = conf_file.is_file() and "overrides" in OmegaConf.load(conf_file)
        for added in (override for override in overrides if of_finished and re.match(r"\+(?!\+?hydra)", override)):
            raise ConfigError(f"{added}: no such key; a setting of the run goes into overrides='[\"{added}\"]'")
        sys.argv[1:] = [*options, *(readable(override, config) for override in overrides)]
        return main(*args, **kwargs)

    return wrapper


def readable(override: str, config: Callable[[], dict[str, Any]]) -> str:
    """An override as Hydra reads it right: texts in quotes, and null in place of a key to leave out.

    Hydra itself leaves out neither what is null already nor what is made of other values.
    """
    if re.fullmatch(r"~[\w.]+", override) and may_be_left_out(config(), override[1:]):
        return f"{override[1:]}=null"
    return as_typed(override, lambda key: hint_of(config(), key))


def as_composed(conf: Path, name: str, options: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a command line before it is handed to Hydra's main, to find out what its keys are for.

    Where that fails it is empty; Hydra will say why.
    """
    found = dict(pairwise(options))
    folder = found.get("--config-dir", found.get("-cd"))
    places = [] if folder is None else [f"hydra.searchpath=[{quoted(str(Path(folder).absolute()))}]"]
    given = [one for override in overrides if "=" in override and (one := one_value_of(override)) is not None]
    left_out = [override for override in overrides if override.startswith("~") and "@" in override]
    try:
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            name = found.get("--config-name", found.get("-cn", name))
            cfg = compose(name, overrides=[*places, *given, *left_out])
        content = OmegaConf.to_container(cfg, resolve=False)
    except Exception:
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def options_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line in two parts, since Hydra takes its options on one side of the overrides only."""
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


def continuing(main: Callable[P, T]) -> Callable[P, T]:
    """A Hydra main for which `run=DIR` stands for the overrides of the run in there, and for going on with it there."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if is_started_by_first():
            end_with_parent(signal.SIGTERM)
        meet_anew()
        sys.argv[1:] = with_run(sys.argv[1:])
        return main(*args, **kwargs)

    return wrapper


def with_run(arguments: Sequence[str]) -> list[str]:
    """A command line with what `run=DIR` stands for in place of it.

    Raises:
        ConfigError: there is no run in DIR, or the command line is one of a sweep.
    """
    asked = [argument for argument in arguments if argument.startswith("run=")]
    if not asked:
        return list(arguments)
    folder = Path(text_of(asked[-1])).absolute()
    saved = folder / ".hydra" / "overrides.yaml"
    if folder.is_file():
        raise ConfigError(f"{asked[-1]}: a checkpoint; a new run goes on from it by ckpt_path={folder}")
    if not saved.is_file():
        raise ConfigError(f"{asked[-1]}: no run directory, there is no .hydra/overrides.yaml in it")
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise ConfigError(f"{asked[-1]}: goes on with one run; leave out -m")
    options, given = options_and_overrides([argument for argument in arguments if argument not in asked])
    replaced = {_key(argument) for argument in given} | {"ckpt_path"}
    before = [str(override) for override in OmegaConf.load(saved) if _key(str(override)) not in replaced]
    last = [] if "ckpt_path" in map(_key, given) else ["ckpt_path=last"]
    there = folder / ".hydra" / "hydra.yaml"
    if there.is_file():
        more_options, more = where_configs_are(OmegaConf.load(there).hydra)
        options = [*more_options, *options]  # of two, Hydra takes the last
        before += [override for override in more if _key(override) not in replaced]
    return [*options, *before, *given, *last, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(folder))}"]


def where_configs_are(hydra: Any) -> tuple[list[str], list[str]]:
    """Options and overrides with which a command finds the configs that a run was composed of.

    Args:
        hydra: Hydra's own config of the run.
    """
    options, places = ["--config-name", str(hydra.job.config_name)], []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", str(source.path)]
        elif str(source.provider).startswith("hydra.searchpath in command-line"):
            is_file = source.schema == "file"
            places.append(str(Path(hydra.runtime.cwd) / source.path) if is_file else f"{source.schema}://{source.path}")
    overrides = [f"hydra.searchpath=[{','.join(map(quoted, places))}]"] if places else []
    return options, overrides


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def environment_plugins() -> list[Any]:
    """What the trainer is told of SLURM: that signals are ours to hear."""
    return [SLURMEnvironment(auto_requeue=False)] if is_slurm() else []


def needs_processes_of_its_own(trainer: Trainer) -> bool:
    """Whether a sweep's run would have to start its other processes itself.

    Lightning starts them with this process's command line, and so each would run the whole sweep.
    """
    if trainer.world_size == 1:
        return False
    return not trainer.strategy.cluster_environment.creates_processes_externally  # type: ignore[attr-defined]


def run_in_subprocess(run_dir: Path) -> None:
    """Do a sweep's run as a command of its own, in the same directory and with the same overrides.

    Raises:
        ConfigError: it failed, and has said why.
        SystemExit: it was ended by a signal.
    """
    hydra = HydraConfig.get()
    options, places = where_configs_are(hydra)
    overrides = [*places, *hydra.overrides.task, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(run_dir))}"]
    command = [sys.executable, sys.argv[0], *options, *overrides]
    process = subprocess.Popen(command, cwd=hydra.runtime.cwd, preexec_fn=partial(end_with_parent, signal.SIGTERM))
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue  # it has heard of that, too, and ends with a checkpoint
    if status in (INTERRUPTED, TERMINATED):
        raise SystemExit(status)
    if status != 0:
        raise ConfigError(f"{run_dir}: the run ended with status {status}")


def is_started_by_first() -> bool:
    """Whether the run's first process, or Lightning in it, has started this one."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def leave_last(seconds: float = 600.0) -> None:
    """Wait until the process that started this one has ended, if that is the run's first process.

    Lightning kills that one as soon as another ends with an error, though all of them end for the same reason.
    """
    if not is_started_by_first():
        return
    parent, until = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.1)


OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)  # before Hydra names the directory
