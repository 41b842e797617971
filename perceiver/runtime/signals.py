"""Signals that ask a run to end: heard at any moment, obeyed at the next optimizer step, when a checkpoint is written.

SIGTERM, SIGHUP, SIGUSR1 (as SLURM sends before the time is over) and Ctrl-C, to any one of the processes. The run ends
with status 143 (130 after Ctrl-C), so that no scheduler takes it for done. Under SLURM, SIGUSR1 has the job queued
again.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143
"""Exit status of a run that was ended by Ctrl-C or by another signal, as of any program that was."""
HEARD = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
Handler = Callable[[int, FrameType | None], Any] | int | None


class EndedBySignal(SystemExit):
    """The run ends as it was asked to, with a checkpoint written."""


class PreemptionHandler:
    """Hears signals while it listens.

    Attributes:
        signal: the one that asks the run to end; 0 for none.

    Args:
        grace_seconds: a process that was asked to end and has not done so by then is ended on the spot: it may be
            waiting for another one that is no more.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        if grace_seconds <= 0:
            raise ValueError(f"grace_seconds={grace_seconds} must be more than 0")
        self.grace_seconds = grace_seconds
        self.signal = 0
        self._at_once = False
        self._before: dict[int, Handler] = {}
        self._wires: tuple[socket.socket, socket.socket] | None = None
        self._watching: threading.Thread | None = None
        self._deadline: threading.Timer | None = None

    def install(self, *, at_once: bool = False) -> None:
        """Hear signals from now on, in place of whoever heard them before.

        Args:
            at_once: obey them at once, where there is nothing to save.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._at_once = at_once
        for number in HEARD:
            self._before[number] = signal.signal(number, self._hear)
        if callable(signal.getsignal(signal.SIGUSR2)):  # somebody queues the job again who must be told afterwards
            self._before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self._hear)
        # A handler waits until Python has the word again, which in a call that waits for other processes may be never.
        self._wires = socket.socketpair()
        self._wires[1].setblocking(False)
        signal.set_wakeup_fd(self._wires[1].fileno(), warn_on_full_buffer=False)
        self._watching = threading.Thread(target=self._watch, args=(self._wires[0],), daemon=True)
        self._watching.start()

    def restore(self) -> None:
        """Hear no more; signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._wires is not None:
            signal.set_wakeup_fd(-1)
            self._wires[1].shutdown(socket.SHUT_RDWR)  # reading processes have it open, too
            self._wires[1].close()
            self._wires = None
        if self._watching is not None:
            self._watching.join()
            self._watching = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt  # asked twice: now
        self.signal = number
        if self._at_once:
            raise EndedBySignal(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    def end(self, number: int, step: int) -> None:
        """End the run, of which a checkpoint was just written.

        Args:
            number: of the signal, which may have come to another process.
            step: optimizer steps done.

        Raises:
            EndedBySignal: always.
        """
        for heard in self._before:
            signal.signal(heard, signal.SIG_IGN)
        if self._deadline is not None:
            self._deadline.cancel()
        name = signal.Signals(number).name
        log.warning("%s: the run ends at step %d", name, step)
        if number == signal.SIGUSR1:
            requeue()
        elif callable(handler := self._before.get(number)) and number == signal.SIGUSR2:
            handler(number, None)
        raise EndedBySignal(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    def _watch(self, wire: socket.socket) -> None:
        """End the process when its time is over after a signal."""
        with wire:
            while numbers := wire.recv(1):
                if numbers[0] in HEARD and self._deadline is None:
                    self._deadline = threading.Timer(self.grace_seconds, os._exit, args=(TERMINATED,))
                    self._deadline.daemon = True
                    self._deadline.start()


@rank_zero_only
def requeue() -> None:
    """Have SLURM queue this job again, if it is one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        log.warning("job %s is queued again", job)
    else:
        log.warning("job %s could not be queued again (%s); submit it again by hand", job, problem)
