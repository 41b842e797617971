import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.types import Batch
from tests.models import named

NUM_CLASSES = 7
SIZES = (5, 1, 11, 2)
BOTH = pytest.mark.parametrize("multi_label", [True, False], ids=["multi-label", "single-label"])


def task(num_classes=NUM_CLASSES, *, multi_label=True, mixup=0.0, monitor="mAP", **loss) -> Tagging:
    spec = LossSpec(**loss)
    return Tagging(num_classes=num_classes, multi_label=multi_label, loss=spec, mixup=mixup, monitor=monitor)


def tagged(tags: torch.Tensor, **inputs: torch.Tensor) -> Batch:
    return Batch(inputs=inputs, targets={"tags": tags}, ids=[str(row) for row in range(len(tags))])


def labelled(labels: torch.Tensor, **inputs: torch.Tensor) -> Batch:
    return Batch(inputs=inputs, targets={"label": labels}, ids=[str(row) for row in range(len(labels))])


def drawn(size: int) -> tuple[torch.Tensor, Batch]:
    """Random outputs, and a batch in which any number of classes apply, but at least one."""
    tags = (torch.rand(size, NUM_CLASSES) < 0.3).float()
    tags[torch.arange(size), torch.randint(NUM_CLASSES, (size,))] = 1.0
    return 3 * torch.randn(size, NUM_CLASSES), tagged(tags)


def measure(task: Tagging, stage, batches) -> dict[str, float]:
    for outputs, batch in batches:
        task.update(stage, named(outputs), task.loss(named(outputs), batch), batch)
    return {name: float(value) for name, value in task.metrics(stage).compute().items()}


