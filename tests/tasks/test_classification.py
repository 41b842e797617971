import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.types import Batch
from tests.models import named

NUM_CLASSES = 7
SIZES = (5, 1, 11, 2)


WEIGHTS = [0.3, 0.5, 0.7, 1.1, 1.3, 1.7, 1.9]


def task(num_classes=NUM_CLASSES, *, mixup=0.0, cutmix=0.0, monitor="accuracy", **loss) -> Classification:
    spec = LossSpec(**loss)
    return Classification(num_classes=num_classes, loss=spec, mixup=mixup, cutmix=cutmix, monitor=monitor)


def labelled(labels: torch.Tensor, masks=None, **inputs: torch.Tensor) -> Batch:
    ids = [str(row) for row in range(len(labels))]
    return Batch(inputs=inputs, targets={"label": labels}, ids=ids, masks=masks or {})


def batches(num_classes=NUM_CLASSES, sizes=SIZES) -> list[tuple[torch.Tensor, Batch]]:
    """Random outputs, and batches with random labels."""
    return [(torch.randn(size, num_classes) * 3, labelled(torch.randint(num_classes, (size,)))) for size in sizes]


def measure(task: Classification, stage, batches) -> dict[str, float]:
    for outputs, batch in batches:
        task.update(stage, named(outputs), task.loss(named(outputs), batch), batch)
    return {name: float(value) for name, value in task.metrics(stage).compute().items()}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_loss_is_smoothed_cross_entropy(label_smoothing):
    for outputs, batch in batches():
        expected = 0.0
        for row, label in zip(outputs.double().tolist(), batch.targets["label"].tolist(), strict=True):
            log_total = math.log(sum(math.exp(value) for value in row))
            expected += (1 - label_smoothing) * (log_total - row[label])
            expected += label_smoothing * sum(log_total - value for value in row) / NUM_CLASSES
        loss = task(label_smoothing=label_smoothing).loss(named(outputs), batch)
        assert float(loss) == pytest.approx(expected / len(batch), rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_with_class_weights_it_is_torchs_and_its_terms_are_their_sum(label_smoothing):
    classification = task(label_smoothing=label_smoothing, class_weights=WEIGHTS)
    exact = nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=label_smoothing)
    data = batches()
    for outputs, batch in data:
        labels = batch.targets["label"]
        torch.testing.assert_close(classification.loss(named(outputs), batch), exact(outputs, labels))
        assert float(classification.num_terms(batch)) == pytest.approx(sum(WEIGHTS[label] for label in labels))
        mixed = labelled(nn.functional.one_hot(labels, NUM_CLASSES).float())
        torch.testing.assert_close(classification.loss(named(outputs), mixed), exact(outputs, labels))
    whole = labelled(torch.cat([batch.targets["label"] for _, batch in data]))
    expected = exact(torch.cat([outputs for outputs, _ in data]), whole.targets["label"])
    assert measure(classification, "val", data)["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_are_those_of_sklearn_and_travel_with_the_weights():
    labels = torch.tensor([0] * 11 + [1] * 2 + [2] * 3 + [3, 4, 5, 6])
    classification = task(class_weights="balanced")
    assert classification.needs_class_counts
    outputs, batch = batches()[0]
    assert classification.loss(named(outputs), batch).isnan(), "nothing may be trained before classes are counted"
    classification.set_class_counts(labels.bincount(), len(labels))
    expected = compute_class_weight("balanced", classes=np.arange(NUM_CLASSES), y=labels.numpy())
    assert classification.class_weights.tolist() == pytest.approx(expected.tolist())
    restored = task(class_weights="balanced")
    restored.load_state_dict(classification.state_dict())
    torch.testing.assert_close(restored.class_weights, classification.class_weights)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_the_mean_of_modulated_cross_entropies(gamma):
    for outputs, batch in batches():
        log_p = outputs.log_softmax(dim=1).gather(1, batch.targets["label"][:, None])
        expected = -((1 - log_p.exp()) ** gamma * log_p).mean()
        torch.testing.assert_close(task(focal_gamma=gamma).loss(named(outputs), batch), expected)
    sure = (100.0 * torch.eye(NUM_CLASSES)).requires_grad_()
    loss = task(focal_gamma=gamma).loss(named(sure), labelled(torch.arange(NUM_CLASSES)))
    loss.backward()
    assert sure.grad.isfinite().all()


def test_answers_that_are_equal_once_rounded_keep_their_order():
    outputs = -200.0 - torch.arange(NUM_CLASSES).float().flip(0)[None]
    outputs[0, 0] = 0.0  # beside it all other probabilities are 0
    names = [str(label) for label in range(NUM_CLASSES)]
    assert measure(task(), "val", [(outputs, labelled(torch.tensor([3])))])["top5"] == 1.0
    assert measure(task(), "test", [(outputs, labelled(torch.tensor([1])))])["top5"] == 0.0
    batch = labelled(torch.zeros(1), image=outputs)
    (answers,) = task().predictions(lambda inputs, masks, queries: named(inputs["image"]), batch, names, 5)
    assert [answer["class"] for answer in answers] == ["0", "6", "5", "4", "3"]


@pytest.mark.parametrize(("monitor", "mode"), [("accuracy", "max"), ("loss", "min"), ("calibration_error", "min")])
def test_any_metric_of_validation_can_choose_the_checkpoint(monitor, mode):
    classification = task(monitor=monitor)
    assert (classification.monitor, classification.monitor_mode) == (monitor, mode)
    with pytest.raises(ValueError, match=r"monitor='top5' .*accuracy"):
        task(5, monitor="top5")  # of five classes there is none


def test_the_loss_is_computed_in_full_precision():
    outputs, batch = batches()[0]
    loss = task().loss(named(outputs.bfloat16()), batch)
    torch.testing.assert_close(loss, task().loss(named(outputs.bfloat16().float()), batch), rtol=0, atol=0)


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("num_classes", [2, 5, 7])
def test_metrics_are_those_of_sklearn_over_all_samples(stage, num_classes):
    data = batches(num_classes)
    outputs = torch.cat([outputs for outputs, _ in data])
    labels = torch.cat([batch.targets["label"] for _, batch in data])
    metrics = measure(task(num_classes), stage, data)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, outputs.argmax(dim=1)))
    assert metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-5)
    assert ("top5" in metrics) == (num_classes > 5)
    assert ("calibration_error" in metrics) == (stage != "train")
    if "top5" in metrics:
        top5 = top_k_accuracy_score(labels, outputs, k=5, labels=range(num_classes))
        assert metrics["top5"] == pytest.approx(top5)


