"""mAP, AUC and d′ are those of sklearn, for any number of batches and processes."""

import math
import warnings
from statistics import NormalDist

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score
from torchmetrics import MetricCollection

from perceiver.tasks.ranking import Ranking

NAMES = {"mAP", "AUC", "d_prime"}


def values(metric: Ranking) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: float(value) for name, value in metric.compute().items()}


def measured(scores: torch.Tensor, tags: torch.Tensor) -> tuple[dict[str, float], Ranking]:
    metric = Ranking(scores.shape[1])
    metric.update(scores, tags.bool())
    return values(metric), metric


def drawn(num_samples: int, num_classes: int, ties: int | None = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores correlated with the tags; with `ties`, in that many steps."""
    scores = torch.rand(num_samples, num_classes)
    tags = torch.rand(num_samples, num_classes) < 0.1 + 0.5 * scores
    return scores if ties is None else (scores * ties).round() / ties, tags


def same(value: float) -> object:
    return pytest.approx(value, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("ties", [None, 7, 1], ids=["no ties", "ties", "two values"])
@pytest.mark.parametrize(("num_samples", "num_classes"), [(1, 3), (11, 7), (1009, 13), (101, 1)])
def test_it_is_that_of_sklearn_for_each_class_and_on_average(num_samples, num_classes, ties):
    scores, tags = drawn(num_samples, num_classes, ties)
    tags[:, 0] = True
    if num_classes > 1:
        tags[:, 1] = False
    precision = [average_precision_score(t, s) if t.any() else math.nan for s, t in zip(scores.T, tags.T, strict=True)]
    auc = [roc_auc_score(t, s) if t.any() and not t.all() else math.nan for s, t in zip(scores.T, tags.T, strict=True)]
    metrics, metric = measured(scores, tags)
    assert metrics.keys() == NAMES
    assert metric.by_class["AP"].tolist() == [same(value) for value in precision]
    assert metric.by_class["AUC"].tolist() == [same(value) for value in auc]
    assert metric.by_class["positives"].tolist() == tags.sum(dim=0).tolist()
    of_centered = measured(scores - 0.5, tags)[1].by_class  # what has a score above 0 is predicted
    for name, of_sklearn in (("precision", precision_score), ("recall", recall_score)):
        expected = [of_sklearn(t, s > 0.5, zero_division=math.nan) for s, t in zip(scores.T, tags.T, strict=True)]
        assert of_centered[name].tolist() == [same(value) for value in expected]
    for name, of_classes in (("mAP", precision), ("AUC", auc)):
        assert metrics[name] == same(float(torch.tensor(of_classes).nanmean()))


def test_only_the_order_of_scores_counts_and_neither_that_of_samples_nor_of_classes():
    scores, tags = drawn(53, 5)
    metrics, metric = measured(scores, tags)
    assert measured(scores**3, tags)[0] == metrics
    samples, classes = torch.randperm(53), torch.randperm(5)
    shuffled, of_shuffled = measured(scores[samples][:, classes], tags[samples][:, classes])
    assert shuffled == pytest.approx(metrics)
    torch.testing.assert_close(of_shuffled.by_class["AP"], metric.by_class["AP"][classes])


def test_what_is_not_defined_is_nan():
    for tags, mean_precision in ((torch.zeros(5, 3), math.nan), (torch.ones(5, 3), 1.0)):
        metrics, metric = measured(torch.rand(5, 3), tags)
        assert metrics == pytest.approx({"mAP": mean_precision, "AUC": math.nan, "d_prime": math.nan}, nan_ok=True)
        assert metric.by_class["AUC"].isnan().all()
    empty = Ranking(3)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        metrics = empty.compute()
    assert metrics.keys() == NAMES
    assert all(value.isnan() for value in metrics.values())
    assert empty.by_class["positives"].tolist() == [0, 0, 0]


def test_d_prime_is_the_distance_of_two_unit_normals_with_that_auc_and_finite():
    metrics, _ = measured(*drawn(211, 5, ties=None))
    assert metrics["d_prime"] == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(metrics["AUC"]), abs=1e-5)
    noise, tags = torch.randn(40009, 2), torch.rand(40009, 2) < 0.3
    assert measured((noise + 1.7 * tags).sigmoid(), tags)[0]["d_prime"] == pytest.approx(1.7, abs=0.05)
    for sign, auc in ((1, 1.0), (-1, 0.0)):  # perfect, and perfectly wrong
        metrics, _ = measured(sign * (2.0 * tags[:53] - 1.0), tags[:53])
        assert metrics["AUC"] == auc
        assert metrics["d_prime"] == pytest.approx(sign * 6.7, abs=0.1)


@pytest.mark.parametrize("processes", ["one", "two", "one of two without samples", "gathered"])
def test_batches_and_processes_add_up(processes):
    scores, tags = drawn(19, 5)
    expected, metrics = measured(scores, tags)[0], [Ranking(5), Ranking(5)]
    for number, part in enumerate(zip(scores.split((5, 1, 11, 2)), tags.split((5, 1, 11, 2)), strict=True)):
        metrics[number % 2 if processes == "two" else 0].update(*part)
    if processes == "gathered":  # as torchmetrics leaves the states after it has gathered
        metrics[0].scores, metrics[0].tags = scores, tags
    elif processes != "one":
        metrics[0].merge_state(metrics[1])
    assert values(metrics[0]) == expected


def test_a_reset_forgets_the_samples_but_not_what_was_computed_and_nothing_is_saved():
    _, metric = measured(*drawn(19, 5))
    before = metric.by_class
    metric.reset()
    assert metric.by_class is before
    other = drawn(23, 5)
    metric.update(*other)
    assert values(metric) == measured(*other)[0]
    assert metric.by_class is not before
    assert metric.state_dict() == {}
    collection = MetricCollection({"ranking": metric}, compute_groups=False)
    assert collection.compute().keys() == NAMES, "without a prefix"
