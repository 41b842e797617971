"""Whole runs on small data: what a run directory holds, what its checkpoints are worth, and what settings may be."""

import csv
import json
import math
import re
import subprocess
import sys

import pytest
import torch

from perceiver.data.synthetic.shape_scenes import ShapeScenes
from perceiver.training.build import DataInfo, build
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.module import TrainingModule
from tests.data.caption_trees import text_pairs_tree
from tests.kills import rows
from tests.runs import (
    CAPTIONING,
    JOINT,
    ROOT,
    SMALL,
    checkpoint,
    image_tree,
    metrics,
    script,
    train,
    trained,
    weights_equal,
)

CHECKPOINTS = {"best.ckpt", "last.ckpt", "previous.ckpt"}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run whose model writes captions. Only read it."""
    return trained(tmp_path_factory.mktemp("captions") / "run", *CAPTIONING, "attention.every_n_epochs=1")


class TestRunDirectory:
    def test_it_holds_the_names_that_never_change_and_no_others(self, run):
        names = {path.name for path in run.iterdir() if not path.name.startswith("evaluation")}  # which others add
        assert names == {
            *(".hydra", "checkpoints", "metrics.csv", "metrics.json", "attention", "wandb", "train.log"),
            *("predictions.csv", "confusion_matrix.csv"),
        }
        assert {path.name for path in (run / ".hydra").iterdir()} >= {"config.yaml", "overrides.yaml"}
        assert {path.name for path in (run / "checkpoints").iterdir()} == CHECKPOINTS
        assert [path.suffix for path in (run / "attention").iterdir() if path.name != "index.html"] == [".npz"] * 2
        assert [path for path in (run / "wandb").iterdir() if path.name.startswith("offline-run-")]

    def test_final_metrics_are_one_flat_object_of_finite_numbers(self, run):
        final = metrics(run)
        assert {"test/accuracy", "val/accuracy", "train/loss", "train/seconds", "samples_per_second"} <= final.keys()
        assert all(isinstance(value, float) and math.isfinite(value) for value in final.values())
        assert final["samples_per_second"] > 0

    def test_every_scalar_is_in_the_csv_by_step(self, run):
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        steps = [int(row["step"]) for row in rows if row["val/accuracy"]]
        assert steps == [2, 5]  # two epochs of three batches
        assert float([row for row in rows if row["val/accuracy"]][-1]["val/accuracy"]) == pytest.approx(
            metrics(run)["val/accuracy"]
        )

    def test_a_checkpoint_holds_plain_values_and_rebuilds_the_model(self, run):
        found = read_checkpoint(run / "checkpoints" / "best.ckpt")
        assert json.loads(json.dumps(found.config)) == found.config
        assert found.data_info == DataInfo([str(digit) for digit in range(10)], None)
        rebuilt = build(found.config, found.data_info).module
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


class TestSettings:
    """Each of them trains, validates, tests and saves."""

    @pytest.mark.parametrize(
        "overrides",
        [
            "model.memory.num_latents=1",
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
            "task.mixup=0.2 task.cutmix=1.0 task.loss.label_smoothing=0.1",
            "decoder@model.decoder=queries model.decoder.queries.num_queries=10 model.decoder.attention.num_heads=2",
            "encoder@model.encoders.image=image_conv",
            "model.encoders.image.combine=add model.encoders.image.stem.dim=26",
            *(f"optimizer=adamw schedule={schedule}" for schedule in ("warmup_cosine", "steps")),
            *(f"optimizer=lamb schedule={schedule}" for schedule in ("constant", "flat_cosine")),
            *(slow(f"optimizer=lamb schedule={schedule}") for schedule in ("warmup_cosine", "steps")),
            *(slow(f"optimizer=adamw schedule={schedule}") for schedule in ("constant", "flat_cosine")),
        ],
    )
    def test_a_setting_gives_a_whole_run(self, tmp_path, overrides):
        run = trained(tmp_path / "run", *overrides.split())
        assert {path.name for path in (run / "checkpoints").iterdir()} | {"previous.ckpt"} == CHECKPOINTS
        final = metrics(run)
        assert all(map(math.isfinite, final.values()))
        assert 0 <= final["test/accuracy"] <= 1

    @pytest.mark.filterwarnings("error:.*could not find the monitored key")
    @pytest.mark.parametrize(
        "end",
        [
            "trainer.max_steps=2",
            "trainer.max_epochs=4 trainer.check_val_every_n_epoch=3",
            slow("trainer.max_steps=4 +trainer.val_check_interval=3"),
            slow("trainer.max_steps=4 +trainer.val_check_interval=00:01:00:00"),
            slow("trainer.max_steps=3 trainer.accumulate_grad_batches=2"),
            slow("trainer.max_time=00:00:00:01 trainer.max_epochs=10000 trainer.check_val_every_n_epoch=10000"),
        ],
    )
    def test_the_end_is_validated_wherever_it_is(self, tmp_path, end):
        run = trained(tmp_path / "run", "trainer.log_every_n_steps=1", *end.split())
        last = [row for row in rows(run) if "val/accuracy" in row][-1]
        assert int(last["step"]) == checkpoint(run)["global_step"] - 1
        assert float(last["val/accuracy"]) == metrics(run)["val/accuracy"] <= metrics(run)["best/val/accuracy"]
        assert (run / "checkpoints" / "best.ckpt").exists()

    @pytest.mark.parametrize(
        "overrides", [["data=image_folder", "data.val_fraction=0"], ["trainer.limit_val_batches=0"]]
    )
    def test_without_validation_the_newest_is_the_best_and_there_are_maps(self, tmp_path, images, overrides):
        root = [f"data.root={images}"] if "data=image_folder" in overrides else []
        run = tmp_path / "run"
        ended = train(run, *overrides, *root, "attention.every_n_epochs=1")
        assert "not validated" in ended.out
        assert weights_equal(checkpoint(run, "best")["state_dict"], checkpoint(run)["state_dict"])
        assert len(list((run / "attention").glob("*.npz"))) == 2
        assert not [name for name in metrics(run) if name.startswith("val/")]

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("trainer.limit_train_batches=0", "at least 1"),
            ("+trainer.val_check_interval=5", "an epoch has 3 batches"),
            ("callbacks.ema.update_every_n_steps=7", "the run has 6 steps"),
        ],
    )
    def test_lengths_that_cannot_be_are_refused_before_training(self, tmp_path, override, said):
        ended = train(tmp_path / "run", override, *(["callbacks=[ema]"] if "ema" in override else []))
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith(f"error: {override.removeprefix('+')}: ")
        assert said in ended.err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("trainer.max_epochs=0", "nothing is trained"),
            ("trainer.accumulate_grad_batches=5", "an epoch has 3 batches"),
        ],
    )
    def test_lengths_that_are_not_what_they_seem_are_warned_of(self, tmp_path, override, said):
        ended = train(tmp_path / "run", override)
        assert ended.ok, ended.err
        assert f"{override}: {said}" in (tmp_path / "run" / "train.log").read_text()

    def test_without_a_test_set_there_are_no_test_metrics(self, tmp_path, images):
        run = trained(tmp_path / "run", "data=image_folder", f"data.root={images}", "data.test_fraction=0")
        assert not [name for name in metrics(run) if name.startswith("test/")]
        ended = script("experiments/evaluate.py", f"run={run}")
        assert (ended.code, ended.err) == (1, f"error: run={run}: its data set has no test samples\n")

    def test_a_file_that_cannot_be_read_is_named_and_ends_the_run_or_is_counted(self, tmp_path):
        root = image_tree(tmp_path / "images")
        for name in ("cat", "dog"):
            (root / name / "0.png").write_text("no image")
        overrides = [
            "data=image_folder",
            f"data.root={root}",
            "trainer.limit_train_batches=null",
            "data.val_fraction=0.2",
        ]
        ended = train(tmp_path / "raise", *overrides)
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert "0.png: " in ended.err
        assert ended.err.count("\n") == 1
        run = trained(tmp_path / "skip", *overrides, "data.on_error=skip")
        assert metrics(run)["data/unreadable"] == 2
        assert (run / "train.log").read_text().count("0.png: ") == 2

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
        run = trained(tmp_path / "run", "callbacks=[ema]", "callbacks.ema.decay=0.9")
        saved = checkpoint(run)
        assert not weights_equal(saved["state_dict"], saved["current_model_state"])
        assert script("experiments/evaluate.py", f"run={run}").ok
        assert metrics(run, "evaluation").items() <= metrics(run).items()


class TestCaptions:
    """Runs whose model writes texts, with a vocabulary that is learned from those of the data."""

    def test_the_run_keeps_its_vocabulary_twice(self, written):
        vocabulary = (written / "tokenizer.json").read_text()
        found = read_checkpoint(written / "checkpoints" / "best.ckpt")
        assert found.data_info == DataInfo([], vocabulary)
        parts = build(found.config, found.data_info)
        assert parts.tokenizer.vocabulary == vocabulary
        text = "a large red square"
        assert parts.tokenizer.decode(parts.tokenizer.encode(text).tolist()) == text

    def test_one_tokenizer_is_for_all(self, written):
        found = read_checkpoint(written / "checkpoints" / "last.ckpt")
        parts = build(found.config, found.data_info)
        assert parts.task.tokenizer is parts.tokenizer

    def test_its_metrics_are_those_of_words_and_texts(self, written):
        final = metrics(written)
        for stage in ("val", "test"):
            assert final[f"{stage}/perplexity"] > 1.0
            assert 0.0 <= final[f"{stage}/spice"] <= 1.0
            assert {f"{stage}/{name}" for name in ("loss", "token_accuracy", "CIDEr-D", "BLEU-4")} <= final.keys()
        assert "train/CIDEr-D" not in final
        assert "test/unseen_CIDEr-D" in final
        assert len(list((written / "attention").glob("*.npz"))) == 2

    @pytest.mark.parametrize("name", ["words", "bytes", slow("bpe")])
    def test_evaluation_says_the_same_without_the_texts_of_the_data(self, written, tmp_path, monkeypatch, name):
        sizes = ["tokenizer.max_length=29", *(["tokenizer.vocab_size=283"] if name == "bpe" else [])]
        other = [*CAPTIONING, f"tokenizer={name}", *sizes]
        run = written if name == "words" else trained(tmp_path / "run", *other)
        assert (run / "tokenizer.json").exists() == (name != "bytes")

        def gone(self):
            raise AssertionError("the vocabulary is known")

        monkeypatch.setattr(ShapeScenes, "texts", gone)
        ended = script("experiments/evaluate.py", f"run={run}")
        assert ended.ok, ended.err
        tested = {name: value for name, value in metrics(run).items() if name.startswith("test/")}
        assert metrics(run, "evaluation") == tested

    def test_a_metric_that_there_is_not_ends_the_run_in_one_sentence(self, tmp_path):
        ended = train(tmp_path / "run", *CAPTIONING, "task.monitor=CIDEr")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith("error: task.monitor=CIDEr: no such metric; did you mean 'CIDEr-D'?")
        assert not (tmp_path / "run").exists()  # nothing was trained

    def test_what_was_learned_from_other_words_is_not_continued(self, written, tmp_path):
        last = written / "checkpoints" / "last.ckpt"
        ended = train(tmp_path / "run", *CAPTIONING, "tokenizer.min_frequency=97", f"ckpt_path={last}")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith(f"error: ckpt_path={last}: its tokenizer was trained on other texts")

    def test_a_checkpoint_from_before_there_were_vocabularies_is_read(self, run, tmp_path):
        content = checkpoint(run)
        del content["description"]["vocabulary"]
        torch.save(content, tmp_path / "old.ckpt")
        assert read_checkpoint(tmp_path / "old.ckpt").data_info.vocabulary is None


class TestWithoutBottleneck:
    """The decoder reads the tokens themselves: an encoder–decoder of pictures, and of texts."""

    OVERRIDES = (
        *(one for one in SMALL if not {"model", "data", "callbacks"} & set(re.split(r"\W", one))),
        *("experiment=image_captioning", "model=encoder_decoder", "attention.every_n_epochs=1"),
        *("model.memory.dim=14", "model.memory.self_attention.num_heads=2"),
    )

    @pytest.mark.parametrize("kind", ["pictures", "texts"])
    def test_captions_are_learned_measured_and_evaluated(self, tmp_path, kind):
        overrides = CAPTIONING
        if kind == "texts":
            of_texts = ["data=text_pairs", f"data.root={text_pairs_tree(tmp_path / 'pairs')}", "tokenizer=words"]
            encoder = ["+encoder@model.encoders.text=text", "~encoder@model.encoders.image", "tokenizer.max_length=13"]
            sizes = [one for one in CAPTIONING if one.startswith(("model.decoder.", "optimizer."))]
            overrides = [*of_texts, *encoder, *sizes, "tokenizer.min_frequency=1", "task.monitor=loss"]
        run = tmp_path / "run"
        ended = script("experiments/train.py", f"hydra.run.dir={run}", *self.OVERRIDES, *overrides)
        assert ended.ok, ended.err
        losses = [float(row["val/loss"]) for row in rows(run) if "val/loss" in row]
        assert len(losses) == 2
        assert losses == sorted(losses, reverse=True)
        assert script("experiments/evaluate.py", f"run={run}").ok
        tested = {name: value for name, value in metrics(run).items() if name.startswith("test/")}
        assert tested["test/perplexity"] > 1.0
        assert metrics(run, "evaluation") == tested


class TestSeveralTasks:
    def test_each_is_learned_measured_and_evaluated_on_a_decoder_of_its_own(self, tmp_path):
        other = ["+task@task.tasks.tags=tagging", "task.tasks.tags.output=tags/logits", "+task.weights.tags=0.5"]
        decoders = ["+decoder@model.decoder.decoders.tags=pooled", "model.decoder.decoders.label.attention.num_heads=2"]
        run = trained(tmp_path / "run", *JOINT, *other, *decoders, "task.monitor=tags/mAP")
        final = metrics(run)
        for stage in ("train", "val", "test"):
            of_tasks = final[f"{stage}/label/loss"] + 0.5 * final[f"{stage}/tags/loss"]
            assert final[f"{stage}/loss"] == pytest.approx(of_tasks, rel=1e-5)
        assert {"test/label/accuracy", "test/tags/mAP", "test/tags/AP/7", "best/val/tags/mAP"} <= final.keys()
        ended = script("experiments/evaluate.py", f"run={run}")
        assert ended.ok, ended.err
        assert "test/label/accuracy" in ended.out
        assert "test/tags/AP/7" not in ended.out, "single classes have a table of their own"
        evaluated = metrics(run, "evaluation")
        assert evaluated == {name: value for name, value in final.items() if name.startswith("test/")}


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


@pytest.mark.slow
def test_two_processes_make_one_run_whose_metrics_are_those_of_one_process(tmp_path):
    run = tmp_path / "run"
    options = ["trainer.devices=2", "trainer.strategy=ddp", "attention.every_n_epochs=1"]
    command = [sys.executable, "experiments/train.py", f"hydra.run.dir={run}", *SMALL, *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("GFLOPs") == 1
    assert "sync_dist" not in ended.stderr
    assert {path.name for path in (run / "checkpoints").iterdir()} == CHECKPOINTS
    assert len(list((run / "attention").glob("*.npz"))) == 2
    one_process = ["trainer.devices=1", "trainer.strategy=auto"]
    assert script("experiments/evaluate.py", f"run={run}", f"overrides={json.dumps(one_process)}").ok
    evaluated = metrics(run, "evaluation")
    assert evaluated == {name: pytest.approx(metrics(run)[name], abs=1e-6) for name in evaluated}
