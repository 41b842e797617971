"""The end of one of several processes ends the others, and the run is resumed exactly."""

import signal

import pytest

from perceiver.training.module import TrainingModule
from tests.kills import assert_same_run, killed_at
from tests.processes import difference, train_on, trained_on
from tests.runs import checkpoint, train, trained

pytestmark = pytest.mark.slow
RANDOM = [
    "encoder@model.encoders.image=image_conv",
    "task.mixup=0.4",
    "model.memory.cross_attention.residual_dropout=0.3",
    "trainer.log_every_n_steps=1",
]
OF_TWO = [*RANDOM, "loader.batch_size=26", "trainer.limit_val_batches=2", "checkpointing.every_n_steps=2"]
PLAIN = ["trainer.log_every_n_steps=1", "trainer.max_epochs=1", "trainer.limit_train_batches=6"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of two processes."""
    return trained_on(2, tmp_path_factory.mktemp("whole") / "run", *OF_TWO)


def one_of_them(rank, *arguments):
    """Send a signal to one process; see `killed_at`."""
    return lambda own: killed_at(*arguments)() if own == rank else None


@pytest.mark.parametrize(
    ("rank", "sent", "method", "count"),
    [
        (1, signal.SIGTERM, "training_step", 4),
        (0, signal.SIGTERM, "training_step", 2),
        (0, signal.SIGHUP, "training_step", 3),
        (1, signal.SIGINT, "training_step", 0),
        (1, signal.SIGTERM, "validation_step", 1),
    ],
)
def test_a_signal_to_any_process_ends_all_and_the_run_is_resumed(tmp_path, whole, rank, sent, method, count):
    run = tmp_path / "run"
    both = train_on(2, run, *OF_TWO, before=one_of_them(rank, count, method, sent))
    code = 130 if sent == signal.SIGINT else 143
    assert [ended.code for ended in both] == [code, code], [ended.err for ended in both]
    assert f"continue with run={run}" in both[0].out
    assert 0 < checkpoint(run)["global_step"] < 6
    trained_on(2, run, *OF_TWO, "ckpt_path=last")
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    ("ranks", "method", "count"),
    [
        ((0,), "training_step", 4),
        ((1,), "training_step", 5),
        ((0, 1), "validation_step", 2),
    ],
)
def test_a_run_whose_processes_were_killed_is_resumed(tmp_path, whole, ranks, method, count):
    run = tmp_path / "run"
    both = train_on(2, run, *OF_TWO, before=lambda rank: killed_at(count, method)() if rank in ranks else None)
    for rank, ended in enumerate(both):
        assert ended.code == -signal.SIGKILL if rank in ranks else ended.code not in (0, -signal.SIGKILL)
    trained_on(2, run, *OF_TWO, "ckpt_path=last")
    assert_same_run(run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all(tmp_path, monkeypatch, rank):
    original = TrainingModule.training_step

    def fails(self, batch, batch_idx):
        if self.trainer.global_rank == rank and self.trainer.global_step == 2:
            raise KeyError("of this process alone")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", fails)
    both = train_on(2, tmp_path / "run", *OF_TWO)
    assert [ended.code for ended in both] == [1, 1]


def test_a_run_is_resumed_with_more_or_fewer_processes_of_the_same_total_batch(tmp_path):
    of_one, of_two = ([*PLAIN, f"loader.batch_size={size}"] for size in (52, 26))
    never_stopped = trained(tmp_path / "whole", *of_one)
    run = tmp_path / "fewer"
    both = train_on(2, run, *of_two, before=one_of_them(0, 2, "training_step", signal.SIGTERM))
    assert [ended.code for ended in both] == [143, 143]
    ended = train(run, *of_two, "ckpt_path=last")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "samples in a batch of all processes 52, now 26" in ended.err
    trained(run, *of_one, "ckpt_path=last")
    assert difference(run, never_stopped) < 1e-5
    run = tmp_path / "more"
    (one,) = train_on(1, run, *of_one, before=one_of_them(0, 2, "training_step", signal.SIGTERM))
    assert one.code == 143
    trained_on(2, run, *of_two, "ckpt_path=last")
    assert difference(run, never_stopped) < 1e-5
