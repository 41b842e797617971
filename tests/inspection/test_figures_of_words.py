"""Strips that show for each word where it was read from."""

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.decoders.base import LOGITS
from perceiver.encoders.text import TextEncoder
from perceiver.inspection.capture import Capture, pictures_of
from perceiver.inspection.contact_sheet import BAR_WIDTH, COLUMN_TICKS_HEIGHT, GAP, ROW_TICKS_WIDTH, TILE, TITLE_HEIGHT
from perceiver.inspection.figures import STRETCHED, STRIP_HEIGHT, Frame, contact_sheets
from perceiver.positions import LearnedPositions
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import (
    BRIGHTEST,
    SPANS,
    bright_place,
    capture_of_places,
    images,
    look_of,
    of_class,
    tiles_of,
)
from tests.inspection.explanations import seen
from tests.inspection.models import EveryWord, lay_out, perceiver_text
from tests.models import audio_encoder, image_encoder, small_inputs

PLACES = [3, 11, 17, 23, 34]
HEIGHT = round(TILE * 5 / 7)
TEXT = Grid((35,), (Axis("place", "", 0.0, 35.0),))


def image_capture(batch: int = 2) -> Capture:
    """Five words, each of which reads one place of an image of 5×7 cells."""
    captured = capture_of_places(PLACES, batch)
    lay_out(captured, {"image": SPANS["image"]})
    return captured


def words(*queries: int | tuple[int, ...], boxes: tuple[Box, ...] = ()) -> list[Answer]:
    each = [query if isinstance(query, tuple) else (query,) for query in queries]
    return [Answer(f"word {query}", query, LOGITS, boxes=boxes) for query in each]


def strips(captured: Capture, *answers: list[Answer], **options) -> list[Image.Image]:
    look = look_of(captured, list(answers), **options)
    return contact_sheets(look, images(len(answers)), num_latents=1)["caption/words"]


@pytest.mark.parametrize(
    ("answers", "are_words"),
    [
        ([[], []], False),
        ([[of_class("a", 1)], [of_class("b", 2), of_class("a", 1)]], False),
        ([words(1), words(0, 2)], True),
        ([[], words(0)], True),
    ],
    ids=["empty", "classes", "words", "one text"],
)
def test_there_are_strips_where_answers_are_words(answers, are_words):
    sheets = contact_sheets(look_of(image_capture(), answers), images(), num_latents=1)
    assert set(sheets) == {"image/cross0"} | ({"caption/words"} if are_words else set())
    assert all(len(of_rows) == 2 for of_rows in sheets.values())


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 2, 1), (4, 5, 1), (7, 8, 1), (8, 5, 2), (11, 6, 2)])
def test_a_strip_has_the_input_and_a_tile_for_each_word(count, columns, rows):
    longer, shorter = strips(image_capture(), words(*([2] * count)), words(0))
    assert longer.size == (columns * (TILE + GAP) + BAR_WIDTH, rows * (HEIGHT + TITLE_HEIGHT + GAP))
    assert shorter.size == (2 * (TILE + GAP) + BAR_WIDTH, HEIGHT + TITLE_HEIGHT + GAP)


def test_classes_that_are_said_beside_words_have_no_tile_in_a_strip():
    (strip,) = strips(image_capture(1), [of_class("a", 1), *words(0, 4)])
    assert strip.width == 3 * (TILE + GAP) + BAR_WIDTH
    (line, column) = divmod(PLACES[4], 7)
    assert bright_place(tiles_of(strip, 3)[2]) == pytest.approx(((line + 0.5) / 5, (column + 0.5) / 7), abs=0.01)


def test_each_word_is_bright_where_it_depended_on_the_input():
    answers = [words(4, 1, 0), words(2, 4, 3)]
    for strip, row in zip(strips(image_capture(), *answers), answers, strict=True):
        picture, *tiles = tiles_of(strip, 4)
        assert not picture.any(), "the images are black"
        for tile, answer in zip(tiles, row, strict=True):
            line, column = divmod(PLACES[answer.queries[0]], 7)
            assert bright_place(tile) == pytest.approx(((line + 0.5) / 5, (column + 0.5) / 7), abs=0.01)


