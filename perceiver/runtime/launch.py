"""How the processes of a run are started: by hand, by torchrun, by SLURM, or by a sweep."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import quoted
from perceiver.runtime.signals import INTERRUPTED, TERMINATED, end_with_parent

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TIME = "%Y-%m-%d_%H-%M-%S-%f"


def run_name() -> str:
    """The name of the run directory, the same in all processes of a run that SLURM or torchrun has started.

    It is the job id of SLURM, the rendezvous id of torchrun or, on one machine, the time at which torchrun was started;
    by hand, the current time. A job that is requeued or restarted therefore finds its directory.

    Raises:
        ConfigError: torchrun runs on several machines without a rendezvous id.
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
    return f"torchrun_{_start_time(os.getppid()).strftime(TIME)}"


def _start_time(process: int) -> datetime:
    """When a process of this machine was started; equal for all processes that call this."""
    ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    machine = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
    return datetime.fromtimestamp(int(machine["btime"]) + ticks / os.sysconf("SC_CLK_TCK"))


def is_slurm() -> bool:
    """Whether SLURM has started the processes of the run, and not torchrun within a job."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ


def is_restarted() -> bool:
    """Whether SLURM or torchrun has started the run again."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def is_started_by_first() -> bool:
    """Whether Lightning in the first process of the run has started this one."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def slurm_plugins() -> list[Any]:
    """Plugins of the trainer under SLURM: signals are handled by `PreemptionHandler`, not by Lightning."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if is_slurm() else []


def renew_rendezvous() -> None:
    """Give processes that torchrun has restarted on one machine a new port for their rendezvous.

    The store of torchrun's agent still holds the addresses of the previous processes, to which gloo would connect
    without end.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(f"perceiver/{restarts}", str(free.getsockname()[1]))
    port = store.get(f"perceiver/{restarts}").decode()
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}


def wait_for_first(seconds: float = 600.0) -> None:
    """In a process that the first one has started, wait until the first one has ended.

    Lightning kills the first process as soon as another ends with an error, although all end for the same reason.
    """
    if not is_started_by_first():
        return
    parent, until = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.1)


def starts_processes(trainer: "Trainer") -> bool:
    """Whether the trainer would start the other processes itself.

    Lightning starts them with the command line of this process; in a sweep, each would run the whole sweep.
    """
    if trainer.world_size == 1:
        return False
    return not trainer.strategy.cluster_environment.creates_processes_externally  # type: ignore[attr-defined]


def run_in_subprocess(run_dir: Path) -> None:
    """Do the current run of a sweep as a command of its own, in the same directory and with the same overrides.

    Raises:
        ConfigError: it failed; its error is printed already.
        SystemExit: a signal ended it.
    """
    hydra = HydraConfig.get()
    options, search_path = config_sources(hydra)
    overrides = [*search_path, *hydra.overrides.task, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(run_dir))}"]
    command = [sys.executable, sys.argv[0], *options, *overrides]
    process = subprocess.Popen(command, cwd=hydra.runtime.cwd, preexec_fn=partial(end_with_parent, signal.SIGTERM))
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue  # the process gets it, too, and ends with a checkpoint
    if status in (INTERRUPTED, TERMINATED):
        raise SystemExit(status)
    if status != 0:
        raise ConfigError(f"{run_dir}: the run ended with status {status}")


def config_sources(hydra: Any) -> tuple[list[str], list[str]]:
    """Options and overrides with which a command finds the configs that a run was composed of.

    Args:
        hydra: Hydra's own config of the run.
    """
    options, folders = ["--config-name", str(hydra.job.config_name)], []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", str(source.path)]
        elif str(source.provider).startswith("hydra.searchpath in command-line"):
            is_file = source.schema == "file"
            folders.append(
                str(Path(hydra.runtime.cwd) / source.path) if is_file else f"{source.schema}://{source.path}"
            )
    return options, [f"hydra.searchpath=[{','.join(map(quoted, folders))}]"] if folders else []


OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)  # before Hydra names the directory
