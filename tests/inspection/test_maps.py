import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.collate import collate
from perceiver.encoders.image import PatchStem
from perceiver.inspection import capture as capture_module
from perceiver.inspection.capture import Capture
from perceiver.inspection.maps import contact_sheets, event_arrays, latent_ranking, on_grid
from perceiver.inspection.pictures import BAR_WIDTH, GAP, TILE, TITLE_HEIGHT
from perceiver.inspection.rollout import rollout
from perceiver.types import Batch, Sample, Span
from tests.inspection.models import captured_with, grid, layer, look, perceiver, perceiver_io, some_masks
from tests.inspection.test_pictures import bright_place
from tests.models import image_encoder, small_inputs, small_perceiver

SPANS = {"image": Span(0, 35, grid(5, 7, cell=3)), "depth": Span(35, 35 + 11 * 13, grid(11, 13))}


def planted_weights(num_latents: int, token: int, latents: slice = slice(None)) -> torch.Tensor:
    """Some latents look at one token, the others anywhere."""
    weights = torch.full((1, 1, num_latents, SPANS["depth"].stop), 1 / SPANS["depth"].stop)
    weights[:, :, latents] = 0.002
    weights[:, :, latents, token] = 1 - 0.002 * (SPANS["depth"].stop - 1)
    return weights


def planted_capture(token: int, num_latents: int = 11, latent: int = 7) -> Capture:
    """One latent looks at one token, and the output reads from that latent only; of two samples."""
    weights = planted_weights(num_latents, token, slice(latent, latent + 1)).repeat(2, 1, 1, 1)
    reads = torch.full((2, 1, 1, num_latents), 0.001)
    reads[..., latent] = 1 - 0.001 * (num_latents - 1)
    return captured_with(SPANS, cross0=layer("cross", weights), decode0=layer("decode", reads))


def images(batch: int = 2, channels: int = 3) -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(batch, channels, 15, 21), "depth": torch.zeros(batch, 1, 11, 13)}


def batch_of(inputs: dict[str, torch.Tensor]) -> Batch:
    count = len(next(iter(inputs.values())))
    samples = [
        Sample(
            {name: values[number] for name, values in inputs.items()}, {"label": number, "words": "a"}, f"s/{number}"
        )
        for number in range(count)
    ]
    return collate(samples)


@pytest.mark.parametrize(
    ("token", "modality", "place"), [(2 * 7 + 5, "image", (2, 5)), (35 + 10 * 13 + 1, "depth", (10, 1))]
)
def test_a_planted_token_is_found_at_its_row_and_column_of_its_modality(token, modality, place):
    weights = planted_weights(3, token)
    found = {name: on_grid(weights[0, 0], span) for name, span in SPANS.items()}
    assert {name: values.shape for name, values in found.items()} == {"image": (3, 5, 7), "depth": (3, 11, 13)}
    assert all(np.unravel_index(values.argmax(), values.shape) == place for values in found[modality])
    other = found["depth" if modality == "image" else "image"]
    assert other.max() < 0.01


def test_latents_are_ranked_by_what_the_outputs_read():
    captured = look(perceiver_io())
    read = captured.map("decode0").sum(dim=1)
    assert (read.gather(1, latent_ranking(captured)).diff(dim=1) <= 0).all()


def test_without_decoder_attention_latents_are_ranked_by_how_sharply_they_look():
    captured = look(perceiver(), masks=some_masks())
    weights = captured.map("cross2").double()
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1)
    assert (entropy.gather(1, latent_ranking(captured)).diff(dim=1) >= -1e-6).all()


@pytest.mark.parametrize("token", [0, 3 * 7 + 1, 34])
def test_sheets_show_what_the_output_rests_on_at_its_place_in_the_image(token):
    sheets = contact_sheets(planted_capture(token), images(), num_latents=3)
    assert set(sheets) == {"image/cross0", "depth/cross0"}
    row, column = divmod(token, 7)
    for sheet in sheets["image/cross0"]:
        pixels = np.asarray(sheet)
        assert np.ptp(pixels) > 60
        height = round(TILE * 5 / 7)
        tiles = [
            pixels[TITLE_HEIGHT : TITLE_HEIGHT + height, left : left + TILE]
            for left in range(0, 7 * (TILE + GAP), TILE + GAP)
        ]
        rolled_out, most_read = tiles[3], tiles[4]
        for tile in (rolled_out, most_read):
            assert bright_place(tile) == pytest.approx(((row + 0.5) / 5, (column + 0.5) / 7), abs=0.01)


