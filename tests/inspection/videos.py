"""Tokens of a video beside those of an image, classes with boxes in them, and the page of their explanation."""

import torch

from perceiver.inspection.drawing.media import Media, page_samples
from perceiver.inspection.explorer.page import explorer_page, page_event
from perceiver.inspection.maps.capture import input_pictures
from perceiver.inspection.maps.explanation import Explanation
from perceiver.types import Axis, Box, Grid
from tests.inspection.explanations import CLASS_NAMES, arrays_of, explainer, labelled
from tests.inspection.models import IdentityEncoder, perceiver_io
from tests.models import image_encoder

FRAMES, ROWS, COLUMNS = 3, 5, 7
TIME, Y, X = (Axis("time", "s", 0.5, 2.0), Axis("y", "px", 0.0, 55.0), Axis("x", "px", 0.0, 91.0))
VIDEO = Grid((FRAMES, ROWS, COLUMNS), (TIME, Y, X))


def cells(label: int, **ranges: tuple[float, float]) -> Box:
    """A box over ranges of cells of `VIDEO`."""
    axes = {axis.name: (axis, count) for axis, count in zip(VIDEO.axes, VIDEO.shape, strict=True)}
    found = {
        name: tuple(axes[name][0].value(place / axes[name][1]) for place in places) for name, places in ranges.items()
    }
    return Box(label, "video", found)


BOXES = [
    [
        cells(3, time=(0.25, 2.0), x=(1.5, 4.0)),  # ends at the edge of a frame
        cells(3, y=(2.0, 3.75), x=(3.0, 5.25)),
        cells(5, time=(2.0, 3.0)),
    ],
    None,
    [cells(2, y=(0.0, 1.5)), Box(2, "image", {"y": (0.0, 5.0)})],
]


def explained() -> Explanation:
    """An explanation of three videos, by a model with one query per class."""
    torch.manual_seed(3)
    encoders = {"image": image_encoder(), "video": IdentityEncoder(23, VIDEO)}
    inputs = {"image": torch.rand(3, 3, 11, 13), "video": 2 * torch.randn(3, VIDEO.num_tokens, 23)}
    return explainer(perceiver_io(encoders=encoders)).explain(labelled(inputs, boxes=BOXES))


def video_page(explanation: Explanation) -> str:
    """The page of one explanation."""
    images = {"image": explanation.batch.inputs["image"]}
    media = Media(input_pictures(perceiver_io(encoders={"image": image_encoder()}), images))
    samples = page_samples(explanation.batch, explanation.record.spans, media, CLASS_NAMES)
    return explorer_page("video", samples, {"run": [page_event(arrays_of(explanation))]})
