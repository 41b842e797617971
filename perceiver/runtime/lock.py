"""A lock that allows one training at a time in a run directory.

The kernel releases it when the process ends, so that killed processes and crashed machines leave no lock. The file
names the process that holds it.
"""

import atexit
import errno
import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import is_restarted, is_started_by_first

log = logging.getLogger(__name__)

LOCK = ".lock"
TIMEOUT, TIMEOUT_RESTARTED = 1.0, 60.0
"""Seconds to wait for the lock; longer after a restart by a scheduler, as the previous process may still be ending."""
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""
_locks: dict[Path, int] = {}
"""Path -> file descriptor of the locks that this process holds."""


class RunLock(Callback):
    """Locks the directory of a run or sweep before Hydra writes to it."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        if config.hydra.output_subdir is not None:  # with --cfg and the like nothing is written
            self._lock(str(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        self._lock(str(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        release(Path(str(config.hydra.sweep.dir)))

    def _lock(self, folder: str) -> None:
        try:
            lock(Path(folder))
        except ConfigError as error:  # Hydra ignores any other exception in a callback
            raise SystemExit(f"error: {error}") from error


def lock(folder: Path) -> None:
    """Lock a directory until `release` or the end of the process.

    The first process of a run takes the lock. The others only check that it is free, or held by their own run.

    Raises:
        ConfigError: another run holds it.
    """
    path = Path(os.path.realpath(folder)) / LOCK
    if path in _locks or is_started_by_first():
        return
    until = time.monotonic() + (TIMEOUT_RESTARTED if is_restarted() else TIMEOUT)
    first = _is_first()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return  # Hydra cannot write there either, and raises the error
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if first else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path)
            os.close(file)
            if error.errno in NOT_SUPPORTED:
                log.warning("%s: this file system has no locks; make sure that only one run is trained there", folder)
                return
            if not first and holder.get("run") == _run():
                return
            if time.monotonic() >= until:
                raise ConfigError(f"{folder}: {_describe(holder)}") from None
            time.sleep(0.1)
            continue
        if not first:  # its first process will take it
            os.close(file)
            return
        with suppress(OSError):
            if os.fstat(file).st_ino == path.stat().st_ino:
                break
        os.close(file)  # the previous holder has removed the file
    _locks[path] = file
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):  # on a full disk, checkpoints raise the error
        os.truncate(file, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "run": _run()}
        os.write(file, f"{json.dumps(holder)}\n".encode())


def release(folder: Path | None = None) -> None:
    """Unlock a directory, or all that this process has locked."""
    for path in list(_locks) if folder is None else [Path(os.path.realpath(folder)) / LOCK]:
        if (file := _locks.pop(path, None)) is not None:
            with suppress(OSError):
                path.unlink()
            os.close(file)


def _close_in_child() -> None:
    """Close the inherited locks in a loader worker, which may outlive its parent."""
    while _locks:
        os.close(_locks.popitem()[1])


def _is_first() -> bool:
    """Whether this is the first process of its run, according to the environment."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    from lightning.pytorch.utilities import rank_zero_only

    return not rank_zero_only.rank and ("RANK" in os.environ or "SLURM_PROCID" in os.environ or node == "0")  # type: ignore[attr-defined]


def _run() -> list[str | None]:
    """Environment values that identify the run of a process."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return [os.environ.get(name) for name in names]


def _holder(path: Path) -> dict[str, object]:
    """The content of a lock file; empty if it is not readable."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _describe(holder: dict[str, object]) -> str:
    """The process that holds a lock, and what to do."""
    if "pid" not in holder:
        return "another process trains there; wait for its end, end it, or choose another hydra.run.dir"
    process = f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')},"
    kill = (
        f" with kill {holder['pid']}, which leaves a checkpoint" if holder.get("host") == socket.gethostname() else ""
    )
    return f"{process} trains there; wait for its end, end it{kill}, or choose another hydra.run.dir"


os.register_at_fork(after_in_child=_close_in_child)
atexit.register(release)