def test_sheets_of_an_encoded_image_are_bright_where_the_image_is():
    """From pixels to pixels: a model that looks at what is bright, on an image that its patches do not divide."""
    model = small_perceiver(encoders={"image": image_encoder(PatchStem(channels=3, patch_size=5))})
    image = torch.zeros(1, 3, 17, 23)
    image[:, :, 15:17, 20:23] = 1.0
    captured = look(model, {"image": image})
    weights = torch.full((1, 1, 11, 20), 0.001)
    weights[..., 19] = 1 - 0.019
    captured.layers = {"cross0": layer("cross", weights)}
    (sheet,) = contact_sheets(captured, {"image": image}, num_latents=1)["image/cross0"]
    pixels = np.asarray(sheet)[TITLE_HEIGHT : TITLE_HEIGHT + round(TILE * 4 / 5)].astype(float)
    picture, over, mean = (pixels[:, left : left + TILE] for left in range(0, 3 * (TILE + GAP), TILE + GAP))
    white = np.argwhere(picture.min(axis=-1) > 250)
    # The last cell covers pixels 15 to 19 and 20 to 24, of which the image has two rows and three columns.
    assert white.min(axis=0) / picture.shape[:2] == pytest.approx((15 / 20, 20 / 25), abs=0.01)
    assert (white.max(axis=0) + 1) / picture.shape[:2] == pytest.approx((17 / 20, 23 / 25), abs=0.01)
    assert bright_place(mean) == pytest.approx((3.5 / 4, 4.5 / 5), abs=0.01)
    assert np.argwhere(over.sum(axis=-1) == over.sum(axis=-1).max()).tolist() == white.tolist()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("num_latents", "asked", "shown"), [(1, 6, 1), (5, 6, 5), (11, 6, 6), (11, 0, 0)])
