"""Reconstructions beside their inputs: in the files of a prediction, in contact sheets, and on the explorer's page."""

import base64
import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.testing import assert_close

from perceiver.commands.predict import draw_predictions
from perceiver.data.collate import collate
from perceiver.inspection.explorer.page import explorer_page, page_event
from perceiver.inspection.writer import ExplanationWriter
from perceiver.runtime.config import resolved
from perceiver.training.build import build
from tests.runs import SMALL, composed

DIGITS = [
    *(*SMALL, "task=reconstruction", "decoder@model.decoder=dense_patches", "task.masked=0.5"),
    *("task.target.patch_size=[2,2]", "model.decoder.attention.num_heads=2"),
]
SCENES = [
    "experiment=autoencoding",
    "logger.mode=disabled",
    "model.memory.num_latents=5",
    "model.shared_positions.grids=[]",
]


@pytest.fixture(scope="module")
def digits():
    return built(DIGITS)


def built(overrides):
    with composed(*overrides) as cfg:
        parts = build(resolved(cfg))
    parts.model.eval()
    return parts


def batch_of(parts, size=3):
    return collate([parts.data.train_samples[row] for row in range(size)])


def test_a_prediction_writes_what_is_visible_and_what_is_reconstructed(digits, tmp_path):
    sample = digits.data.train_samples[5]
    with torch.no_grad():
        files = draw_predictions(digits, sample, tmp_path / "x")
    assert files.keys() == {"image_visible", "image_reconstruction"}
    with torch.no_grad():
        expected = digits.task.reconstructions(digits.model, collate([sample]))["image"]
    for name, raw in expected.items():
        pixels = np.array(Image.open(files[f"image_{name}"]))
        assert_close(torch.from_numpy(pixels[..., 0]), (raw[0, 0].clamp(0, 1) * 255).round().byte())


def test_frames_of_a_video_and_a_sound_are_files_of_their_own(tmp_path):
    parts = built(SCENES)
    with torch.no_grad():
        files = draw_predictions(parts, parts.data.train_samples[0], tmp_path / "x")
    frames = [name for name in files if name.startswith("video_reconstruction")]
    assert frames == [f"video_reconstruction_{number:03d}" for number in range(6)]
    wave, rate = soundfile.read(files["audio_reconstruction_sound"])
    assert (len(wave), rate) == (6000, 8000)


def test_they_are_on_contact_sheets_and_on_the_page(digits):
    explainer, batch = digits.explainer(0.5), batch_of(digits)
    writer = ExplanationWriter.of_model(explainer, explainer.explain(batch), digits.data.dataset.pieces)
    (sheets,) = [sheets for name, sheets in writer.predictions(explainer).items() if name == "image_reconstruction"]
    assert len(sheets) == len(batch)
    samples = writer.page_samples()
    for row, sample in enumerate(samples):
        versions = sample["modalities"]["image"]["versions"]
        assert [one["name"] for one in versions] == ["visible", "reconstruction"]
        assert all(one["sound"] is None for one in versions)
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(versions[1]["picture"].partition(",")[2]))))
        with torch.no_grad():
            raw = digits.task.reconstructions(digits.model, batch)["image"]["reconstruction"][row, 0]
        assert_close(torch.from_numpy(picture[..., 0]), (raw.clamp(0, 1) * 255).round().byte())
    arrays = writer.event(step=3, epoch=1, max_megabytes=8.0)
    # Each place of the output shows where it was read from, although there are no answers.
    assert arrays["logits/places/weights"].shape[:3] == (3, 1, 16)
    hidden = digits.task.hidden(batch)["image"].flatten(1)
    assert not arrays["logits/places/weights"].transpose(0, 3, 1, 2)[hidden.numpy()].any()
    assert '"versions"' in explorer_page("title", samples, {"run": [page_event(arrays)]})
