"""`run=DIR` resumes a run: one that has ended, or one that was killed."""

import shutil
import signal

import pytest
import torch

from perceiver.training.module import TrainingModule
from perceiver.training.optimization import warmup_cosine
from tests.kills import assert_same, assert_same_run, continued, killed_at, rows, run_in_fork
from tests.runs import SMALL, assert_refused, checkpoint, metrics, script, train, trained
from tests.wandb_file import rows as wandb_rows
from tests.wandb_file import run_folders

slow = pytest.mark.slow
CONSTANT = ["schedule=constant", "trainer.log_every_n_steps=1"]  # other schedules depend on the end
LONGER = "trainer.max_epochs=3"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run. Read-only."""
    return trained(tmp_path_factory.mktemp("finished") / "run", *CONSTANT)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def resume(run, *overrides):
    ended = script("experiments/train.py", f"run={run}", *overrides)
    assert ended.ok, ended.err
    return ended


@pytest.mark.parametrize("written", [True, pytest.param(False, marks=slow)])
def test_a_finished_run_is_only_tested_and_has_all_metrics(finished, run, written):
    if not written:  # it was killed before
        (run / "metrics.json").unlink()
    resume(run)
    assert_same_run(run, finished)
    assert metrics(run)["train/seconds"] == metrics(finished)["train/seconds"]
    assert "nothing is trained" in (run / "train.log").read_text()


def test_a_run_that_starts_at_its_end_tests_the_given_checkpoint(finished, tmp_path):
    ended = train(tmp_path / "new", *CONSTANT, f"ckpt_path={finished}/checkpoints/last.ckpt")
    assert ended.ok, ended.err
    assert "last.ckpt" in ended.out
    assert "best.ckpt" not in ended.out


def test_an_end_before_the_checkpoint_is_refused(run):
    assert_refused(script("experiments/train.py", f"run={run}", "trainer.max_epochs=1"), "trainer.max_epochs=1", "2")


@pytest.mark.parametrize("name", ["a::b", pytest.param("memory://c\nd\udcff", marks=slow)])
def test_a_run_with_a_later_end_is_that_of_one_process_and_logs_what_has_changed(finished, tmp_path, name):
    run = shutil.copytree(finished, tmp_path / name)  # which fsspec would take for a URL
    resume(run, LONGER)
    assert_same_run(run, trained(tmp_path / "whole", *CONSTANT, LONGER))
    changes = [line for line in (run / "train.log").read_text().splitlines() if "resumed with" in line]
    assert [line.partition(" - ")[2] for line in changes] == ["resumed with trainer.max_epochs=3 instead of 2"]
    assert script("experiments/evaluate.py", f"run={run}").ok


def test_new_settings_of_optimizer_and_schedule_take_effect(run):
    resume(run, LONGER, "optimizer.lr=0.01", "optimizer.weight_decay=0.2", "schedule=warmup_cosine")
    assert [group["weight_decay"] for group in checkpoint(run)["optimizer_states"][0]["param_groups"]] == [0.2, 0.0]
    rates = [float(row["train/learning_rate"]) for row in rows(run) if "train/learning_rate" in row]
    assert rates[-3:] == pytest.approx(
        [0.01 * warmup_cosine(step, 9, warmup_steps=100, final_factor=0.0) for step in (6, 7, 8)]
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=2", "position in the data: loader.seed 1, now 2. "),
        pytest.param("loader.batch_size=59", "samples in a batch of all processes 53, now 59", marks=slow),
        pytest.param("trainer.limit_train_batches=4", "batches in an epoch 3, now 4", marks=slow),
        ("optimizer=lamb", "optimizer._target_=timm.optim.Lamb, not torch.optim.AdamW"),
        ("+optimizer.amsgrad=true", "optimizer.amsgrad=true, not null"),
        pytest.param("freeze=[encoders]", "freeze=[encoders], not null", marks=slow),
        pytest.param("decay_embeddings=true", "decay_embeddings", marks=slow),
        (
            "schedule._target_=torch.optim.lr_scheduler.ConstantLR",
            "schedule._target_=torch.optim.lr_scheduler.ConstantLR",
        ),
        ("model.memory.dim=26", "model.memory.dim=26, not 14"),
        pytest.param("data.val_fraction=0.3", "data.source.val_fraction=0.3, not 0.1", marks=slow),
    ],
)
def test_a_setting_with_which_the_state_has_no_meaning_is_refused(run, override, reason):
    before = (run / "metrics.json").read_bytes()
    ended = script("experiments/train.py", f"run={run}", override, LONGER)
    assert_refused(ended, reason, f"init.from={run}/checkpoints/last.ckpt")
    assert (run / "metrics.json").read_bytes() == before


def test_a_checkpoint_without_a_position_in_the_data_is_evaluated_but_not_resumed(run):
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path)
    del content["LightningData"]
    torch.save(content, path)
    ended = script("experiments/train.py", f"run={run}", LONGER)
    assert_refused(ended, f"ckpt_path={path}: has no position in the data", f"init.from={path}")
    assert script("experiments/evaluate.py", f"run={run}", "checkpoint=last").ok


@slow
def test_the_best_checkpoint_of_a_moved_run_stays_the_best(tmp_path, monkeypatch):
    log, scores = TrainingModule.log, iter([0.9, 0.1, 0.2])

    def worse(self, name, value, **options):
        log(self, name, next(scores) if name == "val/accuracy" else value, **options)

    monkeypatch.setattr(TrainingModule, "log", worse)
    run = trained(tmp_path / "run", *CONSTANT).rename(tmp_path / "moved")
    resume(run, LONGER)
    assert (checkpoint(run, "best")["global_step"], checkpoint(run)["global_step"]) == (3, 9)
    assert metrics(run)["best/val/accuracy"] == pytest.approx(0.9)


@slow
def test_a_run_can_start_from_scratch_in_its_directory(finished, run):
    resume(run, "ckpt_path=null")
    assert_same_run(run, finished)


@slow
def test_an_error_leaves_the_directory_of_a_run_without_checkpoint(tmp_path):
    run = tmp_path / "run"
    assert run_in_fork(run, before=killed_at(0)) == -signal.SIGKILL
    assert_refused(script("experiments/train.py", f"run={run}", "model.memory.dim=15"))
    assert (run / ".hydra" / "overrides.yaml").exists()


WITHOUT_PROGRESS = ["optimizer.lr=0", "callbacks=[early_stopping]", "callbacks.early_stopping.patience=1"]
"""All epochs have the same metrics."""


@slow
def test_a_run_that_stopped_early_is_not_trained_further(tmp_path):
    run = trained(tmp_path / "run", *WITHOUT_PROGRESS, "trainer.max_epochs=5")
    assert checkpoint(run)["global_step"] == 6
    assert "stopped early" in (run / "train.log").read_text()
    before = rows(run)
    resume(run)
    assert checkpoint(run)["global_step"] == 6
    assert_same(rows(run), before)


@slow
def test_the_first_of_equal_scores_stays_the_best(tmp_path):
    setup = [*SMALL, *WITHOUT_PROGRESS, "callbacks.early_stopping.patience=9", LONGER]
    assert script("experiments/train.py", f"hydra.run.dir={tmp_path}/whole", *setup).ok
    assert run_in_fork(tmp_path / "run", setup=setup, before=killed_at(4)) == -signal.SIGKILL
    assert continued(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@slow
def test_in_wandb_it_is_one_run(tmp_path):
    setup = ["logger.mode=offline", "trainer.log_every_n_steps=1"]
    run = trained(tmp_path / "run", *setup, "trainer.max_epochs=1", *CONSTANT)
    resume(run, "trainer.max_epochs=2")
    name = (run / "wandb" / "run_id").read_text().strip()
    folders = run_folders(run)
    assert [folder.name.rpartition("-")[2] for folder in folders] == [name, name]
    steps = [row["trainer/global_step"] for folder in folders for row in wandb_rows(folder) if "train/loss_step" in row]
    assert steps == list(range(6))
