"""A complete run on sounds: training, metrics by class, explanations, and predictions for files of any length."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from PIL import Image

from perceiver.commands.finished_run import load
from perceiver.commands.predict import predict_samples
from perceiver.data.synthetic.sound_scenes import EVENTS
from perceiver.training.lightning_data import LightningData
from tests.runs import ROOT, checkpoint, metrics, script
from tests.test_architecture import imported_only_by_training
from tests.wandb_file import rows, run_folders

CLASSES = list(EVENTS)[:5]
SMALL_SOUND = [
    *(
        "experiment=audio_tagging",
        "model.memory.num_latents=5",
        "model.memory.dim=14",
        "model.memory.cross_attention.num_heads=1",
    ),
    *("model.memory.self_attention.num_heads=2", "model.decoder.attention.num_heads=2", "trainer.precision=32-true"),
    *("model.encoders.audio.stem.dims=[3,5,7]", "model.encoders.audio.log_mel.n_mels=23", "trainer=cpu"),
    *("data.num_classes=5", "data.source.max_events=2", "data.num_samples={train: 31, val: 13, test: 29}"),
    *(
        "data.source.scene_seconds=1.1",
        "data.source.event_seconds=[0.4,0.9]",
        "data.clips.seconds=0.7",
        "data.clips.hop_seconds=0.3",
    ),
    *("loader.batch_size=11", "loader.num_workers=0", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("attention.num_samples=3", "attention.evaluator.num_samples=7", "logger.mode=offline"),
]


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """A finished run of a second. Only read it."""
    run_dir = tmp_path_factory.mktemp("sound") / "run"
    ended = script("experiments/train.py", f"hydra.run.dir={run_dir}", *SMALL_SOUND)
    assert ended.ok, ended.err
    return run_dir


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Files of several lengths, rates and formats: shorter than a window, one window, and several."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(1)
    for name, seconds, rate, channels in (
        ("short.wav", 0.31, 8000, 1),
        ("window.flac", 0.7, 16_000, 2),
        ("long.ogg", 2.03, 44_100, 1),
    ):
        soundfile.write(folder / name, 0.1 * random.standard_normal((round(seconds * rate), channels)), rate)
    return [folder / name for name in ("short.wav", "window.flac", "long.ogg")]


@pytest.fixture(scope="module")
def predicted(sound_run, sounds, tmp_path_factory):
    output = tmp_path_factory.mktemp("predictions")
    inputs = ",".join(f'"{path}"' for path in sounds)
    ended = script("experiments/predict.py", f"run={sound_run}", f"inputs=[{inputs}]", f"output={output}", "top=3")
    assert ended.ok, ended.err
    return ended, json.loads((output / "predictions.json").read_text())


class TestMeasures:
    def test_every_class_has_its_row_in_the_metrics(self, sound_run):
        found = metrics(sound_run)
        assert {f"test/positives/{name}" for name in CLASSES} <= found.keys()
        precisions = [found[f"test/AP/{name}"] for name in CLASSES if found[f"test/AP/{name}"] is not None]
        assert found["test/mAP"] == pytest.approx(np.mean(precisions), abs=1e-6)
        assert 0.0 < found["test/mAP"] < 1.0

    def test_the_same_rows_are_a_table_in_wandb(self, sound_run):
        (folder,) = run_folders(sound_run)
        (path,) = (folder / "files" / "media" / "table" / "test").glob("classes*.table.json")
        table = json.loads(path.read_text())
        assert table["columns"] == ["class", "AP", "AUC", "precision", "recall", "positives"]
        assert [row[0] for row in table["data"]] == CLASSES
        assert any("test/classes" in row for row in rows(folder))

    def test_evaluation_says_the_same(self, sound_run):
        ended = script("experiments/evaluate.py", f"run={sound_run}")
        assert ended.ok, ended.err
        again = metrics(sound_run, "evaluation")
        assert again == {name: value for name, value in metrics(sound_run).items() if name.startswith("test/")}
        assert all(name in ended.out for name in CLASSES)

    def test_maps_are_measured_against_the_truth_beside_chance(self, sound_run):
        found = metrics(sound_run)
        for name in ("energy_in_box", "pointing_game"):
            assert 0.0 <= found[f"attention/{name}"] <= 1.0
            assert 0.0 < found[f"attention/{name}_chance"] < 1.0
        (folder,) = run_folders(sound_run)
        assert any({"attention/energy_in_box", "attention/audio/cross0"} <= row.keys() for row in rows(folder))
        with np.load(next((sound_run / "attention").glob("*.npz"))) as event:
            axes = json.loads(str(event["axes/audio"]))
            assert [axis["unit"] for axis in axes] == ["Hz", "s"]

    def test_the_checkpoint_keeps_nothing_that_can_be_computed(self, sound_run):
        names = checkpoint(sound_run)["state_dict"].keys()
        assert not [name for name in names if "log_mel" in name or name.startswith("task.")]


class TestPrediction:
    def test_a_file_of_several_windows_has_an_answer_for_each_and_their_mean(self, predicted):
        _, (short, window, long) = predicted
        assert "windows" not in short
        assert "windows" not in window
        assert [row["window"] for row in long["windows"]] == [
            f"{start:.2f}-{start + 0.7:.2f} s" for start in (0.0, 0.3, 0.6, 0.9, 1.2, 1.33)
        ]
        for answer in (short, window, long):
            scores = [prediction["score"] for prediction in answer["predictions"]]
            assert len(scores) == 3
            assert scores == sorted(scores, reverse=True)
        by_class = {
            name: [one["score"] for row in long["windows"] for one in row["predictions"] if one["class"] == name]
            for name in CLASSES
        }
        whole = {one["class"]: one["score"] for one in long["predictions"]}
        complete = [name for name in whole if len(by_class[name]) == len(long["windows"])]
        assert complete
        for name in complete:
            assert whole[name] == pytest.approx(np.mean(by_class[name]), abs=1e-6)

    def test_windows_stand_in_the_table_and_pictures_on_disk(self, predicted):
        ended, answers = predicted
        assert "1.33-2.03 s" in ended.out
        for answer in answers:
            assert set(answer["attention"]) == {"audio/cross0", "audio/cross1", "audio/cross2"}
            for path in answer["attention"].values():
                with Image.open(path) as sheet:
                    assert min(sheet.size) > 100
        with Image.open(answers[2]["timeline"]) as strips:
            assert strips.size[0] > strips.size[1] / 3

    def test_a_file_alone_has_the_answer_it_has_among_others(self, sound_run, sounds, predicted, tmp_path):
        for path, before in zip(sounds, predicted[1], strict=True):
            arguments = [f"run={sound_run}", f"inputs={path}", f"output={tmp_path}", "top=3"]
            assert script("experiments/predict.py", *arguments).ok
            (alone,) = json.loads((tmp_path / "predictions.json").read_text())
            assert [one["class"] for one in alone["predictions"]] == [one["class"] for one in before["predictions"]]

    def test_no_more_windows_than_a_batch_are_shown_to_the_model_at_once(self, sound_run, sounds, predicted):
        expected = predicted[1][2]["predictions"]
        for size, parts_of_six in ((2, [2, 2, 2]), (5, [5, 1])):
            parts = load(str(sound_run), "best", [f"loader.batch_size={size}"]).parts
            parts.module.eval()
            shown: list[int] = []
            encoder = parts.model.encoders["audio"]
            encoder.register_forward_pre_hook(lambda module, args, rows=shown: rows.append(len(args[0])))
            with torch.no_grad():
                (found,) = predict_samples(parts, [parts.data.dataset.read(sounds[2])], 3)
            assert shown == parts_of_six
            assert [one["class"] for one in found] == [one["class"] for one in expected]
            assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)

    def test_what_is_no_sound_is_named_after_all_others_are_answered(self, sound_run, sounds, tmp_path):
        silent = tmp_path / "silent.wav"
        soundfile.write(silent, np.zeros(9001), 16_000)
        inputs = f'["{silent}","{__file__}","{sounds[0]}"]'
        ended = script("experiments/predict.py", f"run={sound_run}", f"inputs={inputs}", f"output={tmp_path}/out")
        assert ended.code == 1
        assert "silent from end to end" in ended.err
        assert __file__ in ended.err
        assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1


@pytest.mark.slow
def test_spectrograms_by_the_workers_are_those_of_the_encoder(sound_run, tmp_path):
    made = tmp_path / "run"
    override = "data.clips.log_mel=${model.encoders.audio.log_mel}"
    ended = script("experiments/train.py", f"hydra.run.dir={made}", *SMALL_SOUND, override, "logger.mode=disabled")
    assert ended.ok, ended.err
    for name, value in metrics(sound_run).items():
        if name.startswith("test/"):
            assert metrics(made)[name] == (value if value is None else pytest.approx(value, abs=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_carry_boxes_and_sounds_along(tmp_path, precision):
    overrides = [*SMALL_SOUND, "logger.mode=disabled", f"trainer.precision={precision}"]
    ended = script("experiments/train.py", f"hydra.run.dir={tmp_path}/run", *overrides)
    assert ended.ok, ended.err
    assert torch.isfinite(torch.tensor(metrics(tmp_path / "run")["test/loss"]))
    assert metrics(tmp_path / "run")["attention/energy_in_box"] >= 0.0


@pytest.mark.slow
def test_sounds_are_predicted_without_what_only_training_needs(sound_run, sounds, tmp_path):
    arguments = [f"run={sound_run}", f"inputs=[{sounds[0]}]", f"output={tmp_path}"]
    lines = [f"sys.argv[1:] = {arguments}", "runpy.run_path('experiments/predict.py', run_name='__main__')"]
    assert imported_only_by_training(*lines) == {"scipy.signal"}  # by the data set, which synthesizes sounds


@pytest.mark.slow
def test_two_processes_measure_windows_and_boxes_as_one_does(tmp_path):
    run, options = tmp_path / "run", ["trainer.devices=2", "trainer.strategy=ddp", "logger.mode=disabled"]
    command = [sys.executable, "experiments/train.py", f"hydra.run.dir={run}", *SMALL_SOUND, *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    found = metrics(run)
    assert 0.0 < found["attention/energy_in_box_chance"] < 1.0
    parts = load(str(run), "last", []).parts
    one = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for stage, measure in (("val", one.validate), ("test", one.test)):
        (again,) = measure(parts.module, datamodule=LightningData(parts.data), verbose=False)
        assert len(again) == 4
        assert again == {name: pytest.approx(found[name], abs=1e-6, nan_ok=True) for name in again}, stage
