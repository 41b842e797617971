from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from perceiver.data.audio import Clips
from perceiver.data.audio_folder import AudioFolder
from perceiver.data.base import Dataset, UnreadableError
from perceiver.data.caption_shards import CaptionShards, SoundCaptionShards
from perceiver.data.clotho import Clotho
from perceiver.data.digits import Digits
from perceiver.data.flickr8k import Flickr8k
from perceiver.data.fsd50k import FSD50K
from perceiver.data.image_folder import ImageFolder
from perceiver.data.image_shards import ImageShards
from perceiver.data.sampler import mix
from perceiver.data.shape_scenes import ShapeScenes
from perceiver.data.shard_writer import Packed, Packing, ShardWriter, key_of
from perceiver.data.shards import TarShards
from perceiver.data.sound_scenes import SoundScenes
from perceiver.data.sound_shards import SoundShards
from perceiver.types import Sample
from tests.data.caption_trees import clotho_tree, flickr8k_tree
from tests.data.shard_trees import shard_tree
from tests.data.tagged_trees import RATE, SECONDS, fsd50k_tree, noise
from tests.training.runs import image_tree

STAGES = ("train", "val", "test")
COUNTS = {"train": 5, "val": 2, "test": 3}
IMAGES = {"on_error": "raise", "image_size": 8, "channels": 3, "augment": None}
OWN_SPLIT = {"val_fraction": 0.2, "test_fraction": 0.2, "fold": None, "num_folds": 5}
NONE_SPLIT_OFF = {"val_fraction": 0.0, "test_fraction": 0.0}
PLAIN = {"augment": None, "log_mel": None}
CLIPS = {"on_error": "raise", "clips": Clips(sample_rate=RATE, seconds=SECONDS, hop_seconds=SECONDS, **PLAIN)}
LONG_CLIPS = {"on_error": "raise", "clips": Clips(sample_rate=13007, seconds=9.0, hop_seconds=9.0, **PLAIN)}


def scenes(root: Path) -> ShapeScenes:
    return ShapeScenes(
        on_error="raise",
        image_size=31,
        channels=3,
        num_samples=COUNTS,
        num_objects=(1, 3),
        small=(0.14, 0.2),
        large=(0.28, 0.38),
        order="random",
        num_references=3,
        held_out=["red square"],
        unseen_share=0.5,
        seed=0,
    )


def sound_scenes(root: Path) -> SoundScenes:
    options = {"scene_seconds": 1.7, "max_events": 3, "event_seconds": (0.4, 0.9), "snr": (0.0, 10.0), "seed": 0}
    return SoundScenes(num_classes=5, num_samples=COUNTS, **LONG_CLIPS, **options)


def audio_folder(root: Path) -> AudioFolder:
    for number in range(23):
        noise(root / ("bark", "chirp")[number % 2] / f"{number}.{('wav', 'flac')[number % 3 == 0]}")
    return AudioFolder(root=str(root), num_classes=2, **OWN_SPLIT, **CLIPS)


def image_folder(root: Path) -> ImageFolder:
    options = IMAGES | OWN_SPLIT
    return ImageFolder(root=str(image_tree(root)), num_classes=3, **options)


def image_shards(root: Path, num_classes: int = 3, image_size: int = 8) -> ImageShards:
    options = IMAGES | NONE_SPLIT_OFF | {"image_size": image_size}
    return ImageShards(root=str(root), num_classes=num_classes, **options)


def sound_shards(root: Path, num_classes: int, **options) -> SoundShards:
    return SoundShards(root=str(root), num_classes=num_classes, **(NONE_SPLIT_OFF | CLIPS | options))


def caption_shards(root: Path, image_size: int = 8) -> CaptionShards:
    return CaptionShards(root=str(root), **(IMAGES | NONE_SPLIT_OFF | {"image_size": image_size}))


CASES: dict[str, tuple[Callable[[Path], Dataset], Callable[[Path], Dataset], int]] = {
    "image_folder": (image_folder, image_shards, 0),
    "digits": (lambda root: Digits(num_classes=10, **OWN_SPLIT, **IMAGES), lambda root: image_shards(root, 10), 0),
    "image_shards": (lambda root: image_shards(shard_tree(root, "image", "cls")), image_shards, 0),
    "audio_folder": (audio_folder, lambda root: sound_shards(root, 2, multi_label=False), 0),
    "fsd50k": (
        lambda root: FSD50K(root=str(fsd50k_tree(root)), num_classes=3, **CLIPS),
        lambda root: sound_shards(root, 3, multi_label=True),
        0,
    ),
    "sound_scenes": (sound_scenes, lambda root: sound_shards(root, 5, multi_label=True, **LONG_CLIPS), 13007),
    "flickr8k": (
        lambda root: Flickr8k(root=str(flickr8k_tree(root)), val_fraction=0.2, test_fraction=0.2, **IMAGES),
        caption_shards,
        0,
    ),
    "shape_scenes": (scenes, lambda root: caption_shards(root, 31), 0),
    "clotho": (
        lambda root: Clotho(root=str(clotho_tree(root)), **CLIPS),
        lambda root: SoundCaptionShards(root=str(root), **CLIPS, **NONE_SPLIT_OFF),
        0,
    ),
}


def write(dataset: Dataset, out: Path, sample_rate: int = 0, samples_per_shard: int = 7, most: int = 50) -> ShardWriter:
    """Shards of at most so many samples of each stage of a data set."""
    writer = ShardWriter(out, samples_per_shard=samples_per_shard)
    for stage in STAGES:
        split = dataset.split(stage)
        packing = Packing(split, sample_rate=sample_rate, check=True)
        writer.write(stage, (packing[index] for index in range(min(most, len(split)))))
    if dataset.class_names:
        writer.write_text("classes.txt", "".join(f"{name}\n" for name in dataset.class_names))
    writer.finish()
    return writer


