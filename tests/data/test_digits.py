"""The digits, splits by name, and cross-validation."""

from collections import Counter
from itertools import chain

import pytest
import torch
from sklearn.datasets import load_digits

from perceiver.data.dataset import Dataset
from perceiver.data.sources.digits import Digits
from perceiver.data.splits import HeldOut, split_by_name
from tests.data.datasets import dataset

SHARES = {"train": 0.64, "val": 0.16, "test": 0.2}


def digits(**options) -> Dataset:
    return dataset(Digits, "image", **({"num_classes": 10, "channels": 1, "test_fraction": 0.2} | options))


@pytest.fixture(scope="module")
def samples() -> dict[str, list]:
    data = digits()
    return {stage: [split[index] for index in range(len(split))] for stage in SHARES for split in [data.split(stage)]}


def test_images_and_labels_are_those_of_sklearn(samples):
    source = load_digits()
    for sample in chain(*samples.values()):
        index = int(sample.id.removeprefix("digits/"))
        assert sample.targets == {"label": source.target[index]}
        image = sample.inputs["image"]
        torch.testing.assert_close(image[0].double(), torch.tensor(source.images[index]) / 16, rtol=0, atol=0.51 / 255)
        assert image.shape == (1, 8, 8)


def test_splits_partition_the_samples_with_their_shares_of_every_class(samples):
    assert sorted(sample.id for sample in chain(*samples.values())) == sorted(f"digits/{i}" for i in range(1797))
    for stage, share in SHARES.items():
        counts = Counter(sample.targets["label"] for sample in samples[stage])
        assert counts.total() == pytest.approx(share * 1797, rel=0.15)
        assert counts.keys() == set(range(10))


def test_splits_do_not_depend_on_the_seed_nor_channels_and_size(samples):
    torch.manual_seed(23)
    split = digits(channels=3, image_size=(11, 13)).split("test")
    assert [split[index].id for index in range(len(split))] == [sample.id for sample in samples["test"]]
    image = split[5].inputs["image"]
    assert image.shape == (3, 11, 13)
    assert (image == image[:1]).all()


def test_invalid_settings_are_refused():
    assert digits().class_names == [str(digit) for digit in range(10)]
    for name, value in (("num_classes", 11), ("on_error", "ignore")):
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            digits(**{name: value})


NAMES = [f"{number}.leaf" for number in range(1009)]


class TestSplitByName:
    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
    def test_it_is_a_partition_with_the_fraction(self, fraction):
        rest, part = split_by_name(NAMES, fraction, "test")
        assert sorted([*rest, *part]) == list(range(1009))
        assert (rest, part) == (sorted(rest), sorted(part))
        assert len(part) / 1009 == pytest.approx(fraction, abs=0.05)

    def test_the_part_of_a_sample_depends_on_its_own_name_only(self):
        part = {NAMES[index] for index in split_by_name(NAMES, 0.3, "test")[1]}
        for others in (NAMES[::-1], NAMES[:503], [*NAMES, *(f"new/{name}" for name in NAMES)]):
            again = {others[index] for index in split_by_name(others, 0.3, "test")[1]}
            assert again & set(NAMES) == part & set(others)
        assert {NAMES[index] for index in split_by_name(NAMES, 0.3, "val")[1]} != part

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_both_parts_of_few_samples_have_one(self, count):
        for seed in range(23):
            for fraction in (0.01, 0.99):
                assert all(split_by_name([f"{seed}/{number}" for number in range(count)], fraction, "test"))
        assert split_by_name(["one"], 0.5, "test") == ([0], [])
        assert split_by_name([], 0.5, "test") == ([], [])

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
    def test_invalid_fractions_are_refused(self, fraction):
        with pytest.raises(ValueError, match=str(fraction)):
            split_by_name(NAMES, fraction, "test")


def held_out(**options) -> HeldOut:
    return HeldOut(**{"val_fraction": 0.2, "test_fraction": 0.1, "fold": None, "num_folds": 5} | options)


def test_each_sample_is_tested_in_one_fold():
    tested = []
    for fold in range(1, 6):
        parts = held_out(fold=fold).split(NAMES)
        assert sorted(chain(*parts.values())) == list(range(1009))
        assert len(parts["test"]) == pytest.approx(1009 / 5, rel=0.2)
        tested += parts["test"]
    assert sorted(tested) == list(range(1009))


@pytest.mark.parametrize(("name", "value"), [("fold", 0), ("fold", 6), ("num_folds", 1), ("val_fraction", 1.0)])
def test_invalid_folds_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        held_out(**{name: value})