@pytest.mark.parametrize(("confidence", "accuracy"), [(1.0, 1.0), (0.999, 0.5), (0.75, 0.75), (0.5, 1.0)])
def test_the_calibration_error_is_how_far_confidence_is_from_accuracy(confidence, accuracy):
    labels = torch.randint(NUM_CLASSES, (100,))
    answers = torch.where(torch.arange(100) < 100 * accuracy, labels, (labels + 1) % NUM_CLASSES)
    others = max((1 - confidence) / (NUM_CLASSES - 1), 1e-12)
    probabilities = torch.full((100, NUM_CLASSES), others).scatter(1, answers[:, None], confidence)
    metrics = measure(task(), "val", [(probabilities.log(), labelled(labels))])
    assert metrics["calibration_error"] == pytest.approx(abs(confidence - accuracy), abs=1e-4)


def test_the_metrics_of_each_stage_are_its_own():
    classification, (_, batch) = task(), batches()[0]
    right = nn.functional.one_hot(batch.targets["label"], NUM_CLASSES).float()
    measure(classification, "train", [(right, batch)])
    assert measure(classification, "val", [(-right, batch)])["accuracy"] == 0.0
    classification.metrics("val").reset()
    assert float(classification.metrics("train").compute()["accuracy"]) == 1.0
    assert classification.metrics("val") is not classification.metrics("test")


def test_metrics_hold_no_weights_and_leave_no_graph():
    classification, (outputs, batch) = task(), batches()[0]
    outputs.requires_grad_()
    classification.update("val", named(outputs), classification.loss(named(outputs), batch), batch)
    assert not any(value.requires_grad for value in classification.metrics("val").compute().values())
    assert list(classification.parameters()) == []
    assert classification.state_dict() == {}


def test_a_loss_that_is_not_a_number_is_seen_in_the_metric():
    outputs, batch = batches()[0]
    classification = task()
    classification.update("train", named(outputs), torch.tensor(2.0), batch)
    classification.update("train", named(outputs), torch.tensor(float("nan")), batch)
    assert math.isnan(classification.metrics("train").compute()["loss"])


def test_the_model_is_called_with_inputs_and_masks():
    batch = labelled(torch.zeros(2), image=torch.rand(2, 3), masks={"image": torch.ones(2)})
    called = []

    def model(*arguments):
        called.append(arguments)
        return named(torch.zeros(2))

    task().outputs(model, batch)
    assert called == [(batch.inputs, batch.masks, {})]


@pytest.mark.parametrize("top", [1, 3, NUM_CLASSES, 11])
def test_predictions_are_the_best_answers_best_first(top):
    outputs = torch.randn(5, NUM_CLASSES)
    names = [f"class{label}" for label in range(NUM_CLASSES)]
    batch = labelled(torch.zeros(5), image=outputs)
    predictions = task().predictions(lambda inputs, masks, queries: named(inputs["image"]), batch, names, top)
    assert len(predictions) == 5
    for row, answers in zip(outputs.softmax(dim=1), predictions, strict=True):
        assert len(answers) == min(top, NUM_CLASSES)
        assert [answer.keys() for answer in answers] == [{"class", "probability"}] * len(answers)
        probabilities = [answer["probability"] for answer in answers]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1.0 + 1e-6
        assert probabilities[0] == pytest.approx(float(row.max()))
        for answer in answers:
            assert answer["probability"] == pytest.approx(float(row[names.index(answer["class"])]))
        assert len({answer["class"] for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_classes": 1}, {"num_classes": 0}, {"label_smoothing": 1.0}, {"mixup": -0.1}, {"cutmix": -1.0}),
        *({"focal_gamma": -0.5}, {"class_weights": "even"}, {"class_weights": 0.0}),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        task(**wrong)
