"""What can be asked of a finished run: its metrics again, and answers about files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from perceiver.commands.predict import draw_attention
from tests.runs import metrics, script


class TestEvaluate:
    def test_the_metrics_of_the_run_come_out_again_to_the_last_digit(self, run):
        ended = script("experiments/evaluate.py", f"run={run}")
        assert ended.ok
        evaluated = metrics(run, "evaluation")
        assert evaluated.keys() == {name for name in metrics(run) if name.startswith("test/")}
        assert evaluated.items() <= metrics(run).items()
        assert f"{evaluated['test/accuracy']:.4f}" in ended.out

    def test_the_batch_size_changes_nothing(self, run):
        assert script("experiments/evaluate.py", f"run={run}", 'overrides=["loader.batch_size=7"]').ok
        evaluated = metrics(run, "evaluation")
        assert evaluated == {name: pytest.approx(metrics(run)[name], abs=1e-6) for name in evaluated}

    def test_another_split_is_measured_as_it_was_in_training_and_beside_the_tests(self, run):
        assert script("experiments/evaluate.py", f"run={run}").ok
        before = (run / "evaluation.json").read_bytes()
        assert script("experiments/evaluate.py", f"run={run}", "split=val", "checkpoint=last").ok
        expected = {name: value for name, value in metrics(run).items() if name.startswith("val/")}
        assert metrics(run, "evaluation_val").items() >= expected.items()
        assert (run / "evaluation.json").read_bytes() == before

    def test_the_training_samples_are_measured_whole_and_without_augmentation(self, run):
        def evaluated(*overrides):
            ended = script("experiments/evaluate.py", f"run={run}", "split=train", *overrides)
            assert ended.ok, ended.err
            found = metrics(run, "evaluation_train")
            assert all(name.startswith("train/") for name in found)
            return found

        other_order = 'overrides=["loader.seed=7","loader.batch_size=59","loader.drop_last=true"]'
        assert evaluated() == pytest.approx(evaluated(other_order), abs=1e-6)

    def test_what_was_measured_is_written_beside_it(self, run, tmp_path):
        path, override = tmp_path / "new" / "here.json", "loader.batch_size=59"
        overrides = [f'overrides=["{override}"]', f"output={path}", "checkpoint=last"]
        assert script("experiments/evaluate.py", f"run={run}", *overrides).ok
        of = json.loads(path.read_text())["of"]
        assert of["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
        assert (of["step"], of["split"], of["overrides"]) == (5, "test", [override])
        assert of["data"]["source"]["_target_"] == "perceiver.data.sources.digits.Digits"

    def test_where_nothing_can_be_written_the_metrics_are_printed(self, run, tmp_path):
        (tmp_path / "file").touch()
        ended = script("experiments/evaluate.py", f"run={run}", f"output={tmp_path}/file/evaluation.json")
        assert ended.code == 1
        assert f"{metrics(run)['test/accuracy']:.4f}" in ended.out
        assert ended.err.splitlines()[-1].startswith(f"error: output={tmp_path}/file/evaluation.json: ")

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
            ("model.memory.dim=26", "its weights are not those of this model"),
            ("nosuch.key=1", "nosuch"),
        ],
    )
    def test_an_impossible_override_ends_in_one_sentence(self, run, override, said):
        ended = script("experiments/evaluate.py", f"run={run}", f'overrides=["{override}"]')
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert said in ended.err
        assert ended.err.count("\n") == 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three digits as a user has them: larger, in colour, as files of several kinds."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate(("zero.png", "one [1].bmp", "two.jpg")):
        pixels = (load_digits().images[index] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((29, 31)).convert("RGB").save(folder / name)
    return [folder / name for name in ("zero.png", "one [1].bmp", "two.jpg")]


def predict(run, pictures, output, *overrides):
    inputs = ",".join(f'"{path}"' for path in pictures)
    return script("experiments/predict.py", f"run={run}", f"inputs=[{inputs}]", f"output={output}", *overrides)


class TestALoneCheckpoint:
    """The file of a checkpoint stands for its run, also where it lies by itself."""

    @pytest.fixture
    def lone(self, run, tmp_path):
        return shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "lone.ckpt")

    def test_it_is_evaluated_asked_and_inspected_and_what_is_made_lies_in_a_folder_beside_it(
        self, run, lone, pictures, tmp_path
    ):
        assert script("experiments/evaluate.py", f"run={lone}").ok
        assert metrics(tmp_path / "lone", "evaluation").items() <= metrics(run).items()
        assert script("experiments/predict.py", f"run={lone}", f"inputs={pictures[0]}").ok
        ended = script("experiments/inspect_attention.py", f"run={lone}", "scored_samples=0", "samples=2")
        assert ended.ok, ended.err
        made = {"evaluation.json", "predictions", "attention"}
        assert {path.name for path in (tmp_path / "lone").iterdir()} == made
        assert {path.name for path in tmp_path.iterdir()} == {"lone", "lone.ckpt"}

    def test_in_a_run_directory_it_is_one_of_that(self, run):
        (run / "evaluation.json").unlink(missing_ok=True)
        assert script("experiments/evaluate.py", f"run={run}/checkpoints/last.ckpt", "checkpoint=last").ok
        assert json.loads((run / "evaluation.json").read_text())["of"]["checkpoint"].endswith("last.ckpt")

    @pytest.mark.parametrize("name", ["evaluate", "inspect_attention", "predict"])
    def test_another_name_contradicts_it(self, lone, name):
        inputs = ["inputs=x.png"] if name == "predict" else []
        ended = script(f"experiments/{name}.py", f"run={lone}", "checkpoint=best", *inputs)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert ended.err.startswith(f"error: checkpoint=best: run={lone} ")

    def test_training_says_how_to_go_on_from_it(self, lone):
        ended = script("experiments/train.py", f"run={lone}")
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert f"ckpt_path={lone}" in ended.err


class TestPredict:
    def test_answers_come_as_a_table_as_json_and_with_a_picture_of_the_attention_behind_each(
        self, run, pictures, tmp_path
    ):
        ended = predict(run, pictures, tmp_path)
        assert ended.ok, ended.err
        answers = json.loads((tmp_path / "predictions.json").read_text())
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

    def test_the_answers_do_not_depend_on_what_else_is_asked(self, run, pictures, tmp_path):
        assert predict(run, pictures, tmp_path / "one", 'overrides=["loader.batch_size=1"]').ok
        assert predict(run, pictures, tmp_path / "all").ok
        one, all_ = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "all"))
        for answer, other in zip(one, all_, strict=True):
            for prediction, expected in zip(answer["predictions"], other["predictions"], strict=True):
                assert prediction == {**expected, "probability": pytest.approx(expected["probability"], abs=1e-6)}

    def test_there_are_no_more_answers_than_classes(self, run, pictures, tmp_path):
        assert predict(run, pictures[:1], tmp_path, "top=99").ok
        (answer,) = json.loads((tmp_path / "predictions.json").read_text())
        assert sorted(prediction["class"] for prediction in answer["predictions"]) == [
            str(digit) for digit in range(10)
        ]
        assert sum(prediction["probability"] for prediction in answer["predictions"]) == pytest.approx(1)

    def test_a_file_may_be_named_without_brackets(self, run, pictures, tmp_path):
        ended = script("experiments/predict.py", f"run={run}", f"inputs={pictures[0]}", f"output={tmp_path}")
        assert ended.ok, ended.err
        assert len(json.loads((tmp_path / "predictions.json").read_text())) == 1

    def test_of_a_folder_all_files_of_the_kind_are_read_whatever_they_are_called(self, run, pictures, tmp_path):
        folder = tmp_path / "folder"
        content = pictures[0].read_bytes()
        names = [
            b"a" * 235 + b".png",
            b"a" * 234 + b"b.PNG",
            b"caf\xe9.png",
            b"sub/0.png",
            "ü".encode() * 117 + b".png",
        ]
        for name in [*names, b"notes.txt", b".hidden.png"]:
            path = Path(os.fsdecode(bytes(folder) + b"/" + name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        out = tmp_path / "out"
        ended = script("experiments/predict.py", f"run={run}", f"inputs={folder}", f"output={out}")
        assert ended.ok, ended.err
        assert "1 × .txt" in ended.out + ended.err
        answers = json.loads((out / "predictions.json").read_text())
        given = sorted(os.fsdecode(bytes(folder) + b"/" + name) for name in names if b"/" not in name)
        given.append(f"{folder}/sub/0.png")
        assert [answer["input"] for answer in answers] == [
            path.encode(errors="backslashreplace").decode() for path in given
        ]
        drawn = [path for answer in answers for path in answer["attention"].values()]
        assert len(set(drawn)) == len(drawn) == 2 * len(names)
        assert all(Path(path).is_file() for path in drawn)
        page = tmp_path / "page.html"
        ended = script("experiments/inspect_attention.py", f"run={run}", f"inputs={folder}", f"output={page}")
        assert ended.ok, ended.err
        assert "caf\\\\udce9.png" in page.read_text(encoding="utf-8")

    def test_a_folder_with_no_file_of_the_kind_is_refused(self, run, tmp_path):
        (tmp_path / "x.txt").touch()
        ended = script("experiments/predict.py", f"run={run}", f"inputs={tmp_path}", f"output={tmp_path / 'out'}")
        assert not ended.ok
        assert ended.err.startswith(f"error: inputs: {tmp_path}: ")
        assert ended.err.count("\n") == 1

    def test_pictures_that_cannot_be_drawn_lose_no_answers(self, run, pictures, tmp_path, monkeypatch):
        def fails_once(parts, view, *args, **kwargs):
            if view.id == str(pictures[1]):
                raise OSError(28, "No space left on device")
            return draw_attention(parts, view, *args, **kwargs)

        monkeypatch.setattr("perceiver.commands.predict.draw_attention", fails_once)
        ended = predict(run, pictures, tmp_path)
        assert not ended.ok
        assert f"{pictures[1]}: " in ended.err
        assert "No space left" in ended.err
        answers = json.loads((tmp_path / "predictions.json").read_text())
        assert [len(answer["attention"]) for answer in answers] == [2, 0, 2]

    def test_files_that_cannot_be_read_are_named_and_the_others_answered(self, run, pictures, tmp_path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(pictures[0].read_bytes()[:50])
        ended = predict(run, [broken, pictures[0], tmp_path / "nosuch.png"], tmp_path / "out")
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        for path in (broken, tmp_path / "nosuch.png"):
            assert f"{path}: " in ended.err
        answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [answer["input"] for answer in answers] == [str(pictures[0])]

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["top=0"], "top=0"),
            (["top=many"], "top=many"),
            (["inputs=[]"], "inputs=[]"),
            (["checkpoint=nosuch"], "checkpoint=nosuch: "),
            (["run=/no/such"], "run=/no/such: no such run directory"),
        ],
    )
    def test_an_impossible_question_ends_in_one_sentence(self, run, pictures, tmp_path, overrides, said):
        ended = predict(run, pictures[:1], tmp_path / "out", *overrides)
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert said in ended.err
        assert ended.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
