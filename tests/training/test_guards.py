"""What a run does about losses that are no numbers, too little memory, and reading processes that die or hang."""

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
from tests.runs import checkpoint, script, train, trained, weights_equal

slow = pytest.mark.slow
LOGGING = ["trainer.log_every_n_steps=1"]
SKIPPING = [*LOGGING, "on_nonfinite=skip", "trainer.max_epochs=3"]
WORKERS = ["loader.num_workers=2", "trainer.max_epochs=3"]


def spoilt(*steps, of="loss", by=math.nan):
    """Makes the loss of the batches of these numbers, or its gradient alone, one that is no number."""
    original = TrainingModule.training_step

    def step(self, batch, batch_idx):
        loss_of = type(self.task).loss

        def loss(task, *args):
            value = loss_of(task, *args)
            if of == "gradient":
                value.register_hook(lambda gradient: gradient * by)
            return value * by if of == "loss" else value

        with pytest.MonkeyPatch.context() as during:
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.processed in steps:
                during.setattr(type(self.task), "loss", loss)
            return original(self, batch, batch_idx)

    TrainingModule.training_step = step


@pytest.fixture(autouse=True)
def unspoilt(monkeypatch):
    monkeypatch.setattr(TrainingModule, "training_step", TrainingModule.training_step)


def finite(run, name="last"):
    return all(value.isfinite().all() for value in checkpoint(run, name)["state_dict"].values())


class TestNonfinite:
    @pytest.mark.parametrize(
        ("of", "by", "value"),
        [
            ("loss", math.nan, "nan"),
            pytest.param("loss", math.inf, "inf", marks=slow),
            pytest.param("gradient", math.nan, None, marks=slow),
        ],
    )
    def test_it_ends_the_run_names_the_samples_and_spoils_nothing(self, tmp_path, monkeypatch, of, by, value):
        run, seen = tmp_path / "run", []
        spoilt(4, of=of, by=by)
        spoiling = TrainingModule.training_step
        recording = lambda self, batch, batch_idx: (seen.append(batch.ids), spoiling(self, batch, batch_idx))[1]  # noqa: E731
        monkeypatch.setattr(TrainingModule, "training_step", recording)
        ended = train(run, *LOGGING)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert "step 4" in ended.err
        assert f"{run}/nonfinite.json" in ended.err
        told = json.loads((run / "nonfinite.json").read_text())
        assert (told["step"], told["epoch"], told["samples"]) == (4, 1, seen[4])
        assert value is None or told["loss"] == value
        assert finite(run)
        assert checkpoint(run)["global_step"] == 3
        assert f"continue with run={run}" in ended.out

    @slow
    def test_a_step_that_is_skipped_changes_nothing_is_counted_and_the_count_survives(self, tmp_path):
        spoilt(1, 5)
        run = trained(tmp_path / "run", *SKIPPING)
        assert finite(run)
        assert checkpoint(run)["skipped"] == 2
        assert [row["train/skipped"] for row in rows(run) if "train/skipped" in row][-1] == "2.0"
        ended = script("experiments/train.py", f"run={run}", "trainer.max_epochs=4", "trainer.limit_val_batches=1")
        assert ended.ok, ended.err
        assert checkpoint(run)["skipped"] == 2

    @slow
    @pytest.mark.parametrize("of", ["loss", "gradient"])
    def test_weights_and_optimizer_are_what_they_were(self, tmp_path, of):
        spoilt(1, 2, of=of)
        run = trained(tmp_path / "run", *SKIPPING, "trainer.max_epochs=1", "schedule=constant")
        once = trained(tmp_path / "once", *LOGGING, "trainer.max_epochs=1", "trainer.max_steps=1", "schedule=constant")
        assert weights_equal(checkpoint(run)["state_dict"], checkpoint(once)["state_dict"])

    @slow
    @pytest.mark.parametrize("count", [2, 4, 6, 8])
    def test_a_run_that_skips_is_continued_exactly(self, tmp_path, count):
        run = tmp_path / "run"
        assert run_in_fork(tmp_path / "whole", *SKIPPING, before=lambda: spoilt(1, 5)) == 0
        assert run_in_fork(run, *SKIPPING, before=lambda: (spoilt(1, 5), killed_at(count)())) == -signal.SIGKILL
        assert continued(run, before=lambda: spoilt(1, 5)) == 0
        assert_same_run(run, tmp_path / "whole")

    @slow
    def test_too_many_in_a_row_end_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "MAX_SKIPPED_IN_A_ROW", 2)
        spoilt(4, 5, 6, 7)
        ended = train(tmp_path / "run", *SKIPPING)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert "3 steps in a row had a loss or gradient that was not finite" in ended.err
        assert finite(tmp_path / "run")

    @slow
    @pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
    def test_one_of_several_batches_whose_gradients_are_accumulated(self, tmp_path, on_nonfinite):
        spoilt(1)
        setup = ["trainer.accumulate_grad_batches=3", "trainer.max_epochs=1", f"on_nonfinite={on_nonfinite}"]
        ended = train(tmp_path / "run", *LOGGING, *setup)
        assert ended.ok == (on_nonfinite == "skip"), ended.err
        if on_nonfinite == "skip":
            assert finite(tmp_path / "run")


