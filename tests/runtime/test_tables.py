"""Tables of the tested samples: in files of the run, and in W&B with images."""

import json
from collections import Counter
from statistics import fmean

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from sklearn.datasets import load_digits

from perceiver.runtime import tables
from perceiver.runtime.tables import MAX_ROWS_SHOWN, draw_inputs
from perceiver.tasks.classes import prediction_rows
from perceiver.types import Batch
from tests.inspection.models import perceiver
from tests.runs import CAPTIONING, metrics, table, trained
from tests.wandb_file import files_of_artifact, rows, run_folders


def logged(run_dir, name):
    """A table as W&B has it, and its pictures by their path in it."""
    (folder,) = run_folders(run_dir)
    assert any(f"test/{name}" in row for row in rows(folder))
    path = f"test/{name}.table.json"
    files = files_of_artifact(folder, path)
    return json.loads(files[path].read_text()), files


def test_predictions_and_confusion_matrix_are_those_of_the_metrics(run):
    header, *lines = table(run / "predictions.csv")
    assert header == ["id", "true", "predicted", "probability", "loss"]
    assert len({line[0] for line in lines}) == len(lines) > MAX_ROWS_SHOWN
    right = [true == predicted for _, true, predicted, *_ in lines]
    assert fmean(float(line[4]) for line in lines) == pytest.approx(metrics(run)["test/loss"], abs=1e-5)
    assert right == sorted(right)  # wrong ones first
    assert sum(right) / len(lines) == pytest.approx(metrics(run)["test/accuracy"], abs=1e-6)
    (corner, *names), *matrix = table(run / "confusion_matrix.csv")
    assert (corner, names) == ("true", [line[0] for line in matrix])
    counts = {
        (line[0], name): int(count)
        for line in matrix
        for name, count in zip(names, line[1:], strict=True)
        if count != "0"
    }
    assert counts == Counter((true, predicted) for _, true, predicted, *_ in lines)


def test_wandb_has_the_first_predictions_with_their_pictures_and_the_chart_of_the_matrix(run):
    _, *lines = table(run / "predictions.csv")
    shown, pictures = logged(run, "predictions")
    assert shown["columns"] == ["image", "id", "true", "predicted", "probability", "loss"]
    assert [[*row[1:4], *map(str, row[4:])] for row in shown["data"]] == lines[:MAX_ROWS_SHOWN]
    images = load_digits().images / 16
    for row in (shown["data"][0], shown["data"][-1]):
        drawn = np.asarray(Image.open(pictures[row[0]["path"]]))[..., 0] / 255
        digit = images[int(row[1].removeprefix("digits/"))]
        times = len(drawn) // len(digit)
        assert times > 1  # what is small is drawn larger
        assert np.allclose(drawn, digit.repeat(times, axis=0).repeat(times, axis=1), atol=1 / 255)
    cells, _ = logged(run, "confusion_matrix_table")
    (_, *names), *matrix = table(run / "confusion_matrix.csv")
    assert [row[2] for row in cells["data"]] == [int(count) for line in matrix for count in line[1:]]
    assert [tuple(row[:2]) for row in cells["data"]] == [(true, predicted) for true in names for predicted in names]


@pytest.mark.slow
def test_captions_with_their_scores_are_those_of_the_metrics(tmp_path):
    run = trained(tmp_path / "run", *CAPTIONING, "logger.mode=offline")
    header, *lines = table(run / "captions.csv")
    found = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["id"] for row in found] == [f"shape_scenes/test/{number}" for number in range(17)]
    assert all(row["references"] for row in found)
    measured = metrics(run)
    assert all(0 < float(row["confidence"]) <= 1 for row in found)
    for name in ("ROUGE-L", "spice_constant", "spice"):
        for group in ("", "unseen"):
            mean = fmean(float(row[name]) for row in found if row["group"] == group)
            assert mean == pytest.approx(measured[f"test/{group}_{name}" if group else f"test/{name}"], abs=1e-6)
    shown, pictures = logged(run, "captions")
    assert shown["columns"] == ["image", *header]
    assert [["" if value is None else str(value) for value in row[1:]] for row in shown["data"]] == lines
    assert all(row[0]["path"] in pictures for row in shown["data"])
    assert not (run / "confusion_matrix.csv").exists()


@pytest.mark.parametrize(("mode", "failures"), [("disabled", 0), ("offline", 1)])
def test_pictures_are_drawn_for_wandb_alone_and_neither_they_nor_it_stop_a_run(tmp_path, monkeypatch, mode, failures):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("broken")

    monkeypatch.setattr(tables, "input_pictures", fail)
    monkeypatch.setattr(wandb, "Table", fail)
    run = trained(tmp_path / "run", f"logger.mode={mode}", "trainer.max_epochs=1")
    assert len([call for call in calls if call]) == failures  # not again for each batch
    assert bool(calls) == bool(failures)
    assert len(table(run / "predictions.csv")) > 1
    assert metrics(run)["test/accuracy"] >= 0


def test_the_most_confident_errors_come_first_and_several_classes_are_named():
    true = [["cat"], ["eel"], ["cat", "eel"], ["eel"], []]
    probabilities = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.5]])
    found = prediction_rows(list("abcde"), true, probabilities, probabilities.argmax(dim=1), ["cat", "eel"])
    assert [row.values["id"] for row in sorted(found, key=lambda row: row.rank)] == ["b", "d", "e", "a", "c"]
    assert [row.values["true"] for row in found] == ["cat", "eel", "cat; eel", "eel", ""]
    assert [row.values["predicted"] for row in found] == ["cat", "cat", "eel", "cat", "eel"]


def test_a_sample_is_shown_by_its_first_view_and_a_missing_modality_by_nothing():
    images = torch.rand(7, 3, 11, 13)
    batch = Batch({"image": images}, {}, list("abc"), {"image": torch.ones(7, dtype=torch.bool)})
    batch.windows = [("0", "1"), ("0", "1", "2"), ("0", "1")]
    batch.masks["image"][5] = False
    drawn = draw_inputs(perceiver(), batch, [2, 1])
    assert drawn[0] == {}
    assert np.allclose(np.asarray(drawn[1]["image"]) / 255, images[2].permute(1, 2, 0), atol=1 / 255)
