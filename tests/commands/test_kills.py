"""A run that is killed, wherever that is, and resumed ends like an uninterrupted one, to the last bit."""

import os
import shutil
import signal
from random import Random

import numpy as np
import pytest

from perceiver.commands import train as run_module
from perceiver.runtime.loggers import curves
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.module import TrainingModule
from tests.commands.test_sound_run import SMALL_SOUND
from tests.kills import assert_same_run, before_call, continued, killed_at, rows, run_in_fork
from tests.runs import CAPTIONING, SMALL, checkpoint, metrics, script, trained

slow = pytest.mark.slow
EVERY_STEP = ["trainer.limit_train_batches=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
SPEC_AUGMENT = (
    "{_target_: torchaudio.transforms.SpecAugment, n_time_masks: 1, time_mask_param: 9, n_freq_masks: 1, "
    "freq_mask_param: 5, iid_masks: true, zero_masking: true}"
)
IMAGES = [
    *(*SMALL, *EVERY_STEP, "loader.batch_size=97", "task.mixup=0.4", "attention.every_n_epochs=1"),
    *("model.memory.cross_attention.residual_dropout=0.3", "attention.num_samples=3"),
    *("callbacks=[ema]", "callbacks.ema.decay=0.9", "checkpointing.every_n_steps=1"),
]
SOUNDS = [
    *(*SMALL_SOUND, *EVERY_STEP, "logger.mode=disabled", "loader.batch_size=7", "loader.num_workers=2"),
    *("callbacks=[ema]", "attention.every_n_epochs=0", f"model.encoders.audio.spec_augment={SPEC_AUGMENT}"),
    "checkpointing.every_n_steps=1",
]
CAPTIONS = [
    *(*SMALL, *CAPTIONING, *EVERY_STEP, "loader.batch_size=7", "generation@task.generation=sampling"),
    *("model.decoder.dropout=0.3", "trainer.accumulate_grad_batches=3"),
]
BETWEEN_VALIDATIONS = [
    *(*SMALL, *EVERY_STEP, "loader.batch_size=97", "loader.num_workers=2", "trainer.accumulate_grad_batches=3"),
    *("trainer.limit_train_batches=6", "+trainer.val_check_interval=3", "callbacks=[early_stopping]"),
    "checkpointing.every_n_steps=2",
]
MASKED = [
    *(*SMALL, *EVERY_STEP, "loader.batch_size=97", "task=reconstruction", "decoder@model.decoder=dense_patches"),
    *("model.decoder.attention.num_heads=2", "task.target.patch_size=[2,2]", "task.masked=0.5", "task.num_places=3"),
    "+task.replacement._target_=perceiver.tasks.masking.Replacement",
    *("+task.replacement.random=0.1", "+task.replacement.kept=0.1", "checkpointing.every_n_steps=1"),
]
RUNS = {
    "images": IMAGES,
    "sounds": SOUNDS,
    "captions": CAPTIONS,
    "masked images": MASKED,
    "between validations": BETWEEN_VALIDATIONS,
    # The third batch of six, after which there is a validation, is the first of the second step.
    "within steps": [*BETWEEN_VALIDATIONS, "trainer.accumulate_grad_batches=2"],
    # Training ends within an epoch, between two validations.
    "end within epoch": [
        *(*IMAGES, "trainer.max_steps=6", "trainer.check_val_every_n_epoch=5", "checkpointing.every_n_steps=null"),
    ],
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Makes the uninterrupted run of a name, once."""
    runs = {}

    def run(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("uninterrupted") / "run"
            ended = script("experiments/train.py", f"hydra.run.dir={runs[name]}", *RUNS[name])
            assert ended.ok, ended.err
        return runs[name]

    return run


@slow
def test_killed_in_training_validation_and_test(tmp_path, uninterrupted, monkeypatch):
    expected, run = uninterrupted("images"), tmp_path / "run"
    monkeypatch.setattr(curves, "BUFFER_SIZE", 1)  # so that some are written after the checkpoint
    assert run_in_fork(run, setup=IMAGES, before=killed_at(0)) == -signal.SIGKILL  # before there is a checkpoint
    for count, method in ((2, "training_step"), (1, "validation_step"), (0, "test_step")):
        assert continued(run, before=killed_at(count, method)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, expected)
    assert (run / "predictions.csv").read_bytes() == (expected / "predictions.csv").read_bytes()
    events = sorted(path.relative_to(run) for path in run.glob("attention/*.npz"))
    assert events == sorted(path.relative_to(expected) for path in expected.glob("attention/*.npz"))
    for path in events:
        with np.load(run / path) as one, np.load(expected / path) as other:
            assert one.files == other.files
            assert all(one[name].tobytes() == other[name].tobytes() for name in one.files), path


@slow
@pytest.mark.parametrize(
    ("method", "count"),
    [*(("training_step", count) for count in range(8)), *(("validation_step", count) for count in range(4))],
)
def test_killed_at_any_step(tmp_path, uninterrupted, method, count):
    run = tmp_path / "run"
    assert run_in_fork(run, setup=IMAGES, before=killed_at(count, method)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, uninterrupted("images"))


@slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "images"])
def test_killed_every_few_steps(tmp_path, uninterrupted, name):
    run, random = tmp_path / "run", Random(1)
    status, kills = run_in_fork(run, setup=RUNS[name], before=killed_at(2)), 0
    while status == -signal.SIGKILL:
        kills += 1
        assert kills < 20
        status = continued(run, before=killed_at(random.randint(2, 7)))
    assert status == 0
    assert kills > 1
    assert_same_run(run, uninterrupted(name))


@pytest.mark.parametrize(
    ("count", "method", "owner"),
    [
        (1, "validation_step", TrainingModule),
        (0, "_log_metrics", TrainingModule),
        (1, "_explain", AttentionCallback),
        (0, "_test_faithfulness", AttentionCallback),
        (2, "_write_page", AttentionCallback),
        (0, "test_step", TrainingModule),
        (0, "best_checkpoint", run_module),
        (0, "log_results", run_module),
    ],
)
@slow
def test_killed_at_its_end_within_an_epoch(tmp_path, uninterrupted, count, method, owner):
    run, kill = tmp_path / "run", lambda: os.kill(os.getpid(), signal.SIGKILL)
    setup = RUNS["end within epoch"]
    assert run_in_fork(run, setup=setup, before=before_call(count, method, kill, owner)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, uninterrupted("end within epoch"))
    assert [float(row["val/loss"]) for row in rows(run) if "val/loss" in row] == [metrics(run)["val/loss"]]


@slow
def test_no_checkpoint_lies_between_a_step_and_its_validation(tmp_path, monkeypatch):
    """Killed in a validation, within an epoch or at a batch counted over epochs, a run repeats the step before it."""
    run, step, every = tmp_path / "run", TrainingModule.validation_step, ["trainer.check_val_every_n_epoch=null"]

    def copy_before(self, batch, batch_idx):
        if batch_idx == 0 and not (copy := tmp_path / str(self.global_step)).exists():
            shutil.copytree(run, copy)  # as a kill would leave it
            assert checkpoint(run)["global_step"] == self.global_step - 1
        return step(self, batch, batch_idx)

    with monkeypatch.context() as during:
        during.setattr(TrainingModule, "validation_step", copy_before)
        trained(run, *every, "+trainer.val_check_interval=2", "checkpointing.every_n_steps=1")
    for copy in ("2", "4"):  # an epoch has three batches
        ended = script("experiments/train.py", f"run={tmp_path}/{copy}")
        assert ended.ok, ended.err
        assert_same_run(tmp_path / copy, run)
