"""One training at a time in a run directory.

The kernel holds the lock for as long as the process lives, so that none is left over by one that was killed, or on a
machine that went down. The file says who has it.
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
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import is_restarted, is_started_by_first

log = logging.getLogger(__name__)

LOCK = ".lock"
PATIENCE, PATIENCE_RESTARTED = 1.0, 60.0
"""Seconds for another process to let go; longer where a scheduler starts the run again while the old one still ends."""
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say."""
_held: dict[Path, int] = {}
"""The lock files of this process, and their descriptors."""


class RunLock(Callback):
    """Locks a run's directory, or a sweep's, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        if config.hydra.output_subdir is not None:  # else nothing is written: it is no run
            self._lock(str(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        self._lock(str(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        release(Path(str(config.hydra.sweep.dir)))

    def _lock(self, folder: str) -> None:
        try:
            lock(Path(folder))
        except ConfigError as error:  # Hydra would go on after any other exception in a callback
            raise SystemExit(f"error: {error}") from error


def lock(folder: Path) -> None:
    """Keep other processes from training in a directory, until this one releases it or ends.

    Of the processes of one run, the first takes the lock; those of a run that is refused all are.

    Raises:
        ConfigError: another run is being trained there.
    """
    path = Path(os.path.realpath(folder)) / LOCK
    if path in _held or is_started_by_first():
        return
    until = time.monotonic() + (PATIENCE_RESTARTED if is_restarted() else PATIENCE)
    first = _is_first()
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return  # Hydra cannot write there either, and says so
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if first else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path)
            os.close(file)
            if error.errno in NOT_SUPPORTED:
                log.warning("%s: this file system has no locks; see that only one run is trained there", folder)
                return
            if not first and holder.get("run") == _run():
                return
            if time.monotonic() >= until:
                raise ConfigError(f"{folder}: {_described(holder)} trains there; {_advice(holder)}") from None
            time.sleep(0.1)
            continue
        if not first:  # its first process will take it
            os.close(file)
            return
        with suppress(OSError):
            if os.fstat(file).st_ino == path.stat().st_ino:
                break
        os.close(file)  # whoever had it has removed it in the meantime
    _held[path] = file
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):  # the disk may be full, which is told of checkpoints
        os.truncate(file, 0)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "run": _run()}
        os.write(file, f"{json.dumps(who)}\n".encode())


def release(folder: Path | None = None) -> None:
    """Let go of a directory, or of all that this process has locked."""
    for path in list(_held) if folder is None else [Path(os.path.realpath(folder)) / LOCK]:
        if (file := _held.pop(path, None)) is not None:
            with suppress(OSError):
                path.unlink()
            os.close(file)


def _leave_to_parent() -> None:
    """A reading process that outlives its parent must not go on holding what that had locked."""
    while _held:
        os.close(_held.popitem()[1])


def _is_first() -> bool:
    """Whether this is the first of the processes of its run, as far as the environment says."""
    of_node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return not rank_zero_only.rank and ("RANK" in os.environ or "SLURM_PROCID" in os.environ or of_node == "0")  # type: ignore[attr-defined]


def _run() -> list[str | None]:
    """What only processes of the same run have in common."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return [os.environ.get(name) for name in names]


def _holder(path: Path) -> dict[str, object]:
    """What the file says."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _described(holder: dict[str, object]) -> str:
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')},"


def _advice(holder: dict[str, object]) -> str:
    own = holder.get("host") == socket.gethostname() and "pid" in holder
    end = f"end it with kill {holder['pid']}, which leaves a checkpoint" if own else "end it"
    return f"wait for its end, {end}, or choose another hydra.run.dir"


os.register_at_fork(after_in_child=_leave_to_parent)
atexit.register(release)
