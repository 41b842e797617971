"""Tokens on a grid of three axes: scores, arrays, page, terminal and figures."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from perceiver.inspection.contact_sheet import COLUMN_TICKS_HEIGHT, GAP, TITLE_HEIGHT
from perceiver.inspection.explanation import Explanation
from perceiver.inspection.figures import COLUMNS_APART, Frame, contact_sheets
from perceiver.inspection.localization import localization
from perceiver.inspection.report import report
from perceiver.types import Axis, Box, Grid
from tests.inspection.drawn import bright_place
from tests.inspection.explanations import arrays_of, contents_of, unpacked
from tests.inspection.videos import BOXES, COLUMNS, FRAMES, ROWS, VIDEO, X, Y, explained, video_page

FINE = 8
"""Points per cell along each axis; no edge of a box coincides with one of them."""
SIDES = ("left", "top", "right", "bottom")


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explained()


def coverage(boxes: list[Box]) -> np.ndarray:
    """The share of each token that boxes cover, by counting points."""
    inside = np.zeros([FINE * count for count in VIDEO.shape], dtype=bool)
    for box in boxes:
        along = []
        for axis, count in zip(VIDEO.axes, VIDEO.shape, strict=True):
            points = np.array([axis.value((place + 0.5) / (FINE * count)) for place in range(FINE * count)])
            low, high = box.ranges.get(axis.name, (-np.inf, np.inf))
            along.append((points > low) & (points < high))
        inside |= along[0][:, None, None] & along[1][None, :, None] & along[2][None, None, :]
    return inside.reshape(FRAMES, FINE, ROWS, FINE, COLUMNS, FINE).mean(axis=(1, 3, 5)).reshape(-1)


def sides_of(boxes: list[Box]) -> list[list[float]]:
    """Left, top, right and bottom of each box in each frame that it covers, on the strip of frames."""
    found = []
    for box in boxes:
        top, bottom = (Y.fraction(y) for y in box.ranges.get("y", (Y.start, Y.stop)))
        left, right = (X.fraction(x) for x in box.ranges.get("x", (X.start, X.stop)))
        frames = np.flatnonzero(coverage([box]).reshape(FRAMES, -1).any(axis=1))
        found += [[(frame + left) / FRAMES, top, (frame + right) / FRAMES, bottom] for frame in frames]
    return found


def video_tokens(values: torch.Tensor, explanation: Explanation) -> np.ndarray:
    span = explanation.record.spans["video"]
    assert (span.start, span.grid) == (4 * 5, VIDEO)
    return values[..., span.start : span.stop].double().numpy()


def video_boxes(row: int, label: int | None) -> list[Box]:
    return [box for box in BOXES[row] or () if (box.label, box.modality) == (label, "video")]


def with_planted_relevance(explanation: Explanation, row: int, slot: int, *cell: int) -> Explanation:
    """An explanation in which one answer depends on one token of the video."""
    relevance = torch.full_like(explanation.relevance, 1e-4)
    start = explanation.record.spans["video"].start
    relevance[row, slot, start + int(np.ravel_multi_index(cell, VIDEO.shape))] = 1.0
    return replace(explanation, relevance=relevance)


def test_localization_equals_that_by_counting_points(explanation):
    found = localization(explanation)
    cases = [
        (row, slot, boxes)
        for row, answers in enumerate(explanation.answers)
        for slot, answer in enumerate(answers)
        if (boxes := video_boxes(row, answer.label))
    ]
    labels = {(row, explanation.answers[row][slot].label) for row, slot, _ in cases}
    assert labels == {(0, 3), (0, 5), (2, 2)}
    for prefix, maps in (("", explanation.rollout.inputs), ("relevance/", explanation.relevance)):
        expected = []
        for row, slot, boxes in cases:
            values, share = video_tokens(maps[row, slot], explanation), coverage(boxes)
            energy, is_hit = (values * share).sum() / values.sum(), float(share[values.argmax()] > 0)
            expected.append([energy, share.mean(), is_hit, (share > 0).mean()])
        names = ("energy_in_box", "energy_in_box_chance", "pointing_game", "pointing_game_chance")
        # The first score is that of the box of sample 2 in the image.
        scores = np.stack([found[f"{prefix}{name}"][1:].numpy() for name in names], axis=1)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_arrays_store_axes_and_boxes(explanation):
    arrays = arrays_of(explanation)
    start, stop = arrays["span/video"]
    axes = tuple(Axis(**fields) for fields in json.loads(str(arrays["axes/video"])))
    assert Grid(tuple(arrays["grid/video"].tolist()), axes) == VIDEO
    stored = json.loads(str(arrays["boxes"]))
    assert json.dumps(stored) == json.dumps([[vars(box) for box in row or ()] for row in BOXES])
    for name, values in (("rollout", explanation.rollout.inputs), ("relevance", explanation.relevance_shares)):
        tokens = video_tokens(values, explanation)
        np.testing.assert_allclose(arrays[f"{name}/inputs"][..., start:stop], tokens, atol=1e-3)


def test_the_page_has_a_strip_of_frames_each_with_its_part_of_a_box(explanation):
    page, maps = contents_of(video_page(explanation))
    for row, content in enumerate(maps):
        video = page["samples"][row]["modalities"]["video"]
        assert video["shape"] == [ROWS, FRAMES * COLUMNS]
        assert [(part["axis"]["name"], part["count"]) for part in video["strip"]] == [("time", FRAMES), ("x", COLUMNS)]
        assert [tick["place"] for tick in video["ticks"][1]] == pytest.approx([0, 1 / 3, 2 / 3])
        assert [tick["label"] for tick in video["ticks"][1]] == ["0.5 s", "1 s", "1.5 s"]
        assert page["samples"][row]["modalities"]["image"]["strip"] is None
        width, height = video["size"]
        assert width / height == pytest.approx(FRAMES * 91 / 55, rel=0.02)
        attributions = (explanation.relevance_shares, explanation.rollout.inputs)
        for method, values in zip(content["methods"], attributions, strict=True):
            found = unpacked(method["maps"])["video"]
            for slot in range(len(explanation.answers[row])):
                frames = video_tokens(values[row, slot], explanation).reshape(VIDEO.shape)
                expected = np.concatenate(list(frames), axis=1)
                np.testing.assert_allclose(found[slot], expected, atol=0.012 * expected.max() + 1e-4)
        for slot, answer in enumerate(explanation.answers[row]):
            boxes = content["answers"][slot]["boxes"].get("video", [])
            expected_sides = sides_of(video_boxes(row, answer.label))
            assert [list(box.values()) for box in boxes] == [pytest.approx(sides) for sides in expected_sides]
    sides = [[box[side] for side in SIDES] for box in page["samples"][0]["modalities"]["video"]["boxes"]]
    assert sides == [pytest.approx(expected) for expected in sides_of(BOXES[0])]


def test_the_terminal_names_time_and_position(explanation):
    found = with_planted_relevance(explanation, 1, 0, 2, 3, 6)
    scores = {name: float(values.mean()) for name, values in localization(found).items()}
    file = io.StringIO()
    parts = report("run", found, arrays_of(found, **scores), num_tested=0)
    Console(file=file, width=80, markup=False, emoji=False).print(*parts, sep="\n")
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("video: 1.5–2 s", "y 33–44", "x 78–91 px", "relevance, pointing game: "):
        assert part in text
    drawn = text.split("over video: ")[3].splitlines()  # of the second sample's relevance
    assert drawn[0] == "0.5–2 s, y 0–55, x 0–91 px"
    assert [line.find("█") for line in drawn[1 : 1 + ROWS]] == [-1, -1, -1, 2 * (2 * COLUMNS + 6), -1]


def test_contact_sheets_have_a_strip_in_each_row_which_is_bright_at_the_token(explanation):
    slot, num_answers = 1, len(explanation.answers[1])
    sheets = contact_sheets(with_planted_relevance(explanation, 1, slot, 1, 4, 2), {}, num_latents=1)
    assert set(sheets) == {"image/cross0", "video/cross0"}
    width, height = Frame(VIDEO, None).size
    sheet = np.asarray(sheets["video/cross0"][1]).astype(float)
    row_height = height + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT
    assert sheet.shape[0] == (2 + 2 * num_answers) * row_height
    top = (1 + num_answers + slot) * row_height + TITLE_HEIGHT
    found = bright_place(sheet[top : top + height, :width])
    assert found == pytest.approx((4.5 / ROWS, (COLUMNS + 2.5) / (FRAMES * COLUMNS)), abs=0.01)


@pytest.mark.parametrize("num_axes", [3, 4])
def test_frames_of_more_axes_are_nested_and_ticks_keep_a_distance(num_axes):
    takes = Axis("take", "", 0.0, 11.0)
    grid = VIDEO if num_axes == 3 else Grid((11, *VIDEO.shape), (takes, *VIDEO.axes))
    values = np.zeros(grid.shape)
    values[(*[2] * (num_axes - 3), 1, 3, 4)] = 1.0
    box = Box(0, "video", {"take": (2.0, 4.0), "time": (1.0, 1.5), "x": (13.0, 26.0)})
    tile = Frame(grid, None).map_tile("map", values, [box])
    frames = [2 * FRAMES + 1, 3 * FRAMES + 1] if num_axes == 4 else [1]
    assert np.argwhere(tile.values).tolist() == [[3, frames[0] * COLUMNS + 4]]
    count = grid.num_tokens // (ROWS * COLUMNS)
    edges = [(outline.left, outline.right) for outline in tile.outlines]
    assert edges == [pytest.approx(((at + 1 / 7) / count, (at + 2 / 7) / count)) for at in frames]
    assert np.diff([tick.place for tick in tile.column_ticks]).min() >= COLUMNS_APART
    for tick in tile.column_ticks:
        assert float(tick.label.removesuffix(" s")) == pytest.approx(0.5 + round(tick.place * count) % FRAMES * 0.5)


@pytest.mark.parametrize("count", [3, 7, 11, 13])
def test_a_box_does_not_extend_across_the_common_edge_of_frames(count):
    time = Axis("time", "s", 0.1, 0.1 + 0.3 * count)
    frame = Frame(Grid((count, 5, 7), (time, Y, X)), None)
    for first in range(count):
        box = Box(0, "video", {"time": (time.value(first / count), time.value((first + 1) / count))})
        (outline,) = frame.outlines(box)
        assert (outline.left, outline.right) == pytest.approx((first / count, (first + 1) / count))


def test_a_single_frame_has_the_boxes_and_axes_of_an_image():
    still, image = (Frame(Grid((*first, 5, 7), VIDEO.axes[-2 - len(first) :]), None) for first in ((1,), ()))
    box = Box(0, "video", {"time": (1.0, 1.2), "y": (11.0, 22.0), "x": (13.0, 39.0)})
    assert still.outlines(box) == image.outlines(box) != []
    assert (still.axes, still.size, still.max_columns) == (image.axes, image.size, image.max_columns)
    assert still.outlines(Box(0, "video", {"time": (2.0, 3.0)})) == []
