"""What a person sees, hears and reads in the page is what the model was given."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from perceiver.encoders.stems import PatchStem
from perceiver.encoders.text import TextEncoder
from perceiver.inspection.drawing import media as media_module
from perceiver.inspection.drawing.figures import STRETCHED
from perceiver.inspection.drawing.media import Media, page_samples, texts_of
from perceiver.inspection.maps.capture import input_pictures, input_sounds
from perceiver.positions import LearnedPositions
from perceiver.types import Axis, Batch, Box
from tests.inspection.explanations import labelled
from tests.inspection.models import captions, forward_record, perceiver
from tests.models import audio_encoder, image_encoder, waveform_encoder

RATE = 4001
NAMES = ["dog", "siren", "rain"]


def content_of(url: str, kind: str) -> io.BytesIO:
    head, content = url.split(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(content))


def pixels_of(url: str) -> np.ndarray:
    with Image.open(content_of(url, "image/png")) as picture:
        return np.asarray(picture)


def images(batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 3, 11, 13, generator=torch.Generator().manual_seed(1))


def waves(batch: int = 3, length: int = RATE) -> torch.Tensor:
    noise = torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(2))
    return (0.3 * noise).clamp(-1, 1)


def shown(encoders: dict[str, Any], batch: Batch, class_names=NAMES, texts=None) -> list[dict[str, Any]]:
    """The samples of a batch as a model with these encoders sees them."""
    model = perceiver(encoders=encoders)
    spans = forward_record(model, batch.inputs, batch.masks).spans
    media = Media(input_pictures(model, batch.inputs), input_sounds(model, batch.inputs), texts or {})
    return page_samples(batch, spans, media, class_names)


def test_pictures_are_the_pixels_of_their_sample_in_the_extent_of_the_grid():
    """Patches of 3 see 12 of 13 columns and 9 of 11 rows of the second image, and of the first one zeros beyond it."""
    raw = images()
    (whole, cut) = (
        shown({"image": image_encoder(stem)}, labelled({"image": raw}))
        for stem in (PatchStem(channels=3, patch_size=(11, 13)), PatchStem(channels=3, patch_size=5))
    )
    for row, (one, other) in enumerate(zip(whole, cut, strict=True)):
        expected = (raw[row] * 255).round().byte().permute(1, 2, 0).numpy()
        found = pixels_of(one["modalities"]["image"]["picture"])
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert found.shape == (11, 13, 3)
        continued = pixels_of(other["modalities"]["image"]["picture"])
        assert continued.shape == (15, 15, 3)
        assert (continued[:11, :13] == found).all()
        assert not continued[11:].any()
        assert not continued[:, 13:].any()
    assert [one["modalities"]["image"]["shape"] for one in (whole[0], cut[0])] == [[1, 1], [3, 3]]


def test_axes_and_sizes_are_those_of_the_picture_from_the_top_down():
    encoders = {"image": image_encoder(), "audio": audio_encoder()}
    (sample,) = shown(encoders, labelled({"image": images(1), "audio": waves(1)}))
    image, sound = (sample["modalities"][name] for name in ("image", "audio"))
    assert [(axis["name"], axis["unit"], axis["start"]) for axis in image["axes"]] == [("y", "px", 0), ("x", "px", 0)]
    assert image["axes"][0]["stop"] < image["axes"][1]["stop"]
    assert image["levels"] is None
    assert (image["sound"], image["seconds"], image["tokens"]) == (None, None, None)
    frequency, time = sound["axes"]
    assert (frequency["unit"], frequency["scale"], time["unit"]) == ("Hz", "mel", "s")
    assert frequency["start"] > frequency["stop"] >= 0, "high frequencies are on top"
    assert (time["start"], sound["shape"]) == (0, [3, 37])
    assert sound["levels"]["unit"] == "dB"
    assert sound["levels"]["low"] < sound["levels"]["high"]
    row_ticks, column_ticks = ({tick["label"]: tick["place"] for tick in ticks} for ticks in sound["ticks"])
    assert row_ticks["1k"] == pytest.approx(Axis(**frequency).fraction(1000.0))
    assert column_ticks["0"] == 0
    assert [one["strip"] for one in (image, sound)] == [None, None]


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(audio_encoder, torch.float64), (waveform_encoder, torch.bfloat16), (waveform_encoder, torch.float32)],
)
def test_sounds_are_the_waves_of_their_sample_at_their_rate_clipped(make, dtype):
    raw = waves().to(dtype)
    raw[:, :, :4] = torch.tensor([2.0, -3.0, 1.0, 0.5])
    batch = labelled({"audio": raw})
    model = perceiver(encoders={"audio": make()})
    spans = forward_record(model, {"audio": raw.float()}).spans
    found = page_samples(batch, spans, Media(sounds=input_sounds(model, batch.inputs)), NAMES)
    for row, sample in enumerate(found):
        wave, rate = soundfile.read(content_of(sample["modalities"]["audio"]["sound"], "audio/flac"))
        assert (rate, wave.shape) == (RATE, (RATE,))
        np.testing.assert_allclose(wave, raw[row, 0].double().clamp(-1, 1), atol=2 / 2**15)
        assert sample["modalities"]["audio"]["seconds"] == 1.0
        assert sample["modalities"]["audio"]["picture"] is None


@pytest.mark.parametrize("kind", ["short", "long", "spectrogram"])
def test_sounds_longer_than_a_limit_and_spectrograms_have_a_picture_only(kind, monkeypatch):
    monkeypatch.setattr(media_module, "MAX_SECONDS", 0.9 if kind == "long" else 1.0)
    encoder = audio_encoder()
    raw = encoder.log_mel(waves(1)) if kind == "spectrogram" else waves(1)
    found = shown({"audio": encoder}, labelled({"audio": raw}))[0]["modalities"]["audio"]
    assert (found["sound"] is not None) == (kind == "short")
    assert found["seconds"] == (1.0 if kind == "short" else None)
    assert found["picture"] is not None


def test_texts_have_no_picture_and_the_pieces_of_their_sample():
    batch = labelled({"image": images(), "text": torch.tensor([[[3, 7, 9]], [[4, 7, 0]], [[5, 0, 0]]])})
    positions = LearnedPositions(shape=(23,), dim=13, init_std=1.0, anchored=True)
    encoders = {"image": image_encoder(), "text": TextEncoder(vocab_size=29, dim=13, positions=positions)}
    texts = texts_of(batch, lambda name, raw: None if name == "image" else [f"«{id}»" for id in raw[0].tolist()])
    found = [sample["modalities"] for sample in shown(encoders, batch, texts=texts)]
    expected = [["«3»", "«7»", "«9»"], ["«4»", "«7»", "«0»"], ["«5»", "«0»", "«0»"]]
    assert [sample["text"]["tokens"] for sample in found] == expected
    assert [sample["image"]["tokens"] for sample in found] == [None] * 3
    assert found[0]["text"]["shape"] == [1, 3]
    assert [sample["text"]["picture"] for sample in found] == [None] * 3


def test_facts_are_labels_tags_and_the_first_reference_of_their_sample():
    raw = {"image": images()}
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    references = [["a dog barks", "it rains"], ["a siren"], [""]]
    spans = forward_record(perceiver(encoders={"image": image_encoder()}), raw).spans

    def facts(targets: dict[str, Any], names: list[str]) -> list[list[str]]:
        batch = Batch(inputs=raw, targets=targets, ids=["a", "b", "c"])
        found = page_samples(batch, spans, Media(), names)
        assert [sample["id"] for sample in found] == ["a", "b", "c"]
        return [sample["ground_truth"] for sample in found]

    assert facts({"label": torch.tensor([2, 0, 1])}, NAMES) == [["rain"], ["dog"], ["siren"]]
    assert facts({"label": torch.tensor([2, 0, 1])}, []) == [[], [], []]
    assert facts({"tags": tags}, NAMES) == [["dog, rain"], [], ["siren"]]
    assert facts({"references": references}, []) == [["a dog barks"], ["a siren"], []]
    assert facts({"label": torch.tensor([2, 0, 1]), "references": references}, NAMES)[0] == ["rain", "a dog barks"]
    assert facts({}, NAMES) == [[], [], []]


def test_boxes_of_a_sample_are_on_the_plane_of_their_modality_with_their_names():
    boxes = [
        None,
        [
            Box(2, "audio", {"frequency": (300.0, 900.0), "time": (0.25, 0.5)}),
            Box(1, "image", {"x": (0.0, 6.5)}),
            Box(0, "audio", {"time": (30.0, 31.0)}),
        ],
    ]
    batch = labelled({"image": images(2), "audio": waves(2)}, boxes=boxes)
    without, sample = shown({"image": image_encoder(), "audio": audio_encoder()}, batch)
    assert [modality["boxes"] for modality in without["modalities"].values()] == [[], []]
    (heard,), (seen,) = (sample["modalities"][name]["boxes"] for name in ("audio", "image"))
    assert (heard["name"], heard["label"], seen["name"], seen["label"]) == ("rain", 2, "siren", 1)
    frequency, time = (Axis(**axis) for axis in sample["modalities"]["audio"]["axes"])
    assert heard["top"] == pytest.approx(frequency.fraction(900.0))
    assert heard["top"] < heard["bottom"]
    assert heard["bottom"] == pytest.approx(frequency.fraction(300.0))
    assert (heard["left"], heard["right"]) == pytest.approx((time.fraction(0.25), time.fraction(0.5)))
    assert (seen["left"], seen["top"], seen["bottom"]) == (0, 0, 1)
    assert seen["right"] == pytest.approx(6.5 / sample["modalities"]["image"]["axes"][1]["stop"])
    _, nameless = shown({"image": image_encoder()}, captions({"image": images(2)}, boxes=boxes), [])
    assert [box["name"] for box in nameless["modalities"]["image"]["boxes"]] == [""]


def test_a_wave_has_the_axes_of_its_picture():
    """Its patches have one axis; its picture, a spectrogram, has frequencies, too."""
    (sample,) = shown({"audio": waveform_encoder()}, labelled({"audio": waves(1)}))
    found = sample["modalities"]["audio"]
    assert found["shape"][0] == 1
    assert [axis["unit"] for axis in found["axes"]] == ["Hz", "s"]
    assert found["axes"][0]["start"] > found["axes"][0]["stop"]
    assert found["size"] == list(STRETCHED)
