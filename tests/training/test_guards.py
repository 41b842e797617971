"""Losses that are not finite, too little memory, and worker processes that die or hang."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from perceiver.data.dataset import Split
from perceiver.tasks.classification import Classification
from perceiver.training import module
from perceiver.training.module import TrainingModule
from tests.kills import assert_same_run, before_call, continued, killed_at, rows, run_in_fork
from tests.runs import assert_refused, checkpoint, train, trained, weights_equal

slow = pytest.mark.slow
LOGGING = ["trainer.log_every_n_steps=1"]
SKIPPING = [*LOGGING, "on_nonfinite=skip", "trainer.max_epochs=3"]
WORKERS = ["loader.num_workers=2", "trainer.max_epochs=3"]


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    for owner, name in ((TrainingModule, "training_step"), (Split, "__getitem__")):
        monkeypatch.setattr(owner, name, getattr(owner, name))


def corrupt(*steps, of="loss", by=math.nan):
    """Multiply the loss of the batches of these numbers, or only its gradient, by a value that is not finite."""
    original = TrainingModule.training_step

    def step(self, batch, batch_idx):
        compute = type(self.task).loss

        def loss(task, *args):
            value = compute(task, *args)
            if of == "gradient":
                value.register_hook(lambda gradient: gradient * by)
            return value * by if of == "loss" else value

        with pytest.MonkeyPatch.context() as during:
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.processed in steps:
                during.setattr(type(self.task), "loss", loss)
            return original(self, batch, batch_idx)

    TrainingModule.training_step = step


def is_finite(run):
    return all(value.isfinite().all() for value in checkpoint(run)["state_dict"].values())


class TestNonfinite:
    @pytest.mark.parametrize(
        ("of", "by", "value"),
        [
            ("loss", math.nan, "nan"),
            pytest.param("loss", math.inf, "inf", marks=slow),
            pytest.param("gradient", math.nan, None, marks=slow),
        ],
    )
    def test_it_ends_the_run_before_the_step_and_lists_the_samples(self, tmp_path, monkeypatch, of, by, value):
        run, seen = tmp_path / "run", []
        corrupt(4, of=of, by=by)
        step = TrainingModule.training_step
        recording = lambda self, batch, batch_idx: (seen.append(batch.ids), step(self, batch, batch_idx))[1]  # noqa: E731
        monkeypatch.setattr(TrainingModule, "training_step", recording)
        ended = train(run, *LOGGING)
        assert_refused(ended, "step 4", f"{run}/nonfinite.json")
        listed = json.loads((run / "nonfinite.json").read_text())
        assert (listed["step"], listed["epoch"], listed["samples"]) == (4, 1, seen[4])
        assert value is None or listed["loss"] == value
        assert is_finite(run)
        assert checkpoint(run)["global_step"] == 3
        assert f"continue with run={run}" in ended.out

    @slow
    @pytest.mark.parametrize("of", ["loss", "gradient"])
    def test_a_skipped_step_changes_neither_weights_nor_optimizer(self, tmp_path, of):
        corrupt(1, 2, of=of)
        run = trained(tmp_path / "run", *SKIPPING, "trainer.max_epochs=1", "schedule=constant")
        once = trained(tmp_path / "once", *LOGGING, "trainer.max_epochs=1", "trainer.max_steps=1", "schedule=constant")
        assert weights_equal(checkpoint(run)["state_dict"], checkpoint(once)["state_dict"])

    @slow
    @pytest.mark.parametrize("count", [2, 6])
    def test_skipped_steps_are_counted_also_over_a_kill(self, tmp_path, count):
        whole, run = tmp_path / "whole", tmp_path / "run"
        assert run_in_fork(whole, *SKIPPING, before=lambda: corrupt(1, 5)) == 0
        assert checkpoint(whole)["skipped"] == 2
        assert [row["train/skipped"] for row in rows(whole) if "train/skipped" in row][-1] == "2.0"
        assert is_finite(whole)
        assert run_in_fork(run, *SKIPPING, before=lambda: (corrupt(1, 5), killed_at(count)())) == -signal.SIGKILL
        assert continued(run, before=lambda: corrupt(1, 5)) == 0
        assert_same_run(run, whole)

    @slow
    def test_too_many_skipped_steps_in_a_row_end_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "MAX_SKIPPED_IN_A_ROW", 2)
        corrupt(4, 5, 6, 7)
        assert_refused(
            train(tmp_path / "run", *SKIPPING), "3 steps in a row had a loss or gradient that was not finite"
        )
        assert is_finite(tmp_path / "run")

    @slow
    @pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
    def test_one_of_several_accumulated_batches(self, tmp_path, on_nonfinite):
        corrupt(1)
        setup = ["trainer.accumulate_grad_batches=3", "trainer.max_epochs=1", f"on_nonfinite={on_nonfinite}"]
        ended = train(tmp_path / "run", *LOGGING, *setup)
        assert ended.ok == (on_nonfinite == "skip"), ended.err
        assert on_nonfinite == "stop" or is_finite(tmp_path / "run")


def allocate():
    torch.empty(2**60, dtype=torch.uint8)


def out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def out_of_python_memory():
    raise MemoryError


@pytest.mark.parametrize(
    "error", [allocate, *(pytest.param(error, marks=slow) for error in (out_of_gpu_memory, out_of_python_memory))]
)
def test_too_little_memory_names_the_settings_to_change(tmp_path, monkeypatch, error):
    monkeypatch.setattr(Classification, "loss", lambda task, outputs, batch: error())
    ended = train(tmp_path / "run", "trainer.accumulate_grad_batches=2")
    assert_refused(ended, "out of memory in batches of loader.batch_size=53 on each of 1 processes (")
    assert "loader.batch_size=26 trainer.accumulate_grad_batches=4" in ended.err


def in_workers(act, start=lambda: None):
    """Let each worker call `start` before its first sample, and `act` within its third batch.

    It reads two ahead, so that by the third all workers have started: torch misses the death of one before that.
    """
    parent, reads = os.getpid(), iter(range(10**6))
    original = Split.__getitem__

    def read(self, index):
        if os.getpid() != parent:
            {0: start, 120: act}.get(next(reads), lambda: None)()
        return original(self, index)

    Split.__getitem__ = read


def hang():
    time.sleep(1000)


def is_alive(process):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestWorkers:
    def test_a_killed_one_ends_the_run(self, tmp_path):
        in_workers(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert_refused(train(tmp_path / "run", *WORKERS), "one of loader.num_workers=2 worker processes died (")

    @slow
    def test_one_that_hangs_ends_the_run_after_the_timeout_and_is_killed(self, tmp_path):
        in_workers(hang)
        ended = train(tmp_path / "run", *WORKERS, "loader.timeout_seconds=1")
        assert_refused(ended, "no batch within loader.timeout_seconds=1; ")
        assert not multiprocessing.active_children()

    def test_none_outlives_a_killed_training_process(self, tmp_path):
        def record():
            with (tmp_path / "processes").open("a") as file:
                file.write(f"{os.getpid()}\n")

        before = lambda: (in_workers(hang, record), killed_at(1)())  # noqa: E731
        assert run_in_fork(tmp_path / "run", *WORKERS, before=before) == -signal.SIGKILL
        processes = list(map(int, (tmp_path / "processes").read_text().split()))
        assert len(processes) == 2
        until = time.monotonic() + 20
        while any(map(is_alive, processes)):
            assert time.monotonic() < until
            time.sleep(0.01)

    @slow
    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_to_all_ends_the_run_with_a_checkpoint(self, tmp_path, sent, code):
        def before():
            os.setpgid(0, 0)
            before_call(4, "training_step", lambda: subprocess.run(["kill", f"-{sent}", "0"], check=False))()

        run = tmp_path / "run"
        assert run_in_fork(run, *WORKERS, before=before) == code
        assert checkpoint(run)["global_step"] == 5
        assert continued(run) == 0
        assert_same_run(run, trained(tmp_path / "whole", *WORKERS))


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert_refused(train(tmp_path / "file" / "run"), str(tmp_path / "file"))
