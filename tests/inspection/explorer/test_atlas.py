"""The atlas of latents: streamed tables compared with all weights at once, planted cells, masks, excerpts, the page."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection.explorer import atlas_page as page_module
from perceiver.inspection.explorer.atlas import Atlas, TopTokens, collect
from perceiver.inspection.explorer.atlas_page import atlas_page, write_atlas
from perceiver.inspection.maps.capture import capture
from tests.inspection.explanations import explainer, labelled
from tests.inspection.models import perceiver, some_masks
from tests.models import audio_encoder, image_encoder, small_inputs

TOP, NUM_BATCHES = 5, 7


def no_text(modality, raw):
    return None


def batches(num_batches=NUM_BATCHES, with_masks=True):
    """Batches of 3 samples of `perceiver`; the third of each lacks `depth`, the second is real in 3×2 image cells."""
    torch.manual_seed(2)
    found = [labelled(small_inputs(), some_masks() if with_masks else None) for _ in range(num_batches)]
    for number, batch in enumerate(found):
        batch.ids = [f"s/{3 * number + row}" for row in range(3)]
    return found


def all_weights(model, given, layers):
    """The mean weights of all samples at once [samples, latents, tokens], spans and masks."""
    parts, masks = [], []
    for batch in given:
        with capture(model) as record:
            model(batch.inputs, batch.masks)
        parts.append(torch.stack([record.map(name) for name in layers]).mean(dim=0))
        masks.append(record.token_mask)
    return torch.cat(parts), record.spans, torch.cat(masks)


@pytest.mark.parametrize("layers", [(), ("cross1",)])
def test_streaming_equals_brute_force(layers):
    torch.manual_seed(3)
    model = perceiver()
    atlas = collect(explainer(model), batches(), no_text, Atlas(TOP, layers))
    weights, spans, mask = all_weights(model, batches(), layers or ("cross0", "cross1", "cross2"))
    assert atlas.num_samples == len(weights) == 3 * NUM_BATCHES
    for name, span in spans.items():
        best, tokens = weights[:, :, span.start : span.stop].max(dim=2)
        order = best.argsort(dim=0, descending=True, stable=True)[:TOP].T
        read = atlas.read[name]
        torch.testing.assert_close(read.weights, best.T.gather(1, order))
        assert torch.equal(read.samples, order)
        assert torch.equal(read.tokens, tokens.T.gather(1, order))
        np.testing.assert_allclose(
            atlas.shares[name], weights[:, :, span.start : span.stop].sum(dim=2).mean(dim=0), rtol=1e-5
        )
    np.testing.assert_allclose(atlas.entropy, torch.special.entr(weights).sum(dim=2).mean(dim=0), rtol=1e-5)
    assert atlas.entropy_chance == pytest.approx(float(mask.sum(dim=1).float().log().mean()))


def test_masked_tokens_are_never_read():
    """Of few samples, so that those without a modality would be among the most read."""
    atlas = collect(explainer(perceiver()), batches(2), no_text, Atlas(top=11))
    read = atlas.read["depth"]
    assert set(read.samples[read.is_read].tolist()) == {0, 1, 3, 4}
    assert read.is_read.sum(dim=1).eq(4).all()
    image = atlas.read["image"]
    second = image.is_read & (image.samples % 3 == 1)
    rows, columns = image.tokens[second] // 5, image.tokens[second] % 5
    assert second.any() and rows.max() < 3 and columns.max() < 2  # noqa: PT018
    arrays = atlas.arrays
    assert (arrays["depth/token"][~read.is_read] == -1).all() and (arrays["depth/sample"][~read.is_read] == -1).all()  # noqa: PT018


def test_a_latent_that_reads_one_cell_of_one_sample_has_it_first():
    top = TopTokens.empty(num_latents=3, top=2)
    weights = torch.full((5, 3, 7), 0.1)
    weights[3, 1, 4] = 0.9
    for number in range(5):
        top.add(range(3), weights[number : number + 1], torch.tensor([number]))
    assert (top.samples[1, 0], top.tokens[1, 0]) == (3, 4)
    assert top.samples[0].tolist() == top.samples[2].tolist() == [0, 1]  # of equal weights the earlier samples
    assert top.samples[1, 1] == 0


def test_a_wired_latent_shows_the_bright_patch():
    """Latent 2 attends to bright patches: its first excerpt is the only one, outlined in the picture."""
    torch.manual_seed(4)
    model = perceiver(encoders={"image": image_encoder()})
    image = 0.01 * torch.rand(11, 3, 12, 15)
    image[7, :, 6:9, 3:6] = 100.0  # row 2, column 1 of 4×5
    given = labelled({"image": image})
    with capture(model) as record:
        model(given.inputs)
    layer = record.layers["cross0"]
    mechanism = layer.mechanism
    direction = layer.k[7, :, 2 * 5 + 1] - layer.k.mean(dim=(0, 2))

    def wire(module, args):
        q, *rest = args
        q = q.clone()
        q[:, :, 2] = 50 * direction
        return (q, *rest)

    hook = mechanism.register_forward_pre_hook(wire)
    try:
        atlas = collect(explainer(model), [given], no_text, Atlas(3, ["cross0"]))
    finally:
        hook.remove()
    read = atlas.read["image"]
    assert (read.samples[2, 0], read.tokens[2, 0]) == (7, 11)
    excerpt = atlas.excerpts["image", 7, 11]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(excerpt.picture.partition(",")[2]))))
    height, width = pixels.shape[:2]
    box = excerpt.outline
    inside = pixels[
        round(box.top * height) : round(box.bottom * height), round(box.left * width) : round(box.right * width)
    ]
    assert inside.size
    assert inside.min() == 255
    assert (pixels == 255).sum() == inside.size
    assert excerpt.place == "y 7.5 px · x 4.5 px"


def test_memory_does_not_grow_with_the_number_of_samples():
    model, limits = perceiver(), 11 * 2 * 2
    few, many = (collect(explainer(model), batches(count), no_text, Atlas(2)) for count in (2, 7))
    for atlas in (few, many):
        assert len(atlas.excerpts) <= limits
        assert {number for _, number, _ in atlas.excerpts} == atlas.ids.keys()
        assert all(read.weights.shape == (11, 2) for read in atlas.read.values())
    assert many.num_samples == 21


def test_sounds_are_excerpts_in_time_and_texts_have_the_words_around():
    model = perceiver(encoders={"audio": audio_encoder()})
    given = labelled({"audio": 0.1 * torch.randn(2, 1, 4001)})
    atlas = collect(explainer(model), [given], no_text, Atlas(1))
    excerpt = next(iter(atlas.excerpts.values()))
    assert excerpt.sound.startswith("data:audio/flac;base64,")
    assert re.fullmatch(r"frequency [\d.]+k? Hz · time [\d.]+ s", excerpt.place)
    words = collect(explainer(model), [given], lambda name, raw: [f"w{n} " for n in range(111)], Atlas(1))
    (_, _, token), excerpt = next(iter(words.excerpts.items()))
    assert excerpt.words[1] == f"w{token} "


def test_what_has_no_atlas():
    with pytest.raises(ValueError, match=r"layers=cross7.*cross0, cross1, cross2"):
        collect(explainer(perceiver()), batches(1), no_text, Atlas(TOP, ["cross7"]))
    with pytest.raises(ValueError, match="top=0"):
        Atlas(0)


def test_the_page_is_bounded_and_has_no_network(tmp_path, monkeypatch):
    atlas = collect(explainer(perceiver()), batches(), no_text, Atlas(TOP))
    page = write_atlas(tmp_path / "atlas.html", "run </script><b>", atlas)
    with np.load(tmp_path / "atlas.npz") as arrays:
        np.testing.assert_array_equal(arrays["image/weight"], atlas.read["image"].weights)
        assert arrays["ids"][arrays["image/sample"][0, 0]] == f"s/{atlas.read['image'].samples[0, 0]}"
    text = page.read_text()
    assert "connect-src" not in text
    assert "default-src 'none'" in text
    assert "</script><b>" not in text

    def content():
        return json.loads(re.search(r'id="atlas">(.*?)</script>', atlas_page("run", atlas), re.S)[1])

    whole = content()
    assert whole["omitted"] == 0
    total = sum(len(item["picture"]) for item in whole["excerpts"])
    monkeypatch.setattr(page_module, "MAX_MEDIA", total // 3)
    cut = content()
    assert 0 < sum(len(item["picture"] or "") for item in cut["excerpts"]) <= total // 3
    assert cut["omitted"] == sum(item["picture"] is None for item in cut["excerpts"])
    first = [latent["modalities"][name]["read"][0][1] for latent in cut["latents"] for name in ("image", "depth")]
    assert all(cut["excerpts"][number]["picture"] for number in first)  # the most read ones stay
