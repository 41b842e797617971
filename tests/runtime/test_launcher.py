"""Signals to processes that Lightning starts, as on a machine with several GPUs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perceiver.runtime.signals import end_with_parent
from tests.processes import TWO, until
from tests.runs import ROOT, SMALL, checkpoint


def in_session(session):
    """The processes of a session, by their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if of_session == session and state != "Z":
                found[int(path.name)] = (path / "cmdline").read_bytes().decode().split("\0")
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["the first process", "the other process", "a sweep"])
def test_a_signal_to_one_ends_all_with_a_checkpoint(tmp_path, asked):
    run = tmp_path / "run"
    where = ["-m", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=run"] if asked == "a sweep" else []
    where = where or [f"hydra.run.dir={run}"]
    command = [sys.executable, "experiments/train.py", *where, *SMALL, *TWO, "trainer.max_epochs=100000"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),
    )
    try:
        until(lambda: (run / "checkpoints" / "last.ckpt").exists() or process.poll() is not None)
        others = [pid for pid, line in in_session(process.pid).items() if any("ddp_process_1" in part for part in line)]
        assert len(others) == 1
        os.kill(others[0] if asked == "the other process" else process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGTERM if asked == "a sweep" else 143), said
        until(lambda: not in_session(process.pid))
    finally:
        for pid in in_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in said
    assert said.count(f"continue with run={run}") == 1
    assert checkpoint(run)["global_step"] % 3 in (0, 1, 2)
