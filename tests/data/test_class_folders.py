"""Class folders of images, of sounds, and of both; how their folders may be called is in `test_folders.py`."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from perceiver.data.dataset import Dataset
from perceiver.data.files import IMAGES, SOUNDS, UnreadableError
from perceiver.data.readers.audio import AudioAugment, AudioReader
from perceiver.data.readers.image import ImageAugment, ImageReader
from perceiver.data.sources.class_folders import ClassFolders
from tests.data.datasets import HELD_OUT, built
from tests.data.datasets import dataset as make

RATE = 1009
STAGES = ("train", "val", "test")
COUNTS = {"train": 5, "val": 3, "test": 2}
LEVELS = {"ants": 1.0, "bees": 0.25}
CLIPS = {"sample_rate": RATE, "seconds": 1.0, "hop_seconds": 0.5}
CHANGED = {"image": ImageAugment(erasing=1.0), "audio": AudioAugment(gain=0.0, time_shift=0.0, polarity=1.0)}
ENDINGS = {"image": "png", "audio": "wav"}


def write(path: Path, modality: str, level: float, size: int) -> None:
    """An image of one grey or a sound, of which the median tells the level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if modality == "image":
        Image.new("RGB", (5 + size, 7), (round(255 * level),) * 3).save(path)
    else:
        beeps = level / 2 * (1 + (np.arange(2503) % 11 == 0))
        soundfile.write(path, beeps, RATE, format=None if path.suffix == ".wav" else "OGG")


@pytest.fixture(params=["image", "audio"])
def modality(request) -> str:
    return request.param


@pytest.fixture
def root(tmp_path, modality) -> Path:
    """Folders of files, each of the level of its class."""
    for stage, count in COUNTS.items():
        for name, level in LEVELS.items():
            for number in range(count):
                write(tmp_path / "root" / stage / name / f"{number}.{ENDINGS[modality]}", modality, level, number)
    return tmp_path / "root"


@pytest.fixture
def dataset(modality):
    def dataset(root, **options) -> Dataset:
        sizes = {"image_size": 7} if modality == "image" else CLIPS
        return make(ClassFolders, modality, root=str(root), **({"num_classes": 2} | sizes | options))

    return dataset


def test_files_come_with_the_label_of_their_folder_and_its_name_in_their_id(root, dataset, modality):
    data = dataset(root)
    assert data.class_names == list(LEVELS)
    for stage, count in COUNTS.items():
        split = data.split(stage)
        samples = [split[index] for index in range(len(split))]
        names = [f"{stage}/{name}/{number}.{ENDINGS[modality]}" for name in LEVELS for number in range(count)]
        assert [sample.id for sample in samples] == names
        assert split.modalities == [modality]
        for index, sample in enumerate(samples):
            label = sample.targets["label"]
            assert list(split.classes_of(index)) == [label]
            assert data.class_names[label] in sample.id
            level = LEVELS[data.class_names[label]] / (1 if modality == "image" else 2)
            assert float(sample.inputs[modality].median()) == pytest.approx(level, abs=0.01)


def test_training_sounds_are_crops_and_others_windows_and_images_have_one_size(root, dataset, modality):
    shapes = {stage: dataset(root).split(stage)[0].inputs[modality].shape for stage in STAGES}
    windows = {"train": (1, RATE), "val": (4, 1, RATE), "test": (4, 1, RATE)}
    assert shapes == (windows if modality == "audio" else dict.fromkeys(STAGES, (3, 7, 7)))


def test_only_training_samples_are_augmented(root, dataset, modality):
    plain, changed = dataset(root), dataset(root, augment=CHANGED[modality])
    for stage in STAGES:
        one, other = (data.split(stage)[0].inputs[modality] for data in (plain, changed))
        assert torch.equal(one, other) == (stage != "train")


def test_every_ending_counts_whatever_the_content(root, dataset, modality):
    endings = {"image": IMAGES, "audio": SOUNDS}[modality].endings
    (content,) = (root / "train/ants").glob(f"0.{ENDINGS[modality]}")
    for ending in endings:
        (root / "train/ants" / f"x{ending.upper()}").write_bytes(content.read_bytes())
    split = dataset(root).split("train")
    assert {f"train/ants/x{ending.upper()}" for ending in endings} < {split[index].id for index in range(len(split))}


def test_files_of_other_kinds_are_left_out_and_named(root, dataset, modality, caplog):
    (root / "train/ants/x.gif").touch()
    assert len(dataset(root).split("train")) == 10
    kind = {"image": "images", "audio": "sounds"}[modality]
    assert caplog.messages == [f"{root}/train: ignored files that are not {kind}: 1 × .gif"]