def test_a_strip_shows_relevance_and_an_empty_text_nothing():
    answers = [words(4, 1, 0), []]
    maps = torch.full((2, 3, 35), 0.001)
    tokens = [8, 30, 19]
    maps[0, range(3), tokens] = 0.7
    strip, silent = strips(image_capture(), *answers, relevance=maps)
    assert strip.size == (4 * (TILE + GAP) + BAR_WIDTH, HEIGHT + TITLE_HEIGHT + GAP)
    for tile, token in zip(tiles_of(strip, 4)[1:], tokens, strict=True):
        line, column = divmod(token, 7)
        assert bright_place(tile) == pytest.approx(((line + 0.5) / 5, (column + 0.5) / 7), abs=0.01)
    assert silent.size == (2 * (TILE + GAP) + BAR_WIDTH, HEIGHT + TITLE_HEIGHT + GAP)
    assert len(np.unique(tiles_of(silent, 2)[1].reshape(-1, 3), axis=0)) == 1, "nothing was said"


def colour_at(tile: np.ndarray, place: int) -> tuple[float, ...]:
    """What a cell of 5×7 is coloured in."""
    return tuple(tile[round((place // 7 + 0.5) / 5 * HEIGHT), round((place % 7 + 0.5) / 7 * TILE)])


def test_a_word_of_several_queries_is_bright_where_each_of_them_was_read_from():
    (strip,) = strips(image_capture(1), words((0, 4)))
    _, tile = tiles_of(strip, 2)
    assert {colour_at(tile, PLACES[0]), colour_at(tile, PLACES[4])} == {BRIGHTEST}
    assert {colour_at(tile, place) for place in range(35) if place not in (PLACES[0], PLACES[4])} != {BRIGHTEST}
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 2


def test_of_an_empty_text_the_rollout_is_that_of_all_outputs():
    look = look_of(image_capture(), [words(0, 1, 2, 3, 4), []])
    tile = tiles_of(contact_sheets(look, images(), num_latents=0)["image/cross0"][1], 4)[3]
    assert [place for place in range(35) if colour_at(tile, place) == BRIGHTEST] == PLACES


def test_titles_are_the_words():
    captured = image_capture(1)
    one, other = (
        strips(captured, [Answer(name, (0,), LOGITS), Answer("dot", (1,), LOGITS)])[0] for name in ("red", "green")
    )
    changed = np.argwhere((np.asarray(one) != np.asarray(other)).any(axis=-1))
    assert changed[:, 0].max() < TITLE_HEIGHT
    assert changed[:, 1].min() >= TILE + GAP
    assert changed[:, 1].max() < 2 * TILE + GAP


def test_boxes_of_a_word_are_drawn_on_its_tile_and_those_of_the_sample_on_the_input():
    box = Box(0, "image", {"y": (3.0, 9.0), "x": (6.0, 18.0)})
    elsewhere = Box(0, "depth", {"y": (3.0, 9.0), "x": (6.0, 18.0)})
    plain, bare = strips(image_capture(), words(0, 1, 2), words(0, 1, 2))
    answers = [*words(0), *words(1, boxes=(box, elsewhere)), *words(2, boxes=(elsewhere,))]
    boxed, alone = strips(image_capture(), answers, words(0, 1, 2), boxes=[[box], None])
    pairs = zip(tiles_of(boxed, 4), tiles_of(plain, 4), strict=True)
    changed = [(one != other).any(axis=-1) for one, other in pairs]
    assert [tile.any() for tile in changed] == [True, False, True, False]
    assert alone.tobytes() == bare.tobytes()
    for tile in (changed[0], changed[2]):
        places = np.argwhere(tile)
        assert places.min(axis=0) == pytest.approx((HEIGHT * 3 / 15, TILE * 6 / 21), abs=2)
        assert places.max(axis=0) == pytest.approx((HEIGHT * 9 / 15, TILE * 18 / 21), abs=2)


def test_sheets_of_latents_show_the_whole_text_as_one_rollout():
    captured = image_capture()
    answers = [words(0, 4), words(1)]
    sheets = contact_sheets(look_of(captured, answers), images(), num_latents=0)["image/cross0"]
    for sheet, row in zip(sheets, answers, strict=True):
        assert sheet.width == 4 * (TILE + GAP) + BAR_WIDTH, "input, mean over input, mean, rollout"
        tile = tiles_of(sheet, 4)[3]
        said = {place for query, place in enumerate(PLACES) if any(query in answer.queries for answer in row)}
        dark = colour_at(tile, 0)
        assert {place for place in range(35) if colour_at(tile, place) != dark} == said


def test_every_modality_has_its_tiles_in_a_strip():
    captured = capture_of_places([3, 35 + 17], 1)
    lay_out(captured, {"image": SPANS["image"], "text": Span(35, 70, TEXT)})
    (strip,) = strips(captured, words(0, 1))
    width = STRETCHED[0]
    assert strip.width == 5 * (width + GAP) + BAR_WIDTH, "input and two words in the image, two in the text"
    pixels = np.asarray(strip).astype(float)[TITLE_HEIGHT:]
    lefts = [number * (width + GAP) for number in range(5)]
    assert bright_place(pixels[:HEIGHT, lefts[1] : lefts[1] + TILE]) == pytest.approx((0.5 / 5, 3.5 / 7), abs=0.01)
    assert bright_place(pixels[:STRIP_HEIGHT, lefts[4] : lefts[4] + width]) == pytest.approx((0.5, 17.5 / 35), abs=0.02)
    for tile in (pixels[:HEIGHT, lefts[2] : lefts[2] + TILE], pixels[:STRIP_HEIGHT, lefts[3] : lefts[3] + width]):
        assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 1, "a word that reads another modality is dark in this"


def test_texts_have_no_picture_and_strips_two_abreast():
    captured = capture_of_places([3, 11, 34], 1)
    lay_out(captured, {"text": Span(0, 35, TEXT)})
    sheets = contact_sheets(look_of(captured, [words(0, 1, 2)]), {}, num_latents=2)
    assert set(sheets) == {"text/cross0", "caption/words"}
    (strip,) = sheets["caption/words"]
    width, height = STRETCHED[0], STRIP_HEIGHT
    assert strip.size == (2 * (width + GAP) + BAR_WIDTH, 2 * (height + TITLE_HEIGHT + GAP))
    pixels = np.asarray(strip).astype(float)
    for number, place in enumerate((3, 11, 34)):
        left, top = number % 2 * (width + GAP), TITLE_HEIGHT + number // 2 * (height + TITLE_HEIGHT + GAP)
        tile = pixels[top : top + height, left : left + width]
        assert bright_place(tile) == pytest.approx((0.5, (place + 0.5) / 35), abs=0.02)


def test_words_of_a_video_have_its_frames_side_by_side():
    captured = image_capture(1)
    video = Grid((5, 7, 1), (Axis("time", "s", 0.0, 11.0), *SPANS["image"].grid.axes))
    lay_out(captured, {"video": Span(0, 35, video)})
    (sheet,) = contact_sheets(look_of(captured, [words(0, 1)]), {}, num_latents=1)["caption/words"]
    width, height = Frame(video, None).size
    for number, place in enumerate(PLACES[:2]):
        top = number * (height + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT) + TITLE_HEIGHT
        frame, row = divmod(place, 7)
        found = bright_place(np.asarray(sheet)[top : top + height, :width].astype(float))
        assert found == pytest.approx(((row + 0.5) / 7, (frame + 0.5) / 5), abs=0.02)


def text_encoder() -> TextEncoder:
    positions = LearnedPositions(shape=(23,), dim=13, init_std=1.0, anchored=True)
    return TextEncoder(vocab_size=29, dim=13, positions=positions)


@pytest.mark.parametrize("modalities", ["image", "depth", "image depth", "image audio", "text", "image text", "audio"])
def test_models_of_any_modalities_have_sheets_and_strips_of_what_they_say(modalities):
    encoders = {"image": image_encoder(), "depth": perceiver_text().encoders["depth"]}
    encoders |= {"audio": audio_encoder(), "text": text_encoder()}
    inputs = small_inputs() | {"audio": 0.1 * torch.randn(3, 1, 4001), "text": torch.randint(29, (3, 1, 11))}
    names = modalities.split()
    inputs = {name: inputs[name] for name in names}
    model = perceiver_text(encoders={name: encoders[name] for name in names})
    facts = [EveryWord(Box(0, name, {})) for name in (names * 3)[:3]]
    masks = {"text": torch.arange(11) < torch.tensor([[11], [2], [7]])} if "text" in names else {}
    found = seen(model, inputs, masks, facts=facts)
    sheets = contact_sheets(found, pictures_of(model, inputs), num_latents=2)
    assert set(sheets) == {f"{name}/cross0" for name in names} | {"caption/words"}
    for of_rows in sheets.values():
        assert [sheet.mode for sheet in of_rows] == ["RGB"] * 3
        assert all(np.asarray(sheet).std() > 10 for sheet in of_rows)
    assert all(len(row) > 1 for row in found.answers)
    if names == ["audio"]:
        for strip, row in zip(sheets["caption/words"], found.answers, strict=True):
            rows = -(-(1 + len(row)) // 3)
            columns = -(-(1 + len(row)) // rows)
            assert strip.width == ROW_TICKS_WIDTH + columns * (STRETCHED[0] + GAP) + BAR_WIDTH
            assert strip.height == rows * (STRETCHED[1] + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT)