def test_sheets_show_as_many_latents_as_there_are_and_were_asked_for(channels, num_latents, asked, shown):
    captured = planted_capture(3, num_latents, latent=0)
    sheets = contact_sheets(captured, images(channels=channels), num_latents=asked)
    tiles = (1 + 1) + (1 + 1) + shown  # the input bare and under the mean, the mean and the rollout, latents
    for sheet in sheets["image/cross0"]:
        rows = 1 if tiles <= 8 else 2
        height = round(TILE * 5 / 7)
        assert sheet.size == (-(-tiles // rows) * (TILE + GAP) + BAR_WIDTH, rows * (height + TITLE_HEIGHT + GAP))


def test_modalities_without_a_plane_have_no_sheets():
    captured = planted_capture(3)
    captured.spans = {"image": SPANS["image"], "sound": Span(35, 35 + 143, grid(143, 1))}
    object.__setattr__(captured.spans["sound"].grid, "shape", (143,))
    sheets = contact_sheets(captured, {"image": images()["image"], "sound": torch.zeros(2, 999)}, num_latents=1)
    assert set(sheets) == {"image/cross0"}


def test_every_cross_attend_has_a_sheet_for_each_modality_and_sample():
    captured = look(perceiver(), masks=some_masks())
    sheets = contact_sheets(captured, small_inputs(), num_latents=2)
    assert set(sheets) == {f"{modality}/cross{k}" for modality in ("image", "depth") for k in range(3)}
    assert all(len(of_samples) == 3 for of_samples in sheets.values())
    assert all(isinstance(sheet, Image.Image) for of_samples in sheets.values() for sheet in of_samples)


@pytest.mark.parametrize("make", [perceiver, perceiver_io], ids=lambda make: make.__name__)
def test_arrays_are_what_capture_and_rollout_say_and_load_without_pickle(make, tmp_path):
    inputs = small_inputs()
    captured = look(make(), inputs, some_masks())
    np.savez_compressed(tmp_path / "event.npz", **event_arrays(captured, batch_of(inputs), max_megabytes=7, alpha=0.3))
    with np.load(tmp_path / "event.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["s/0", "s/1", "s/2"]
        assert arrays["target/label"].tolist() == [0, 1, 2]
        assert "target/words" not in arrays
        for name, raw in inputs.items():
            np.testing.assert_allclose(arrays[f"input/{name}"], raw, atol=1e-3)
            span = captured.spans[name]
            assert (*arrays[f"grid/{name}"], *arrays[f"span/{name}"]) == (*span.grid.shape, span.start, span.stop)
        for name in captured.named("cross") + captured.named("decode"):
            assert arrays[f"{name}/weights"].dtype == np.float16
            np.testing.assert_allclose(arrays[f"{name}/weights"], captured.layers[name].weights(), atol=3e-4)
        for name in captured.named("cross"):
            assert (arrays[f"{name}/latents"] == np.arange(11)).all()
        traced = rollout(captured, alpha=0.3)
        np.testing.assert_allclose(arrays["rollout/inputs"], traced.inputs, atol=3e-4)
        np.testing.assert_allclose(arrays["rollout/residual"], traced.residual, atol=3e-4)
        assert arrays["rollout/alpha"] == 0.3


@pytest.mark.parametrize(("max_megabytes", "kept"), [(0.0, 1), (3 * 5 * 3 * 3 * 55 * 2 / 2**20, 5), (1.0, 11)])
def test_weights_stay_in_their_budget_by_keeping_the_latents_that_are_read_most(max_megabytes, kept):
    inputs = small_inputs()
    captured = look(perceiver(), inputs)
    arrays = event_arrays(captured, batch_of(inputs), max_megabytes=max_megabytes)
    most_read = latent_ranking(captured)[:, :kept].sort(dim=1).values
    for name in captured.named("cross"):
        latents = torch.from_numpy(arrays[f"{name}/latents"])
        assert torch.equal(latents, most_read)
        whole = captured.layers[name].weights()
        expected = torch.stack([whole[sample, :, chosen] for sample, chosen in enumerate(latents)])
        np.testing.assert_allclose(arrays[f"{name}/weights"], expected, atol=3e-4)
    stored = sum(values.nbytes for name, values in arrays.items() if name.startswith("cross") and "weights" in name)
    assert stored <= max(max_megabytes * 2**20, 3 * 3 * 3 * 55 * 2)


def test_rollouts_of_more_outputs_than_the_budget_holds_are_stored_as_their_mean():
    inputs = small_inputs()
    captured = look(perceiver_io(), inputs)
    arrays = event_arrays(captured, batch_of(inputs), max_megabytes=0.001)
    np.testing.assert_allclose(arrays["rollout/inputs"], rollout(captured, mean=True).inputs, atol=3e-4)


@pytest.mark.parametrize("make", [perceiver, perceiver_io], ids=lambda make: make.__name__)
def test_nothing_ever_holds_more_weights_than_it_may(make, monkeypatch):
    sizes = []

    def weights(q, k, **options):
        sizes.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return original(q, k, **options)

    original = capture_module.attention_weights
    inputs = small_inputs()
    captured = look(make(), inputs)
    whole = event_arrays(captured, batch_of(inputs), max_megabytes=1)
    sheets = contact_sheets(captured, inputs, num_latents=3)
    monkeypatch.setattr(capture_module, "attention_weights", weights)
    monkeypatch.setattr(capture_module, "HELD_WEIGHTS", 2 * 3 * 3 * 55)
    for name, values in event_arrays(captured, batch_of(inputs), max_megabytes=1).items():
        if values.dtype == np.float16:
            np.testing.assert_allclose(values, whole[name], atol=1e-3)
    again = contact_sheets(captured, inputs, num_latents=3)
    decode_whole = 3 * 5 * 19 * 11
    assert max(sizes) <= (2 * 3 * 3 * 55 if make is perceiver else decode_whole)
    assert {key: [sheet.size for sheet in value] for key, value in again.items()} == {
        key: [sheet.size for sheet in value] for key, value in sheets.items()
    }
