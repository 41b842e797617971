"""Samples that are looked at in several windows are answered by the mean of what is said of each."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.tasks.base import Task
from perceiver.tasks.classes import SHOWN_CLASSES
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.types import Batch, Sample
from tests.models import named

NUM_CLASSES = 7


def tagging(*, multi_label: bool) -> Tagging:
    return Tagging(num_classes=NUM_CLASSES, multi_label=multi_label, loss=LossSpec(), mixup=0.0)


def labelled(labels: torch.Tensor) -> Batch:
    return Batch(inputs={}, targets={"label": labels}, ids=[str(row) for row in range(len(labels))])


def windows(*counts: int) -> Batch:
    return Batch({}, {}, [str(row) for row in range(len(counts))], windows=[("",) * count for count in counts])


def merged_logits(task: Task, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    return task.average_windows(named(outputs), batch)["logits"]


def tasks_with_answers():
    """Each way to answer, and how its outputs become probabilities."""
    classification = Classification(num_classes=NUM_CLASSES, loss=LossSpec(), mixup=0.0, cutmix=0.0)
    return {
        "multi-label": (tagging(multi_label=True), torch.sigmoid),
        "single-label": (tagging(multi_label=False), lambda outputs: outputs.softmax(dim=1)),
        "classification": (classification, lambda outputs: outputs.softmax(dim=1)),
    }


@pytest.mark.parametrize(("task", "answers"), tasks_with_answers().values(), ids=tasks_with_answers())
class TestMerged:
    @pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
    def test_its_probabilities_are_the_mean_of_those_of_the_views(self, task, answers, spread):
        batch, outputs = windows(3, 1, 2), spread * torch.randn(6, NUM_CLASSES)
        each = answers(outputs.double())
        expected = torch.stack([each[:3].mean(dim=0), each[3], each[4:].mean(dim=0)])
        merged = merged_logits(task, outputs, batch)
        assert_close(answers(merged.double()), expected, atol=1e-7, rtol=1e-5)

    def test_its_probabilities_are_those_of_any_number_of_dimensions(self, task, answers):
        outputs = 3 * torch.randn(2, 3, NUM_CLASSES)
        found = task.probabilities(named(outputs.bfloat16()))["logits"]
        assert found.dtype == torch.float32
        assert_close(found.flatten(0, 1), answers(outputs.bfloat16().float().flatten(0, 1)))

    def test_without_views_outputs_stay_as_they_are(self, task, answers):
        outputs = named(torch.randn(5, NUM_CLASSES)) | {"other": torch.randn(5, 3)}
        assert_close(task.average_windows(outputs, Batch({}, {}, list("abcde"))), outputs, atol=0, rtol=0)

    def test_outputs_of_others_stay_as_they_are(self, task, answers):
        outputs = named(torch.randn(5, NUM_CLASSES)) | {"other": torch.randn(5, 3)}
        assert task.average_windows(outputs, windows(2, 3))["other"] is outputs["other"]
        assert task.probabilities(outputs).keys() == {"logits"}
        with pytest.raises(ValueError, match=r"output='logits'.* other"):
            task.average_windows({"other": outputs["other"]}, windows(2, 3))

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_views_that_agree_change_no_answer(self, task, answers, count):
        outputs = 11 * torch.randn(3, NUM_CLASSES)
        batch = windows(count, count, 2 * count)
        rows = outputs.repeat_interleave(torch.tensor([count, count, 2 * count]), dim=0)
        assert_close(answers(merged_logits(task, rows, batch)), answers(outputs), atol=1e-7, rtol=1e-5)

    def test_extreme_and_half_precision_outputs_stay_numbers(self, task, answers):
        outputs = 1e4 * torch.randn(5, NUM_CLASSES)
        merged = task.average_windows(named(outputs.bfloat16()), windows(2, 3))
        assert merged["logits"].dtype == torch.float32
        assert merged["logits"].isfinite().all()
        batch = labelled(torch.tensor([2, 3]))
        assert task.loss(merged, batch).isfinite()
        soft = labelled(F.one_hot(torch.tensor([2, 3]), NUM_CLASSES).float())
        assert task.loss(merged, soft).isfinite()

    def test_a_batch_with_views_is_measured_by_sample(self, task, answers):
        windows = torch.randn(6, 1, 13)
        batch = collate(
            [
                Sample({"audio": windows[:2]}, {"label": 2}, "p", windows=("a", "b")),
                Sample({"audio": windows[2, :, :11]}, {"label": 5}, "q"),
                Sample({"audio": windows[3:]}, {"label": 2}, "r", windows=("a", "b", "c")),
            ]
        )
        seen = []

        def model(inputs, masks, queries):
            seen.append((inputs, masks, queries))
            return named(inputs["audio"][:, 0, :NUM_CLASSES])

        outputs = task.outputs(model, batch)
        assert seen == [(batch.inputs, batch.masks, {})]
        assert outputs["logits"].shape == (6, NUM_CLASSES)
        merged = task.average_windows(outputs, batch)
        task.update("test", merged, task.loss(merged, batch), batch)
        assert merged["logits"].shape == (3, NUM_CLASSES)
        task.reset("test")

    def test_predictions_are_of_samples_by_their_views_together_and_answers_are_of_rows(self, task, answers):
        names = [f"class{label}" for label in range(NUM_CLASSES)]
        outputs, batch = torch.randn(6, NUM_CLASSES), windows(3, 1, 2)

        def model(inputs, masks, queries):
            return named(outputs)

        merged, best = answers(merged_logits(task, outputs, batch)), []
        for row, predictions in zip(merged, task.predictions(model, batch, names, NUM_CLASSES), strict=True):
            found = {one["class"]: value for one in predictions for key, value in one.items() if key != "class"}
            assert [found[name] for name in names] == pytest.approx(row.tolist(), abs=1e-6)
            best.append(predictions[0]["class"])
        assert best == [names[label] for label in merged.argmax(dim=1)]
        of_rows = task.answers(named(outputs), task.answer_queries(model, batch), batch, names)
        expected = outputs.argsort(dim=1, descending=True)[:, :SHOWN_CLASSES].tolist()
        assert [[answer.label for answer in row] for row in of_rows] == expected
        assert all(
            (answer.name, answer.queries, answer.output, answer.kind, answer.boxes)
            == (names[answer.label], (answer.label,), "logits", "", ())
            for row in of_rows
            for answer in row
        )


def test_views_that_are_sure_and_agree_keep_their_log_odds():
    outputs = torch.linspace(-61.0, 61.0, 3 * NUM_CLASSES).reshape(3, NUM_CLASSES)
    rows = outputs.repeat_interleave(2, dim=0)
    assert_close(merged_logits(tagging(multi_label=True), rows, windows(2, 2, 2)), outputs)
