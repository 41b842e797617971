import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.decoders.base import LOGITS
from perceiver.encoders.stems import PatchStem
from perceiver.inspection.drawing.contact_sheet import BAR_WIDTH, GAP, TILE, TITLE_HEIGHT
from perceiver.inspection.drawing.figures import STRETCHED, STRIP_HEIGHT, contact_sheets
from perceiver.inspection.explorer.events import event_arrays
from perceiver.inspection.maps.capture import Capture, input_pictures
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import (
    BRIGHTEST,
    HEIGHT,
    SPANS,
    bright_cell,
    bright_place,
    capture_of_places,
    changed_tiles,
    color_at,
    explanation_of,
    images,
    tiles_of,
)
from tests.inspection.explanations import explain
from tests.inspection.models import (
    computed_weights,
    direct_text,
    forward_record,
    images_of,
    layer,
    of_class,
    perceiver,
    set_tokens,
    word,
)
from tests.models import image_encoder, small_inputs, small_perceiver

PLACES = [3, 11, 17, 23, 34]
TEXT = Grid((35,), (Axis("place", "", 0.0, 35.0),))
CLASSES = [[of_class(4), of_class(1)], [of_class(2), of_class(4)]]
BOX = {"y": (3.0, 9.0), "x": (6.0, 18.0)}


def image_capture(batch: int = 2) -> Capture:
    """Five queries, each of which reads one cell of an image of 5×7 cells."""
    captured = capture_of_places(PLACES, batch)
    set_tokens(captured, {"image": SPANS["image"]})
    return captured


def words(*queries: int) -> list[Answer]:
    return [word((query,), (), name=f"word {query}") for query in queries]


def marked(places: list[tuple[int, ...]]) -> torch.Tensor:
    """For each sample and answer a map with its mass on one token."""
    maps = torch.full((len(places), len(places[0]), SPANS["depth"].stop), 0.001)
    return maps.scatter(2, torch.tensor(places)[..., None], 1.0)


def image_sheets(captured: Capture, answers=None, *, num_latents: int = 0, **options) -> list[Image.Image]:
    explanation = explanation_of(captured, answers, **options)
    return contact_sheets(explanation, images(captured.num_rows), num_latents=num_latents)["image/cross0"]


def word_sheets(captured: Capture, *answers: list[Answer], **options) -> list[Image.Image]:
    explanation = explanation_of(captured, list(answers), **options)
    return contact_sheets(explanation, images(len(answers)), num_latents=1)["caption/words"]


@pytest.mark.parametrize(("num_read", "wanted"), [(1, 6), (5, 3), (5, 0)])
def test_a_sheet_has_input_mean_rollout_and_the_latents_that_exist_the_most_read_first(num_read, wanted):
    captured = capture_of_places(PLACES[:num_read])
    shares = 10.0 ** torch.arange(num_read)
    captured.layers["decode0"] = layer("decode", (shares / shares.sum()).expand(2, 1, 1, -1))
    drawn = min(num_read, wanted)
    for sheet in image_sheets(captured, num_latents=wanted):
        assert sheet.size == ((4 + drawn) * (TILE + GAP) + BAR_WIDTH, HEIGHT + TITLE_HEIGHT + GAP)
        tiles = tiles_of(sheet, 4 + drawn)[3:]
        assert [bright_cell(tile) for tile in tiles] == [PLACES[num_read - 1], *PLACES[:num_read][::-1][:drawn]]


