"""Tests on the real data in $PERCEIVER_DATA (see its MANIFEST.md); skipped without it."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.readers.sound_file import SoundFile
from perceiver.data.sources.captions import Clotho, CocoCaptions, Flickr8k, Karpathy
from perceiver.data.sources.cifar import CIFAR
from perceiver.data.sources.folders import ClassFolders
from perceiver.data.sources.sounds import ESC50
from perceiver.data.sources.text_pairs import TextPairs
from perceiver.tokenizer import ByteTokenizer, WordTokenizer
from tests.data.datasets import STAGES, dataset, names, samples, sizes

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ESC10_CLASSES = [
    *("dog", "rooster", "rain", "sea_waves", "crackling_fire"),
    *("crying_baby", "sneezing", "clock_tick", "helicopter", "chainsaw"),
]

pytestmark = [
    pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data"),
    pytest.mark.filterwarnings("error"),
]


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(os.environ["PERCEIVER_DATA"])


@pytest.fixture(scope="module")
def images(root) -> Path:
    return root / "images"


def clips(seconds: float) -> dict[str, float]:
    return {"sample_rate": 16000, "seconds": seconds, "hop_seconds": seconds / 2}


def labels(split) -> Counter[int]:
    return Counter(split[index].targets["label"] for index in range(len(split)))


def test_cifar10_as_folders(images):
    root = str(images / "cifar10_folders")
    data = dataset(ClassFolders, "image", root=root, num_classes=10, image_size=32, val_fraction=0.1)
    assert data.class_names == CLASSES
    splits = {stage: data.split(stage) for stage in STAGES}
    assert labels(splits["test"]) == dict.fromkeys(range(10), 60)
    assert labels(splits["train"]) + labels(splits["val"]) == dict.fromkeys(range(10), 300)
    assert len(splits["val"]) == pytest.approx(300, rel=0.2)
    batch = collate([splits["test"][index] for index in range(0, 600, 23)])
    assert batch.inputs["image"].shape[1:] == (3, 32, 32)
    assert batch.inputs["image"].std(dim=(1, 2, 3)).min() > 0.02  # pictures, not blanks


def test_cifar10_in_the_release_format(images):
    options = {"num_classes": 10, "image_size": 32, "val_fraction": 0.1}
    data = dataset(CIFAR, "image", variant="cifar10", root=str(images), **options)
    data.prepare()
    assert data.class_names == CLASSES
    splits = {stage: data.split(stage) for stage in STAGES}
    assert len(splits["test"]) == 500
    assert len(splits["train"]) + len(splits["val"]) == 1400
    assert len(splits["val"]) == pytest.approx(140, rel=0.3)
    assert all(set(labels(split)) == set(range(10)) for split in splits.values())
    assert splits["test"][0].id.startswith("test_batch/")
    # Planes and rows in the right order make neighbouring pixels alike.
    batch = collate([splits["test"][index] for index in range(0, 500, 23)]).inputs["image"]
    assert all(batch.diff(dim=axis).abs().mean() < 0.1 for axis in (1, 2, 3))


def test_photographs_of_all_sizes(images):
    root = images / "hymenoptera_data"
    data = dataset(ClassFolders, "image", root=str(root), num_classes=2, image_size=(53, 61))
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


def esc50(root: Path, **options) -> Dataset:
    defaults = {"num_classes": 10, "fold": 1, "val_fraction": 0.0, "esc10": True}
    return dataset(ESC50, "audio", root=str(root), **clips(5.0), **(defaults | options))


def test_esc10_in_the_layout_of_esc50(root):
    for fold in (1, 2, 3):
        data = esc50(root / "audio" / "ESC-10", fold=fold)
        assert data.class_names == ESC10_CLASSES
        assert data.split("val") is None
        for stage, count in (("train", 16), ("test", 8)):
            split = data.split(stage)
            assert Counter(tuple(split.sample_classes(index)) for index in range(len(split))) == {
                (label,): count for label in range(10)
            }
            assert (stage == "test") == all(f"audio/{fold}-" in path for path in split.items.ids)


def test_clips_of_esc10_are_sounds(root):
    data = esc50(root / "audio" / "ESC-10")
    for stage in ("train", "test"):
        split = data.split(stage)
        samples = [split[index] for index in range(0, len(split), 7)]
        assert all(3.5 * 16000 < sample.inputs["audio"].shape[-1] <= 80000 for sample in samples)
        assert all(0.01 < sample.inputs["audio"].abs().max() < 1.5 for sample in samples)
        assert Counter(len(sample.windows) for sample in samples).most_common(1)[0][0] == 0
        assert collate(samples).inputs["audio"].shape[1:] == (1, 80000)


def test_clips_of_esc50_are_exactly_a_window_long(root):
    data = esc50(root / "audio" / "ESC-50-sample", num_classes=3, esc10=False)
    assert data.class_names == ["dog", "thunderstorm", "car_horn"]
    train = data.split("train")
    assert [train[index].inputs["audio"].shape for index in range(len(train))] == [(1, 80000)] * 4


@pytest.mark.parametrize(
    ("pattern", "count", "rate"),
    [
        ("audio/ESC-10/audio/*.ogg", 240, 44100),
        ("captions/clotho/evaluation/*.wav", 3, 44100),
        ("captions/flickr8k/speech_tts/*.wav", 50, 24000),  # MP3, whatever they are called
        ("speech/LibriSpeech/**/*.flac", 4, 16000),
        ("speech/LJSpeech-1.1/wavs/*.wav", 16, 22050),
        ("speech/fsdd/recordings/*.wav", 120, 8000),
    ],
)
def test_parts_of_files_of_every_kind_and_rate_are_what_the_whole_holds_there(root, pattern, count, rate):
    paths = sorted(root.glob(pattern))
    assert len(paths) == count
    for path in paths[:: max(count // 7, 1)]:
        file = SoundFile(path, 16000)
        assert file.file_rate == rate
        whole = file.read()
        assert whole.shape[-1] == pytest.approx(file.seconds * 16000, abs=1)
        part = file.read(0.1, 0.1)  # where all rates have a sample
        assert part.shape == (1, 1600)
        torch.testing.assert_close(part[:, 50:-50], whole[:, 1650:3150], atol=1e-3, rtol=0)


def test_spoken_digits_as_folders(root, tmp_path):
    for path in (root / "speech" / "fsdd" / "recordings").glob("*.wav"):
        folder = tmp_path / path.name[0]
        folder.mkdir(exist_ok=True)
        (folder / path.name).symlink_to(path)
    options = {"num_classes": 10, "val_fraction": 0.25, "test_fraction": 0.25}
    data = dataset(ClassFolders, "audio", root=str(tmp_path), **clips(0.5), **options)
    assert data.class_names == [str(digit) for digit in range(10)]
    counts = [labels(data.split(stage)) for stage in STAGES]
    assert sum(counts, Counter()) == dict.fromkeys(range(10), 12)
    assert counts[0].keys() == set(range(10))


def test_three_forms_of_flickr8k_agree(root):
    """The same 500 images are listed in three formats."""
    folder = str(root / "captions" / "flickr8k")
    forms = [
        dataset(Flickr8k, "image", root=folder, val_fraction=0.14, test_fraction=0.125),
        dataset(CocoCaptions, "image", root=folder, year=None),
        dataset(Karpathy, "image", root=folder, table=None, restval=True),
    ]
    for stage, count in (("train", 400), ("val", 50), ("test", 50)):
        captions = [dict(data.source.captions(stage).references) for data in forms]
        assert captions[0] == captions[1] == captions[2]
        assert Counter(map(len, captions[0].values())) == {5: count}
        splits = [data.split(stage) for data in forms]
        for id in names(splits[0])[:17]:
            images = [split[names(split).index(id)].inputs["image"] for split in splits]
            assert all(torch.equal(image, images[0]) for image in images)
            assert images[0].std() > 0.02  # a picture, not a blank
    assert any(' " Kiss " ' in text for text in forms[0].texts())
    words = WordTokenizer(vocab_size=1009, max_length=31, lowercase=True, min_frequency=5)
    words.train(forms[1].texts())
    assert 300 < words.num_ids < 1009


def test_without_lists_the_images_of_flickr8k_are_split_in_proportion(root, tmp_path):
    for name in ("captions.txt", "Images"):
        (tmp_path / name).symlink_to(root / "captions" / "flickr8k" / name)
    data = dataset(Flickr8k, "image", root=str(tmp_path), val_fraction=0.14, test_fraction=0.125)
    assert sizes(data) == pytest.approx([376, 61, 63], rel=0.3)
    assert sum(sizes(data)) == 500


def test_clotho(root):
    data = dataset(Clotho, "audio", root=str(root / "captions" / "clotho"), **clips(30.0))
    test = samples(data.split("test"))
    assert {Path(sample.id).name: len(sample.targets["references"]) for sample in test} == {
        "Tenerife_bazaar_2.wav": 5,
        "Flipping Pages.wav": 5,
        "01 barreau bunker original.wav": 5,
    }
    assert all(15 * 16000 <= sample.inputs["audio"].shape[-1] <= 30 * 16000 for sample in test)
    assert test[0].targets["caption"] == "A group of people are talking and people are also laughing."
    assert data.split("val") is None
    with pytest.raises(FileNotFoundError, match=r"clotho_captions_development\.csv"):
        data.split("train")


def test_translations_in_one_file_and_in_two(root):
    folder, tokenizer = root / "translation", ByteTokenizer(vocab_size=262, max_length=509)
    data = dataset(TextPairs, "text", root=str(folder / "eng-fra.txt"), tokenizer=tokenizer, endings=None)
    found = {sample.id: sample for stage in STAGES for sample in samples(data.split(stage))}
    assert found.keys() == {f"eng-fra.txt:{line}" for line in range(1, 2001)}
    third = found["eng-fra.txt:3"]
    assert tokenizer.decode(third.inputs["text"][0].tolist()) == "Two men are removing tree branches."
    assert third.targets["references"] == ["Deux hommes enlèvent des branches d'arbre."]
    options = {"endings": ("en", "de"), "test_fraction": 0.0}
    data = dataset(TextPairs, "text", root=str(folder / "multi30k"), tokenizer=tokenizer, **options)
    train, val, test = sizes(data)
    assert (train, val, test) == (5000, 1014, 0)
    assert data.split("train")[0].id.startswith("train.en:")