def test_folders_without_any_file_of_the_kind_are_refused(tmp_path, dataset, modality):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"with one of the endings .*\.{ENDINGS[modality]}"):
        dataset(tmp_path, num_classes=1).split("train")


def test_a_stage_without_files_has_no_split(root, dataset):
    data = dataset(root / "train", val_fraction=0.0, test_fraction=0.0)
    assert [data.split(stage) is None for stage in STAGES] == [False, True, True]
    data = dataset(root / "train", val_fraction=0.25, test_fraction=0.2)
    assert sum(len(data.split(stage)) for stage in STAGES) == 10


def test_what_cannot_be_read_is_named_when_it_is_read(root, dataset, modality):
    path = f"train/ants/0.{ENDINGS[modality]}"
    (root / path).write_text("neither an image nor a sound")
    split = dataset(root).split("train")
    with pytest.raises(UnreadableError, match=rf"{path}: "):
        split[0]
    assert split[1].id == f"train/ants/1.{ENDINGS[modality]}"


def test_building_one_touches_no_disk(tmp_path, dataset):
    dataset(tmp_path / "nowhere")


class TestPairs:
    """Files that are called alike but for their endings are one sample."""

    def data(self, root: Path, **options) -> Dataset:
        readers = {"image": built(ImageReader, image_size=7), "audio": built(AudioReader, **CLIPS)}
        source = built(ClassFolders, root=str(root), num_classes=2, **options)
        return Dataset(source=source, readers=readers, on_error="raise")

    @pytest.fixture
    def pairs(self, tmp_path) -> Path:
        """Thirty-nine samples, of which some lack their image or their sound, and one folder is nested."""
        for number in range(40):
            for modality, lacks in (("image", number % 5 == 2), ("audio", number % 7 == 3)):
                if not lacks:
                    folder = tmp_path / "root" / ("ants", "bees")[number % 2] / ("deep" if number < 5 else "")
                    write(folder / f"{number}.{ENDINGS[modality]}", modality, 0.5, number % 3)
        return tmp_path / "root"

    def test_a_sample_has_the_modalities_of_which_there_is_a_file(self, pairs):
        found = {}
        for split in (self.data(pairs).split(stage) for stage in STAGES):
            found |= {split.name_of(index): split[index] for index in range(len(split))}
        lacking = {"image": {number for number in range(40) if number % 5 == 2}, "audio": {3, 10, 17, 24, 31, 38}}
        assert len(found) == 39  # number 17 would lack both
        for name, sample in found.items():
            number = int(Path(name).name)
            assert sample.inputs.keys() == {kind for kind, numbers in lacking.items() if number not in numbers}
        assert all(sample.id == name for name, sample in found.items())
        assert "ants/deep/0" in found

    def test_in_evaluation_an_image_is_seen_with_every_window_of_its_sound(self, pairs):
        split = self.data(pairs).split("test")
        sample = next(split[index] for index in range(len(split)) if len(split[index].inputs) == 2)
        assert sample.inputs["image"].shape == (4, 3, 7, 7)
        assert sample.inputs["audio"].shape == (4, 1, RATE)
        assert len(sample.split()) == 4

    def test_a_file_that_comes_later_moves_no_sample(self, pairs):
        before = {stage: self.names(pairs, stage) for stage in STAGES}
        write(pairs / "ants" / "12.png", "image", 0.5, 1)
        write(pairs / "bees" / "3.wav", "audio", 0.5, 1)  # beside deep/3.png, and no part of it
        after = {stage: self.names(pairs, stage) for stage in STAGES}
        assert {name for names in after.values() for name in names} == {"bees/3"}.union(*before.values())
        assert all(set(before[stage]) <= set(after[stage]) for stage in STAGES)

    def names(self, root: Path, stage: str) -> list[str]:
        split = self.data(root, **HELD_OUT).split(stage)
        return [split.name_of(index) for index in range(len(split))]

    def test_a_users_file_is_read_by_its_ending(self, pairs):
        data = self.data(pairs)
        assert data.read(pairs / "ants" / "6.png").inputs.keys() == {"image"}
        assert data.read(pairs / "ants" / "6.wav").inputs.keys() == {"audio"}
        with pytest.raises(UnreadableError, match=r"6\.txt: "):
            data.read(pairs / "ants" / "6.txt")

    def test_two_files_of_one_kind_for_one_sample_are_refused(self, pairs):
        write(pairs / "ants" / "6.jpg", "image", 0.5, 1)
        with pytest.raises(ValueError, match=r"ants/6\.(png|jpg): .*ants/6\.(png|jpg)"):
            self.data(pairs).split("train")
