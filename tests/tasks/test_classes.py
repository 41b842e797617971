"""Classification and tagging: losses and metrics are those of torch, torchvision and sklearn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from perceiver.data.collate import collate
from perceiver.tasks.classes import SHOWN_CLASSES, ClassTask
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.types import Batch, Sample
from tests.models import named

NUM_CLASSES = 7
NAMES = [f"class{label}" for label in range(NUM_CLASSES)]
SIZES = (5, 1, 11, 2)
WEIGHTS = [0.3, 0.5, 0.7, 1.1, 1.3, 1.7, 1.9]


def classification(num_classes=NUM_CLASSES, *, mixup=0.0, cutmix=0.0, monitor="accuracy", **loss) -> Classification:
    spec = LossSpec(**loss)
    return Classification(num_classes=num_classes, loss=spec, mixup=mixup, cutmix=cutmix, monitor=monitor)


def tagging(num_classes=NUM_CLASSES, *, multi_label=True, mixup=0.0, monitor="mAP", **loss) -> Tagging:
    spec = LossSpec(**loss)
    return Tagging(num_classes=num_classes, multi_label=multi_label, loss=spec, mixup=mixup, monitor=monitor)


def single(**options) -> Tagging:
    return tagging(multi_label=False, **options)


TASKS = {"classification": classification, "multi-label": tagging, "single-label": single}
every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
both_taggings = pytest.mark.parametrize("make", [tagging, single], ids=["multi-label", "single-label"])


def batch_of(windows: tuple[int, ...] = (), **targets: torch.Tensor) -> Batch:
    count = len(next(iter(targets.values()), windows))
    ids = [str(row) for row in range(count)]
    return Batch(inputs={}, targets=targets, ids=ids, windows=[("",) * count for count in windows])


@every_task
def test_an_output_of_another_number_of_classes_is_refused_by_name(make):
    with pytest.raises(ValueError, match=rf"logits .*11 .*{NUM_CLASSES}"):
        make().average_windows(named(torch.zeros(3, 11)), batch_of(label=torch.zeros(3)))


def drawn(size: int, kind: str = "tags") -> tuple[torch.Tensor, Batch]:
    """Random outputs, and a batch with `label`, or with `tags` of which at least one applies."""
    label = torch.randint(NUM_CLASSES, (size,))
    tags = ((torch.rand(size, NUM_CLASSES) < 0.3) | F.one_hot(label, NUM_CLASSES).bool()).float()
    return 3 * torch.randn(size, NUM_CLASSES), batch_of(**{kind: {"label": label, "tags": tags}[kind]})


def kind_of(task: ClassTask) -> str:
    return "label" if isinstance(task, Classification) else "tags"


def probabilities(task: ClassTask, logits: torch.Tensor) -> torch.Tensor:
    return logits.sigmoid() if task.multi_label else logits.softmax(dim=-1)


def measure(task: ClassTask, stage, batches) -> dict[str, float]:
    for outputs, batch in batches:
        task.update(stage, named(outputs), task.loss(named(outputs), batch), batch)
    return {name: float(value) for name, value in task.metrics(stage).compute().items()}


class TestLoss:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weights"])
    @pytest.mark.parametrize("make", [classification, single], ids=["classification", "single-label"])
    def test_of_one_class_it_is_torchs_cross_entropy_and_its_terms_are_the_weights(
        self, make, class_weights, label_smoothing
    ):
        task = make(label_smoothing=label_smoothing, class_weights=class_weights)
        weights = torch.tensor(class_weights or [1.0] * NUM_CLASSES)
        exact = nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing)
        data = [drawn(size, "label") for size in SIZES]
        for outputs, batch in data:
            labels = batch.targets["label"]
            assert_close(task.loss(named(outputs), batch), exact(outputs, labels))
            assert float(task.num_terms(batch)) == pytest.approx(float(weights[labels].sum()))
            one_hot = batch_of(label=F.one_hot(labels, NUM_CLASSES).float())
            assert_close(task.loss(named(outputs), one_hot), exact(outputs, labels))
        whole = [torch.cat(parts) for parts in zip(*[(o, b.targets["label"]) for o, b in data], strict=True)]
        assert measure(task, "val", data)["loss"] == pytest.approx(float(exact(*whole)), rel=1e-5)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    def test_several_tags_have_equal_shares_of_a_single_label(self, label_smoothing):
        for outputs, batch in map(drawn, SIZES):
            tags = batch.targets["tags"]
            exact = F.cross_entropy(outputs, tags / tags.sum(dim=1, keepdim=True), label_smoothing=label_smoothing)
            assert_close(single(label_smoothing=label_smoothing).loss(named(outputs), batch), exact)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("weight", [1.0, 2.7, WEIGHTS], ids=str)
    def test_of_many_labels_it_is_torchs_binary_cross_entropy(self, weight, label_smoothing):
        task = tagging(label_smoothing=label_smoothing, positive_weight=weight)
        for outputs, batch in map(drawn, SIZES):
            smooth = batch.targets["tags"] * (1 - label_smoothing) + label_smoothing / 2
            positive = torch.tensor(weight).expand(NUM_CLASSES)
            exact = F.binary_cross_entropy_with_logits(outputs, smooth, pos_weight=positive)
            assert_close(task.loss(named(outputs), batch), exact)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_the_focal_loss_is_that_of_the_paper_with_finite_gradients(self, gamma):
        outputs, batch = drawn(11)
        exact = sigmoid_focal_loss(outputs, batch.targets["tags"], alpha=-1, gamma=gamma, reduction="mean")
        assert_close(tagging(focal_gamma=gamma).loss(named(outputs), batch), exact)
        outputs, batch = drawn(11, "label")
        log_p = outputs.log_softmax(dim=1).gather(1, batch.targets["label"][:, None])
        exact = -((1 - log_p.exp()) ** gamma * log_p).mean()
        for make in (classification, single):
            assert_close(make(focal_gamma=gamma).loss(named(outputs), batch), exact)
        sure = (100.0 * torch.eye(NUM_CLASSES)).requires_grad_()
        classification(focal_gamma=gamma).loss(named(sure), batch_of(label=torch.arange(NUM_CLASSES))).backward()
        assert sure.grad.isfinite().all()

    @pytest.mark.parametrize("make", [classification, single], ids=["classification", "single-label"])
    def test_balanced_weights_are_those_of_sklearn_and_saved(self, make):
        labels = torch.tensor([0] * 11 + [1] * 2 + [2] * 3 + [3, 4, 5, 6])
        task, (outputs, batch) = make(class_weights="balanced"), drawn(5, "label")
        assert task.needs_class_counts
        assert task.loss(named(outputs), batch).isnan(), "before classes are counted"
        task.set_class_counts(labels.bincount(), len(labels))
        expected = compute_class_weight("balanced", classes=np.arange(NUM_CLASSES), y=labels.numpy())
        restored = make(class_weights="balanced")
        restored.load_state_dict(task.state_dict())
        assert restored.class_weights.tolist() == pytest.approx(expected.tolist())

    def test_balanced_tags_weigh_as_much_where_they_apply_as_where_they_do_not(self):
        task, counts = tagging(positive_weight="balanced"), torch.tensor([1, 2, 3, 5, 7, 11, 13])
        task.set_class_counts(counts, 17)
        assert_close(task.positive_weight * counts, (17 - counts).float())
        assert task.state_dict().keys() == {"positive_weight"}

    @both_taggings
    def test_a_label_is_one_tag_and_tags_may_have_any_type(self, make):
        outputs, batch = drawn(11, "label")
        tags = F.one_hot(batch.targets["label"], NUM_CLASSES)
        expected = measure(make(label_smoothing=0.3), "val", [(outputs, batch)])
        for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.float64):
            other = batch_of(tags=tags.to(dtype))
            assert measure(make(label_smoothing=0.3), "val", [(outputs, other)]) == expected

    @every_task
    def test_it_is_computed_in_full_precision_and_finite_for_extreme_outputs(self, make):
        task = make()
        outputs, batch = drawn(11, kind_of(task))
        low = outputs.bfloat16()
        exact = task.loss(named(low.float()), batch)
        assert_close(task.loss(named(low), batch), exact, atol=0, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(task.loss(named(low), batch), exact, atol=0, rtol=0)
        assert_close(task.bfloat16().loss(named(low), batch), exact)
        assert task.loss(named(1e3 * outputs), batch).isfinite()

    @both_taggings
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    def test_samples_without_tags_give_finite_losses_and_gradients(self, make, label_smoothing):
        outputs, batch = torch.randn(5, NUM_CLASSES, requires_grad=True), batch_of(tags=torch.zeros(5, NUM_CLASSES))
        task = make(label_smoothing=label_smoothing)
        loss = task.loss(named(outputs), batch)
        loss.backward()
        assert loss.isfinite()
        assert outputs.grad.isfinite().all()
        assert bool((outputs.grad != 0).any()) == (task.multi_label or label_smoothing > 0)
        metrics = measure(task, "val", [(outputs, batch)])
        assert math.isnan(metrics["mAP"])
        assert metrics.get("accuracy", 0.0) == 0.0


@both_taggings
@pytest.mark.parametrize("kind", ["tags", "label"])
def test_mixed_targets_can_be_trained_on_and_evaluation_mixes_nothing(make, kind):
    own = torch.eye(NUM_CLASSES)
    batch = batch_of(**({"tags": own} if kind == "tags" else {"label": torch.arange(NUM_CLASSES)}))
    batch.inputs["audio"] = own[:, None].repeat_interleave(13, dim=2)  # a wave in which each class has its place
    task = make(mixup=0.7, label_smoothing=0.1)
    assert task.prepare(batch, train=False) is batch
    assert make().prepare(batch, train=True) is batch
    mixed = task.prepare(batch, train=True)
    shares = mixed.inputs["audio"][:, 0, ::13]
    assert_close(mixed.targets[kind], shares)
    outputs = torch.randn(NUM_CLASSES, NUM_CLASSES)
    loss = task.loss(named(outputs), mixed)
    if task.multi_label:
        assert_close(loss, F.binary_cross_entropy_with_logits(outputs, 0.9 * shares + 0.05))
        return
    assert_close(loss, F.cross_entropy(outputs, shares, label_smoothing=0.1))
    assert measure(task, "train", [(shares, mixed)])["accuracy"] == 1.0  # the larger part counts
    smaller = torch.where(shares > 0, 1 - shares, 0.0)
    assert measure(make(), "train", [(smaller, mixed)])["accuracy"] == 0.0


class TestMetrics:
    @pytest.mark.parametrize("stage", ["train", "val", "test"])
    @pytest.mark.parametrize("num_classes", [2, 5, 7])
    def test_of_classification_they_are_those_of_sklearn_over_all_samples(self, stage, num_classes):
        outputs, labels = 3 * torch.randn(19, num_classes), torch.randint(num_classes, (19,))
        parts = [(o, batch_of(label=label)) for o, label in zip(outputs.split(7), labels.split(7), strict=True)]
        metrics = measure(classification(num_classes), stage, parts)
        assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, outputs.argmax(dim=1)))
        assert metrics["loss"] == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)
        assert ("calibration_error" in metrics) == (stage != "train")
        assert ("top5" in metrics) == (num_classes > 5)
        if num_classes > 5:
            top5 = top_k_accuracy_score(labels, outputs, k=5, labels=range(num_classes))
            assert metrics["top5"] == pytest.approx(top5)

    @pytest.mark.parametrize(("confidence", "accuracy"), [(1.0, 1.0), (0.999, 0.5), (0.75, 0.75), (0.5, 1.0)])
    def test_the_calibration_error_is_how_far_confidence_is_from_accuracy(self, confidence, accuracy):
        labels = torch.randint(NUM_CLASSES, (100,))
        best = torch.where(torch.arange(100) < 100 * accuracy, labels, (labels + 1) % NUM_CLASSES)
        others = max((1 - confidence) / (NUM_CLASSES - 1), 1e-12)
        logits = torch.full((100, NUM_CLASSES), others).scatter(1, best[:, None], confidence).log()
        metrics = measure(classification(), "val", [(logits, batch_of(label=labels))])
        assert metrics["calibration_error"] == pytest.approx(abs(confidence - accuracy), abs=1e-4)

    @both_taggings
    @pytest.mark.parametrize("stage", ["train", "val"])
    def test_of_tagging_they_are_those_of_sklearn_over_all_samples(self, make, stage):
        data = [drawn(size) for size in (*SIZES, 101)]
        outputs = torch.cat([outputs for outputs, _ in data])
        tags = torch.cat([batch.targets["tags"] for _, batch in data])
        task = make()
        metrics, scores, by_class = measure(task, stage, data), probabilities(task, outputs), task.class_metrics(stage)
        assert metrics["loss"] == pytest.approx(float(task.loss(named(outputs), batch_of(tags=tags))), rel=1e-5)
        assert ("accuracy" in metrics) == (not task.multi_label)
        if stage == "train":
            assert metrics.keys() <= {"loss", "accuracy"}
            assert by_class == {}
            return
        assert metrics["mAP"] == pytest.approx(average_precision_score(tags, scores, average="macro"), abs=1e-6)
        assert metrics["AUC"] == pytest.approx(roc_auc_score(tags, scores, average="macro"), abs=1e-6)
        assert float(by_class["AP"].mean()) == pytest.approx(metrics["mAP"], abs=1e-6)
        assert by_class["positives"].tolist() == tags.sum(dim=0).tolist()

    @both_taggings
    @pytest.mark.parametrize("windows", [1, 3])
    def test_scores_whose_probabilities_are_rounded_to_one_are_ranked(self, make, windows):
        outputs, labels = torch.zeros(101, NUM_CLASSES), torch.arange(101) % 2
        outputs[:, 1] = 20.0 + 80.0 * torch.rand(101) + 81.0 * labels
        assert (outputs[:, 1].sigmoid() == 1.0).all()
        task, batch = make(), batch_of(windows=(windows,) * 101, label=labels)
        rows = outputs.repeat_interleave(windows, dim=0)
        measure(task, "val", [(task.average_windows(named(rows), batch)["logits"], batch)])
        assert float(task.class_metrics("val")["AUC"][1]) == 1.0

    def test_classes_that_are_equal_once_rounded_keep_their_order(self):
        outputs = -200.0 - torch.arange(NUM_CLASSES).float().flip(0)[None]
        outputs[0, 0] = 0.0  # beside it all other probabilities are 0
        for label, top5 in ((3, 1.0), (1, 0.0)):
            assert measure(classification(), "val", [(outputs, batch_of(label=torch.tensor([label])))])["top5"] == top5
        (found,) = classification().predictions(lambda *_: named(outputs), batch_of(label=torch.zeros(1)), NAMES, 5)
        assert [one["class"] for one in found] == [NAMES[label] for label in (0, 6, 5, 4, 3)]

    def test_accuracy_is_how_often_the_best_class_applies(self):
        tags = torch.zeros(4, NUM_CLASSES)
        tags[0, [2, 5]] = tags[1, [2, 5]] = tags[2, [2, 5]] = 1.0
        best = F.one_hot(torch.tensor([2, 5, 3, 0]), NUM_CLASSES).float()  # the last sample has no class
        assert measure(single(), "val", [(best, batch_of(tags=tags))])["accuracy"] == pytest.approx(2 / 4)

    def test_a_class_may_be_alone_and_one_with_a_score_that_is_no_number_has_no_metrics(self):
        outputs, batch = drawn(11)
        outputs[3, 2] = math.nan
        task = tagging()
        measure(task, "val", [(outputs, batch)])
        assert task.class_metrics("val")["AP"].isnan().tolist() == [label == 2 for label in range(NUM_CLASSES)]
        scores, tags = torch.randn(101, 1), (torch.rand(101, 1) < 0.5).float()
        metrics = measure(tagging(1), "val", [(scores, batch_of(tags=tags))])
        assert metrics["mAP"] == pytest.approx(average_precision_score(tags[:, 0], scores[:, 0]), abs=1e-6)

    @pytest.mark.parametrize("make", [classification, single], ids=["classification", "single-label"])
    def test_accuracy_by_group_is_that_of_its_samples_alone(self, make):
        parts = [(outputs, batch_of(label=b.targets["label"])) for outputs, b in (drawn(n, "label") for n in SIZES)]
        assert not [name for name in measure(make(), "val", parts) if name.endswith("_accuracy")]
        correct: dict[str, list[bool]] = {}
        for size, (outputs, batch) in zip(SIZES, parts, strict=True):
            batch.targets["group"] = [("", "count", "color")[(size + row) % 3] for row in range(size)]
            for group, logits, label in zip(batch.groups, outputs, batch.targets["label"], strict=True):
                correct.setdefault(group, []).append(bool(logits.argmax() == label))
        found = measure(make(), "val", parts)
        by_group = {name: value for name, value in found.items() if name.endswith("_accuracy")}
        assert by_group == pytest.approx({f"{g}_accuracy": np.mean(correct[g]) for g in ("color", "count")})
        assert found["accuracy"] == pytest.approx(np.mean(np.concatenate([*correct.values()])))
        rows = make().table_rows(named(parts[0][0]), parts[0][1], {}, NAMES)["predictions"]
        assert [row.values["group"] for row in rows] == parts[0][1].groups

    @every_task
    def test_those_of_each_stage_are_its_own_leave_no_graph_and_are_not_saved(self, make):
        task = make()
        outputs, batch = drawn(11, kind_of(task))
        outputs.requires_grad_()
        for stage, sign in (("val", 1), ("test", -1)):
            measure(task, stage, [(sign * outputs, batch)])
        before = task.metrics("val").compute()
        assert not any(value.requires_grad for value in before.values())
        by_class = task.class_metrics("test")
        task.reset("test")
        assert_close(task.metrics("val").compute(), before)
        assert_close(task.class_metrics("test"), by_class, equal_nan=True)
        assert list(task.parameters()) == []
        assert task.state_dict() == {}

    @every_task
    def test_a_loss_that_is_not_a_number_is_seen_in_the_metric(self, make):
        task = make()
        outputs, batch = drawn(5, kind_of(task))
        for loss in (2.0, math.nan):
            task.update("train", named(outputs), torch.tensor(loss), batch)
        assert math.isnan(task.metrics("train").compute()["loss"])

    @pytest.mark.parametrize(
        ("make", "monitor", "mode"),
        [
            *((classification, "accuracy", "max"), (classification, "loss", "min")),
            *((classification, "calibration_error", "min"), (tagging, "d_prime", "max"), (single, "loss", "min")),
            *((classification, "red_accuracy", "max"), (single, "red_accuracy", "max")),
        ],
    )
    def test_any_metric_of_validation_can_choose_the_checkpoint(self, make, monitor, mode):
        task = make(monitor=monitor)
        task.build_metrics()
        assert (task.monitor, task.monitor_mode) == (monitor, mode)
        for wrong in ("top7", "red_loss", "_accuracy"):
            with pytest.raises(ValueError, match=rf"monitor='{wrong}' .*loss"):
                make(monitor=wrong).build_metrics()


@every_task
class TestWindows:
    @pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
    def test_the_probabilities_of_a_sample_are_the_mean_over_its_windows(self, make, spread):
        task, batch, outputs = make(), batch_of(windows=(3, 1, 2)), spread * torch.randn(6, NUM_CLASSES)
        each = probabilities(task, outputs.double())
        expected = torch.stack([each[:3].mean(dim=0), each[3], each[4:].mean(dim=0)])
        found = task.average_windows(named(outputs), batch)["logits"]
        assert_close(probabilities(task, found.double()), expected, atol=1e-7, rtol=1e-5)
        rows = outputs.repeat_interleave(2, dim=0)
        same = task.average_windows(named(rows), batch_of(windows=(2,) * 6))
        assert_close(task.probabilities(same), task.probabilities(named(outputs)), atol=1e-6, rtol=1e-5)

    def test_without_windows_and_of_other_outputs_nothing_changes(self, make):
        task, outputs = make(), named(torch.randn(5, NUM_CLASSES)) | {"other": torch.randn(5, 3)}
        assert_close(task.average_windows(outputs, Batch({}, {}, list("abcde"))), outputs, atol=0, rtol=0)
        assert task.average_windows(outputs, batch_of(windows=(2, 3)))["other"] is outputs["other"]
        with pytest.raises(ValueError, match=r"output='logits'.* other"):
            task.average_windows({"other": outputs["other"]}, batch_of(windows=(2, 3)))

    def test_probabilities_are_float32_of_any_number_of_dimensions(self, make):
        task, outputs = make(), (3 * torch.randn(2, 3, NUM_CLASSES)).bfloat16()
        found = task.probabilities(named(outputs))
        assert found.keys() == {"logits"}
        assert_close(found["logits"], probabilities(task, outputs.float()))

    def test_extreme_and_half_precision_outputs_stay_numbers(self, make):
        task, outputs = make(), (1e4 * torch.randn(5, NUM_CLASSES)).bfloat16()
        found = task.average_windows(named(outputs), batch_of(windows=(2, 3)))
        assert found["logits"].dtype == torch.float32
        assert task.loss(found, batch_of(label=torch.tensor([2, 3]))).isfinite()
        if task.multi_label:
            sure = torch.linspace(-61.0, 61.0, 3 * NUM_CLASSES).reshape(3, NUM_CLASSES)
            rows = named(sure.repeat_interleave(2, dim=0))
            assert_close(task.average_windows(rows, batch_of(windows=(2, 2, 2)))["logits"], sure)

    def test_the_model_gets_windows_and_the_metrics_samples(self, make):
        task, rows, calls = make(), torch.randn(6, 1, 13), []
        batch = collate(
            [
                Sample({"audio": rows[:2]}, {"label": 2}, "p", windows=("a", "b")),
                Sample({"audio": rows[2, :, :11]}, {"label": 5}, "q"),
                Sample({"audio": rows[3:]}, {"label": 2}, "r", windows=("a", "b", "c")),
            ]
        )

        def model(*arguments):
            calls.append(arguments)
            return named(arguments[0]["audio"][:, 0, :NUM_CLASSES])

        found = task.average_windows(task.outputs(model, batch), batch)
        assert calls == [(batch.inputs, batch.masks, {}, {})]
        assert found["logits"].shape == (3, NUM_CLASSES)
        task.update("test", found, task.loss(found, batch), batch)

    @pytest.mark.parametrize("top", [1, 3, NUM_CLASSES, 11])
    def test_predictions_are_of_samples_best_first_and_answers_of_rows(self, make, top):
        task, outputs, batch = make(), torch.randn(6, NUM_CLASSES).bfloat16(), batch_of(windows=(3, 1, 2))
        found = task.predictions(lambda *_: named(outputs), batch, NAMES, top)
        expected = probabilities(task, task.average_windows(named(outputs), batch)["logits"].float())
        for row, predictions in zip(expected, found, strict=True):
            assert len(predictions) == min(top, NUM_CLASSES)
            assert all(list(one) == ["class", task.score] for one in predictions)
            scores = [one[task.score] for one in predictions]
            assert scores == pytest.approx(row.sort(descending=True).values[:top].tolist())
            assert scores == pytest.approx([float(row[NAMES.index(one["class"])]) for one in predictions])
        answers = task.answers(named(outputs), task.answer_queries(None, batch), batch, NAMES)
        best = outputs.float().topk(SHOWN_CLASSES, dim=1).indices.tolist()
        assert [[(one.label, one.queries, one.name, one.output) for one in row] for row in answers] == [
            [(label, (label,), NAMES[label], "logits") for label in row] for row in best
        ]


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        *(
            (make, {"label_smoothing": value}, f"label_smoothing={value} ")
            for make in TASKS.values()
            for value in (1.0, -0.1)
        ),
        *((make, {"mixup": -0.1}, r"mixup=-0\.1 ") for make in TASKS.values()),
        *((make, {"focal_gamma": -0.5}, r"focal_gamma=-0\.5 ") for make in TASKS.values()),
        *((classification, {"num_classes": count}, f"num_classes={count} ") for count in (0, 1)),
        (tagging, {"num_classes": 0}, "num_classes=0 "),
        (single, {"num_classes": 1}, "num_classes=1 "),
        (classification, {"cutmix": -1.0}, r"cutmix=-1\.0 "),
        *((classification, {"class_weights": value}, f"class_weights={value} ") for value in ("even", 0.0)),
        *((tagging, {"positive_weight": value}, f"positive_weight={value} ") for value in (0.0, math.nan, math.inf)),
        *((tagging, {"positive_weight": value}, "positive_weight=") for value in ([], [1.0, 2.0], [1.0] * 6 + [-1.0])),
        *(
            (single, {"positive_weight": value}, f"positive_weight={value} .*multi_label")
            for value in (2.0, "balanced")
        ),
        (classification, {"positive_weight": 2.0}, r"positive_weight=2\.0 .*multi_label"),
        (tagging, {"class_weights": "balanced"}, "class_weights=balanced .*multi_label"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make, wrong, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**wrong)
