"""Runs of several forked processes that communicate by gloo; new processes would spend ten seconds on imports.

Their environment is that of processes started by torchrun or SLURM.
"""

import faulthandler
import gc
import os
import pickle
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from tests.kills import rows
from tests.runs import Ended, checkpoint, metrics, script, train

Environment: TypeAlias = Callable[[int, int, int], dict[str, str]]
"""Rank, number of processes and port -> environment variables of the process."""
PATIENCE = 120
"""Timeout in seconds after which processes that wait for each other are killed."""
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
SHARDED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]


def train_on(
    number: int,
    run_dir: Path,
    *overrides: str,
    before: Callable[[int], Any] = lambda rank: None,
    environment: Environment | None = None,
) -> list[Ended]:
    """Train on `number` processes, each of which first calls `before` with its rank.

    Returns:
        Exit code and output of each process; the code is negative if a signal ended it.
    """
    several = TWO[1:] if number > 1 and SHARDED[0] not in overrides else []
    return together(
        number,
        lambda rank: train(run_dir, f"trainer.devices={number}", *several, *overrides),
        before=before,
        environment=environment,
    )


def trained_on(number: int, run_dir: Path, *overrides: str, **options: Any) -> Path:
    """Train on `number` processes, which must succeed, and return the run directory."""
    for rank, ended in enumerate(train_on(number, run_dir, *overrides, **options)):
        assert ended.ok, f"rank {rank}: {ended.code} {ended.err}"
    strategy = checkpoint(run_dir)["description"]["config"]["trainer"]["strategy"]
    assert (SHARDED[0] in overrides) == isinstance(strategy, dict)  # the strategy that was chosen
    return run_dir


def script_on(number: int, path: str, *arguments: str, **options: Any) -> list[Ended]:
    """Run a script of the repository on `number` processes."""
    return together(number, lambda rank: script(path, *arguments), **options)


def together(
    number: int,
    work: Callable[[int], Ended],
    *,
    before: Callable[[int], Any] = lambda rank: None,
    environment: Environment | None = None,
) -> list[Ended]:
    """Call `work` in `number` forked processes, each with its rank and environment, by default that of torchrun."""
    assert not distributed.is_initialized()  # forked processes would inherit the group
    port = free_port()
    outputs = [tempfile.TemporaryFile() for _ in range(number)]  # noqa: SIM115
    children = []
    sys.stdout.flush()
    for rank in range(number):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                faulthandler.dump_traceback_later(PATIENCE - 5, file=sys.__stderr__)  # shows where it waits
                gc.freeze()  # garbage collection would copy the memory of the parent
                os.environ |= (environment or torchrun)(rank, number, port)
                rank_zero_only.rank = rank  # which Lightning sets when it is imported
                before(rank)
                ended = work(rank)
                _store(ended, outputs[rank])
                status = ended.code or 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status if isinstance(status, int) else 1)
        children.append(child)
    codes = codes_of(children)
    return [replace(_load(file), code=code) for code, file in zip(codes, outputs, strict=True)]


def torchrun(rank: int, number: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives to a process on one machine."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        **{"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"},
    }


def restarted(rank: int, number: int, port: int) -> dict[str, str]:
    """As `torchrun`, after it has restarted the processes."""
    return torchrun(rank, number, port) | {"TORCHELASTIC_RESTART_COUNT": "1"}


def slurm(rank: int, number: int, port: int) -> dict[str, str]:
    """The environment that SLURM gives to a process of a job on one machine."""
    return {
        **{"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": "0"},
        **{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1"},
        **{"SLURM_NTASKS": str(number), "SLURM_NTASKS_PER_NODE": str(number), "SLURM_NODELIST": "127.0.0.1"},
        "MASTER_PORT": str(port),
    }


def queued_again(rank: int, number: int, port: int) -> dict[str, str]:
    """As `slurm`, after the job was requeued."""
    return slurm(rank, number, port) | {"SLURM_RESTART_COUNT": "1"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def codes_of(children: list[int]) -> list[int]:
    """Wait for all processes and kill those that do not end in time.

    Returns:
        Their exit statuses; negative if a signal ended the process.
    """
    waiting = {os.pidfd_open(child): child for child in children}
    codes: dict[int, int] = {}
    while waiting:
        over, _, _ = select.select(list(waiting), [], [], PATIENCE)
        for descriptor in over or list(waiting):
            child = waiting.pop(descriptor)
            if not over:
                os.kill(child, signal.SIGKILL)
            codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(descriptor)
        if not over:
            raise AssertionError(f"processes did not end: {codes}")
    return [codes[child] for child in children]


def difference(one: Path, other: Path, without: str = "") -> float:
    """Return the largest difference of curves and final metrics, relative to values over 1, absolute below."""
    curves, expected = rows(one), rows(other)
    assert [row.keys() for row in curves] == [row.keys() for row in expected]
    pairs = [
        (float(row[name]), float(like[name]))
        for row, like in zip(curves, expected, strict=True)
        for name in row
        if name != without
    ]
    final, like = ({n: v for n, v in metrics(run).items() if "second" not in n} for run in (one, other))
    assert final.keys() == like.keys()
    assert [name for name in final if final[name] is None] == [name for name in like if like[name] is None]
    pairs += [(final[name], like[name]) for name in final if final[name] is not None]
    return max(abs(value - wanted) / max(1.0, abs(wanted)) for value, wanted in pairs)


def _store(ended: Ended, file: IO[bytes]) -> None:
    pickle.dump(ended, file)
    file.flush()


def _load(file: IO[bytes]) -> Ended:
    """Return what a process has stored, or an empty result if it was killed."""
    with file:
        file.seek(0)
        content = file.read()
    return pickle.loads(content) if content else Ended(None, "", "")


def until(happens: Callable[[], bool]) -> None:
    """Wait until a condition holds that other processes bring about."""
    for _ in range(10 * PATIENCE):
        if happens():
            return
        time.sleep(0.1)
    raise AssertionError(f"it did not happen in {PATIENCE} seconds")