class TestMemory:
    def too_large(self):
        torch.empty(2**60, dtype=torch.uint8)

    def out_of_gpu(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def out_of_python(self):
        raise MemoryError

    @pytest.mark.parametrize(
        "error", ["too_large", *(pytest.param(name, marks=slow) for name in ("out_of_gpu", "out_of_python"))]
    )
    def test_it_says_what_to_change(self, tmp_path, monkeypatch, error):
        fails = lambda task, outputs, batch: getattr(self, error)()  # noqa: E731
        monkeypatch.setattr(Classification, "loss", fails)
        ended = train(tmp_path / "run", "trainer.accumulate_grad_batches=2")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith("error: out of memory in batches of loader.batch_size=53 on each of 1 processes (")
        assert "loader.batch_size=26 trainer.accumulate_grad_batches=4" in ended.err


def reading(act, begin=lambda: None):
    """Has each reading process do something before its first sample, and something else amid its second batch."""
    parent, reads = os.getpid(), iter(range(10**6))
    original = Split.__getitem__

    def read(self, index):
        if os.getpid() != parent:
            {0: begin, 90: act}.get(next(reads), lambda: None)()
        return original(self, index)

    Split.__getitem__ = read


@pytest.fixture
def readable(monkeypatch):
    monkeypatch.setattr(Split, "__getitem__", Split.__getitem__)


def is_alive(process):
    """Whether it is there and does more than wait to be buried."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestReadingProcesses:
    def test_one_that_is_killed_ends_the_run_in_one_sentence(self, tmp_path, readable):
        reading(lambda: os.kill(os.getpid(), signal.SIGKILL))
        ended = train(tmp_path / "run", *WORKERS)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith("error: one of loader.num_workers=2 worker processes died (")

    @slow
    def test_one_that_hangs_ends_it_when_its_time_is_over_and_is_ended_itself(self, tmp_path, readable):
        reading(lambda: time.sleep(1000))
        ended = train(tmp_path / "run", *WORKERS, "loader.timeout_seconds=1")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith("error: the worker processes gave no batch within loader.timeout_seconds=1; ")
        assert not multiprocessing.active_children()

    def test_none_outlives_the_one_that_it_reads_for(self, tmp_path):
        def tell():
            with (tmp_path / "processes").open("a") as file:
                file.write(f"{os.getpid()}\n")

        def prepare():
            reading(lambda: time.sleep(1000), tell)
            killed_at(1)()

        assert run_in_fork(tmp_path / "run", *WORKERS, before=prepare) == -signal.SIGKILL
        processes = list(map(int, (tmp_path / "processes").read_text().split()))
        assert len(processes) == 2
        until = time.monotonic() + 20
        while any(map(is_alive, processes)):
            assert time.monotonic() < until
            time.sleep(0.01)

    @slow
    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_to_all_of_them_ends_the_run_with_a_checkpoint(self, tmp_path, sent):
        def prepare():
            os.setpgid(0, 0)
            before_call(4, "training_step", lambda: subprocess.run(["kill", f"-{sent}", "0"], check=False))()

        run = tmp_path / "run"
        assert run_in_fork(run, *WORKERS, before=prepare) == {signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
        assert checkpoint(run)["global_step"] == 5
        assert continued(run) == 0
        trained(tmp_path / "whole", *WORKERS)
        assert_same_run(run, tmp_path / "whole")


class TestPlaces:
    def test_a_run_directory_that_cannot_be_written_to_is_said_in_one_sentence(self, tmp_path):
        (tmp_path / "file").touch()
        ended = train(tmp_path / "file" / "run")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert str(tmp_path / "file") in ended.err
