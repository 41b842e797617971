"""Segmentation: overlap as torchmetrics computes it, the loss of the drawn places, and answers with their places."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from perceiver.tasks.base import EXPLAINED_PLACES
from perceiver.tasks.joint import JointTask
from perceiver.tasks.overlap import Overlap
from perceiver.tasks.segmentation import PALETTE, Segmentation
from perceiver.types import UNLABELED, Axis, Batch, Grid, Picture, cell_centers
from tests.models import named

NUM_CLASSES, ROWS, COLUMNS, BATCH = 5, 7, 11, 3
CELLS = ROWS * COLUMNS
NAMES = [f"class{label}" for label in range(NUM_CLASSES)]


def segmentation(**options) -> Segmentation:
    return Segmentation(**{"num_classes": NUM_CLASSES, "modality": "image", "num_places": 13} | options)


def batch_of(mask=None, shape=(ROWS, COLUMNS)) -> Batch:
    targets = {} if mask is None else {"mask": mask}
    return Batch({"image": torch.rand(BATCH, 3, *shape)}, targets, [str(row) for row in range(BATCH)])


def some_masks(classes=NUM_CLASSES) -> torch.Tensor:
    mask = torch.randint(classes, (BATCH, ROWS, COLUMNS))
    mask[torch.rand(mask.shape) < 0.2] = UNLABELED
    return mask


class Places:
    """A model whose logits are a function of place and sample; it keeps what it was queried for."""

    def __call__(self, inputs, masks=None, queries=None, hidden=None):
        self.places = queries["logits"]
        fields = torch.stack([torch.sin(3 * (label + 1) * self.places.sum(-1) + label) for label in range(NUM_CLASSES)])
        return {"logits": fields.permute(1, 2, 0) + inputs["image"].mean(dim=(1, 2, 3))[:, None, None]}


class TestOverlap:
    def predicted_and_true(self, present=NUM_CLASSES):
        return torch.randint(present, (BATCH, CELLS)), some_masks(present).flatten(1)

    @pytest.mark.parametrize("present", [NUM_CLASSES, 3], ids=["all classes", "some absent"])
    def test_it_is_that_of_torchmetrics_and_of_sets(self, present):
        metric = Overlap(NUM_CLASSES)
        parts = [self.predicted_and_true(present) for _ in range(2)]
        for part in parts:
            metric.update(*part)
        predicted, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        found = metric.compute()
        options = {"num_classes": NUM_CLASSES, "ignore_index": UNLABELED}
        assert_close(found["mIoU"], MulticlassJaccardIndex(**options)(predicted, labels))
        assert_close(found["pixel_accuracy"], MulticlassAccuracy(**options, average="micro")(predicted, labels))
        known = (labels != UNLABELED).flatten().nonzero()[:, 0].tolist()
        for label in range(NUM_CLASSES):
            one, other = ({i for i in known if x.flatten()[i] == label} for x in (predicted, labels))
            expected = len(one & other) / len(one | other) if one | other else math.nan
            assert_close(metric.by_class["IoU"][label], torch.tensor(expected), equal_nan=True)

    def test_batches_and_processes_are_added(self):
        parts, whole = [Overlap(NUM_CLASSES) for _ in range(2)], Overlap(NUM_CLASSES)
        for part in parts:
            pair = self.predicted_and_true()
            part.update(*pair)
            whole.update(*pair)
        parts[0].merge_state(parts[1])
        assert_close(parts[0].compute(), whole.compute())

    def test_without_a_place_it_is_undefined(self):
        assert all(value.isnan() for value in Overlap(NUM_CLASSES).compute().values())


class TestPlaces:
    def test_in_evaluation_all_cells_are_queried_and_the_loss_is_the_mean_over_those_with_a_class(self):
        task, model, batch = segmentation(), Places(), batch_of(some_masks())
        batch = task.prepare(batch, train=False)
        outputs = task.outputs(model, batch)
        assert_close(model.places, cell_centers((ROWS, COLUMNS)).expand(BATCH, -1, -1))
        labels = batch.targets["mask"].flatten()
        expected = F.cross_entropy(outputs["logits"].flatten(0, 1), labels, ignore_index=UNLABELED)
        assert_close(task.loss(outputs, batch), expected)
        assert task.num_terms(batch) == (labels != UNLABELED).sum()

    def test_in_training_some_are_drawn_anew_for_each_sample_and_step(self):
        task, model, batch = segmentation(), Places(), batch_of(some_masks())
        whole = task.outputs(model, batch)["logits"]
        first, second = (task.prepare(batch, train=True) for _ in range(2))
        outputs = task.outputs(model, first)
        places = first.targets["places/logits"]
        assert places.shape == model.places.shape[:2] == (BATCH, 13)
        assert not places.equal(second.targets["places/logits"])
        assert len({tuple(row) for row in places.tolist()}) == BATCH
        assert_close(outputs["logits"], whole.gather(1, places[..., None].expand(-1, -1, NUM_CLASSES)))
        labels = batch.targets["mask"].flatten(1).gather(1, places)
        expected = F.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), ignore_index=UNLABELED)
        assert_close(task.loss(outputs, first), expected)

    def test_two_tasks_over_inputs_of_different_sizes_draw_places_of_their_own(self):
        small = Segmentation(num_classes=NUM_CLASSES, modality="depth", num_places=17, output="small")
        task = JointTask(tasks={"large": segmentation(), "small": small}, weights=None, monitor="loss")
        batch = batch_of(some_masks())
        batch.inputs["depth"] = torch.rand(BATCH, 1, 2, 3)
        queries = task.queries(task.prepare(batch, train=True))
        assert {name: places.shape for name, places in queries.items()} == {
            "logits": (BATCH, 13, 2),
            "small": (BATCH, 17, 2),
        }
        for name, shape in (("logits", (ROWS, COLUMNS)), ("small", (2, 3))):
            cells = {tuple(place) for place in cell_centers(shape).tolist()}
            assert {tuple(place) for place in queries[name].flatten(0, 1).tolist()} <= cells

    def test_samples_without_any_class_have_no_loss(self):
        task, batch = segmentation(), batch_of(torch.full((BATCH, ROWS, COLUMNS), UNLABELED))
        assert task.loss(task.outputs(Places(), batch), batch) == task.num_terms(batch) == 0

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda task: task.loss(named(torch.zeros(BATCH, CELLS, NUM_CLASSES)), batch_of()), "no masks"),
            (lambda task: task.loss(named(torch.zeros(1)), batch_of(torch.zeros(BATCH, 2, 3))), r"\(2, 3\)"),
            (lambda task: task.loss(named(torch.zeros(1)), batch_of([torch.zeros(2, 3)] * 3)), r"\(2, 3\)"),
            (lambda task: segmentation(modality="depth").outputs(Places(), batch_of()), "modality='depth'"),
            (lambda task: segmentation(num_classes=1), "num_classes=1"),
            (lambda task: segmentation(num_classes=256), "num_classes=256"),
            (lambda task: segmentation(num_places=0), "num_places=0"),
            (lambda task: segmentation(monitor="mAP").build_metrics(), "monitor='mAP'"),
        ],
    )
    def test_errors_name_the_value(self, change, error):
        with pytest.raises(ValueError, match=error):
            change(segmentation())


def test_metrics_are_those_of_all_batches_alone_and_in_a_joint_task():
    task = segmentation()
    joint = JointTask(tasks={"map": segmentation()}, monitor="map/mIoU")
    assert joint.given_queries == task.given_queries == {"logits": "places"}
    batches, model = [batch_of(some_masks()) for _ in range(2)], Places()
    for batch in batches:
        outputs = task.outputs(model, batch)
        for one in (task, joint):
            one.update("val", outputs, one.loss(outputs, batch), batch)
    logits = torch.cat([model(batch.inputs, None, task.queries(batch))["logits"] for batch in batches])
    labels = torch.cat([batch.targets["mask"] for batch in batches]).flatten(1)
    found = task.compute("val")
    assert found["loss"] == pytest.approx(
        float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELED)), abs=1e-5
    )
    metric = MulticlassJaccardIndex(NUM_CLASSES, ignore_index=UNLABELED)
    assert_close(found["mIoU"], metric(logits.argmax(-1), labels))
    assert_close(joint.compute("val")["map/mIoU"], found["mIoU"])
    assert_close(task.class_metrics("val")["IoU"].nanmean(), found["mIoU"])


class TestPredictions:
    def test_classes_are_listed_by_their_share(self):
        task, model, batch = segmentation(), Places(), batch_of()
        labels = task.outputs(model, batch)["logits"].argmax(-1)
        for row, found in enumerate(task.predictions(model, batch, NAMES, top=2)):
            shares = {name: float((labels[row] == label).float().mean()) for label, name in enumerate(NAMES)}
            assert len(found) == 2
            assert [one["share"] for one in found] == sorted(shares.values(), reverse=True)[:2]
            assert all(one["share"] == pytest.approx(shares[one["class"]]) for one in found)

    def test_masks_are_pngs_of_classes_and_overlays_their_colors_over_the_input(self, tmp_path):
        task, model, batch = segmentation(), Places(), batch_of()
        axes = (Axis("y", "px", 0.0, ROWS), Axis("x", "px", 0.0, COLUMNS))
        picture = Picture(batch.inputs["image"], Grid((ROWS, COLUMNS), axes), "")
        labels = task.outputs(model, batch)["logits"].argmax(-1).reshape(BATCH, ROWS, COLUMNS)
        for row, found in enumerate(task.pictures(model, batch, {"image": picture})):
            found["mask"].save(tmp_path / "mask.png")
            with Image.open(tmp_path / "mask.png") as mask:
                assert torch.from_numpy(np.array(mask)).equal(labels[row].byte())
            colors = torch.tensor(PALETTE).reshape(-1, 3)[labels[row]]
            assert colors[labels[row] == 0].sum() == 0
            expected = (batch.inputs["image"][row].permute(1, 2, 0) * 255 + colors) / 2
            assert (torch.from_numpy(np.array(found["overlay"])) - expected).abs().max() <= 1.0
        assert list(task.pictures(model, batch, {})[0]) == ["mask"]
        joint = JointTask(tasks={"map": task}, monitor="map/mIoU")
        assert list(joint.pictures(model, batch, {})[0]) == ["map_mask"]

    def test_the_colors_are_those_of_pascal_voc(self):
        assert PALETTE[3:18] == [128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128]

    @pytest.mark.parametrize(("shape", "coarse"), [((ROWS, COLUMNS), CELLS), ((64, 64), 256), ((32, 128), 256)])
    def test_answers_are_classes_with_their_places_on_a_coarse_grid(self, shape, coarse):
        task, model, batch = segmentation(), Places(), batch_of(shape=shape)
        queries = task.answer_queries(model, batch)
        assert queries["logits"].shape[1] == coarse <= EXPLAINED_PLACES
        outputs = model(batch.inputs, None, queries)
        labels = outputs["logits"].argmax(-1)
        for row, answers in enumerate(task.answers(outputs, queries, batch, NAMES)):
            assert [len(one.queries) for one in answers] == sorted((len(one.queries) for one in answers), reverse=True)
            for one in answers:
                assert one.name == NAMES[one.label]
                assert set(one.queries) == set((labels[row] == one.label).nonzero()[:, 0].tolist())

    def test_rows_of_the_table_have_the_scores_of_each_sample(self):
        task, model, batch = segmentation(), Places(), batch_of(some_masks())
        outputs = task.outputs(model, batch)
        (rows,) = task.table_rows(outputs, batch, {}, NAMES).values()
        for row, found in enumerate(rows):
            metric = Overlap(NUM_CLASSES)
            metric.update(outputs["logits"][row].argmax(-1), batch.targets["mask"][row].flatten())
            scores = metric.compute()
            assert found.values["mIoU"] == found.rank == pytest.approx(float(scores["mIoU"]))
            assert found.values["pixel_accuracy"] == pytest.approx(float(scores["pixel_accuracy"]))
