"""What `run=DIR` makes of a run that has ended, be it by itself or before its time."""

import shutil
import signal

import pytest

from perceiver.training.module import TrainingModule
from perceiver.training.optimization import WarmupCosine
from tests.kills import assert_same, assert_same_run, continued, killed_at, rows, run_in_fork
from tests.runs import SMALL, checkpoint, image_tree, metrics, script, train, trained
from tests.wandb_file import rows as wandb_rows
from tests.wandb_file import run_folders

slow = pytest.mark.slow
CONSTANT = ["schedule=constant", "trainer.log_every_n_steps=1"]  # any other schedule knows where the end is


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that came to its end. Only read it."""
    return trained(tmp_path_factory.mktemp("finished") / "run", *CONSTANT)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(finished, tmp_path / "run")


def go_on(run, *overrides):
    return script("experiments/train.py", f"run={run}", *overrides)


def test_a_finished_run_only_is_tested_again_and_loses_nothing(finished, run):
    ended = go_on(run)
    assert ended.ok, ended.err
    assert_same_run(run, finished)
    assert metrics(run)["train/seconds"] == metrics(finished)["train/seconds"]
    assert "nothing is trained" in (run / "train.log").read_text()


def test_a_run_that_begins_at_its_end_tests_the_checkpoint_that_it_was_given(finished, tmp_path):
    start = finished / "checkpoints" / "last.ckpt"
    ended = train(tmp_path / "new", *CONSTANT, f"ckpt_path={start}")
    assert ended.ok, ended.err
    assert "last.ckpt" in ended.out
    assert "best.ckpt" not in ended.out


def test_a_run_that_ended_before_its_results_were_written_has_them_all(finished, run):
    (run / "metrics.json").unlink()
    assert go_on(run).ok
    assert_same_run(run, finished)


def test_a_finished_run_goes_on_to_a_later_end_and_says_what_is_different(run, tmp_path):
    ended = go_on(run, "trainer.max_epochs=3")
    assert ended.ok, ended.err
    assert_same(rows(run), rows(whole := trained(tmp_path / "whole", *CONSTANT, "trainer.max_epochs=3")))
    assert_same_run(run, whole)
    told = [line for line in (run / "train.log").read_text().splitlines() if "resumed with" in line]
    assert [line.partition(" - ")[2] for line in told] == ["resumed with trainer.max_epochs=3 instead of 2"]


@pytest.mark.parametrize("name", ["a::b", pytest.param("memory://c\nd\udcff", marks=slow)])
def test_whatever_its_directory_is_called_it_is_evaluated_and_goes_on(tmp_path, name):
    run = trained(tmp_path / name, *CONSTANT, "trainer.max_epochs=1")
    assert script("experiments/evaluate.py", f"run={run}").ok
    ended = go_on(run, "trainer.max_epochs=2")
    assert ended.ok, ended.err
    assert checkpoint(run)["global_step"] == 6


@slow
def test_of_a_run_that_was_moved_the_best_stays_the_best(tmp_path, monkeypatch):
    log, scores = TrainingModule.log, iter([0.9, 0.1, 0.2])

    def worse(self, name, value, **options):
        log(self, name, next(scores) if name == "val/accuracy" else value, **options)

    monkeypatch.setattr(TrainingModule, "log", worse)
    run = trained(tmp_path / "run", *CONSTANT).rename(tmp_path / "moved")
    assert go_on(run, "trainer.max_epochs=3").ok
    assert (checkpoint(run, "best")["global_step"], checkpoint(run)["global_step"]) == (3, 9)
    assert metrics(run)["best/val/accuracy"] == pytest.approx(0.9)


@slow
def test_a_run_can_be_begun_anew_in_its_directory(finished, run):
    assert go_on(run, "ckpt_path=null").ok
    assert_same_run(run, finished)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=2", "loader.seed 1, now 2"),
        pytest.param("loader.batch_size=59", "samples in a batch of all processes 53, now 59", marks=slow),
        pytest.param("trainer.limit_train_batches=4", "batches in an epoch 3, now 4", marks=slow),
    ],
)
def test_where_its_place_in_the_data_would_mean_something_else_it_is_refused(run, override, said):
    before = (run / "metrics.json").read_bytes()
    ended = go_on(run, override, "trainer.max_epochs=3")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith(f"error: the run cannot be resumed at its position in the data: {said}. ")
    assert (run / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer=lamb", "timm.optim.Lamb"),
        pytest.param("decay_embeddings=true", "decay_embeddings", marks=slow),
        ("schedule._target_=torch.optim.lr_scheduler.ConstantLR", "torch.optim.lr_scheduler.ConstantLR"),
    ],
)
def test_what_could_not_go_on_with_the_state_that_there_is_is_refused(run, override, named):
    ended = go_on(run, override, "trainer.max_epochs=3")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith(f"error: ckpt_path={run}/checkpoints/last.ckpt: ")
    assert named in ended.err


def test_other_settings_of_the_optimizer_are_those_that_it_goes_on_with(run):
    ended = go_on(
        run, "trainer.max_epochs=3", "optimizer.lr=0.01", "optimizer.weight_decay=0.2", "schedule=warmup_cosine"
    )
    assert ended.ok, ended.err
    assert [group["weight_decay"] for group in checkpoint(run)["optimizer_states"][0]["param_groups"]] == [0.2, 0.0]
    rates = [float(row["train/learning_rate"]) for row in rows(run) if "train/learning_rate" in row]
    expected = WarmupCosine(warmup_steps=100, final_factor=0.0)
    assert rates[-3:] == pytest.approx([0.01 * expected(step, 9) for step in (6, 7, 8)])


@slow
def test_a_mistake_on_going_on_leaves_what_is_there(tmp_path):
    run = tmp_path / "run"
    assert run_in_fork(run, before=killed_at(0)) == -signal.SIGKILL
    ended = go_on(run, "model.memory.dim=15")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert (run / ".hydra" / "overrides.yaml").exists()


@slow
def test_so_it_is_where_samples_came_or_went(tmp_path):
    root = image_tree(tmp_path / "images")
    trained(tmp_path / "run", "data=image_folder", f"data.root={root}", "loader.batch_size=4")
    for path in (root / "cat").iterdir():
        path.with_stem(f"more_{path.stem}").write_bytes(path.read_bytes())
    ended = go_on(tmp_path / "run", "trainer.max_epochs=3")
    assert ended.code == 1
    assert ended.err.startswith("error: ckpt_path=")
    assert "the training samples are not those of before: 0 are gone" in ended.err


STANDING = ["optimizer.lr=0", "callbacks=[early_stopping]", "callbacks.early_stopping.patience=1"]
"""Nothing is learned: the metrics of all epochs are the same, and the second is no better than the first."""


@slow
def test_a_run_that_was_stopped_early_stays_so(tmp_path):
    run = trained(tmp_path / "run", *STANDING, "trainer.max_epochs=5")
    assert checkpoint(run)["global_step"] == 6
    assert "stopped early" in (run / "train.log").read_text()
    before = rows(run)
    assert go_on(run).ok
    assert checkpoint(run)["global_step"] == 6
    assert_same(rows(run), before)


@slow
def test_of_equal_scores_the_same_one_is_the_best(tmp_path):
    setup = [*SMALL, *STANDING, "callbacks.early_stopping.patience=9", "trainer.max_epochs=3"]
    assert script("experiments/train.py", f"hydra.run.dir={tmp_path}/whole", *setup).ok
    assert run_in_fork(tmp_path / "run", setup=setup, before=killed_at(4)) == -signal.SIGKILL
    assert continued(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@slow
def test_in_wandb_it_is_one_run(tmp_path):
    setup = ["logger.mode=offline", "trainer.log_every_n_steps=1"]
    ended = train(tmp_path / "run", *setup, "trainer.max_epochs=1", *CONSTANT)
    assert ended.ok, ended.err
    assert go_on(tmp_path / "run", "trainer.max_epochs=2").ok
    name = (tmp_path / "run" / "wandb" / "run_id").read_text().strip()
    folders = run_folders(tmp_path / "run")
    assert [folder.name.rpartition("-")[2] for folder in folders] == [name, name]
    steps = [row["trainer/global_step"] for folder in folders for row in wandb_rows(folder) if "train/loss_step" in row]
    assert steps == list(range(6))
