from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.audio import AudioReader
from perceiver.data.readers.image import ImageReader
from perceiver.data.readers.text import TextReader
from perceiver.data.sampler import fold_in
from perceiver.data.shard_writer import ShardRecord, ShardRecords, ShardWriter, shard_key
from perceiver.data.sources.captions import Clotho, Flickr8k
from perceiver.data.sources.digits import Digits
from perceiver.data.sources.folders import ClassFolders
from perceiver.data.sources.shards import Shards
from perceiver.data.sources.sounds import FSD50K
from perceiver.data.sources.tar_index import TarShards
from perceiver.data.sources.text_pairs import TextPairs
from perceiver.data.synthetic.shape_captions import CaptionSampler
from perceiver.data.synthetic.shape_scenes import PairSampler, ShapeScenes
from perceiver.data.synthetic.shapes import ObjectSampler
from perceiver.data.synthetic.sound_scenes import SoundScenes
from perceiver.tokenizer import ByteTokenizer
from perceiver.types import Sample
from scripts import data_trees
from tests.data.datasets import STAGES, built, check_error, dataset

COUNTS = {"train": 5, "val": 2, "test": 3}
NOT_HELD_OUT = {"val_fraction": 0.0, "test_fraction": 0.0}
LONG_CLIPS = {"sample_rate": 13007, "seconds": 9.0, "hop_seconds": 9.0}


def scenes(root: Path) -> Dataset:
    parts = {
        "objects": ObjectSampler(num_objects=(1, 3), small=(0.14, 0.2), large=(0.28, 0.38)),
        "pairs": PairSampler(held_out=["red square"], unseen_fraction=0.5),
        "captions": CaptionSampler(order="random", num_references=3),
    }
    return dataset(ShapeScenes, "image", image_size=31, num_samples=COUNTS, seed=0, **parts)


def sound_scenes(root: Path) -> Dataset:
    options = {"scene_seconds": 1.7, "max_events": 3, "event_seconds": (0.4, 0.9), "snr": (0.0, 10.0), "seed": 0}
    return dataset(SoundScenes, "audio", num_classes=5, num_samples=COUNTS, **LONG_CLIPS, **options)


def image_folder(root: Path) -> Dataset:
    return dataset(ClassFolders, "image", root=str(data_trees.class_folders(root).root), num_classes=3)


def two_readers(source: type, root: Path, **options) -> Dataset:
    readers = {"image": built(ImageReader), "audio": built(AudioReader)}
    source = built(source, root=str(root), num_classes=2, **NOT_HELD_OUT | options)
    return Dataset(source=source, readers=readers, on_error="raise")


def pairs(root: Path) -> Dataset:
    """Return samples of an image and a sound, some of which lack one."""
    tree = data_trees.Tree(root)
    for number in range(23):
        path = f"{('bark', 'chirp')[number % 2]}/{number}"
        if number % 3:
            tree.sound(f"{path}.wav", number)
        if number % 5:
            tree.image(f"{path}.png", number)
    return two_readers(ClassFolders, root, val_fraction=0.2, test_fraction=0.2)


def shards(modality: str, target: str, root: Path, *, num_classes: int = 0, **options) -> Dataset:
    options |= NOT_HELD_OUT
    return dataset(Shards, modality, root=str(root), target=target, num_classes=num_classes, **options)


image_shards = partial(shards, "image", "label", num_classes=3)
CASES: dict[str, tuple[Callable[[Path], Dataset], Callable[[Path], Dataset], int]] = {
    "files with a label": (image_folder, image_shards, 0),
    "images in memory": (
        lambda root: dataset(Digits, "image", num_classes=10),
        partial(shards, "image", "label", num_classes=10),
        0,
    ),
    "shards": (lambda root: image_shards(data_trees.shards(root, "png", "cls").root), image_shards, 0),
    "files with tags": (
        lambda root: dataset(FSD50K, "audio", root=str(data_trees.fsd50k(root).root), num_classes=3),
        partial(shards, "audio", "tags", num_classes=3),
        0,
    ),
    "sounds in memory": (sound_scenes, partial(shards, "audio", "tags", num_classes=5, **LONG_CLIPS), 13007),
    "images with captions": (
        lambda root: dataset(Flickr8k, "image", root=str(data_trees.flickr8k(root).root)),
        partial(shards, "image", "references"),
        0,
    ),
    "images in memory with captions": (scenes, partial(shards, "image", "references", image_size=31), 0),
    "sounds with captions": (
        lambda root: dataset(Clotho, "audio", root=str(data_trees.clotho(root).root)),
        partial(shards, "audio", "references"),
        0,
    ),
    "two readers": (pairs, lambda root: two_readers(Shards, root, target="label"), 0),
}


def write(data: Dataset, out: Path, sample_rate: int = 0, most: int = 23) -> ShardWriter:
    """Write shards of seven samples from at most `most` samples of each stage."""
    writer = ShardWriter(out, samples_per_shard=7)
    for stage in STAGES:
        records = ShardRecords(data.split(stage), sample_rate=sample_rate, check=True)
        writer.write(stage, (records[index] for index in range(min(most, len(records)))))
    if data.class_names:
        writer.write_text("classes.txt", "".join(f"{name}\n" for name in data.class_names))
    writer.finish()
    return writer


