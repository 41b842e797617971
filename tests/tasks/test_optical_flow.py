"""Optical flow: metrics by brute force where the flow is known, fields in colors and as files."""

import math
import struct

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.utils import flow_to_image

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


def distance(one, other) -> float:
    return math.hypot(*(one - other).tolist())


@pytest.mark.parametrize("train", [True, False])
def test_metrics_are_means_over_the_places_where_the_flow_is_known(train):
    flow = true_flow()
    flow[:, 0] += 3.0
    flow[:, 1] -= 4.0
    flow[0, :, :2] = math.nan
    flow[1, :, 4] += 7.0
    flow[1, 0, 1] *= 30.0  # of which the error is a small share
    flow_task = task()
    given = flow_task.prepare(batch(flow=flow), train=train)
    outputs = flow_task.outputs(model, given)
    pixels = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    found = {name: [] for name in ("EPE", "zero_EPE", "mean_EPE", "Fl")}
    for row in range(BATCH):
        drawn = given.targets["places/logits"][row].tolist() if train else range(len(pixels))
        pairs = [(flow[row, :, *pixels[place]], true_flow()[row, :, *pixels[place]]) for place in drawn]
        pairs = [(true, predicted) for true, predicted in pairs if not true.isnan().any()]
        mean = torch.stack([true for true, _ in pairs]).mean(dim=0)
        for true, predicted in pairs:
            found["EPE"].append(error := distance(true, predicted))
            found["zero_EPE"].append(length := distance(true, torch.zeros(2)))
            found["mean_EPE"].append(distance(true, mean))
            found["Fl"].append(float(error > 3 and error > 0.05 * length))
    loss = flow_task.loss(outputs, given)
    assert float(loss) == pytest.approx(np.mean(found["EPE"]), rel=1e-5)
    assert flow_task.num_terms(given) == len(found["EPE"])
    flow_task.update("val", outputs, loss, given)
    computed = {name: float(value) for name, value in flow_task.compute("val").items()}
    assert computed == pytest.approx({"loss": float(loss), **{name: np.mean(all) for name, all in found.items()}})


def test_each_test_sample_has_its_metrics_the_worst_first():
    flow = true_flow()
    flow[1] += 3.0
    flow[1, :, :2] = math.nan
    given = batch(flow=flow)
    table = task().table_rows(task().outputs(model, given), given, {}, [])["predictions"]
    assert [row.values["id"] for row in sorted(table, key=lambda row: row.rank)] == ["b", "a"]
    assert table[1].values["EPE"] == pytest.approx(math.hypot(3.0, 3.0), rel=1e-5)
    flow[0] = math.nan
    given = batch(flow=flow)
    table = task().table_rows(task().outputs(model, given), given, {}, [])["predictions"]
    assert [row.values["id"] for row in sorted(table, key=lambda row: row.rank)] == ["b", "a"]


def test_predictions_are_the_mean_flow_in_pixels():
    (row, _) = task().predictions(model, batch(), [], 3)
    flow = true_flow()[0]
    expected = [float(flow[0].mean()), float(flow[1].mean()), float(flow.norm(dim=0).mean())]
    assert [one["component"] for one in row] == ["right", "down", "length"]
    assert [one["pixels"] for one in row] == pytest.approx(expected, rel=1e-5)


def test_each_window_has_a_picture_and_a_file():
    given = batch()
    given.windows, given.ids = [("0-1 s", "1-2 s")], ["a"]
    (pictures,), (files,) = task().pictures(model, given, {}), task().files(model, given)
    assert list(pictures) == ["flow_0-1_s", "flow_1-2_s"]
    assert list(files) == ["flow_0-1_s.flo", "flow_1-2_s.flo"]
    assert all(image.size == (WIDTH, HEIGHT) for image in pictures.values())
    assert task().reconstructions(model, given) == {}
    assert [list(one) for one in task().files(model, batch())] == [["flow.flo"], ["flow.flo"]]


def test_a_field_without_windows_is_drawn_once():
    gray = Batch({"video": torch.rand(BATCH, 1, 2, HEIGHT, WIDTH)}, {}, ["a", "b"])
    assert [list(one) for one in task().pictures(model, gray, {})] == [["flow"], ["flow"]]
    assert task().reconstructions(model, gray) == {}
    assert task().pictures(model, batch(), {}) == [{}, {}]  # it is drawn as an input of RGB


def test_a_file_has_a_header_and_both_components_of_each_pixel():
    content = task().files(model, batch())[0]["flow.flo"]
    magic, width, height = struct.unpack("<fii", content[:12])
    assert (magic, width, height) == (202021.25, WIDTH, HEIGHT)
    values = np.frombuffer(content[12:], "<f4").reshape(HEIGHT, WIDTH, 2)
    assert_close(torch.tensor(values).permute(2, 0, 1), true_flow()[0])


def test_colors_are_those_of_torchvision_on_one_scale_and_black_where_nothing_is_known():
    flow = torch.randn(2, 2, HEIGHT, WIDTH)
    flow[:, :, 0, 0] = 0.0
    expected = flow_to_image(flow)
    assert expected[:, :, 0, 0].unique().tolist() == [255]
    flow[1] = flow[0] / 2
    single = flow_to_image(flow[0])
    colors = flow_colors(flow)
    assert_close(colors[0], single)
    assert (255 - colors[1].int() - (255 - single.int()) / 2).abs().max() <= 1.0  # half the saturation
    flow[0, 1, 2, 3] = math.nan
    assert flow_colors(flow)[0, :, 2, 3].tolist() == [0, 0, 0]


def test_the_predicted_and_the_true_flow_are_drawn_as_inputs():
    flow = 2 * true_flow()
    drawn = task().reconstructions(model, batch(flow=flow))["video"]
    assert list(drawn) == ["flow", "true flow"]
    colors = flow_colors(torch.stack([true_flow()[1], flow[1]])) / 255
    for number, values in enumerate(drawn.values()):
        assert values.shape == (BATCH, 3, 2, HEIGHT, WIDTH)
        assert_close(values[1], colors[number, :, None].expand(-1, 2, -1, -1))
    assert list(task().reconstructions(model, batch())["video"]) == ["flow"]


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
