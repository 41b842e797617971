"""Over the real data in $PERCEIVER_DATA (see its MANIFEST.md); skipped without it."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from perceiver.data.cifar import CIFAR
from perceiver.data.collate import collate
from perceiver.data.image_folder import ImageFolder

STAGES = ("train", "val", "test")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES = {"on_error": "raise", "channels": 3, "augment": None, "val_fraction": 0.1}

pytestmark = [
    pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data"),
    pytest.mark.filterwarnings("error"),
]


@pytest.fixture(scope="module")
def images() -> Path:
    return Path(os.environ["PERCEIVER_DATA"]) / "images"


def labels(split) -> Counter[int]:
    return Counter(split[index].targets["label"] for index in range(len(split)))


def test_cifar10_as_folders(images):
    data = ImageFolder(root=str(images / "cifar10_folders"), num_classes=10, image_size=32, test_fraction=0.1, **IMAGES)
    assert data.class_names == CLASSES
    splits = {stage: data.split(stage) for stage in STAGES}
    assert {stage: labels(split) for stage, split in splits.items()} == {
        "train": dict.fromkeys(range(10), 270),
        "val": dict.fromkeys(range(10), 30),
        "test": dict.fromkeys(range(10), 60),
    }
    batch = collate([splits["test"][index] for index in range(0, 600, 23)])
    assert batch.inputs["image"].shape[1:] == (3, 32, 32)
    assert batch.inputs["image"].std(dim=(1, 2, 3)).min() > 0.02  # pictures, not blanks


def test_cifar10_in_the_release_format(images):
    data = CIFAR(variant="cifar10", root=str(images), num_classes=10, image_size=32, **IMAGES)
    data.prepare()
    assert data.class_names == CLASSES
    splits = {stage: data.split(stage) for stage in STAGES}
    assert {stage: len(split) for stage, split in splits.items()} == {"train": 1260, "val": 140, "test": 500}
    assert all(set(labels(split)) == set(range(10)) for split in splits.values())
    assert splits["test"][0].id.startswith("test_batch/")
    # Planes and rows in the right order make neighbouring pixels alike.
    batch = collate([splits["test"][index] for index in range(0, 500, 23)]).inputs["image"]
    assert all(batch.diff(dim=axis).abs().mean() < 0.1 for axis in (1, 2, 3))


def test_photographs_of_all_sizes(images):
    root = images / "hymenoptera_data"
    data = ImageFolder(root=str(root), num_classes=2, image_size=(53, 61), test_fraction=0.1, **IMAGES)
    assert data.class_names == ["ants", "bees"]
    splits = {stage: data.split(stage) for stage in STAGES}
    assert {stage: labels(split) for stage, split in splits.items()} == {
        "train": {0: 33, 1: 32},
        "val": {0: 16, 1: 16},
        "test": {0: 16, 1: 16},
    }
    train = [splits["train"][index] for index in range(len(splits["train"]))]
    assert all(sample.inputs["image"].shape == (3, 53, 61) for sample in train)
    assert torch.isfinite(collate(train).inputs["image"]).all()
    ids = {sample.id for sample in train}
    assert "train/ants/formica.jpeg" in ids
    assert (root / "train/ants/imageNotFound.gif").exists()
    assert not any(id.endswith(".gif") for id in ids)