def kept(sample: Sample, stage: str) -> list[object]:
    """Return the targets that shards contain; in training captions are shuffled."""
    targets = sample.targets
    tags, texts = targets.get("tags", torch.zeros(0)).tolist(), targets.get("references", [])
    return [targets.get("label"), tags, sorted(texts) if stage == "train" else [targets.get("caption"), *texts]]


@pytest.mark.parametrize("name", CASES)
def test_shards_contain_the_original_samples(tmp_path, name):
    make, read, sample_rate = CASES[name]
    original = make(tmp_path / "from")
    writer = write(original, tmp_path / "to", sample_rate)
    copy = read(tmp_path / "to")
    assert copy.class_names == original.class_names
    for stage in STAGES:
        one, other = original.split(stage), copy.split(stage)
        assert len(other) == writer.counts[stage] == min(len(one), 23)
        assert len(list((tmp_path / "to").glob(f"{stage}-*.tar"))) == -(-len(other) // 7)
        for index in range(len(other)):
            was, now = ((torch.manual_seed(fold_in(0, 0, index)), split[index])[1] for split in (one, other))
            assert was.inputs.keys() == now.inputs.keys()
            for modality, values in was.inputs.items():
                assert torch.equal(now.inputs[modality], values)
            assert sorted(one.sample_classes(index)) == sorted(other.sample_classes(index))
            assert kept(was, stage) == kept(now, stage)


def test_files_are_copied_byte_by_byte(tmp_path):
    data = image_folder(tmp_path / "from")
    write(data, tmp_path / "to")
    one, other = data.split("train"), image_shards(tmp_path / "to").split("train")
    for index in range(len(one)):
        original, copy = (split.items[index].parts["image"].open("rb").read() for split in (one, other))
        assert copy == original


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write(scenes(tmp_path), tmp_path / name)
        torch.rand(3)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_keys_are_unique_and_contain_the_original_name(tmp_path):
    assert shard_key(7, "a/b/Cat & Dog.v2.jpg") == "00000007_Cat-Dog-v2"
    assert shard_key(7, "a/../..") == shard_key(7, "日本.jpg") == "00000007"
    assert len(shard_key(123, "x" * 1000)) < 60
    write(image_folder(tmp_path / "from"), tmp_path / "to")
    shards = TarShards(sorted((tmp_path / "to").glob("train-*.tar")))
    assert len({shards[index].key for index in range(len(shards))}) == len(shards) == 11


class TestShardWriter:
    def test_a_folder_with_shards_and_sizes_below_one_are_refused(self, tmp_path):
        for place in ("train-000000.tar", "train/0.tar"):
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).touch()
            parts = (f"out={tmp_path}", Path(place).name)
            check_error(lambda: ShardWriter(tmp_path, samples_per_shard=1), *parts, error=ValueError)
            (tmp_path / place).unlink()
        check_error(lambda: ShardWriter(tmp_path, samples_per_shard=0), "samples_per_shard=0", error=ValueError)
        (tmp_path / "file").touch()
        check_error(lambda: ShardWriter(tmp_path / "file", samples_per_shard=1), "out=", error=ValueError)

    def test_shards_get_their_names_when_all_are_complete_and_are_removed_otherwise(self, tmp_path):
        writer = ShardWriter(tmp_path / "to", samples_per_shard=3)
        records = ShardRecords(scenes(tmp_path).split("train"), sample_rate=0, check=True)

        def failing():
            yield from (records[index] for index in range(5))
            assert list((tmp_path / "to").glob("*.tar")) == []
            assert len(list((tmp_path / "to").iterdir())) == 2
            raise UnreadableError("x")

        check_error(lambda: writer.write("train", failing()), "x")
        writer.abandon()
        assert list((tmp_path / "to").iterdir()) == []


class TestShardRecords:
    @pytest.mark.parametrize("check", [True, False])
    def test_unreadable_samples_are_errors_among_the_records(self, tmp_path, check):
        data = image_folder(tmp_path)
        records = ShardRecords(data.split("train"), sample_rate=0, check=check)
        first, second = (data.split("train").items[index].parts["image"] for index in range(2))
        first.write_text("not an image")
        second.unlink()
        assert isinstance(records[0], UnreadableError if check else ShardRecord)
        assert str(records[1]).lower().startswith(f"{second}: no such file".lower())
        assert isinstance(records[2], ShardRecord)

    def test_unknown_endings_are_errors_and_texts_refused(self, tmp_path):
        path = data_trees.flickr8k(tmp_path).tables[0].path
        path.write_text("image,caption\n0.xyz,a\n1.png,b\n")
        (tmp_path / "Flickr_8k.trainImages.txt").write_text("0.xyz\n1.png\n")
        records = ShardRecords(
            dataset(Flickr8k, "image", root=str(tmp_path)).split("train"), sample_rate=0, check=False
        )
        assert str(records[0]).startswith(f"{tmp_path}/Images/0.xyz: its ending")
        data_trees.text_pairs(tmp_path)
        reader = TextReader(tokenizer=ByteTokenizer(vocab_size=262, max_length=101))
        source = built(TextPairs, root=str(tmp_path), endings=None)
        split = Dataset(source=source, readers={"text": reader}, on_error="raise").split("train")
        records = ShardRecords(split, sample_rate=0, check=True)
        check_error(lambda: records[0], "train.tsv:1: ", "text", error=ValueError)
