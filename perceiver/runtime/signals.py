"""Signals that end a run at the next optimizer step, after a checkpoint is written.

They are SIGTERM, SIGHUP, SIGUSR1 (sent by SLURM before the time limit) and Ctrl-C, to any of the processes; one that is
ignored from the start, such as SIGHUP under `nohup`, stays ignored. The exit status is 143 (130 after Ctrl-C), so that
schedulers do not consider the run finished. Under SLURM, SIGUSR1 requeues the job.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143
"""Exit status of a program that Ctrl-C or another signal has ended."""
HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
Handler = Callable[[int, FrameType | None], Any] | int | None


class EndedBySignal(SystemExit):
    """A signal has ended the run, after a checkpoint was written."""


class PreemptionHandler:
    """Records signals while it is installed.

    Attributes:
        signal: the last one that was received; 0 for none.

    Args:
        grace_seconds: time after a signal until the process is ended unconditionally, as it may wait for another
            process that has ended.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        if grace_seconds <= 0:
            raise ValueError(f"grace_seconds={grace_seconds} must be more than 0")
        self.grace_seconds = grace_seconds
        self.signal = 0
        self._at_once = False
        self._previous: dict[int, Handler] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._watcher: threading.Thread | None = None
        self._deadline: threading.Timer | None = None

    def install(self, *, at_once: bool = False) -> None:
        """Replace the current handlers, but for signals that are ignored.

        Args:
            at_once: end the process at once, as there is nothing to save.
        """
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._at_once = at_once
        for number in HANDLED:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        if callable(signal.getsignal(signal.SIGUSR2)):  # submitit's, which requeues the job
            self._previous[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self._receive)
        # Python calls a handler between two bytecodes, but a call that waits for other processes may never return.
        self._sockets = socket.socketpair()
        self._sockets[1].setblocking(False)
        signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, args=(self._sockets[0],), daemon=True)
        self._watcher.start()

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._sockets is not None:
            signal.set_wakeup_fd(-1)
            self._sockets[1].shutdown(socket.SHUT_RDWR)  # loader workers have it open, too
            self._sockets[1].close()
            self._sockets = None
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt  # the second time: at once
        self.signal = number
        if self._at_once:
            raise EndedBySignal(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    def end(self, number: int, step: int) -> None:
        """End the run after a checkpoint was written.

        Args:
            number: of the signal, which another process may have received.
            step: optimizer steps done.

        Raises:
            EndedBySignal: always.
        """
        for handled in self._previous:
            signal.signal(handled, signal.SIG_IGN)
        if self._deadline is not None:
            self._deadline.cancel()
        name = signal.Signals(number).name
        log.warning("%s: the run ends at step %d", name, step)
        if number == signal.SIGUSR1:
            requeue()
        elif callable(handler := self._previous.get(number)) and number == signal.SIGUSR2:
            handler(number, None)
        raise EndedBySignal(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    def _watch(self, wakeup: socket.socket) -> None:
        """End the process `grace_seconds` after a signal."""
        with wakeup:
            while numbers := wakeup.recv(1):
                if numbers[0] in self._previous and self._deadline is None:
                    self._deadline = threading.Timer(self.grace_seconds, os._exit, args=(TERMINATED,))
                    self._deadline.daemon = True
                    self._deadline.start()


def requeue() -> None:
    """Requeue the current SLURM job, if there is one; does nothing in processes other than the first."""
    from lightning.pytorch.utilities import rank_zero_only

    job = os.environ.get("SLURM_JOB_ID")
    if job is None or rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        log.warning("job %s is requeued", job)
    else:
        log.warning("job %s could not be requeued (%s); submit it again by hand", job, problem)


def end_with_parent(number: int) -> None:
    """Send a signal to this process when its parent ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
