"""A signal ends a run with a checkpoint, and never with status 0."""

import os
import signal
import threading
import time
from random import Random

import pytest

from perceiver.runtime.signals import PreemptionHandler
from perceiver.training.data_module import DataModule
from perceiver.training.module import TrainingModule
from tests.kills import assert_same_run, before_call, continued, in_fork, killed_at, run_in_fork
from tests.runs import SMALL, checkpoint, script, train, trained

slow = pytest.mark.slow
SETUP = [*SMALL, "trainer.max_epochs=4", "trainer.log_every_n_steps=1", "logger.mode=offline"]
ACCUMULATING = [*SETUP, "trainer.accumulate_grad_batches=3", "trainer.limit_train_batches=7"]
STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
SLURM = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by their settings."""
    made = {}

    def run(setup):
        if (key := tuple(setup)) not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            ended = script("experiments/train.py", f"hydra.run.dir={made[key]}", *setup)
            assert ended.ok, ended.err
        return made[key]

    return run


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The file in which a fake `scontrol` writes its arguments."""
    folder, told = tmp_path / "bin", tmp_path / "told"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{told}"\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return told


@slow
def test_a_run_that_every_signal_has_ended_once_equals_an_uninterrupted_one(tmp_path, whole, capfd):
    run = tmp_path / "run"
    assert run_in_fork(run, setup=SETUP, before=killed_at(1, sent=signal.SIGTERM)) == 143
    assert checkpoint(run)["global_step"] == 2
    for sent, method, count, step in (
        (signal.SIGHUP, "training_step", 1, 4),
        (signal.SIGUSR1, "training_step", 1, 5),  # where validation is due a checkpoint would leave it out
        (signal.SIGINT, "validation_step", 5, 8),
    ):
        assert continued(run, before=killed_at(count, method, sent)) == STATUS[sent]
        assert checkpoint(run)["global_step"] == step
    said = capfd.readouterr()
    assert said.out.count(f"continue with run={run}") == 4
    assert "Traceback" not in said.err
    assert continued(run) == 0
    assert_same_run(run, whole(SETUP))


@slow
@pytest.mark.parametrize(
    ("sent", "method", "count"),
    [
        (signal.SIGTERM, "training_step", 2),
        (signal.SIGHUP, "training_step", 5),
        (signal.SIGUSR1, "training_step", 6),
        (signal.SIGINT, "training_step", 9),
        (signal.SIGTERM, "validation_step", 0),
        (signal.SIGINT, "validation_step", 3),
    ],
)
def test_a_run_that_accumulates_gradients_is_resumed_exactly(tmp_path, whole, sent, method, count):
    run = tmp_path / "run"
    assert run_in_fork(run, setup=ACCUMULATING, before=killed_at(count, method, sent)) == STATUS[sent]
    assert continued(run) == 0
    assert_same_run(run, whole(ACCUMULATING))


@slow
@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_is_ended_at_a_random_moment_is_resumed_exactly(tmp_path, whole, seed):
    run, random = tmp_path / "run", Random(seed)
    setup = [*SETUP, "trainer.max_epochs=20"]
    sent = random.choice(list(STATUS))

    def send_later():
        time.sleep(random.uniform(0.0, 1.0))
        os.kill(os.getpid(), sent)

    later = before_call(0, "training_step", lambda: threading.Thread(target=send_later, daemon=True).start())
    assert run_in_fork(run, setup=setup, before=later) in (STATUS[sent], 0)
    assert continued(run) == 0
    assert_same_run(run, whole(setup))


@slow
def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path, capfd):
    twice = before_call(4, "training_step", lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert run_in_fork(tmp_path / "run", before=twice) == 130
    assert not [word for word in ("Traceback", "ignored") if word in capfd.readouterr().err]
    assert checkpoint(tmp_path / "run")["global_step"] == 4


@slow
@pytest.mark.parametrize("sent", STATUS)
@pytest.mark.parametrize(
    ("owner", "method"),
    [(DataModule, "prepare_data"), (TrainingModule, "configure_optimizers"), (DataModule, "train_dataloader")],
    ids=["data", "optimizer", "loader"],
)
def test_a_signal_before_training_ends_the_run_with_an_error(tmp_path, sent, owner, method):
    before = before_call(0, method, lambda: os.kill(os.getpid(), sent), owner=owner)
    assert run_in_fork(tmp_path / "run", before=before) not in (0, 1)


@slow
def test_a_signal_that_nohup_ignores_does_not_end_the_run(tmp_path):
    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        killed_at(1, sent=signal.SIGHUP)()

    assert run_in_fork(tmp_path / "run", before=prepare) == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 6


@slow
@pytest.mark.parametrize("sent", STATUS)
def test_a_signal_during_the_test_ends_the_run_at_once(tmp_path, whole, sent):
    run = tmp_path / "run"
    assert run_in_fork(run, setup=SETUP, before=killed_at(3, "test_step", sent)) == STATUS[sent]  # the last batch
    assert continued(run) == 0
    assert_same_run(run, whole(SETUP))


@slow
def test_a_signal_ends_an_evaluation_at_once(whole):
    def evaluate():
        killed_at(3, "test_step", signal.SIGTERM)()
        return script("experiments/evaluate.py", f"run={whole(SETUP)}").code

    assert in_fork(evaluate) == 143


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_a_hanging_step_is_ended_after_the_grace_time(tmp_path, sent):
    def prepare():
        signal.signal(signal.SIGUSR2, lambda number, frame: None)  # as submitit does
        before_call(4, "training_step", hang)()

    def hang():
        os.kill(os.getpid(), sent)
        while True:
            time.sleep(1000)

    grace = "checkpointing.ending.grace_seconds=0.2"
    assert run_in_fork(tmp_path / "run", grace, before=prepare) == 143
    assert checkpoint(tmp_path / "run")["global_step"] == 3


@slow
def test_the_previous_handlers_are_restored(tmp_path, monkeypatch):
    def heard():
        return {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL}}

    before = heard()
    trained(tmp_path / "run", "trainer.max_epochs=1")
    threads = threading.active_count()
    assert heard() == before
    step = TrainingModule.training_step
    ended = lambda self, batch, batch_idx: (os.kill(os.getpid(), 15), step(self, batch, batch_idx))[1]  # noqa: E731
    monkeypatch.setattr(TrainingModule, "training_step", ended)
    assert train(tmp_path / "ended", "trainer.max_epochs=1").code == 143
    assert heard() == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("sent", "array", "expected"),
    [
        (signal.SIGUSR1, {}, "requeue 17\n"),
        pytest.param(
            signal.SIGUSR1, {"SLURM_ARRAY_JOB_ID": "13", "SLURM_ARRAY_TASK_ID": "5"}, "requeue 13_5\n", marks=slow
        ),
        pytest.param(signal.SIGTERM, {}, None, marks=slow),
    ],
)
def test_only_the_signal_of_the_time_limit_requeues_a_slurm_job(tmp_path, monkeypatch, scontrol, sent, array, expected):
    for name, value in (SLURM | array).items():
        monkeypatch.setenv(name, value)
    assert run_in_fork(tmp_path / "run", before=killed_at(1, sent=sent)) == 143
    assert (scontrol.read_text() if scontrol.exists() else None) == expected


def test_the_grace_time_must_be_positive():
    with pytest.raises(ValueError, match="grace_seconds=0 must be more than 0"):
        PreemptionHandler(grace_seconds=0)
