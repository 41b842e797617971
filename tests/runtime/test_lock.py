"""One training at a time in a run directory."""

import os
import shutil
import signal
import socket
from contextlib import contextmanager

import pytest
from lightning.pytorch.utilities import rank_zero_only

from perceiver.runtime import lock as locking
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.lock import LOCK, lock, release
from tests.processes import TWO, slurm, train_on
from tests.runs import SMALL, assert_refused, script, train


@contextmanager
def training_in(folder, readers=None):
    """A process that has locked a directory, and is killed at the end.

    With `readers` it has a loader worker, which runs until the descriptor that is appended there is closed.
    """
    heard, said = os.pipe()
    wait, stay = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(stay)
            lock(folder)
            if readers is None or os.fork():
                os.write(said, b"1")
            os.read(wait, 1)  # until the other end is closed
        finally:
            os._exit(1)
    os.close(said)
    try:
        assert os.read(heard, 1) == b"1"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if readers is None:
            os.close(stay)
        else:
            readers.append(stay)


@pytest.fixture
def readers():
    """Descriptors that keep loader workers alive; closed at the end."""
    kept = []
    yield kept
    for stay in kept:
        os.close(stay)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["run", *(pytest.param(one, marks=pytest.mark.slow) for one in ("link", "sweep"))])
def test_a_second_training_is_refused_before_it_writes_and_names_the_first(run, tmp_path, how):
    folder = shutil.copytree(run, tmp_path / "run")
    if how == "link":
        (tmp_path / "link").symlink_to(folder)
    arguments = {
        "run": [f"run={folder}", "trainer.max_epochs=3"],
        "link": [f"run={tmp_path / 'link'}", "seed=7"],
        "sweep": ["-m", f"hydra.sweep.dir={folder}", "seed=1,2", *SMALL],
    }
    with training_in(folder) as child:
        before = contents(folder)
        ended = script("experiments/train.py", *arguments[how])
        assert contents(folder) == before
    assert_refused(ended, f"process {child} on {socket.gethostname()}, since 2")


@pytest.mark.slow
def test_a_killed_process_holds_no_lock_though_its_workers_run(tmp_path, readers):
    with training_in(tmp_path / "run", readers):
        pass
    assert (tmp_path / "run" / LOCK).exists()
    ended = train(tmp_path / "run")
    assert ended.ok, ended.err
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_restarted_run_waits_for_the_previous_process(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(locking.time, "sleep", lambda _: os.kill(before, signal.SIGKILL))
    with training_in(tmp_path) as before:
        lock(tmp_path)
    release()


@pytest.mark.slow
def test_the_other_processes_of_a_run_are_accepted_with_the_first(tmp_path, monkeypatch):
    def as_rank(rank, job):
        for name, value in (slurm(rank, 2, 29500) | {"SLURM_JOB_ID": job}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(rank_zero_only, "rank", rank)

    as_rank(0, "7")
    with training_in(tmp_path):
        as_rank(1, "7")
        lock(tmp_path)
        for rank in (0, 1):
            as_rank(rank, "11")
            with pytest.raises(ConfigError, match="trains there"):
                lock(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(locking.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", unsupported)
    lock(tmp_path)
    assert str(tmp_path) in caplog.text


@pytest.mark.slow
def test_several_processes_are_one_run(tmp_path):
    for _ in range(2):
        assert all(ended.ok for ended in train_on(2, tmp_path / "run", "trainer.max_epochs=1", *TWO))
