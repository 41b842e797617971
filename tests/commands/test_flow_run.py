"""A complete run of optical flow: metrics beside their baselines, the field of a pair of files, and an exact page."""

import json

import pytest
import torch
from PIL import Image

from perceiver.commands.finished_run import load
from perceiver.data.readers.flow_file import read_flow
from tests.runs import metrics, script, table

SMALL = [
    *("experiment=optical_flow", "data.readers.video.image_size=12", "data.num_samples={train: 7, val: 3, test: 5}"),
    *("model.memory.num_latents=5", "model.memory.dim=40", "model.encoders.video.stem.dims=[6]", "trainer=cpu"),
    *("loader.batch_size=5", "loader.num_workers=0", "trainer.max_epochs=1", "attention.every_n_epochs=1"),
    *("attention.num_samples=2", "attention.evaluator.num_samples=0", "logger=none"),
]


@pytest.mark.slow
def test_a_run_is_trained_and_the_flow_of_files_is_written(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    ended = script("experiments/train.py", f"hydra.run.dir={run}", *SMALL)
    assert ended.ok, ended.err
    found = metrics(run)
    assert 0.3 < found["test/mean_EPE"] < found["test/zero_EPE"] < 4.0
    header, *rows = table(run / "predictions.csv")
    assert [float(row[header.index("EPE")]) for row in rows] == sorted(
        (float(row[header.index("EPE")]) for row in rows), reverse=True
    )
    page = (run / "attention" / "index.html").read_text()
    assert "true flow" in page
    parts = load(str(run)).parts
    frames = parts.data.splits["test"][0].inputs["video"]
    for number, frame in enumerate(frames.unbind(dim=1), start=1):
        Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / f"x_img{number}.png")
    ended = script("experiments/predict.py", f"run={run}", f"inputs={tmp_path / 'x_img1.png'}", f"output={out}")
    assert ended.ok, ended.err
    (answer,) = json.loads((out / "predictions.json").read_text())
    field = read_flow(out / "000_x_img1_flow.flo")
    assert [one["pixels"] for one in answer["predictions"]][:2] == pytest.approx(
        field.mean(dim=(1, 2)).tolist(), abs=1e-5
    )
    drawn = [name for name in answer["pictures"] if not name.startswith("video/")]
    assert drawn == ["flow.flo", "video_flow"]
    with Image.open(answer["pictures"]["video_flow"]) as image:
        assert image.size == (12, 12)
    assert torch.isfinite(field).all()