def test_sheets_of_an_encoded_image_are_bright_where_the_image_is():
    """From pixels to pixels: a model that reads what is bright, on an image that its patches do not divide."""
    model = small_perceiver(encoders={"image": image_encoder(PatchStem(channels=3, patch_size=5))})
    image = torch.zeros(1, 3, 17, 23)
    image[:, :, 15:17, 20:23] = 1.0
    captured = forward_record(model, {"image": image})
    weights = torch.full((1, 1, 11, 20), 0.001)
    weights[..., 19] = 1 - 0.019
    captured.layers = {"cross0": layer("cross", weights)}
    sheets = contact_sheets(explanation_of(captured), input_pictures(model, {"image": image}), num_latents=1)
    pixels = np.asarray(sheets["image/cross0"][0])[TITLE_HEIGHT : TITLE_HEIGHT + round(TILE * 4 / 5)].astype(float)
    picture, over, mean = (pixels[:, left : left + TILE] for left in range(0, 3 * (TILE + GAP), TILE + GAP))
    white = np.argwhere(picture.min(axis=-1) > 250)
    # The last cell covers pixels 15 to 19 and 20 to 24, of which the image has two rows and three columns.
    assert white.min(axis=0) / picture.shape[:2] == pytest.approx((15 / 20, 20 / 25), abs=0.01)
    assert (white.max(axis=0) + 1) / picture.shape[:2] == pytest.approx((17 / 20, 23 / 25), abs=0.01)
    assert bright_place(mean) == pytest.approx((3.5 / 4, 4.5 / 5), abs=0.01)
    assert np.argwhere(over.sum(axis=-1) == over.sum(axis=-1).max()).tolist() == white.tolist()


def test_encoders_without_a_picture_have_none():
    model, inputs = perceiver(), small_inputs()
    found = input_pictures(model, inputs)
    assert {name: tuple(picture.values.shape) for name, picture in found.items()} == {
        name: tuple(raw.shape) for name, raw in inputs.items()
    }
    model.encoders["depth"].picture = lambda raw: None
    assert set(input_pictures(model, inputs)) == {"image"}


@pytest.mark.parametrize("make", [perceiver, direct_text], ids=lambda make: make.__name__)
def test_explanations_events_and_sheets_are_made_in_chunks(make, monkeypatch):
    """With a sheet for each layer that reads the tokens, modality and sample."""
    inputs, limit, decode_layer = small_inputs(), 2 * 3 * 3 * 55, 3 * 5 * 19 * 11
    torch.manual_seed(0)
    model = make()
    whole = explain(model, inputs)
    statistics, arrays = whole.statistics, event_arrays(whole, max_megabytes=1)
    sizes = computed_weights(monkeypatch)
    monkeypatch.setattr("perceiver.inspection.maps.record.MAX_WEIGHTS", limit)
    found = explain(model, inputs)
    for name, values in event_arrays(found, max_megabytes=1).items():
        if values.dtype == np.float16:
            np.testing.assert_allclose(values, arrays[name], atol=1e-3)
    assert found.statistics == pytest.approx(statistics, rel=1e-4, abs=1e-6)
    sheets = contact_sheets(found, images_of(inputs), num_latents=3)
    assert max(sizes) <= (limit if make is perceiver else decode_layer)
    layers = {f"{modality}/{name}" for modality in ("image", "depth") for name in found.record.input_layers}
    assert set(sheets) - {"caption/words"} == layers
    assert all(len(of_samples) == 3 for of_samples in sheets.values())


class TestClasses:
    @pytest.mark.parametrize("own", [True, False], ids=["own queries", "one query"])
    def test_each_has_its_rollout_if_it_has_queries_then_its_relevance_with_its_boxes(self, own):
        places, num_rollouts = [(5, 32), (29, 8)], 2 if own else 1
        captured, count = capture_of_places(PLACES), 6 + num_rollouts
        options = {"own": own, "relevance": marked(places), "num_latents": 1}
        plain = image_sheets(captured, CLASSES, **options)
        for sheet, tokens, answers in zip(plain, places, CLASSES, strict=True):
            assert sheet.width == count * (TILE + GAP) + BAR_WIDTH, "and one latent"
            tiles = tiles_of(sheet, count)
            assert tuple(map(bright_cell, tiles[3 + num_rollouts : 5 + num_rollouts])) == tokens
            if own:
                assert [bright_cell(tile) for tile in tiles[3:5]] == [PLACES[answer.label] for answer in answers]
        boxed, same = image_sheets(
            captured, CLASSES, boxes=[[Box(1, "image", BOX), Box(7, "depth", {})], None], **options
        )
        rollouts = [False, True] if own else [True]
        assert changed_tiles(boxed, plain[0], count) == [True, False, False, *rollouts, False, True, False]
        assert same.tobytes() == plain[1].tobytes()

    def test_boxes_are_drawn_at_their_places(self):
        captured = capture_of_places(PLACES)
        plain, boxed = image_sheets(captured), image_sheets(captured, boxes=[[Box(2, "image", BOX)], None])
        assert changed_tiles(boxed[0], plain[0], 4) == [True, False, False, True], "input and the one rollout"
        pixels = np.argwhere((tiles_of(boxed[0], 1)[0] != tiles_of(plain[0], 1)[0]).any(axis=-1))
        assert pixels.min(axis=0) == pytest.approx((HEIGHT * 3 / 15, TILE * 6 / 21), abs=2)
        assert pixels.max(axis=0) == pytest.approx((HEIGHT * 9 / 15, TILE * 18 / 21), abs=2)


