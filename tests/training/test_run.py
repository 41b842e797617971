"""Whole runs on small data: what a run directory holds, what its checkpoints are worth, and what settings may be."""

import csv
import json
import math

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.training.build import build, read_checkpoint
from perceiver.training.module import TrainingModule
from tests.training.runs import SMALL, checkpoint, image_tree, script, train, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with everything that a run has."""
    overrides = ["logger.mode=offline", "attention.every_n_epochs=1", "attention.num_samples=3"]
    return trained(tmp_path_factory.mktemp("finished") / "run", *overrides)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_tree(tmp_path_factory.mktemp("images") / "tree")


def metrics_of(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())


def weights_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestRunDirectory:
    def test_it_holds_the_names_that_never_change_and_no_others(self, run):
        assert {path.name for path in run.iterdir()} == {
            *(".hydra", "checkpoints", "metrics.csv", "metrics.json", "attention", "wandb", "train.log")
        }
        assert {path.name for path in (run / ".hydra").iterdir()} >= {"config.yaml", "overrides.yaml"}
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert [path.suffix for path in (run / "attention").iterdir() if path.name != "index.html"] == [".npz"] * 2
        assert [path for path in (run / "wandb").iterdir() if path.name.startswith("offline-run-")]

    def test_final_metrics_are_one_flat_object_of_finite_numbers(self, run):
        metrics = metrics_of(run)
        assert {"test/accuracy", "val/accuracy", "train/loss", "train/seconds", "samples_per_second"} <= metrics.keys()
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
        assert metrics["samples_per_second"] > 0

    def test_every_scalar_is_in_the_csv_by_step(self, run):
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        steps = [int(row["step"]) for row in rows if row["val/accuracy"]]
        assert steps == [2, 5]  # two epochs of three batches
        assert float([row for row in rows if row["val/accuracy"]][-1]["val/accuracy"]) == pytest.approx(
            metrics_of(run)["val/accuracy"]
        )

    def test_a_checkpoint_holds_plain_values_and_rebuilds_the_model(self, run):
        found = read_checkpoint(run / "checkpoints" / "best.ckpt")
        assert json.loads(json.dumps(found.config)) == found.config
        assert found.class_names == [str(digit) for digit in range(10)]
        rebuilt = build(found.config, found.class_names).module
        rebuilt.load_state_dict(found.state)
        assert weights_equal(rebuilt.state_dict(), found.state)

    def test_two_jobs_of_a_sweep_are_two_runs(self, tmp_path):
        overrides = [*SMALL, "logger.mode=offline", "trainer.max_epochs=1"]
        ended = script("experiments/train.py", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}", *overrides)
        assert ended.ok
        runs = [tmp_path / "0", tmp_path / "1"]
        assert [checkpoint(run)["description"]["config"]["seed"] for run in runs] == [1, 2]
        ids = {path.name.rpartition("-")[2] for run in runs for path in (run / "wandb").glob("offline-run-*")}
        assert len(ids) == 2
        assert not weights_equal(*(checkpoint(run)["state_dict"] for run in runs))

    def test_a_sweep_over_several_processes_is_refused(self, tmp_path):
        ended = script("experiments/train.py", "-m", f"hydra.sweep.dir={tmp_path}", *SMALL, "trainer.devices=2")
        assert ended.code == 1
        assert ended.err.startswith("error: -m ")


class TestSettings:
    """Each of them trains, validates, tests and saves."""

    @pytest.mark.parametrize(
        "overrides",
        [
            "model.num_latents=1",
            "data.channels=3",
            "data.image_size=13",
            "data.image_size=[11,7]",
            "loader.batch_size=1",
            "loader.drop_last=true",
            "data.augment=null",
            "trainer.precision=bf16-mixed",
            "trainer.accumulate_grad_batches=2",
            "trainer.max_epochs=null trainer.max_steps=2",
            "trainer.max_epochs=3 trainer.check_val_every_n_epoch=2",
            "+trainer.val_check_interval=1",
            "callbacks=[default,ema]",
            "callbacks=[default,early_stopping]",
            "task.mixup=0.2 task.cutmix=1.0 task.label_smoothing=0.1",
            "decoder@model.decoder=queries model.decoder.query_per_class=true model.decoder.attention.num_heads=2",
            "encoder@model.encoders.image=image_conv",
            "model.encoders.image.combine=add model.encoders.image.stem.dim=26",
            *(
                f"optimizer={optimizer} schedule={schedule}"
                for optimizer in ("adamw", "lamb")
                for schedule in ("constant", "warmup_cosine", "flat_cosine", "steps")
            ),
        ],
    )
    def test_a_setting_gives_a_whole_run(self, tmp_path, overrides):
        run = trained(tmp_path / "run", *overrides.split())
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        metrics = metrics_of(run)
        assert all(map(math.isfinite, metrics.values()))
        assert 0 <= metrics["test/accuracy"] <= 1

    @pytest.mark.parametrize(
        "overrides", [["data=image_folder", "data.val_fraction=0"], ["trainer.limit_val_batches=0"]]
    )
    def test_without_validation_the_newest_is_the_best_and_there_are_maps(self, tmp_path, images, overrides):
        root = [f"data.root={images}"] if "data=image_folder" in overrides else []
        run = trained(tmp_path / "run", *overrides, *root, "attention.every_n_epochs=1")
        assert weights_equal(checkpoint(run, "best")["state_dict"], checkpoint(run)["state_dict"])
        assert len(list((run / "attention").glob("*.npz"))) == 2
        assert not [name for name in metrics_of(run) if name.startswith("val/")]

    def test_without_a_test_set_there_are_no_test_metrics(self, tmp_path, images):
        run = trained(tmp_path / "run", "data=image_folder", f"data.root={images}", "data.test_fraction=0")
        assert not [name for name in metrics_of(run) if name.startswith("test/")]
        ended = script("experiments/evaluate.py", f"run={run}")
        assert (ended.code, ended.err) == (1, f"error: run={run}: its data set has no test samples\n")

    def test_a_fast_development_run_saves_no_weights(self, tmp_path):
        run = trained(tmp_path / "run", "trainer.fast_dev_run=true")
        assert not (run / "checkpoints").exists()

    def test_the_last_checkpoint_is_the_last_state_also_where_validation_got_worse(self, tmp_path, monkeypatch):
        log, scores = TrainingModule.log, iter([0.9, 0.1])

        def worse(self, name, value, **options):
            log(self, name, next(scores) if name == "val/accuracy" else value, **options)

        monkeypatch.setattr(TrainingModule, "log", worse)
        run = trained(tmp_path / "run")
        assert (checkpoint(run, "best")["global_step"], checkpoint(run)["global_step"]) == (3, 6)

    def test_the_mean_of_the_weights_is_what_is_saved_and_tested(self, tmp_path):
        run = trained(tmp_path / "run", "callbacks=[ema]", "callbacks.ema.decay=0.5")
        saved = checkpoint(run)
        assert not weights_equal(saved["state_dict"], saved["current_model_state"])
        assert script("experiments/evaluate.py", f"run={run}").ok
        evaluated = json.loads((run / "evaluation.json").read_text())
        assert evaluated.items() <= metrics_of(run).items()

    def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(self, tmp_path, monkeypatch):
        original = TrainingModule._step

        def diverging(self, stage, batch):
            loss = original(self, stage, batch)
            return loss * math.nan if stage == "train" and self.global_step >= 4 else loss

        monkeypatch.setattr(TrainingModule, "_step", diverging)
        ended = train(tmp_path / "run")
        assert ended.code == 1
        assert ended.err.count("\n") == 1
        assert "train/loss is nan in epoch 1" in ended.err
        weights = checkpoint(tmp_path / "run")["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


class TestRepeatability:
    def test_the_seed_decides_every_bit(self, run, tmp_path):
        again = trained(tmp_path / "again")
        other = trained(tmp_path / "other", "seed=2")
        weights = checkpoint(run)["state_dict"]
        # The first run was looked into and logged to W&B, the second was not.
        assert weights_equal(weights, checkpoint(again)["state_dict"])
        assert not weights_equal(weights, checkpoint(other)["state_dict"])

    def test_workers_change_nothing(self, run, tmp_path):
        again = trained(tmp_path / "again", "loader.num_workers=1")
        assert weights_equal(checkpoint(run)["state_dict"], checkpoint(again)["state_dict"])


class TestEvaluate:
    def test_the_metrics_of_the_run_come_out_again_to_the_last_digit(self, run):
        ended = script("experiments/evaluate.py", f"run={run}")
        assert ended.ok
        evaluated = json.loads((run / "evaluation.json").read_text())
        assert evaluated.keys() == {name for name in metrics_of(run) if name.startswith("test/")}
        assert evaluated.items() <= metrics_of(run).items()
        assert f"{evaluated['test/accuracy']:.4f}" in ended.out

    def test_the_batch_size_changes_nothing(self, run):
        assert script("experiments/evaluate.py", f"run={run}", 'overrides=["loader.batch_size=7"]').ok
        evaluated = json.loads((run / "evaluation.json").read_text())
        assert evaluated == {name: pytest.approx(metrics_of(run)[name], abs=1e-6) for name in evaluated}

    def test_it_changes_no_file_of_the_run(self, run):
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "evaluation.json"}
        assert script("experiments/evaluate.py", f"run={run}", "checkpoint=last").ok
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "evaluation.json"}
        assert {path for path in after if after[path] != before.get(path)} <= {run}

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("loader.batch_sice=7", "loader.batch_sice: no such key; did you mean loader.batch_size?"),
            ("loader.batch_size=abc", "loader.batch_size='abc'"),
            ("model.dim=26", "its weights are not those of this model"),
            ("nosuch.key=1", "nosuch"),
        ],
    )
    def test_an_impossible_override_ends_in_one_sentence(self, run, override, said):
        ended = script("experiments/evaluate.py", f"run={run}", f'overrides=["{override}"]')
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert said in ended.err
        assert ended.err.count("\n") == 1
