"""Whole runs on small data: the run directory, checkpoints, and settings."""

import json
import math
import re
import subprocess
import sys

import pytest

from perceiver.data.synthetic.shape_scenes import ShapeScenes
from perceiver.training.build import DataInfo, build
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.module import TrainingModule
from perceiver.training.optimization import warmup_cosine
from scripts.data_trees import text_pairs
from tests.kills import rows
from tests.runs import (
    CAPTIONING,
    JOINT,
    ROOT,
    SMALL,
    assert_refused,
    checkpoint,
    image_tree,
    metrics,
    script,
    train,
    trained,
    weights_equal,
)

QUESTIONS = [
    *("data=visual_questions", "tokenizer=words_small", "+encoder@model.encoders.text=text", "data.image_size=24"),
    "data.num_samples={train: 211, val: 17, test: 13}",
]
"""After `SMALL`: a run on questions of four kinds, of which the few samples that are tried before training have one."""
CHECKPOINTS = {"best.ckpt", "last.ckpt", "previous.ckpt"}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def assert_evaluation_equals_test(run):
    """Evaluation of the best checkpoint gives the test metrics of the run, to the last digit."""
    ended = script("experiments/evaluate.py", f"run={run}")
    assert ended.ok, ended.err
    assert metrics(run, "evaluation") == {name: x for name, x in metrics(run).items() if name.startswith("test/")}
    return ended


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A run on captions with a learned vocabulary. Read-only."""
    return trained(tmp_path_factory.mktemp("captions") / "run", *CAPTIONING, "attention.every_n_epochs=1")


class TestRunDirectory:
    def test_it_holds_the_promised_files_and_no_others(self, run):
        names = {path.name for path in run.iterdir() if not path.name.startswith("evaluation")}  # of other tests
        assert names == {
            *(".hydra", "checkpoints", "metrics.csv", "metrics.json", "attention", "wandb", "train.log"),
            *("predictions.csv", "confusion_matrix.csv"),
        }
        assert {path.name for path in (run / ".hydra").iterdir()} >= {"config.yaml", "overrides.yaml"}
        assert {path.name for path in (run / "checkpoints").iterdir()} == CHECKPOINTS
        assert [path.suffix for path in (run / "attention").iterdir() if path.name != "index.html"] == [".npz"] * 2
        assert [path for path in (run / "wandb").iterdir() if path.name.startswith("offline-run-")]

    def test_metrics_are_finite_numbers_in_the_json_and_by_step_in_the_csv(self, run):
        final = metrics(run)
        assert {"test/accuracy", "val/accuracy", "train/loss", "train/seconds", "samples_per_second"} <= final.keys()
        assert all(isinstance(value, float) and math.isfinite(value) for value in final.values())
        assert final["samples_per_second"] > 0
        validations, steps = ([row for row in rows(run) if key in row] for key in ("val/accuracy", "train/loss_step"))
        assert [int(row["step"]) for row in validations] == [2, 5]  # two epochs of three batches
        assert float(validations[-1]["val/accuracy"]) == pytest.approx(final["val/accuracy"])
        rates = {int(row["step"]): float(row["train/learning_rate"]) for row in steps}
        factors = {step: warmup_cosine(step, 6, warmup_steps=100, final_factor=0.0) for step in (1, 3, 5)}
        assert rates == {step: pytest.approx(1e-3 * factor) for step, factor in factors.items()}

    def test_a_checkpoint_holds_plain_values_and_rebuilds_the_model(self, run):
        found = read_checkpoint(run / "checkpoints" / "best.ckpt")
        assert json.loads(json.dumps(found.config)) == found.config
        assert found.data_info == DataInfo([str(digit) for digit in range(10)], None)
        rebuilt = build(found.config, found.data_info).module
        rebuilt.load_state_dict(found.state)
        assert weights_equal(rebuilt.state_dict(), found.state)

    @pytest.mark.slow
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
    @pytest.mark.parametrize(
        "overrides",
        [
            "model.memory.num_latents=1 data.channels=3 data.image_size=13 data.augment=null loader.drop_last=true "
            "trainer.precision=bf16-mixed optimizer=lamb schedule=flat_cosine",
            slow(
                "data.image_size=[11,7] encoder@model.encoders.image=image_conv trainer.accumulate_grad_batches=2 "
                "trainer.max_epochs=null trainer.max_steps=2 schedule=steps callbacks=[default,ema]"
            ),
            slow(
                "model.encoders.image.combine=add model.encoders.image.stem.dim=26 callbacks=[default,early_stopping] "
                "trainer.max_epochs=3 trainer.check_val_every_n_epoch=2 optimizer=lamb schedule=constant"
            ),
            "loader.batch_size=1 trainer.limit_val_batches=5 trainer.limit_test_batches=7 "
            "+trainer.val_check_interval=1 task.mixup=0.2 task.cutmix=1.0 task.loss.label_smoothing=0.1 "
            "decoder@model.decoder=queries model.decoder.queries.num_queries=10 model.decoder.attention.num_heads=2",
        ],
    )
    def test_settings_give_a_run_with_checkpoints_and_finite_metrics(self, tmp_path, overrides):
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
            slow("trainer.max_epochs=4 trainer.check_val_every_n_epoch=3"),
            slow("trainer.max_steps=4 +trainer.val_check_interval=3"),
            slow("trainer.max_steps=4 +trainer.val_check_interval=00:01:00:00"),
            slow("trainer.max_steps=3 trainer.accumulate_grad_batches=2"),
            slow("trainer.max_time=00:00:00:01 trainer.max_epochs=10000 trainer.check_val_every_n_epoch=10000"),
        ],
    )
    def test_the_last_state_is_validated(self, tmp_path, end):
        run = trained(tmp_path / "run", "trainer.log_every_n_steps=1", *end.split())
        last = [row for row in rows(run) if "val/accuracy" in row][-1]
        assert int(last["step"]) == checkpoint(run)["global_step"] - 1
        assert float(last["val/accuracy"]) == metrics(run)["val/accuracy"] <= metrics(run)["best/val/accuracy"]
        assert (run / "checkpoints" / "best.ckpt").exists()

    @pytest.mark.parametrize("limited", [True, False])
    def test_without_validation_the_last_checkpoint_is_the_best_and_without_test_set_none_is_tested(
        self, tmp_path, images, limited
    ):
        folder = ["data=image_folder", f"data.root={images}", "data.val_fraction=0", "data.test_fraction=0"]
        run = tmp_path / "run"
        ended = train(run, *(["trainer.limit_val_batches=0"] if limited else folder), "attention.every_n_epochs=1")
        assert "not validated" in ended.out
        assert weights_equal(checkpoint(run, "best")["state_dict"], checkpoint(run)["state_dict"])
        assert len(list((run / "attention").glob("*.npz"))) == 2
        assert {name.split("/")[0] for name in metrics(run)} & {"val", "test"} == ({"test"} if limited else set())
        if not limited:
            assert_refused(script("experiments/evaluate.py", f"run={run}"), f"run={run}: ", "no test samples")

    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("trainer.limit_train_batches=0", "at least 1"),
            ("+trainer.val_check_interval=5", "an epoch has 3 batches"),
            ("callbacks.ema.update_every_n_steps=7", "the run has 6 steps"),
        ],
    )
    def test_impossible_lengths_are_refused_before_training(self, tmp_path, override, reason):
        ended = train(tmp_path / "run", override, *(["callbacks=[ema]"] if "ema" in override else []))
        assert_refused(ended, f"error: {override.removeprefix('+')}: ", reason)
        assert not (tmp_path / "run").exists()

    def test_lengths_without_the_expected_effect_are_warned_of(self, tmp_path):
        overrides = {"trainer.max_epochs=0": "nothing is trained", "trainer.accumulate_grad_batches=5": "an epoch has"}
        log = (trained(tmp_path / "run", *overrides) / "train.log").read_text()
        assert all(f"{override}: {problem}" in log for override, problem in overrides.items())

    def test_an_unreadable_file_is_named_and_ends_the_run_or_is_counted(self, tmp_path):
        root = image_tree(tmp_path / "images")
        for name in ("cat", "dog"):
            (root / name / "0.png").write_text("no image")
        overrides = ["data=image_folder", f"data.root={root}", "trainer.limit_train_batches=null"]
        assert_refused(train(tmp_path / "raise", *overrides, "data.val_fraction=0.2"), "0.png: ")
        run = trained(tmp_path / "skip", *overrides, "data.val_fraction=0.2", "data.on_error=skip")
        assert metrics(run)["data/unreadable"] == 2
        assert (run / "train.log").read_text().count("0.png: ") == 2

    def test_a_fast_development_run_saves_no_weights(self, tmp_path):
        assert not (trained(tmp_path / "run", "trainer.fast_dev_run=true") / "checkpoints").exists()

    def test_the_last_checkpoint_is_the_last_state_and_the_average_is_saved_and_tested(self, tmp_path, monkeypatch):
        log, scores = TrainingModule.log, iter([0.9, 0.1])

        def worse(self, name, value, **options):
            log(self, name, next(scores) if name == "val/accuracy" else value, **options)

        monkeypatch.setattr(TrainingModule, "log", worse)
        run = trained(tmp_path / "run", "callbacks=[ema]", "callbacks.ema.decay=0.9")
        assert (checkpoint(run, "best")["global_step"], checkpoint(run)["global_step"]) == (3, 6)
        saved = checkpoint(run, "best")
        assert not weights_equal(saved["state_dict"], saved["current_model_state"])
        assert_evaluation_equals_test(run)


class TestCaptions:
    def test_the_vocabulary_is_stored_and_one_tokenizer_is_shared(self, captioner):
        vocabulary = (captioner / "tokenizer.json").read_text()
        found = read_checkpoint(captioner / "checkpoints" / "best.ckpt")
        assert found.data_info == DataInfo([], vocabulary)
        parts = build(found.config, found.data_info)
        assert parts.tokenizer.vocabulary == vocabulary
        assert parts.task.tokenizer is parts.tokenizer
        text = "a large red square"
        assert parts.tokenizer.decode(parts.tokenizer.encode(text).tolist()) == text

    def test_tokens_and_texts_are_scored(self, captioner):
        final = metrics(captioner)
        for stage in ("val", "test"):
            assert final[f"{stage}/perplexity"] > 1.0
            assert 0.0 <= final[f"{stage}/spice"] <= 1.0
            assert {f"{stage}/{name}" for name in ("loss", "token_accuracy", "CIDEr-D", "BLEU-4")} <= final.keys()
        assert "train/CIDEr-D" not in final
        assert "test/unseen_CIDEr-D" in final
        assert len(list((captioner / "attention").glob("*.npz"))) == 2

    @pytest.mark.parametrize("name", ["words", slow("bytes"), slow("bpe")])
    def test_evaluation_needs_no_training_texts(self, captioner, tmp_path, monkeypatch, name):
        sizes = ["tokenizer.max_length=29", *(["tokenizer.vocab_size=283"] if name == "bpe" else [])]
        other = [*CAPTIONING, f"tokenizer={name}", *sizes]
        run = captioner if name == "words" else trained(tmp_path / "run", *other)
        assert (run / "tokenizer.json").exists() == (name != "bytes")

        def fail(self):
            raise AssertionError("the vocabulary is known")

        monkeypatch.setattr(ShapeScenes, "texts", fail)
        assert_evaluation_equals_test(run)

    @pytest.mark.parametrize(
        ("monitor", "hint"),
        [
            ("CIDEr", "; did you mean 'CIDEr-D'?"),
            ("texts", ""),
            pytest.param("val_loss", "; did you mean 'loss'?", marks=pytest.mark.slow),
        ],
    )
    def test_an_unknown_metric_is_refused_before_training(self, tmp_path, monitor, hint):
        ended = train(tmp_path / "run", *CAPTIONING, f"task.monitor={monitor}")
        assert_refused(ended, f"task.monitor={monitor}: no such metric{hint}")
        assert not (tmp_path / "run").exists()

    def test_a_run_with_another_vocabulary_is_not_resumed(self, captioner, tmp_path):
        last = captioner / "checkpoints" / "last.ckpt"
        ended = train(tmp_path / "run", *CAPTIONING, "tokenizer.min_frequency=97", f"ckpt_path={last}")
        assert_refused(ended, f"ckpt_path={last}: its tokenizer was trained on other texts")


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["images", "texts"])
def test_an_encoder_decoder_without_latents_learns_captions(tmp_path, inputs):
    overrides = [
        *(one for one in SMALL if not {"model", "data", "callbacks"} & set(re.split(r"\W", one))),
        *("experiment=image_captioning", "model=encoder_decoder", "attention.every_n_epochs=2"),
        *("model.memory.dim=14", "model.memory.self_attention.num_heads=2", *CAPTIONING),
    ]
    if inputs == "texts":
        overrides = [one for one in overrides if not one.startswith(("data", "task=", "tokenizer"))]
        overrides += ["data=text_pairs", f"data.root={text_pairs(tmp_path / 'pairs').root}", "task.monitor=loss"]
        overrides += ["+encoder@model.encoders.text=text", "~encoder@model.encoders.image"]
        overrides += ["tokenizer=words", "tokenizer.max_length=13", "tokenizer.min_frequency=1"]
    run = tmp_path / "run"
    ended = script("experiments/train.py", f"hydra.run.dir={run}", *overrides)
    assert ended.ok, ended.err
    first, second = [float(row["val/loss"]) for row in rows(run) if "val/loss" in row]
    assert second < first
    assert metrics(run)["test/perplexity"] > 1.0
    assert_evaluation_equals_test(run)


def test_each_of_several_tasks_is_learned_and_evaluated_on_a_decoder_of_its_own(tmp_path):
    other = ["+task@task.tasks.tags=tagging", "task.tasks.tags.output=tags/logits", "+task.weights.tags=0.5"]
    decoders = ["+decoder@model.decoder.decoders.tags=pooled", "model.decoder.decoders.label.attention.num_heads=2"]
    run = trained(tmp_path / "run", *JOINT, *other, *decoders, "task.monitor=tags/mAP")
    final = metrics(run)
    for stage in ("train", "val", "test"):
        weighted = final[f"{stage}/label/loss"] + 0.5 * final[f"{stage}/tags/loss"]
        assert final[f"{stage}/loss"] == pytest.approx(weighted, rel=1e-5)
    assert {"test/label/accuracy", "test/tags/mAP", "test/tags/AP/7", "best/val/tags/mAP"} <= final.keys()
    ended = assert_evaluation_equals_test(run)
    assert "test/label/accuracy" in ended.out
    assert "test/tags/AP/7" not in ended.out, "single classes have a table of their own"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "monitor", "exists"),
    [
        (QUESTIONS, "relation_accuracy", True),
        ([*QUESTIONS, *JOINT, "model.decoder.decoders.label.attention.num_heads=2"], "label/relation_accuracy", True),
        ([], "count_accuracy", False),
    ],
    ids=["alone", "joint", "no groups"],
)
def test_the_accuracy_of_a_group_can_choose_the_checkpoint_where_there_are_groups(tmp_path, overrides, monitor, exists):
    ended = train(tmp_path / "run", *overrides, f"task.monitor={monitor}", "trainer.max_epochs=1")
    if exists:
        assert ended.ok, ended.err
        assert metrics(tmp_path / "run")[f"best/val/{monitor}"] >= 0.0
    else:
        assert_refused(ended, f"task.monitor={monitor}: no such metric")


def test_weights_do_not_depend_on_workers_logger_or_inspection(run, tmp_path):
    weights = checkpoint(run)["state_dict"]  # of a run with W&B and attention events
    assert weights_equal(weights, checkpoint(trained(tmp_path / "again", "loader.num_workers=1"))["state_dict"])


@pytest.mark.slow
def test_two_processes_write_one_run_whose_metrics_are_those_of_one_process(tmp_path):
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
