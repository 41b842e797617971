"""A run that is killed, wherever that is, and continued comes to the same end as one that was not, to the last bit."""

import os
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
from tests.runs import CAPTIONING, SMALL, metrics, script

slow = pytest.mark.slow
EVERY_STEP = ["trainer.limit_train_batches=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
SPEC_AUGMENT = (
    "{_target_: torchaudio.transforms.SpecAugment, n_time_masks: 1, time_mask_param: 9, n_freq_masks: 1, "
    "freq_mask_param: 5, iid_masks: true, zero_masking: true}"
)
IMAGES = [
    *(
        *SMALL,
        *EVERY_STEP,
        "loader.batch_size=97",
        "task.mixup=0.4",
        "model.memory.cross_attention.residual_dropout=0.3",
    ),
    *("callbacks=[ema]", "callbacks.ema.decay=0.9", "attention.every_n_epochs=1", "attention.num_samples=3"),
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
WITHIN_STEPS = [*BETWEEN_VALIDATIONS, "trainer.accumulate_grad_batches=2"]
"""The third batch of six, after which there is a validation, is the first of the second step."""
CUT_SHORT = [*IMAGES, "trainer.max_steps=6", "trainer.check_val_every_n_epoch=5"]
"""Training ends within an epoch, between two validations."""
RUNS = {
    "images": IMAGES,
    "sounds": SOUNDS,
    "captions": CAPTIONS,
    "between validations": BETWEEN_VALIDATIONS,
    "within steps": WITHIN_STEPS,
    "cut short": CUT_SHORT,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never killed, by name."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            ended = script("experiments/train.py", f"hydra.run.dir={made[name]}", *RUNS[name])
            assert ended.ok, ended.err
        return made[name]

    return run


def assert_same_maps(one, other):
    paths = sorted(path.relative_to(one) for path in one.glob("attention/*.npz"))
    assert paths == sorted(path.relative_to(other) for path in other.glob("attention/*.npz"))
    for path in paths:
        with np.load(one / path) as arrays, np.load(other / path) as expected:
            assert arrays.files == expected.files
            for name in arrays.files:
                assert arrays[name].tobytes() == expected[name].tobytes(), f"{path}: {name}"


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, whole, monkeypatch):
    expected, run = whole("images"), tmp_path / "run"
    monkeypatch.setattr(curves, "ROWS_IN_MEMORY", 1)  # so that some are written behind the checkpoint
    assert run_in_fork(run, setup=IMAGES, before=killed_at(0)) == -signal.SIGKILL  # before there is a checkpoint
    for count, method in ((2, "training_step"), (1, "validation_step"), (1, "training_step"), (0, "test_step")):
        assert continued(run, before=killed_at(count, method)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, expected)
    assert_same_maps(run, expected)
    assert (run / "predictions.csv").read_bytes() == (expected / "predictions.csv").read_bytes()


@slow
@pytest.mark.parametrize(
    ("method", "count"),
    [*(("training_step", count) for count in range(8)), *(("validation_step", count) for count in range(4))],
)
def test_a_run_that_is_killed_at_any_step_ends_as_if_it_had_not_been(tmp_path, whole, method, count):
    run = tmp_path / "run"
    assert run_in_fork(run, setup=IMAGES, before=killed_at(count, method)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, whole("images"))


@slow
@pytest.mark.parametrize("name", ["sounds", "captions", "between validations", "within steps", "cut short"])
def test_so_does_one_that_is_killed_every_few_steps(tmp_path, whole, name):
    run, random = tmp_path / "run", Random(1)
    status, kills = run_in_fork(run, setup=RUNS[name], before=killed_at(2)), 0
    while status == -signal.SIGKILL:
        kills += 1
        assert kills < 20
        status = continued(run, before=killed_at(random.randint(2, 7)))
    assert status == 0
    assert kills > 1
    assert_same_run(run, whole(name))


@pytest.mark.parametrize(
    ("count", "method", "owner"),
    [
        (1, "validation_step", TrainingModule),
        pytest.param(0, "_log_metrics", TrainingModule, marks=slow),
        pytest.param(1, "_look", AttentionCallback, marks=slow),
        (0, "_test", AttentionCallback),
        pytest.param(2, "_write_page", AttentionCallback, marks=slow),
        (0, "test_step", TrainingModule),
        pytest.param(0, "best_checkpoint", run_module, marks=slow),
        pytest.param(0, "class_rows", run_module, marks=slow),
    ],
)
def test_so_does_one_that_is_killed_while_it_does_what_its_end_within_an_epoch_asks_for(
    tmp_path, whole, count, method, owner
):
    run, kill = tmp_path / "run", lambda: os.kill(os.getpid(), signal.SIGKILL)
    assert run_in_fork(run, setup=CUT_SHORT, before=before_call(count, method, kill, owner)) == -signal.SIGKILL
    assert continued(run) == 0
    assert_same_run(run, whole("cut short"))
    assert [float(row["val/loss"]) for row in rows(run) if "val/loss" in row] == [metrics(run)["val/loss"]]
