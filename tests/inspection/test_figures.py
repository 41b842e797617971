import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.decoders.base import LOGITS
from perceiver.encoders.stems import PatchStem
from perceiver.inspection.arrays import event_arrays
from perceiver.inspection.capture import Capture, pictures_of
from perceiver.inspection.contact_sheet import BAR_WIDTH, GAP, TILE, TITLE_HEIGHT
from perceiver.inspection.explanation import own_answers
from perceiver.inspection.figures import STRETCHED, STRIP_HEIGHT, contact_sheets, on_grid, query_ranking
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import SPANS, bright_place, capture_of_places, images, look_of, of_class, tiles_of
from tests.inspection.explanations import seen
from tests.inspection.models import (
    captured_with,
    direct_text,
    held_weights,
    images_of,
    lay_out,
    layer,
    look,
    perceiver,
    perceiver_io,
    perceiver_text,
    some_masks,
)
from tests.models import NUM_CLASSES, image_encoder, small_inputs, small_perceiver


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
    assert (read.gather(1, query_ranking(captured, "cross0")).diff(dim=1) <= 0).all()


def test_without_decoder_attention_latents_are_ranked_by_how_sharply_they_look():
    captured = look(perceiver(), masks=some_masks())
    weights = captured.map("cross2").double()
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1)
    assert (entropy.gather(1, query_ranking(captured, "cross2")).diff(dim=1) >= -1e-6).all()