def first_look(split, index: int) -> Sample:
    """A sample as it is in the first epoch."""
    torch.manual_seed(mix(0, 0, index))
    return split[index]


@pytest.mark.parametrize("name", CASES)
def test_shards_hold_the_samples_of_what_they_were_written_from(tmp_path, name):
    make, read, sample_rate = CASES[name]
    original = make(tmp_path / "from")
    writer = write(original, tmp_path / "to", sample_rate)
    shards = read(tmp_path / "to")
    assert shards.class_names == original.class_names
    for stage in STAGES:
        one, other = original.split(stage), shards.split(stage)
        assert len(other) == writer.counts[stage] == min(len(one), 50)
        assert len(list((tmp_path / "to").glob(f"{stage}-*.tar"))) == -(-len(other) // 7)
        for index in range(len(other)):
            was, now = first_look(one, index), first_look(other, index)
            assert was.inputs.keys() == now.inputs.keys()
            for modality, values in was.inputs.items():
                assert torch.equal(now.inputs[modality], values)
            assert sorted(one.classes_of(index)) == sorted(other.classes_of(index))
            assert told(was, stage) == told(now, stage)


def told(sample: Sample, stage: str) -> list[object]:
    """What shards keep of what is true of a sample; in training captions come in any order."""
    targets = sample.targets
    tags, texts = targets.get("tags", torch.zeros(0)).tolist(), targets.get("references", [])
    return [targets.get("label"), tags, sorted(texts) if stage == "train" else [targets.get("caption"), *texts]]


def test_files_are_copied_byte_by_byte(tmp_path):
    data = image_folder(tmp_path / "from")
    write(data, tmp_path / "to")
    one, other = data.split("train"), image_shards(tmp_path / "to").split("train")
    for index in range(len(one)):
        assert other.file(index)[0].open("rb").read() == one.file(index)[0].read_bytes()


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write(scenes(tmp_path), tmp_path / name)
        torch.rand(3)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_keys_are_safe_all_different_and_remind_of_where_they_come_from(tmp_path):
    assert key_of(7, "a/b/Cat & Dog.v2.jpg") == "00000007_Cat-Dog-v2"
    assert key_of(7, "a/../..") == "00000007"
    assert key_of(7, "日本.jpg") == "00000007"
    assert len(key_of(123, "x" * 1000)) < 60
    write(image_folder(tmp_path / "from"), tmp_path / "to")
    shards = TarShards(sorted((tmp_path / "to").glob("train-*.tar")))
    assert len({shards[index].key for index in range(len(shards))}) == len(shards) > 7


def test_a_folder_with_shards_is_left_alone(tmp_path):
    for place in ("train-000000.tar", "train/0.tar"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
        with pytest.raises(ValueError, match=rf"^out={tmp_path}: there are shards already: {Path(place).name}"):
            ShardWriter(tmp_path, samples_per_shard=1)
        (tmp_path / place).unlink()
    ShardWriter(tmp_path, samples_per_shard=1)


def test_shards_have_no_name_before_all_are_whole_and_none_stays_otherwise(tmp_path):
    writer = ShardWriter(tmp_path / "to", samples_per_shard=3)
    packing = Packing(scenes(tmp_path).split("train"), sample_rate=0, check=True)

    def failing():
        yield from (packing[index] for index in range(5))
        assert list((tmp_path / "to").glob("*.tar")) == []
        assert len(list((tmp_path / "to").iterdir())) == 2
        raise UnreadableError("x")

    with pytest.raises(UnreadableError):
        writer.write("train", failing())
    writer.abandon()
    assert list((tmp_path / "to").iterdir()) == []


class TestUnreadable:
    @pytest.mark.parametrize("check", [True, False])
    def test_what_cannot_be_read_is_told(self, tmp_path, check):
        data = image_folder(tmp_path)
        packing = Packing(data.split("train"), sample_rate=0, check=check)
        (path, _), (other, _) = data.split("train").file(0), data.split("train").file(1)
        path.write_text("no image")
        other.unlink()
        assert isinstance(packing[0], UnreadableError if check else Packed)
        assert str(packing[1]) == f"{other}: {'no such file' if check else 'No such file or directory'}"
        assert isinstance(packing[2], Packed)

    def test_an_ending_that_shards_do_not_have_is_told(self, tmp_path):
        data = Flickr8k(root=str(flickr8k_tree(tmp_path)), val_fraction=0.2, test_fraction=0.2, **IMAGES)
        split = data.split("train")
        split.paths[0] = split.paths[0].replace(".jpg", ".xyz")
        message = "its ending is neither that of an image nor that of a sound"
        assert str(Packing(split, sample_rate=0, check=False)[0]) == f"{split.paths[0]}: {message}"

    def test_what_shards_do_not_hold_is_refused(self):
        class Texts:
            def __getitem__(self, index: int) -> Sample:
                return Sample({"text": torch.zeros(1, 3)}, {}, "x")

        with pytest.raises(ValueError, match=r"^x: shards hold one image or one sound a sample, and this is text$"):
            Packing(Texts(), sample_rate=0, check=True)[0]


@pytest.mark.parametrize("wrong", [0, -1])
def test_shards_hold_at_least_one_sample(tmp_path, wrong):
    with pytest.raises(ValueError, match=rf"^samples_per_shard={wrong} must be at least 1"):
        ShardWriter(tmp_path, samples_per_shard=wrong)
