from collections import Counter
from itertools import chain

import pytest
import torch
from sklearn.datasets import load_digits

from perceiver.data.dataset import Dataset
from perceiver.data.sources.digits import Digits
from perceiver.data.splits import HeldOut, split_by_name
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")


def digits(**options) -> Dataset:
    return dataset(Digits, "image", **({"num_classes": 10, "channels": 1, "test_fraction": 0.2} | options))


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


@pytest.mark.parametrize(("stage", "share"), [("train", 0.64), ("val", 0.16), ("test", 0.2)])
def test_every_split_holds_its_share_and_every_class(samples, stage, share):
    counts = Counter(sample.targets["label"] for sample in samples[stage])
    assert counts.total() == pytest.approx(share * 1797, rel=0.15)
    assert counts.keys() == set(range(10))


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


NAMES = [f"{number}.leaf" for number in range(1009)]


class TestSplitByName:
    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
    def test_it_takes_its_share_and_loses_nothing(self, fraction):
        rest, part = split_by_name(NAMES, fraction, "test")
        assert sorted([*rest, *part]) == list(range(1009))
        assert (rest, part) == (sorted(rest), sorted(part))
        assert len(part) / 1009 == pytest.approx(fraction, abs=0.05)

    def test_where_a_sample_belongs_depends_on_its_own_name_alone(self):
        part = {NAMES[index] for index in split_by_name(NAMES, 0.3, "test")[1]}
        for others in (NAMES[::-1], NAMES[:503], [*NAMES, *(f"new/{name}" for name in NAMES)]):
            again = {others[index] for index in split_by_name(others, 0.3, "test")[1]}
            assert again & set(NAMES) == part & set(others)
        assert {NAMES[index] for index in split_by_name(NAMES, 0.3, "val")[1]} != part

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_of_few_samples_one_is_held_out_and_one_is_left(self, count):
        for seed in range(23):
            names = [f"{seed}/{number}" for number in range(count)]
            for fraction in (0.01, 0.99):
                rest, part = split_by_name(names, fraction, "test")
                assert rest
                assert part
        assert split_by_name(["one"], 0.5, "test") == ([0], [])
        assert split_by_name([], 0.5, "test") == ([], [])

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
    def test_a_fraction_that_leaves_nothing_is_refused(self, fraction):
        with pytest.raises(ValueError, match=str(fraction)):
            split_by_name(NAMES, fraction, "test")


class TestFolds:
    def test_each_sample_is_tested_in_one_of_them(self):
        tested = []
        for fold in range(1, 6):
            parts = HeldOut(val_fraction=0.2, test_fraction=0.1, fold=fold, num_folds=5).parts(NAMES)
            assert sorted(chain(*parts.values())) == list(range(1009))
            assert len(parts["test"]) == pytest.approx(1009 / 5, rel=0.2)
            tested += parts["test"]
        assert sorted(tested) == list(range(1009))

    @pytest.mark.parametrize("wrong", [{"fold": 0}, {"fold": 6}, {"num_folds": 1}, {"val_fraction": 1.0}])
    def test_what_is_out_of_range_is_refused_by_name(self, wrong):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"^{name}={value}"):
            HeldOut(**{"val_fraction": 0.1, "test_fraction": 0.1, "fold": None, "num_folds": 5} | wrong)