class TestLoss:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("positive_weight", [1.0, 2.7, [0.3, 0.5, 0.7, 1.1, 1.3, 1.7, 1.9]], ids=str)
    def test_of_many_labels_it_is_weighted_binary_cross_entropy(self, label_smoothing, positive_weight):
        weights = positive_weight if isinstance(positive_weight, list) else [positive_weight] * NUM_CLASSES
        tagging = task(label_smoothing=label_smoothing, positive_weight=positive_weight)
        for outputs, batch in map(drawn, SIZES):
            total = 0.0
            for row, tags in zip(outputs.double().tolist(), batch.targets["tags"].tolist(), strict=True):
                for logit, tag, weight in zip(row, tags, weights, strict=True):
                    target = tag * (1 - label_smoothing / 2) + (1 - tag) * label_smoothing / 2
                    applies = 1 / (1 + math.exp(-logit))
                    total -= weight * target * math.log(applies) + (1 - target) * math.log(1 - applies)
            assert float(tagging.loss(named(outputs), batch)) == pytest.approx(total / outputs.numel(), rel=1e-5)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    def test_of_one_label_it_is_cross_entropy_of_equal_shares(self, label_smoothing):
        for outputs, batch in map(drawn, SIZES):
            total = 0.0
            for row, tags in zip(outputs.double().tolist(), batch.targets["tags"].tolist(), strict=True):
                log_total = math.log(sum(math.exp(value) for value in row))
                for logit, tag in zip(row, tags, strict=True):
                    share = (1 - label_smoothing) * tag / sum(tags) + label_smoothing / NUM_CLASSES
                    total += share * (log_total - logit)
            loss = task(multi_label=False, label_smoothing=label_smoothing).loss(named(outputs), batch)
            assert float(loss) == pytest.approx(total / len(batch), rel=1e-5)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    def test_of_one_label_a_sample_it_is_that_of_classification(self, label_smoothing):
        outputs, labels = torch.randn(11, NUM_CLASSES), torch.randint(NUM_CLASSES, (11,))
        classification = Classification(
            num_classes=NUM_CLASSES, loss=LossSpec(label_smoothing=label_smoothing), mixup=0.0, cutmix=0.0
        )
        tagging = task(multi_label=False, label_smoothing=label_smoothing)
        assert_close(
            tagging.loss(named(outputs), labelled(labels)), classification.loss(named(outputs), labelled(labels))
        )

    @BOTH
    def test_a_label_is_one_tag(self, multi_label):
        outputs, labels = torch.randn(11, NUM_CLASSES), torch.randint(NUM_CLASSES, (11,))
        tagging = task(multi_label=multi_label, label_smoothing=0.3)
        tags = F.one_hot(labels, NUM_CLASSES).float()
        assert_close(
            tagging.loss(named(outputs), labelled(labels)), tagging.loss(named(outputs), tagged(tags)), atol=0, rtol=0
        )
        first = measure(tagging, "val", [(outputs, labelled(labels))])
        assert first == measure(task(multi_label=multi_label, label_smoothing=0.3), "val", [(outputs, tagged(tags))])

    @BOTH
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
    def test_tags_of_any_type_are_the_same_tags(self, multi_label, dtype):
        outputs, batch = drawn(11)
        tagging = task(multi_label=multi_label)
        other = tagged(batch.targets["tags"].to(dtype))
        assert_close(tagging.loss(named(outputs), other), tagging.loss(named(outputs), batch), atol=0, rtol=0)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_of_many_labels_the_focal_loss_is_torchvisions(self, gamma):
        outputs, batch = drawn(11)
        expected = sigmoid_focal_loss(outputs, batch.targets["tags"], alpha=-1, gamma=gamma, reduction="mean")
        assert_close(task(focal_gamma=gamma).loss(named(outputs), batch), expected)

    @pytest.mark.parametrize("options", [{"focal_gamma": 2.0}, {"class_weights": [float(n) for n in range(1, 8)]}])
    def test_of_one_label_weights_and_the_focal_loss_are_those_of_classification(self, options):
        outputs, labels = torch.randn(11, NUM_CLASSES), torch.randint(NUM_CLASSES, (11,))
        options |= {"label_smoothing": 0.1}
        classification = Classification(num_classes=NUM_CLASSES, mixup=0.0, cutmix=0.0, loss=LossSpec(**options))
        tagging, batch = task(multi_label=False, **options), labelled(labels)
        assert_close(tagging.loss(named(outputs), batch), classification.loss(named(outputs), batch))
        assert_close(tagging.num_terms(batch), classification.num_terms(batch))

    def test_balanced_classes_weigh_as_much_where_they_apply_as_where_they_do_not(self):
        tagging, counts = task(positive_weight="balanced"), torch.tensor([1, 2, 3, 5, 7, 11, 13])
        tagging.set_class_counts(counts, 17)
        assert_close(tagging.positive_weight * counts, (17 - counts).float())
        assert tagging.state_dict().keys() == {"positive_weight"}

    @BOTH
    def test_it_is_computed_in_full_precision(self, multi_label):
        outputs, batch = drawn(11)
        tagging = task(multi_label=multi_label, positive_weight=1.5 if multi_label else 1.0)
        exact = tagging.loss(named(outputs.bfloat16().float()), batch)
        assert_close(tagging.loss(named(outputs.bfloat16()), batch), exact, atol=0, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(tagging.loss(named(outputs.bfloat16()), batch), exact, atol=0, rtol=0)
        assert_close(tagging.bfloat16().loss(named(outputs.bfloat16()), batch), exact)

    @BOTH
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    def test_samples_of_which_nothing_is_true_give_finite_losses_and_gradients(self, multi_label, label_smoothing):
        outputs, batch = torch.randn(5, NUM_CLASSES, requires_grad=True), tagged(torch.zeros(5, NUM_CLASSES))
        tagging = task(multi_label=multi_label, label_smoothing=label_smoothing)
        loss = tagging.loss(named(outputs), batch)
        loss.backward()
        assert loss.isfinite()
        assert outputs.grad.isfinite().all()
        assert bool((outputs.grad != 0).any()) == (multi_label or label_smoothing > 0)
        metrics = measure(tagging, "val", [(outputs, batch)])
        assert math.isnan(metrics["mAP"])
        assert metrics.get("accuracy", 0.0) == 0.0

    @BOTH
    def test_extreme_outputs_give_finite_losses(self, multi_label):
        outputs, batch = drawn(11)
        for stretched in (outputs * 1e3, batch.targets["tags"] * 2e3 - 1e3):
            assert task(multi_label=multi_label).loss(named(stretched), batch).isfinite()


class TestMixing:
    @BOTH
    @pytest.mark.parametrize("kind", ["tags", "label"])
    def test_targets_are_mixed_as_the_inputs_are_and_can_be_trained_on(self, multi_label, kind):
        own = torch.eye(NUM_CLASSES)
        inputs = own[:, None].repeat_interleave(13, dim=2)  # a wave in which each class has its place
        batch = tagged(own, audio=inputs) if kind == "tags" else labelled(torch.arange(NUM_CLASSES), audio=inputs)
        tagging = task(multi_label=multi_label, mixup=0.7, label_smoothing=0.1)
        mixed = tagging.prepare(batch, train=True)
        shares = mixed.inputs["audio"][:, 0, ::13]
        assert_close(mixed.targets[kind], shares)
        assert 0.0 < float(shares[0, 0]) < 1.0
        outputs = torch.randn(NUM_CLASSES, NUM_CLASSES)
        loss = tagging.loss(named(outputs), mixed)
        if multi_label:
            assert_close(loss, F.binary_cross_entropy_with_logits(outputs, 0.9 * shares + 0.05))
        else:
            assert_close(loss, F.cross_entropy(outputs, shares, label_smoothing=0.1))
        metrics = measure(tagging, "train", [(shares, mixed)])
        if not multi_label:
            assert metrics["accuracy"] == 1.0  # the larger part counts
            smaller = torch.where(shares > 0, 1 - shares, 0.0)
            assert measure(task(multi_label=False), "train", [(smaller, mixed)])["accuracy"] == 0.0

    @BOTH
    def test_without_mixup_a_batch_is_left_alone(self, multi_label):
        _, batch = drawn(5)
        assert task(multi_label=multi_label).prepare(batch, train=True) is batch


class TestMetrics:
    @BOTH
    @pytest.mark.parametrize("stage", ["train", "val", "test"])
    def test_they_are_those_of_sklearn_over_all_samples(self, multi_label, stage):
        data = [drawn(size) for size in (*SIZES, 101)]
        outputs = torch.cat([outputs for outputs, _ in data])
        tags = torch.cat([batch.targets["tags"] for _, batch in data])
        tagging = task(multi_label=multi_label)
        metrics = measure(tagging, stage, data)
        ranking = {"mAP", "AUC", "d_prime"} if stage != "train" else set()
        assert metrics.keys() == {"loss"} | ranking | (set() if multi_label else {"accuracy"})
        assert metrics["loss"] == pytest.approx(float(tagging.loss(named(outputs), tagged(tags))), rel=1e-5)
        scores = outputs.sigmoid() if multi_label else outputs.softmax(dim=1)
        if ranking:
            assert metrics["mAP"] == pytest.approx(average_precision_score(tags, scores, average="macro"), abs=1e-6)
            assert metrics["AUC"] == pytest.approx(roc_auc_score(tags, scores, average="macro"), abs=1e-6)
        by_class = tagging.class_metrics(stage)
        assert by_class.keys() == ({"AP", "AUC", "positives"} if ranking else set())
        if ranking:
            assert float(by_class["AP"].mean()) == pytest.approx(metrics["mAP"], abs=1e-6)
            assert by_class["positives"].tolist() == tags.sum(dim=0).tolist()

    @BOTH
    @pytest.mark.parametrize("windows", [1, 3])
    def test_scores_whose_probabilities_are_rounded_to_one_are_ranked(self, multi_label, windows):
        outputs, labels = torch.zeros(101, NUM_CLASSES), torch.arange(101) % 2
        outputs[:, 1] = 20.0 + 80.0 * torch.rand(101) + 81.0 * labels
        assert (outputs[:, 1].sigmoid() == 1.0).all()
        tagging, batch = task(multi_label=multi_label), tagged(F.one_hot(labels, NUM_CLASSES).float())
        if windows > 1:
            rows, batch.windows = outputs.repeat_interleave(windows, dim=0), [("",) * windows] * 101
            outputs = tagging.average_windows(named(rows), batch)["logits"]
        measure(tagging, "val", [(outputs, batch)])
        assert float(tagging.class_metrics("val")["AUC"][1]) == 1.0
        assert float(tagging.class_metrics("val")["AP"][1]) == pytest.approx(1.0)

    def test_a_score_that_is_not_a_number_leaves_its_class_without_metrics(self):
        outputs, batch = drawn(11)
        outputs[3, 2] = math.nan
        tagging = task()
        measure(tagging, "val", [(outputs, batch)])
        assert tagging.class_metrics("val")["AP"].isnan().tolist() == [label == 2 for label in range(NUM_CLASSES)]

    @BOTH
    def test_the_checkpoint_is_chosen_by_mean_average_precision_or_another_metric(self, multi_label):
        tagging = task(multi_label=multi_label, monitor="loss")
        assert (tagging.monitor, tagging.monitor_mode) == ("loss", "min")
        assert task(multi_label=multi_label, monitor="d_prime").monitor_mode == "max"
        assert task(multi_label=multi_label).monitor == "mAP"
        with pytest.raises(ValueError, match=r"monitor='map' .*mAP, AUC"):
            task(multi_label=multi_label, monitor="map")

    def test_the_best_class_is_right_if_it_is_any_that_applies(self):
        tags = torch.zeros(4, NUM_CLASSES)
        tags[0, [2, 5]] = tags[1, [2, 5]] = tags[2, [2, 5]] = 1.0
        best = torch.tensor([2, 5, 3, 0])  # of the last one nothing is true
        outputs = F.one_hot(best, NUM_CLASSES).float()
        assert measure(task(multi_label=False), "val", [(outputs, tagged(tags))])["accuracy"] == pytest.approx(2 / 4)

    @BOTH
    def test_those_of_each_stage_are_its_own(self, multi_label):
        tagging, (_, batch) = task(multi_label=multi_label), drawn(11)
        right = 9.0 * batch.targets["tags"]
        assert measure(tagging, "val", [(right, batch)])["mAP"] == 1.0
        assert measure(tagging, "test", [(-right, batch)])["AUC"] == 0.0
        tagging.metrics("test").reset()
        assert float(tagging.metrics("val").compute()["mAP"]) == 1.0
        assert tagging.metrics("val") is tagging.metrics("val")
        assert float(tagging.class_metrics("test")["AUC"].nanmean()) == 0.0, "they outlive the reset"

    @BOTH
    def test_they_hold_no_weights_leave_no_graph_and_are_not_saved(self, multi_label):
        weight = [1.0 + label / 10 for label in range(NUM_CLASSES)] if multi_label else 1.0
        tagging, (outputs, batch) = task(multi_label=multi_label, positive_weight=weight), drawn(11)
        outputs.requires_grad_()
        for stage in ("train", "val"):
            tagging.update(stage, named(outputs), tagging.loss(named(outputs), batch), batch)
            assert not any(value.requires_grad for value in tagging.metrics(stage).compute().values())
        assert list(tagging.parameters()) == []
        assert tagging.state_dict() == {}

    def test_a_loss_that_is_not_a_number_is_seen_in_the_metric(self):
        tagging, (outputs, batch) = task(), drawn(5)
        tagging.update("train", named(outputs), torch.tensor(2.0), batch)
        tagging.update("train", named(outputs), torch.tensor(float("nan")), batch)
        assert math.isnan(tagging.metrics("train").compute()["loss"])

    def test_one_class_alone_can_be_told_from_nothing(self):
        scores, tags = torch.randn(101, 1), (torch.rand(101, 1) < 0.5).float()
        metrics = measure(task(1), "val", [(scores, tagged(tags))])
        assert metrics["mAP"] == pytest.approx(average_precision_score(tags[:, 0], scores[:, 0]), abs=1e-6)


@BOTH
@pytest.mark.parametrize("top", [1, 3, NUM_CLASSES, 11])
def test_predictions_are_the_best_answers_best_first(multi_label, top):
    outputs = torch.randn(5, NUM_CLASSES)
    names = [f"class{label}" for label in range(NUM_CLASSES)]
    batch = labelled(torch.zeros(5), audio=outputs.bfloat16())
    predictions = task(multi_label=multi_label).predictions(
        lambda inputs, masks, queries: named(inputs["audio"]), batch, names, top
    )
    outputs = outputs.bfloat16().float()
    expected = outputs.sigmoid() if multi_label else outputs.softmax(dim=1)
    assert len(predictions) == 5
    for row, answers in zip(expected, predictions, strict=True):
        assert [list(answer) for answer in answers] == [["class", "score"]] * min(top, NUM_CLASSES)
        scores = [answer["score"] for answer in answers]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(float(row.max()))
        assert scores == pytest.approx([float(row[names.index(answer["class"])]) for answer in answers])
        assert len({answer["class"] for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 1, "multi_label": False}, "num_classes=1 must be at least 2"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0\.1"),
        ({"mixup": -0.1}, r"mixup=-0\.1"),
        ({"positive_weight": 0.0}, r"positive_weight=0\.0"),
        ({"positive_weight": float("nan")}, "positive_weight=nan"),
        ({"positive_weight": float("inf")}, "positive_weight=inf"),
        ({"positive_weight": []}, r"positive_weight=\[\]"),
        ({"positive_weight": [1.0, 2.0]}, r"positive_weight=\[1\.0, 2\.0\]"),
        ({"positive_weight": [1.0] * 6 + [-1.0]}, "positive_weight="),
        ({"positive_weight": 2.0, "multi_label": False}, r"positive_weight=2\.0 .*multi_label"),
        ({"positive_weight": "balanced", "multi_label": False}, "positive_weight=balanced .*multi_label"),
        ({"class_weights": "balanced"}, "class_weights=balanced .*multi_label"),
        ({"focal_gamma": -1.0}, r"focal_gamma=-1\.0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        task(**wrong)
