"""Optical flow: endpoint errors by hand, where the flow is known, and fields in colors."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perceiver.tasks.optical_flow import OpticalFlow, flow_colors
from perceiver.types import Batch, cell_centers

HEIGHT, WIDTH, BATCH = 5, 7, 2


def task(**options) -> OpticalFlow:
    return OpticalFlow(**{"modality": "video", "scale": 20.0, "num_places": 11} | options)


def batch(**targets) -> Batch:
    return Batch({"video": torch.rand(BATCH, 3, 2, HEIGHT, WIDTH)}, targets, ["a", "b"])


def field(places):
    """A flow that is a function of the place, in twentieths of a pixel."""
    return torch.stack([places[..., 0] - 3 * places[..., 1], 2 * places[..., 1]], dim=-1)


def model(inputs, masks=None, queries=None, hidden=None):
    return {"logits": field(queries["logits"])}


def true_flow():
    centers = cell_centers((HEIGHT, WIDTH))
    return (20 * field(centers)).mT.unflatten(1, (HEIGHT, WIDTH)).expand(BATCH, -1, -1, -1).clone()


@pytest.mark.parametrize("train", [True, False])
def test_the_loss_is_the_mean_length_of_differences_where_the_flow_is_known(train):
    flow = true_flow()
    flow[:, 0] += 3.0
    flow[:, 1] -= 4.0
    flow[0, :, :2] = math.nan
    flow[1, :, 4] += 7.0
    flow_task = task()
    given = flow_task.prepare(batch(flow=flow), train=train)
    loss = flow_task.loss(flow_task.outputs(model, given), given)
    errors = torch.full((BATCH, HEIGHT, WIDTH), 5.0)
    errors[1, 4] = math.hypot(3.0 + 7.0, -4.0 + 7.0)
    known = torch.ones_like(errors, dtype=torch.bool)
    known[0, :2] = False
    errors, known = errors.flatten(1), known.flatten(1)
    if train:
        errors, known = (values.gather(1, given.targets["places"]) for values in (errors, known))
        assert known.shape == (BATCH, 11)
    assert_close(loss, errors[known].mean())
    assert flow_task.num_terms(given) == known.sum()
    flow_task.update("val", flow_task.outputs(model, given), loss, given)
    assert_close(flow_task.compute("val"), {"loss": loss, "endpoint_error": loss})


def test_predictions_are_the_mean_flow_in_pixels():
    (row, _) = task().predictions(model, batch(), [], 3)
    flow = true_flow()[0]
    expected = [float(flow[0].mean()), float(flow[1].mean()), float(flow.norm(dim=0).mean())]
    assert [one["component"] for one in row] == ["right", "down", "length"]
    assert [one["pixels"] for one in row] == pytest.approx(expected, rel=1e-5)


def test_each_window_has_a_picture():
    given = batch()
    given.windows, given.ids = [("0-1 s", "1-2 s")], ["a"]
    (pictures,) = task().pictures(model, given, {})
    assert list(pictures) == ["flow_0-1_s", "flow_1-2_s"]
    assert all(image.size == (WIDTH, HEIGHT) for image in pictures.values())
    assert [list(one) for one in task().pictures(model, batch(), {})] == [["flow"], ["flow"]]


def test_colors_are_directions_and_their_saturation_lengths():
    flow = np.zeros((2, 1, 4), np.float32)
    flow[:, 0] = np.array([[0, 0], [3, 0], [-3, 0], [0, 1.5]]).T
    colors = flow_colors(flow)[0].tolist()
    assert colors[0] == [255, 255, 255]
    assert colors[1] == [255, 0, 0]
    assert colors[2] == [0, 255, 255]
    assert min(colors[3]) == 128
    assert flow_colors(flow, largest=6.0)[0, 1].tolist() == [255, 128, 128]


@pytest.mark.parametrize(
    ("problem", "named"),
    [
        (lambda: task(scale=0.0), "scale=0.0"),
        (lambda: task(num_places=0), "num_places=0"),
        (lambda: task().loss({"logits": torch.zeros(2, 35, 2)}, batch()), "there is none"),
        (lambda: task().loss({"logits": torch.zeros(2, 35, 2)}, batch(flow=torch.zeros(2, 2, 5, 6))), r"\[2, 5, 7\]"),
        (lambda: task(modality="depth").queries(batch()), "'depth'|depth"),
    ],
)
def test_errors_name_the_value(problem, named):
    with pytest.raises((ValueError, KeyError), match=named):
        problem()
