"""A complete run of dense outputs: training, IoU by class, another resolution, masks of files, and explanations."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.commands.finished_run import load
from perceiver.data.collate import collate
from perceiver.data.synthetic.shape_masks import CLASSES
from tests.runs import metrics, script

pytestmark = pytest.mark.slow

SMALL = [
    *("experiment=segmentation", "data.image_size=24", "data.num_samples={train: 67, val: 3, test: 5}", "trainer=cpu"),
    *("model.memory.num_latents=7", "model.memory.dim=40", "model.encoders.image.stem.dims=[3,5]"),
    *(
        "loader.batch_size=5",
        "loader.num_workers=0",
        "trainer.max_epochs=4",
        "attention.every_n_epochs=4",
        "optimizer.lr=0.01",
    ),
    *("attention.num_samples=2", "attention.evaluator.num_samples=3", "model.decoder.chunk_size=101", "logger=none"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a second. Only read it."""
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    ended = script("experiments/train.py", f"hydra.run.dir={folder}", *SMALL)
    assert ended.ok, ended.err
    return folder


def test_every_class_has_its_overlap_in_the_metrics(run):
    found = metrics(run)
    known = [value for name in CLASSES if (value := found[f"test/IoU/{name}"]) is not None]
    assert found["test/mIoU"] == pytest.approx(np.mean(known), abs=1e-6)
    assert 0.0 < found["test/pixel_accuracy"] <= 1.0
    assert "attention/deletion/relevance" in found


def test_it_is_evaluated_at_another_resolution(run, tmp_path):
    change = '["data.image_size=48"]'
    ended = script("experiments/evaluate.py", f"run={run}", f"overrides={change}", f"output={tmp_path / 'fine.json'}")
    assert ended.ok, ended.err
    found = json.loads((tmp_path / "fine.json").read_text())
    assert 0.0 < found["test/mIoU"] <= 1.0


def test_the_mask_of_a_file_is_written_with_an_overlay(run, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    ended = script("experiments/predict.py", f"run={run}", f"inputs={tmp_path / 'red.png'}", f"output={tmp_path}")
    assert ended.ok, ended.err
    (answer,) = json.loads((tmp_path / "predictions.json").read_text())
    with Image.open(answer["pictures"]["mask"]) as mask:
        values = np.array(mask)
    assert values.shape == (24, 24)
    shares = {CLASSES[label]: float((values == label).mean()) for label in np.unique(values)}
    assert {one["class"]: pytest.approx(one["share"], abs=1e-6) for one in answer["predictions"]} == shares
    with Image.open(answer["pictures"]["overlay"]) as overlay:
        assert overlay.size == (24, 24)
    assert answer["attention"]


@torch.no_grad()
def test_answers_are_explained_from_their_own_places(run):
    parts = load(str(run)).parts
    batch = collate([parts.data.splits["test"][index] for index in range(3)])
    explanation = parts.explainer(0.5).explain(batch)
    everywhere = explanation.record.rollout(output="logits")
    for row, answers in enumerate(explanation.answers):
        assert answers
        for slot, answer in enumerate(answers):
            assert explanation.has_own_queries(answer)
            expected = everywhere.inputs[row, list(answer.queries)].mean(dim=0)
            torch.testing.assert_close(explanation.rollout.inputs[row, slot], expected)
            logs = explanation.record.outputs["logits"][row].log_softmax(-1)[list(answer.queries), answer.label]
            assert float(explanation.probability[row, slot]) == pytest.approx(float(logs.mean().exp()), abs=1e-5)
