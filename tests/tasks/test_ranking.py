import math
import warnings
from statistics import NormalDist

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics import MetricCollection

from perceiver.tasks.ranking import Ranking

NAMES = {"mAP", "AUC", "d_prime"}


def measured(scores: torch.Tensor, tags: torch.Tensor) -> tuple[dict[str, float], Ranking]:
    metric = Ranking(scores.shape[1])
    metric.update(scores, tags.bool())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: float(value) for name, value in metric.compute().items()}, metric


def by_sklearn(scores: torch.Tensor, tags: torch.Tensor) -> tuple[list[float], list[float]]:
    """Average precision of each class with positives, AUC of each that also has negatives; NaN for the others."""
    precision, auc = [], []
    for of_class, true in zip(scores.T.numpy(), tags.T.numpy(), strict=True):
        precision.append(average_precision_score(true, of_class) if true.any() else math.nan)
        auc.append(roc_auc_score(true, of_class) if true.any() and not true.all() else math.nan)
    return precision, auc


def mean_of_numbers(values: list[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def same(value: float) -> object:
    return pytest.approx(value, abs=1e-6, nan_ok=True)


def drawn(num_samples: int, num_classes: int, ties: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that know something of the tags; with `ties`, of that many steps."""
    scores = torch.rand(num_samples, num_classes)
    tags = torch.rand(num_samples, num_classes) < 0.1 + 0.5 * scores
    return scores if ties is None else (scores * ties).round() / ties, tags


@pytest.mark.parametrize("ties", [None, 7, 1], ids=["no ties", "ties", "two values"])
@pytest.mark.parametrize(("num_samples", "num_classes"), [(1, 3), (2, 5), (11, 7), (1009, 13), (101, 1)])
def test_it_is_what_sklearn_says(num_samples, num_classes, ties):
    scores, tags = drawn(num_samples, num_classes, ties)
    tags[:, 0] = True
    if num_classes > 1:
        tags[:, 1] = False
    metrics, metric = measured(scores, tags)
    precision, auc = by_sklearn(scores, tags)
    assert metrics.keys() == NAMES
    assert metric.by_class["AP"].tolist() == [same(value) for value in precision]
    assert metric.by_class["AUC"].tolist() == [same(value) for value in auc]
    assert metric.by_class["positives"].tolist() == tags.sum(dim=0).tolist()
    assert (metrics["mAP"], metrics["AUC"]) == (same(mean_of_numbers(precision)), same(mean_of_numbers(auc)))


def test_where_every_class_has_both_the_means_are_those_of_sklearn():
    scores, tags = drawn(211, 5, ties=11)
    metrics, _ = measured(scores, tags)
    assert metrics["mAP"] == same(average_precision_score(tags, scores, average="macro"))
    assert metrics["AUC"] == same(roc_auc_score(tags, scores, average="macro"))


def test_the_order_of_samples_and_of_classes_does_not_matter():
    scores, tags = drawn(53, 5, ties=7)
    metrics, metric = measured(scores, tags)
    samples, classes = torch.randperm(53), torch.randperm(5)
    shuffled, of_shuffled = measured(scores[samples][:, classes], tags[samples][:, classes])
    assert shuffled == pytest.approx(metrics)
    torch.testing.assert_close(of_shuffled.by_class["AP"], metric.by_class["AP"][classes])


def test_only_the_order_of_scores_counts():
    scores, tags = drawn(53, 5, ties=None)
    assert measured(scores**3, tags)[0] == measured(scores, tags)[0]


@pytest.mark.parametrize(
    ("tags", "mean_precision"),
    [(torch.zeros(5, 3), math.nan), (torch.ones(5, 3), 1.0)],
    ids=["nothing applies", "everything applies"],
)
def test_what_is_not_defined_is_not_a_number(tags, mean_precision):
    metrics, metric = measured(torch.rand(5, 3), tags)
    assert metrics == pytest.approx({"mAP": mean_precision, "AUC": math.nan, "d_prime": math.nan}, nan_ok=True)
    assert metric.by_class["AUC"].isnan().all()


def test_of_no_sample_nothing_is_defined():
    metric = Ranking(3)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        metrics = metric.compute()
    assert metrics.keys() == NAMES
    assert all(value.isnan() for value in metrics.values())
    assert metric.by_class["positives"].tolist() == [0, 0, 0]


def test_d_prime_is_the_distance_of_two_unit_normals_with_that_auc():
    scores, tags = drawn(211, 5, ties=None)
    metrics, _ = measured(scores, tags)
    assert metrics["d_prime"] == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(metrics["AUC"]), abs=1e-5)
    noise = torch.randn(40009, 2)
    true = torch.rand(40009, 2) < 0.3
    apart, _ = measured((noise + 1.7 * true).sigmoid(), true)
    assert apart["d_prime"] == pytest.approx(1.7, abs=0.05)


@pytest.mark.parametrize(("sign", "auc"), [(1, 1.0), (-1, 0.0)])
def test_d_prime_of_a_perfect_or_perfectly_wrong_ranking_is_finite(sign, auc):
    tags = torch.rand(53, 3) < 0.5
    metrics, _ = measured((sign * (2.0 * tags - 1.0)).sigmoid(), tags)
    assert metrics["AUC"] == auc
    assert metrics["d_prime"] == pytest.approx(sign * 6.7, abs=0.1)
    assert measured(torch.full((53, 3), 0.5), tags)[0]["d_prime"] == pytest.approx(0.0, abs=1e-6)


def parts_of(scores, tags, sizes=(5, 1, 11, 2)):
    return zip(scores.split(sizes), tags.split(sizes), strict=True)


def test_batches_add_up_to_one_batch():
    scores, tags = drawn(19, 5, ties=7)
    metric = Ranking(5)
    for part in parts_of(scores, tags):
        metric.update(*part)
    assert {name: float(value) for name, value in metric.compute().items()} == measured(scores, tags)[0]


@pytest.mark.parametrize("empty", [False, True])
def test_two_processes_add_up_to_one(empty):
    scores, tags = drawn(19, 5, ties=7)
    first, second = Ranking(5), Ranking(5)
    for number, part in enumerate(parts_of(scores, tags)):
        (first if empty or number % 2 else second).update(*part)
    first.merge_state(second)
    assert {name: float(value) for name, value in first.compute().items()} == measured(scores, tags)[0]


def test_what_other_processes_gathered_is_one_tensor_and_counts_the_same():
    scores, tags = drawn(19, 5, ties=7)
    metric = Ranking(5)
    metric.update(scores, tags)
    metric.scores, metric.tags = scores, tags  # as torchmetrics leaves them after it has gathered
    assert {name: float(value) for name, value in metric.compute().items()} == measured(scores, tags)[0]


def test_a_reset_forgets_the_samples_but_not_what_was_computed():
    scores, tags = drawn(19, 5, ties=7)
    _, metric = measured(scores, tags)
    before = metric.by_class
    metric.reset()
    assert metric.by_class is before
    other = drawn(23, 5, ties=7)
    metric.update(*other)
    assert {name: float(value) for name, value in metric.compute().items()} == measured(*other)[0]
    assert metric.by_class is not before


def test_in_a_collection_its_names_have_no_prefix():
    collection = MetricCollection({"ranking": Ranking(5)}, compute_groups=False)
    collection["ranking"].update(*drawn(19, 5, ties=None))
    assert collection.compute().keys() == NAMES


def test_it_has_nothing_to_save():
    assert measured(*drawn(19, 5, ties=None))[1].state_dict() == {}