@pytest.mark.parametrize("token", [0, 3 * 7 + 1, 34])
def test_sheets_show_what_the_output_rests_on_at_its_place_in_the_image(token):
    sheets = contact_sheets(look_of(planted_capture(token)), images(), num_latents=3)
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
    (sheet,) = contact_sheets(look_of(captured), pictures_of(model, {"image": image}), num_latents=1)["image/cross0"]
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
    sheets = contact_sheets(look_of(captured), images(channels=channels), num_latents=asked)
    tiles = (1 + 1) + (1 + 1) + shown  # the input bare and under the mean, the mean and the rollout, latents
    for sheet in sheets["image/cross0"]:
        rows = 1 if tiles <= 8 else 2
        height = round(TILE * 5 / 7)
        assert sheet.size == (-(-tiles // rows) * (TILE + GAP) + BAR_WIDTH, rows * (height + TITLE_HEIGHT + GAP))


def test_modalities_without_a_picture_have_maps_alone():
    captured = planted_capture(3)
    lay_out(captured, {"words": Span(0, 35, Grid((35,), (Axis("byte", "", 0.0, 35.0),)))})
    (sheet, _) = contact_sheets(look_of(captured), {}, num_latents=1)["words/cross0"]
    tiles = np.asarray(sheet)[TITLE_HEIGHT : TITLE_HEIGHT + STRIP_HEIGHT]
    width = STRETCHED[0]
    assert sheet.width == 2 * (width + GAP) + BAR_WIDTH, "two of the mean, the rollout and a latent side by side"
    assert bright_place(tiles[:, width + GAP : 2 * width + GAP]) == pytest.approx((0.5, 3.5 / 35), abs=0.02)


def test_an_encoder_that_has_no_picture_is_left_out_of_the_pictures():
    model, inputs = perceiver(), small_inputs()
    found = pictures_of(model, inputs)
    assert {name: tuple(picture.values.shape) for name, picture in found.items()} == {
        name: tuple(raw.shape) for name, raw in inputs.items()
    }
    model.encoders["depth"].picture = lambda raw: None
    assert set(pictures_of(model, inputs)) == {"image"}


def test_every_cross_attend_has_a_sheet_for_each_modality_and_sample():
    captured = look(perceiver(), masks=some_masks())
    sheets = contact_sheets(look_of(captured), images_of(small_inputs()), num_latents=2)
    assert set(sheets) == {f"{modality}/cross{k}" for modality in ("image", "depth") for k in range(3)}
    assert all(len(of_samples) == 3 for of_samples in sheets.values())
    assert all(isinstance(sheet, Image.Image) for of_samples in sheets.values() for sheet in of_samples)


@pytest.mark.parametrize("make", [perceiver, perceiver_io, perceiver_text, direct_text], ids=lambda make: make.__name__)
def test_nothing_ever_holds_more_weights_than_it_may(make, monkeypatch):
    inputs = small_inputs()
    found = seen(make(), inputs)
    whole = event_arrays(found, max_megabytes=1)
    sheets = contact_sheets(found, images_of(inputs), num_latents=3)
    sizes = held_weights(monkeypatch)
    monkeypatch.setattr("perceiver.inspection.record.HELD_WEIGHTS", 2 * 3 * 3 * 55)
    for name, values in event_arrays(found, max_megabytes=1).items():
        if values.dtype == np.float16:
            np.testing.assert_allclose(values, whole[name], atol=1e-3)
    again = contact_sheets(found, images_of(inputs), num_latents=3)
    decode_whole = 3 * 5 * 19 * 11
    assert max(sizes) <= (2 * 3 * 3 * 55 if make is perceiver else decode_whole)
    assert {key: [sheet.size for sheet in value] for key, value in again.items()} == {
        key: [sheet.size for sheet in value] for key, value in sheets.items()
    }


def test_each_answer_of_a_sample_has_a_rollout_of_its_own():
    places = [3, 11, 17, 23, 34]
    answers = [[of_class("a", 4), of_class("b", 1)], [of_class("c", 2), of_class("a", 4)]]
    sheets = contact_sheets(look_of(capture_of_places(places), answers), images(), num_latents=0)["image/cross0"]
    for sheet, row in zip(sheets, answers, strict=True):
        tiles = tiles_of(sheet, 5)
        assert sheet.width == 7 * (TILE + GAP) + BAR_WIDTH, "input, mean over input, mean, two for each answer"
        for tile, answer in zip(tiles[3:], row, strict=True):
            expected = divmod(places[answer.label], 7)
            found = bright_place(tile)
            assert found == pytest.approx(((expected[0] + 0.5) / 5, (expected[1] + 0.5) / 7), abs=0.01)


def marked(places: list[tuple[int, ...]]) -> torch.Tensor:
    """For each sample and answer a map that marks one token."""
    maps = torch.full((len(places), len(places[0]), SPANS["depth"].stop), 0.001)
    return maps.scatter(2, torch.tensor(places)[..., None], 1.0)


@pytest.mark.parametrize("own", [True, False], ids=["own queries", "one query"])
def test_the_relevance_of_each_class_stands_behind_the_rollouts_with_its_boxes(own):
    answers = [[of_class("a", 4), of_class("b", 1)], [of_class("c", 2), of_class("a", 4)]]
    places = [(5, 32), (29, 8)]
    boxes = [[Box(1, "image", {"y": (3.0, 9.0), "x": (6.0, 18.0)})], None]
    captured, num_rollouts = capture_of_places([3, 11, 17, 23, 34]), 2 if own else 1
    options = {"own": own, "relevance": marked(places)}
    plain = contact_sheets(look_of(captured, answers, **options), images(), num_latents=1)["image/cross0"]
    for sheet, tokens in zip(plain, places, strict=True):
        tiles = tiles_of(sheet, 6 + num_rollouts)
        assert sheet.width == len(tiles) * (TILE + GAP) + BAR_WIDTH, "and one latent"
        for tile, token in zip(tiles[3 + num_rollouts : 5 + num_rollouts], tokens, strict=True):
            row, column = divmod(token, 7)
            assert bright_place(tile) == pytest.approx(((row + 0.5) / 5, (column + 0.5) / 7), abs=0.01)
    boxed = look_of(captured, answers, boxes=boxes, **options)
    sheets = contact_sheets(boxed, images(), num_latents=1)["image/cross0"]
    pairs = zip(tiles_of(sheets[0], 6 + num_rollouts), tiles_of(plain[0], 6 + num_rollouts), strict=True)
    changed = [bool((one != other).any()) for one, other in pairs]
    rollouts = [False, True] if own else [True]
    assert changed == [True, False, False, *rollouts, False, True, False]
    assert sheets[1].tobytes() == plain[1].tobytes()


def test_the_relevance_of_words_is_no_part_of_the_sheets_of_latents():
    captured, row = capture_of_places([3, 11]), [Answer("a", (0,), LOGITS), Answer("dot", (1,), LOGITS)]
    one, other = (
        contact_sheets(look_of(captured, [row] * 2, relevance=marked([places] * 2)), images(), num_latents=1)[
            "image/cross0"
        ]
        for places in ((5, 32), (7, 2))
    )
    assert [sheet.tobytes() for sheet in one] == [sheet.tobytes() for sheet in other]


def test_samples_may_have_different_numbers_of_answers():
    answers = [[of_class("a", 4)], [of_class("c", 2), of_class("a", 4)]]
    captured = capture_of_places([3, 11, 17, 23, 34])
    first, second = contact_sheets(look_of(captured, answers), images(), num_latents=0)["image/cross0"]
    assert (first.width, second.width) == tuple(count * (TILE + GAP) + BAR_WIDTH for count in (3 + 2, 3 + 4))


def test_boxes_are_drawn_on_the_input_and_on_rollouts_those_of_an_answer_on_its_own():
    boxes = [
        [Box(4, "image", {"y": (3.0, 9.0), "x": (6.0, 18.0)}), Box(1, "depth", {"y": (1.0, 2.0)})],
        None,
    ]
    answers = [[of_class("a", 4), of_class("b", 1)]] * 2
    captured = capture_of_places([3, 11, 17, 23, 34])
    plain = contact_sheets(look_of(captured, answers), images(), num_latents=1)["image/cross0"]
    sheets = contact_sheets(look_of(captured, answers, boxes=boxes), images(), num_latents=1)["image/cross0"]
    changed = [
        (with_boxes != without).any(axis=-1)
        for with_boxes, without in zip(tiles_of(sheets[0], 8), tiles_of(plain[0], 8), strict=True)
    ]
    assert [tile.any() for tile in changed] == [True, False, False, True, False, True, False, False]
    assert sheets[1].tobytes() == plain[1].tobytes()
    places = np.argwhere(changed[0])
    height = round(TILE * 5 / 7)
    assert places.min(axis=0) == pytest.approx((height * 3 / 15, TILE * 6 / 21), abs=2)
    assert places.max(axis=0) == pytest.approx((height * 9 / 15, TILE * 18 / 21), abs=2)


def test_without_answers_boxes_of_all_classes_are_drawn_on_the_one_rollout():
    boxes = [[Box(label, "image", {"y": (3.0, 9.0), "x": (6.0, 18.0)})] for label in (2, 7)]
    captured = capture_of_places([3, 11, 17, 23, 34])
    plain = contact_sheets(look_of(captured), images(), num_latents=1)["image/cross0"]
    sheets = contact_sheets(look_of(captured, boxes=boxes), images(), num_latents=1)["image/cross0"]
    for sheet, without in zip(sheets, plain, strict=True):
        pairs = zip(tiles_of(sheet, 5), tiles_of(without, 5), strict=True)
        assert [(one != other).any() for one, other in pairs] == [True, False, False, True, False]


def test_answers_that_the_decoder_asked_for_are_kept_and_classes_it_asks_for_at_once_are_not():
    answers = [[of_class("a", 4), of_class("b", 1)], [of_class("c", 2)], []]
    words = [[Answer("a", (0,), LOGITS), Answer("dot", (1, 2), LOGITS, kind="shape")], [], [Answer("b", (0,), LOGITS)]]
    assert own_answers(look(perceiver_io()), answers, NUM_CLASSES) == answers
    assert own_answers(look(perceiver_io()), answers, NUM_CLASSES - 1) == [[], [], []]
    assert own_answers(look(perceiver()), answers, NUM_CLASSES) == [[], [], []]
    assert own_answers(look(perceiver_text()), words, 0) == words


def test_rows_are_those_of_the_forward_pass():
    """Samples that are looked at in several windows have a sheet for each."""
    sheets = contact_sheets(look_of(capture_of_places([3, 11], batch=5)), images(batch=5), num_latents=1)
    assert len(sheets["image/cross0"]) == 5
