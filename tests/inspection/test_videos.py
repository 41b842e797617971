"""Tokens on a grid of three axes, from the look to all that is made of it."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from perceiver.inspection.contact_sheet import COLUMN_TICKS_HEIGHT, GAP, TITLE_HEIGHT
from perceiver.inspection.explorer.packing import unpacked
from perceiver.inspection.figures import COLUMNS_APART, Frame, contact_sheets
from perceiver.inspection.localization import localization
from perceiver.inspection.report import report
from perceiver.types import Axis, Box, Grid
from tests.inspection.drawn import bright_place
from tests.inspection.explanations import arrays_of, contents_of
from tests.inspection.videos import BOXES, COLUMNS, FRAMES, ROWS, VIDEO, X, looked, page_with

FINE = 8
"""Points of a cell along each axis; no edge of a box lies on one of them."""


@pytest.fixture(scope="module")
def seen():
    return looked()


def covered(boxes) -> np.ndarray:
    """Which share of each token boxes cover, counted point by point."""
    inside = np.zeros([FINE * count for count in VIDEO.shape], dtype=bool)
    for box in boxes:
        along = []
        for axis, count in zip(VIDEO.axes, VIDEO.shape, strict=True):
            points = np.array([axis.value((place + 0.5) / (FINE * count)) for place in range(FINE * count)])
            low, high = box.ranges.get(axis.name, (-np.inf, np.inf))
            along.append((points > low) & (points < high))
        inside |= along[0][:, None, None] & along[1][None, :, None] & along[2][None, None, :]
    return inside.reshape(FRAMES, FINE, ROWS, FINE, COLUMNS, FINE).mean(axis=(1, 3, 5)).reshape(-1)


def on_video(values: torch.Tensor, look) -> np.ndarray:
    span = look.record.spans["video"]
    assert (span.start, span.grid) == (4 * 5, VIDEO)
    return values[..., span.start : span.stop].double().numpy()


def strip_of(tokens: np.ndarray) -> np.ndarray:
    """Tokens in the order of time, y and x -> the frames side by side."""
    return np.concatenate(list(tokens.reshape(FRAMES, ROWS, COLUMNS)), axis=1)


def located(look) -> list[tuple[int, int, list[Box]]]:
    """Row, slot, and boxes in the video of each answer that has any."""
    return [
        (row, slot, here)
        for row, answers in enumerate(look.answers)
        for slot, answer in enumerate(answers)
        if (here := [box for box in BOXES[row] or () if (box.label, box.modality) == (answer.label, "video")])
    ]


def test_scores_are_those_of_points_that_are_counted(seen):
    _, look = seen
    found = localization(look)
    cases = located(look)
    assert sorted({(row, look.answers[row][slot].label) for row, slot, _ in cases}) == [(0, 3), (0, 5), (2, 2)]
    for of, maps in (("", look.rollout.inputs), ("relevance/", look.relevance)):
        expected = {name: [] for name in ("energy_in_box", "pointing_game")}
        expected |= {f"{name}_chance": [] for name in list(expected)}
        for row, slot, boxes in cases:
            values, share = on_video(maps[row, slot], look), covered(boxes)
            expected["energy_in_box"].append((values * share).sum() / values.sum())
            expected["energy_in_box_chance"].append(share.mean())
            expected["pointing_game"].append(float(share[values.argmax()] > 0))
            expected["pointing_game_chance"].append((share > 0).mean())
        for name, values in expected.items():
            # Those of the image come first: the box that sample 2 has there, too.
            assert found[f"{of}{name}"].tolist()[1:] == pytest.approx(values, rel=1e-5), (of, name)


def test_the_event_says_what_lies_where(seen):
    _, look = seen
    arrays = arrays_of(look)
    start, stop = arrays["span/video"]
    axes = tuple(Axis(**fields) for fields in json.loads(str(arrays["axes/video"])))
    assert Grid(tuple(arrays["grid/video"].tolist()), axes) == VIDEO
    boxes = [[Box(**fields) for fields in row] for row in json.loads(str(arrays["boxes"]))]
    assert json.dumps([[vars(box) for box in row] for row in boxes]) == json.dumps(
        [[vars(box) for box in row or ()] for row in BOXES]
    )
    for name, values in (("rollout", look.rollout.inputs), ("relevance", look.relevance_shares)):
        np.testing.assert_allclose(arrays[f"{name}/inputs"][..., start:stop], on_video(values, look), atol=1e-3)


def test_the_page_has_a_strip_of_frames_each_with_its_part_of_a_box(seen):
    batch, look = seen
    page, maps = contents_of(page_with(batch, look))
    for row, content in enumerate(maps):
        video = page["samples"][row]["modalities"]["video"]
        assert video["shape"] == [ROWS, FRAMES * COLUMNS]
        assert [(part["axis"]["name"], part["count"]) for part in video["strip"]] == [("time", FRAMES), ("x", COLUMNS)]
        assert [tick["place"] for tick in video["ticks"][1]] == pytest.approx([0, 1 / 3, 2 / 3])
        assert [tick["label"] for tick in video["ticks"][1]] == ["0.5 s", "1 s", "1.5 s"]
        assert page["samples"][row]["modalities"]["image"]["strip"] is None
        width, height = video["size"]
        assert width / height == pytest.approx(FRAMES * 91 / 55, rel=0.02)
        for method, values in zip(content["methods"], (look.relevance_shares, look.rollout.inputs), strict=True):
            found = unpacked(method["maps"])["video"]
            for slot in range(len(look.answers[row])):
                expected = strip_of(on_video(values[row, slot], look))
                assert found[slot].shape == expected.shape
                assert np.abs(found[slot] - expected).max() < 0.012 * expected.max() + 1e-4
        for slot, answer in enumerate(look.answers[row]):
            mine = [box for box in BOXES[row] or () if (box.label, box.modality) == (answer.label, "video")]
            places = content["answers"][slot]["boxes"].get("video", [])
            assert [list(place.values()) for place in places] == [pytest.approx(sides) for sides in sides_of(mine)]
    sides = [[box[side] for side in ("left", "top", "right", "bottom")] for box in boxes_of_sample(page, 0)]
    assert sides == [pytest.approx(expected) for expected in sides_of(BOXES[0])]


def boxes_of_sample(page, row: int):
    return page["samples"][row]["modalities"]["video"]["boxes"]


def sides_of(boxes) -> list[list[float]]:
    """Left, top, right and bottom of each box in each frame that it covers a part of."""
    found = []
    for box in boxes:
        for frame, share in enumerate(covered([box]).reshape(FRAMES, -1).max(axis=1)):
            if share > 0:
                top, bottom = (VIDEO.axes[1].fraction(y) for y in box.ranges.get("y", (0.0, 55.0)))
                left, right = (X.fraction(x) for x in box.ranges.get("x", (0.0, 91.0)))
                found.append([(frame + left) / FRAMES, top, (frame + right) / FRAMES, bottom])
    return found


def with_planted_relevance(look, row: int, slot: int, *cell: int):
    """A look in which one answer hangs on one token of the video."""
    relevance = torch.full_like(look.relevance, 1e-4)
    relevance[row, slot, look.record.spans["video"].start + int(np.ravel_multi_index(cell, VIDEO.shape))] = 1.0
    return replace(look, relevance=relevance)


def test_the_terminal_names_time_and_place(seen):
    look = with_planted_relevance(seen[1], 1, 0, 2, 3, 6)
    file = io.StringIO()
    Console(file=file, width=80, markup=False, emoji=False).print(
        *report("run", look, arrays_of(look, **mean_of(look)), num_tested=0), sep="\n"
    )
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("video: 1.5–2 s", "y 33–44", "x 78–91 px"):
        assert part in text
    drawn = text.split("over video: ")[3].splitlines()  # of the second sample's relevance
    assert drawn[0] == "0.5–2 s, y 0–55, x 0–91 px"
    assert [line.find("█") for line in drawn[1 : 1 + ROWS]] == [-1, -1, -1, 2 * (2 * COLUMNS + 6), -1]
    assert "relevance, pointing game: " in text


def mean_of(look) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in localization(look).items()}


def test_panels_are_bright_at_the_token(seen):
    slot = 1
    look = with_planted_relevance(seen[1], 1, slot, 1, 4, 2)
    sheets = contact_sheets(look, {}, num_latents=1)
    assert set(sheets) == {"image/cross0", "video/cross0"}
    (width, height), num_answers = Frame(VIDEO, None).size, len(look.answers[1])
    sheet = np.asarray(sheets["video/cross0"][1]).astype(float)
    below = height + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT
    assert sheet.shape[0] == (2 + 2 * num_answers) * below, "a strip a row"
    top = (1 + num_answers + slot) * below + TITLE_HEIGHT
    place = bright_place(sheet[top : top + height, :width])
    assert place == pytest.approx((4.5 / ROWS, (1 * COLUMNS + 2.5) / (FRAMES * COLUMNS)), abs=0.01)


@pytest.mark.parametrize("num_axes", [3, 4])
def test_frames_of_more_axes_lie_in_each_other_and_ticks_are_not_too_close(num_axes):
    takes = Axis("take", "", 0.0, 11.0)
    grid = VIDEO if num_axes == 3 else Grid((11, *VIDEO.shape), (takes, *VIDEO.axes))
    frame = Frame(grid, None)
    values = np.zeros(grid.shape)
    values[(*[2] * (num_axes - 3), 1, 3, 4)] = 1.0
    box = Box(0, "video", {"take": (2.0, 4.0), "time": (1.0, 1.5), "x": (13.0, 26.0)})
    tile = frame.map_tile("map", values, [box])
    frames = [2 * FRAMES + 1, 3 * FRAMES + 1] if num_axes == 4 else [1]
    assert np.argwhere(tile.values).tolist() == [[3, frames[0] * COLUMNS + 4]]
    count = grid.num_tokens // (ROWS * COLUMNS)
    assert [outline.left for outline in tile.outlines] == pytest.approx([(at + 1 / 7) / count for at in frames])
    assert [outline.right for outline in tile.outlines] == pytest.approx([(at + 2 / 7) / count for at in frames])
    places = [tick.place for tick in tile.column_ticks]
    assert np.diff(places).min() >= COLUMNS_APART
    for tick in tile.column_ticks:
        assert float(tick.label.removesuffix(" s")) == pytest.approx(0.5 + round(tick.place * count) % FRAMES * 0.5)


@pytest.mark.parametrize("count", [3, 7, 11, 13])
def test_a_box_reaches_into_no_frame_across_a_common_edge(count):
    time = Axis("time", "s", 0.1, 0.1 + 0.3 * count)
    frame = Frame(Grid((count, 5, 7), (time, *VIDEO.axes[1:])), None)
    for first in range(count):
        box = Box(0, "video", {"time": (time.value(first / count), time.value((first + 1) / count))})
        (outline,) = frame.outlines(box)
        assert (outline.left, outline.right) == pytest.approx((first / count, (first + 1) / count))


def test_of_a_single_frame_boxes_and_axes_are_those_of_an_image():
    still, image = (Frame(Grid((*first, 5, 7), VIDEO.axes[-2 - len(first) :]), None) for first in ((1,), ()))
    box = Box(0, "video", {"time": (1.0, 1.2), "y": (11.0, 22.0), "x": (13.0, 39.0)})
    assert still.outlines(box) == image.outlines(box) != []
    assert (still.axes, still.size, still.max_columns) == (image.axes, image.size, image.max_columns)
    assert still.outlines(Box(0, "video", {"time": (2.0, 3.0)})) == []
