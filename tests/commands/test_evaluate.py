"""Evaluation of a finished run, and predictions for files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from perceiver.commands.predict import draw_attention
from tests.runs import assert_refused, metrics, script


def evaluate(run, *overrides):
    ended = script("experiments/evaluate.py", f"run={run}", *overrides)
    assert ended.ok, ended.err
    return ended


class TestEvaluate:
    def test_it_gives_the_metrics_of_the_run_to_the_last_digit_and_changes_no_other_file(self, run):
        def files():
            return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "evaluation.json"}

        before = files()
        ended = evaluate(run)
        evaluated = metrics(run, "evaluation")
        assert evaluated.keys() == {name for name in metrics(run) if name.startswith("test/")}
        assert evaluated.items() <= metrics(run).items()
        assert f"{evaluated['test/accuracy']:.4f}" in ended.out
        assert {path for path, time in files().items() if time != before.get(path)} <= {run}

    def test_another_split_is_evaluated_into_a_file_of_its_own(self, run):
        evaluate(run)
        before = (run / "evaluation.json").read_bytes()
        evaluate(run, "split=val", "checkpoint=last")
        expected = {name: value for name, value in metrics(run).items() if name.startswith("val/")}
        assert metrics(run, "evaluation_val").items() >= expected.items()
        assert (run / "evaluation.json").read_bytes() == before

    def test_all_training_samples_are_evaluated_without_augmentation(self, run):
        evaluate(run, "split=train")
        first = metrics(run, "evaluation_train")
        assert all(name.startswith("train/") for name in first)
        evaluate(run, "split=train", 'overrides=["loader.seed=7","loader.batch_size=59","loader.drop_last=true"]')
        assert metrics(run, "evaluation_train") == pytest.approx(first, abs=1e-6)

    def test_checkpoint_and_data_are_written_with_metrics_that_do_not_depend_on_the_batch_size(self, run, tmp_path):
        path, override = tmp_path / "new" / "here.json", "loader.batch_size=59"
        evaluate(run, f'overrides=["{override}"]', f"output={path}", "checkpoint=best")
        content = json.loads(path.read_text())
        of = content.pop("of")
        assert of["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
        assert (of["split"], of["overrides"]) == ("test", [override])
        assert of["data"]["source"]["_target_"] == "perceiver.data.sources.digits.Digits"
        assert content == {name: pytest.approx(metrics(run)[name], abs=1e-6) for name in content}

    def test_if_the_file_cannot_be_written_the_metrics_are_printed(self, run, tmp_path):
        (tmp_path / "file").touch()
        ended = script("experiments/evaluate.py", f"run={run}", f"output={tmp_path}/file/evaluation.json")
        assert_refused(ended, f"output={tmp_path}/file/evaluation.json: ")
        assert f"{metrics(run)['test/accuracy']:.4f}" in ended.out

    def test_a_limit_of_no_batches_is_not_taken_for_missing_samples(self, run):
        ended = script("experiments/evaluate.py", f"run={run}", "overrides=[trainer.limit_test_batches=0]")
        assert_refused(ended, "trainer.limit_test_batches=0")

    def test_an_unknown_override_is_refused_with_the_nearest_key(self, run):
        ended = script("experiments/evaluate.py", f"run={run}", "overrides=[loader.batch_sice=7]")
        assert_refused(ended, "loader.batch_sice: no such key; did you mean loader.batch_size?")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three digits as larger color images in several formats."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate(("zero.png", "one [1].bmp", "two.jpg")):
        pixels = (load_digits().images[index] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((29, 31)).convert("RGB").save(folder / name)
    return [folder / name for name in ("zero.png", "one [1].bmp", "two.jpg")]


class TestLoneCheckpoint:
    @pytest.fixture
    def lone(self, run, tmp_path):
        return shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "lone.ckpt")

    def test_every_command_writes_into_a_folder_beside_it(self, run, lone, pictures, tmp_path):
        evaluate(lone)
        assert metrics(tmp_path / "lone", "evaluation").items() <= metrics(run).items()
        assert script("experiments/predict.py", f"run={lone}", f"inputs={pictures[0]}").ok
        ended = script("experiments/inspect_attention.py", f"run={lone}", "scored_samples=0", "samples=2")
        assert ended.ok, ended.err
        assert {path.name for path in (tmp_path / "lone").iterdir()} == {"evaluation.json", "predictions", "attention"}
        assert {path.name for path in tmp_path.iterdir()} == {"lone", "lone.ckpt"}

    def test_in_a_run_directory_it_is_one_of_that(self, run):
        (run / "evaluation.json").unlink(missing_ok=True)
        evaluate(f"{run}/checkpoints/last.ckpt", "checkpoint=last")
        assert json.loads((run / "evaluation.json").read_text())["of"]["checkpoint"].endswith("last.ckpt")

    @pytest.mark.parametrize("name", ["evaluate", "inspect_attention", "predict"])
    def test_a_contradicting_name_is_refused(self, lone, name):
        inputs = ["inputs=x.png"] if name == "predict" else []
        ended = script(f"experiments/{name}.py", f"run={lone}", "checkpoint=best", *inputs)
        assert_refused(ended, f"checkpoint=best: run={lone} ")

    def test_training_names_the_setting_that_resumes_from_it(self, lone):
        assert_refused(script("experiments/train.py", f"run={lone}"), f"ckpt_path={lone}")


class TestPredict:
    def predict(self, run, pictures, output, *overrides):
        inputs = ",".join(f'"{path}"' for path in pictures)
        ended = script("experiments/predict.py", f"run={run}", f"inputs=[{inputs}]", f"output={output}", *overrides)
        path = output / "predictions.json"
        return ended, json.loads(path.read_text()) if path.exists() else None

    def test_predictions_are_a_table_and_json_with_a_sheet_of_attention_for_each_layer(self, run, pictures, tmp_path):
        ended, answers = self.predict(run, pictures, tmp_path)
        assert ended.ok, ended.err
        assert [answer["input"] for answer in answers] == [str(path) for path in pictures]
        for answer in answers:
            probabilities = [prediction["probability"] for prediction in answer["predictions"]]
            assert probabilities == sorted(probabilities, reverse=True)
            assert len(probabilities) == 5
            assert f"{probabilities[0]:.4f}" in ended.out
            assert set(answer["attention"]) == {"image/cross0", "image/cross1"}
            for path in answer["attention"].values():
                with Image.open(path) as sheet:
                    assert sheet.mode == "RGB"
                    assert np.asarray(sheet).std() > 10
        assert len({path for answer in answers for path in answer["attention"].values()}) == 6
        assert "[1]" in ended.out

    def test_at_most_all_classes_are_predicted_whatever_else_is_predicted(self, run, pictures, tmp_path):
        one, (first,) = self.predict(run, pictures[:1], tmp_path / "one", "top=10")
        all_, answers = self.predict(run, pictures, tmp_path / "all", "top=10", 'overrides=["loader.batch_size=1"]')
        assert one.ok, one.err
        assert all_.ok, all_.err
        assert sorted(prediction["class"] for prediction in first["predictions"]) == list("0123456789")
        assert sum(prediction["probability"] for prediction in first["predictions"]) == pytest.approx(1)
        for prediction, expected in zip(first["predictions"], answers[0]["predictions"], strict=True):
            assert prediction == {**expected, "probability": pytest.approx(expected["probability"], abs=1e-6)}

    def test_all_files_of_the_kind_in_a_folder_are_read_whatever_their_names(self, run, pictures, tmp_path):
        folder, content = tmp_path / "folder", pictures[0].read_bytes()
        long = [b"a" * 235 + b".png", b"a" * 234 + b"b.PNG", "ü".encode() * 117 + b".png"]
        names = [*long, b"caf\xe9.png", b"sub/0.png"]
        for name in [*names, b"notes.txt", b".hidden.png"]:
            path = Path(os.fsdecode(bytes(folder) + b"/" + name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        out = tmp_path / "out"  # named without brackets
        ended = script("experiments/predict.py", f"run={run}", f"inputs={folder}", f"output={out}")
        assert ended.ok, ended.err
        assert "1 × .txt" in ended.out + ended.err
        answers = json.loads((out / "predictions.json").read_text())
        given = sorted(os.fsdecode(bytes(folder) + b"/" + name) for name in names if b"/" not in name)
        expected = [path.encode(errors="backslashreplace").decode() for path in [*given, f"{folder}/sub/0.png"]]
        assert [answer["input"] for answer in answers] == expected
        drawn = [path for answer in answers for path in answer["attention"].values()]
        assert len(set(drawn)) == len(drawn) == 2 * len(names)
        assert all(Path(path).is_file() for path in drawn)
        page = tmp_path / "page.html"
        ended = script("experiments/inspect_attention.py", f"run={run}", f"inputs={folder}", f"output={page}")
        assert ended.ok, ended.err
        assert "caf\\\\udce9.png" in page.read_text(encoding="utf-8")

    def test_a_folder_without_a_file_of_the_kind_is_refused(self, run, tmp_path):
        (tmp_path / "x.txt").touch()
        ended = script("experiments/predict.py", f"run={run}", f"inputs={tmp_path}", f"output={tmp_path / 'out'}")
        assert_refused(ended, f"inputs: {tmp_path}: ")

    def test_failures_of_single_files_and_sheets_are_named_and_all_else_is_predicted(
        self, run, pictures, tmp_path, monkeypatch
    ):
        def fails_once(parts, window, *args, **kwargs):
            if window.id == str(pictures[1]):
                raise OSError(28, "No space left on device")
            return draw_attention(parts, window, *args, **kwargs)

        monkeypatch.setattr("perceiver.commands.predict.draw_attention", fails_once)
        broken, missing = tmp_path / "broken.png", tmp_path / "nosuch.png"
        broken.write_bytes(pictures[0].read_bytes()[:50])
        ended, answers = self.predict(run, [broken, *pictures, missing], tmp_path / "out")
        assert_refused(ended, "No space left", *(f"{path}: " for path in (broken, pictures[1], missing)))
        assert [(one["input"], len(one["attention"])) for one in answers] == [
            (str(path), 0 if path == pictures[1] else 2) for path in pictures
        ]

    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("top=0", "top=0"),
            ("top=11", "10 classes"),
            ("top=many", "top=many"),
            ("inputs=[]", "inputs=[]"),
            ("checkpoint=nosuch", "checkpoint=nosuch: "),
            ("run=/no/such", "run=/no/such: no such run directory"),
        ],
    )
    def test_an_impossible_setting_is_refused(self, run, pictures, tmp_path, override, reason):
        ended, _ = self.predict(run, pictures[:1], tmp_path / "out", override)
        assert_refused(ended, reason)
        assert not (tmp_path / "out").exists()
