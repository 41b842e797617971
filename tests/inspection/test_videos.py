"""Videos, whose tokens have three axes, on the page and in figures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perceiver.inspection.drawing.contact_sheet import COLUMN_TICKS_HEIGHT, GAP, TITLE_HEIGHT
from perceiver.inspection.drawing.figures import Frame, contact_sheets
from perceiver.inspection.evaluation.localization import box_coverage
from perceiver.inspection.maps.explanation import Explanation
from perceiver.types import Axis, Box, Grid, Picture
from tests.inspection.drawn import bright_place
from tests.inspection.explanations import contents_of, unpacked
from tests.inspection.videos import BOXES, COLUMNS, FRAMES, ROWS, VIDEO, X, Y, explained, video_page


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explained()


def outlines_of(boxes: list[Box]) -> list[dict[str, float]]:
    """The outline of each box in each frame that it covers, on the strip of frames."""
    found = []
    for box in boxes:
        top, bottom = (Y.fraction(y) for y in box.ranges.get("y", (Y.start, Y.stop)))
        left, right = (X.fraction(x) for x in box.ranges.get("x", (X.start, X.stop)))
        for frame in np.flatnonzero(box_coverage([[box]], VIDEO).reshape(FRAMES, -1).any(dim=1)):
            sides = {"left": (frame + left) / FRAMES, "top": top, "right": (frame + right) / FRAMES, "bottom": bottom}
            found.append(pytest.approx(sides))
    return found


def test_the_page_has_a_strip_of_frames_each_with_its_part_of_a_box(explanation):
    page, maps = contents_of(video_page(explanation))
    span = explanation.record.spans["video"]
    for row, content in enumerate(maps):
        video = page["samples"][row]["modalities"]["video"]
        assert video["shape"] == [ROWS, FRAMES * COLUMNS]
        assert [(part["axis"]["name"], part["count"]) for part in video["strip"]] == [("time", FRAMES), ("x", COLUMNS)]
        assert [tick["place"] for tick in video["ticks"][1]] == pytest.approx([0, 1 / 3, 2 / 3])
        assert [tick["label"] for tick in video["ticks"][1]] == ["0.5 s", "1 s", "1.5 s"]
        assert page["samples"][row]["modalities"]["image"]["strip"] is None
        width, height = video["size"]
        assert width / height == pytest.approx(FRAMES * 91 / 55, rel=0.02)
        for slot, found in enumerate(unpacked(content["methods"][1]["maps"])["video"]):
            frames = explanation.rollout.inputs[row, slot, span.start : span.stop].reshape(VIDEO.shape)
            expected = torch.cat(list(frames), dim=1)
            np.testing.assert_allclose(found, expected, atol=0.012 * float(expected.max()) + 1e-4)
        for slot, answer in enumerate(explanation.answers[row]):
            boxes = [box for box in BOXES[row] or () if (box.label, box.modality) == (answer.label, "video")]
            assert content["answers"][slot]["boxes"].get("video", []) == outlines_of(boxes)
    shown = page["samples"][0]["modalities"]["video"]["boxes"]
    assert [{side: box[side] for side in ("left", "top", "right", "bottom")} for box in shown] == outlines_of(BOXES[0])


def test_contact_sheets_have_a_strip_in_each_row_which_is_bright_at_the_token(explanation):
    slot, num_answers = 1, len(explanation.answers[1])
    relevance = torch.full_like(explanation.relevance, 1e-4)
    relevance[1, slot, explanation.record.spans["video"].start + int(np.ravel_multi_index((1, 4, 2), VIDEO.shape))] = 1
    sheets = contact_sheets(replace(explanation, relevance=relevance), {}, num_latents=1)
    assert set(sheets) == {"image/cross0", "video/cross0"}
    width, height = Frame(VIDEO, None).size
    sheet = np.asarray(sheets["video/cross0"][1]).astype(float)
    row_height = height + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT
    assert sheet.shape[0] == (2 + 2 * num_answers) * row_height
    top = (1 + num_answers + slot) * row_height + TITLE_HEIGHT
    found = bright_place(sheet[top : top + height, :width])
    assert found == pytest.approx((4.5 / ROWS, (COLUMNS + 2.5) / (FRAMES * COLUMNS)), abs=0.01)


def test_the_input_is_drawn_frame_by_frame_in_the_extent_of_the_tokens():
    # Six frames of 4 × 5 pixels under three frames of tokens, which begin a pixel further right and end below.
    time, y, x = Axis("time", "s", 0.0, 3.0), Axis("y", "px", 0.0, 4.0), Axis("x", "px", 0.0, 5.0)
    frames = torch.rand(2, 3, 6, 4, 5)
    grid = Grid((3, 2, 2), (time, replace(y, stop=6.0), replace(x, start=1.0)))
    pixels = Frame(grid, Picture(frames, Grid((6, 4, 5), (time, y, x)), "")).input_of(1).pixels
    assert pixels.shape == (6, 3 * 4, 3)
    for number in range(3):
        own = (frames[1, :, 2 * number + 1, :, 1:] * 255).round().byte().permute(1, 2, 0).numpy()
        assert (pixels[:4, 4 * number : 4 * number + 4] == own).all()
    assert (pixels[4:] == 0).all()
