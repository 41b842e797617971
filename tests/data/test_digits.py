from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from perceiver.data.base import stratified_split
from perceiver.data.digits import Digits

STAGES = ("train", "val", "test")


def digits(**options) -> Digits:
    defaults = {"num_classes": 10, "on_error": "raise", "image_size": 8, "channels": 1, "augment": None}
    return Digits(**(defaults | options))


@pytest.fixture(scope="module")
def samples() -> dict[str, list]:
    data = digits()
    return {stage: [split[index] for index in range(len(split))] for stage in STAGES for split in [data.split(stage)]}


def test_splits_are_disjoint_and_cover_everything(samples):
    ids = [sample.id for stage in STAGES for sample in samples[stage]]
    assert sorted(ids) == sorted(f"digits/{index}" for index in range(1797))


def test_images_and_labels_are_those_of_sklearn(samples):
    source = load_digits()
    for sample in [sample for stage in STAGES for sample in samples[stage]]:
        index = int(sample.id.split("/")[1])
        assert sample.targets == {"label": source.target[index]}
        image = sample.inputs["image"]
        torch.testing.assert_close(image[0].double(), torch.tensor(source.images[index]) / 16, rtol=0, atol=0.51 / 255)
        assert image.shape == (1, 8, 8)


@pytest.mark.parametrize(("stage", "share"), [("train", 0.7), ("val", 0.1), ("test", 0.2)])
def test_every_split_holds_its_share_of_every_class(samples, stage, share):
    counts = Counter(sample.targets["label"] for sample in samples[stage])
    everything = Counter(load_digits().target.tolist())
    assert all(counts[label] == pytest.approx(share * everything[label], abs=1) for label in range(10))


def test_splits_are_the_same_every_time_whatever_the_seed(samples):
    torch.manual_seed(23)
    split = digits().split("val")
    assert [split[index].id for index in range(len(split))] == [sample.id for sample in samples["val"]]


def test_three_channels_repeat_the_grey_one_and_size_is_free(samples):
    sample = digits(channels=3, image_size=(11, 13)).split("test")[5]
    assert sample.inputs["image"].shape == (3, 11, 13)
    assert (sample.inputs["image"] == sample.inputs["image"][:1]).all()
    assert sample.id == samples["test"][5].id


def test_there_are_ten_digits_with_names():
    assert digits().class_names == [str(digit) for digit in range(10)]
    with pytest.raises(ValueError, match=r"num_classes=11.*10"):
        digits(num_classes=11)


def test_what_happens_on_error_is_one_of_two_words():
    with pytest.raises(ValueError, match="on_error='ignore'"):
        digits(on_error="ignore")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_a_stratified_split_takes_its_share_of_every_class_and_loses_nothing(fraction):
    labels = torch.tensor([0] * 23 + [1] * 101 + [5] * 2 + [7])[torch.randperm(127)]
    rest, part = stratified_split(labels, fraction, seed=0)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(127))
    assert rest.tolist() == sorted(rest.tolist())
    assert part.tolist() == sorted(part.tolist())
    for label in (0, 1, 5, 7):
        assert (labels[part] == label).sum() == pytest.approx(fraction * int((labels == label).sum()), abs=0.5)
    if fraction:
        assert not torch.equal(stratified_split(labels, fraction, seed=1)[1], part)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ValueError, match=str(fraction)):
        stratified_split(torch.zeros(7, dtype=torch.long), fraction, seed=0)