class TestWords:
    def test_their_tiles_are_their_relevance_and_those_of_classes_and_empty_texts_are_left_out(self):
        answers, cells = [[of_class(1), *words(4, 0)], []], (8, 30, 19)
        sheet, empty = word_sheets(image_capture(), *answers, relevance=marked([cells, cells])[..., :35])
        assert sheet.width == 3 * (TILE + GAP) + BAR_WIDTH
        assert [bright_cell(tile) for tile in tiles_of(sheet, 3)[1:]] == [30, 19]
        answers[0][2] = word((0,), (), "another")
        other, _ = word_sheets(image_capture(), *answers, relevance=marked([cells, cells])[..., :35])
        changed = np.argwhere((np.asarray(sheet) != np.asarray(other)).any(axis=-1))
        assert changed[:, 0].max() < TITLE_HEIGHT, "its title is above its tile"
        assert changed[:, 1].min() >= 2 * (TILE + GAP)
        assert empty.width == 2 * (TILE + GAP) + BAR_WIDTH
        assert len(np.unique(tiles_of(empty, 2)[1].reshape(-1, 3), axis=0)) == 1

    def test_their_boxes_are_drawn_on_their_tiles_and_those_of_the_sample_on_the_input(self):
        box, elsewhere = Box(0, "image", BOX), Box(0, "depth", BOX)
        plain, _ = word_sheets(image_capture(), words(0, 1), words(0, 1))
        answers = [Answer("a", (0,), LOGITS, boxes=(elsewhere,)), Answer("b", (1,), LOGITS, boxes=(box, elsewhere))]
        boxed, _ = word_sheets(image_capture(), answers, words(0, 1), boxes=[[box], None])
        assert [bool((a != b)[20:].any()) for a, b in zip(tiles_of(boxed, 3), tiles_of(plain, 3), strict=True)] == [
            *(True, False, True)
        ]

    def test_sheets_of_latents_have_one_rollout_of_the_text_and_of_all_queries_without_words(self):
        answers = [[word((0, 4), ()), *words(2)], []]
        plain = image_sheets(image_capture(), answers)
        for sheet, expected in zip(plain, ([PLACES[0], PLACES[2], PLACES[4]], PLACES), strict=True):
            assert sheet.width == 4 * (TILE + GAP) + BAR_WIDTH, "and no relevance"
            rollout = tiles_of(sheet, 4)[3]
            assert [cell for cell in range(35) if color_at(rollout, cell) == BRIGHTEST] == expected

    def test_every_modality_has_its_tiles(self):
        captured = capture_of_places([3, 35 + 17], 1)
        set_tokens(captured, {"image": SPANS["image"], "text": Span(35, 70, TEXT)})
        (sheet,) = word_sheets(captured, words(0, 1))
        width = STRETCHED[0]
        assert sheet.width == 5 * (width + GAP) + BAR_WIDTH, "input and two words in the image, two in the text"
        pixels = np.asarray(sheet).astype(float)[TITLE_HEIGHT:]
        lefts = [number * (width + GAP) for number in range(5)]
        assert bright_cell(pixels[:HEIGHT, lefts[1] : lefts[1] + TILE]) == 3
        text = pixels[:STRIP_HEIGHT, lefts[4] : lefts[4] + width]
        assert bright_place(text) == pytest.approx((0.5, 17.5 / 35), abs=0.02)
        for tile in (pixels[:HEIGHT, lefts[2] : lefts[2] + TILE], pixels[:STRIP_HEIGHT, lefts[3] : lefts[3] + width]):
            assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 1, "a word that reads the other modality"
