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
from perceiver.data.shard_writer import Packed, Packing, ShardWriter, key_of
from perceiver.data.sources.base import Item, Source
from perceiver.data.sources.class_folders import ClassFolders
from perceiver.data.sources.clotho import Clotho
from perceiver.data.sources.digits import Digits
from perceiver.data.sources.flickr8k import Flickr8k
from perceiver.data.sources.fsd50k import FSD50K
from perceiver.data.sources.shard_index import TarShards
from perceiver.data.sources.shards import Shards
from perceiver.data.synthetic.shape_captions import CaptionSampler
from perceiver.data.synthetic.shape_scenes import PairSampler, ShapeScenes
from perceiver.data.synthetic.shapes import ObjectSampler
from perceiver.data.synthetic.sound_scenes import SoundScenes
from perceiver.tokenizer import ByteTokenizer
from perceiver.types import Sample
from tests.data.caption_trees import clotho_tree, flickr8k_tree, photo
from tests.data.datasets import built, dataset
from tests.data.shard_trees import shard_tree
from tests.data.tagged_trees import SECONDS, fsd50k_tree, noise
from tests.runs import image_tree

STAGES = ("train", "val", "test")
COUNTS = {"train": 5, "val": 2, "test": 3}
OWN_SPLIT = {"val_fraction": 0.2, "test_fraction": 0.2}
CLIPS = {"seconds": SECONDS, "hop_seconds": SECONDS}
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


def audio_folder(root: Path) -> Dataset:
    for number in range(23):
        noise(root / ("bark", "chirp")[number % 2] / f"{number}.{('wav', 'flac')[number % 3 == 0]}")
    return dataset(ClassFolders, "audio", root=str(root), num_classes=2, **OWN_SPLIT, **CLIPS)


def image_folder(root: Path) -> Dataset:
    return dataset(ClassFolders, "image", root=str(image_tree(root)), num_classes=3, **OWN_SPLIT)


def pairs(root: Path) -> Dataset:
    """Class folders of images and sounds, of which some samples have but one."""
    for number in range(23):
        if number % 3:
            noise(root / ("bark", "chirp")[number % 2] / f"{number}.wav")
        if number % 5:
            photo(root / ("bark", "chirp")[number % 2] / f"{number}.png")
    source = built(ClassFolders, root=str(root), num_classes=2, **OWN_SPLIT)
    return Dataset(source=source, readers=both(), on_error="raise")


def both() -> dict:
    return {"image": built(ImageReader), "audio": built(AudioReader, **CLIPS)}


def pair_shards(root: Path) -> Dataset:
    source = built(Shards, root=str(root), target="label", num_classes=2, val_fraction=0.0, test_fraction=0.0)
    return Dataset(source=source, readers=both(), on_error="raise")


def shards(modality: str, target: str, root: Path, *, num_classes: int = 0, **options) -> Dataset:
    none_split_off = {"val_fraction": 0.0, "test_fraction": 0.0}
    options = none_split_off | (CLIPS if modality == "audio" else {}) | options
    return dataset(Shards, modality, root=str(root), target=target, num_classes=num_classes, **options)


image_shards = partial(shards, "image", "label", num_classes=3)
CASES: dict[str, tuple[Callable[[Path], Dataset], Callable[[Path], Dataset], int]] = {
    "image_folder": (image_folder, image_shards, 0),
    "digits": (
        lambda root: dataset(Digits, "image", num_classes=10, **OWN_SPLIT),
        partial(shards, "image", "label", num_classes=10),
        0,
    ),
    "image_shards": (lambda root: image_shards(shard_tree(root, "image", "cls")), image_shards, 0),
    "audio_folder": (audio_folder, partial(shards, "audio", "label", num_classes=2), 0),
    "fsd50k": (
        lambda root: dataset(FSD50K, "audio", root=str(fsd50k_tree(root)), num_classes=3, **CLIPS),
        partial(shards, "audio", "tags", num_classes=3),
        0,
    ),
    "sound_scenes": (sound_scenes, partial(shards, "audio", "tags", num_classes=5, **LONG_CLIPS), 13007),
    "flickr8k": (
        lambda root: dataset(Flickr8k, "image", root=str(flickr8k_tree(root)), **OWN_SPLIT),
        partial(shards, "image", "references"),
        0,
    ),
    "shape_scenes": (scenes, partial(shards, "image", "references", image_size=31), 0),
    "clotho": (
        lambda root: dataset(Clotho, "audio", root=str(clotho_tree(root)), **CLIPS),
        partial(shards, "audio", "references"),
        0,
    ),
    "pairs": (pairs, pair_shards, 0),
}


def write(data: Dataset, out: Path, sample_rate: int = 0, samples_per_shard: int = 7, most: int = 50) -> ShardWriter:
    """Shards of at most so many samples of each stage of a data set."""
    writer = ShardWriter(out, samples_per_shard=samples_per_shard)
    for stage in STAGES:
        split = data.split(stage)
        packing = Packing(split, sample_rate=sample_rate, check=True)
        writer.write(stage, (packing[index] for index in range(min(most, len(split)))))
    if data.class_names:
        writer.write_text("classes.txt", "".join(f"{name}\n" for name in data.class_names))
    writer.finish()
    return writer


def first_look(split, index: int) -> Sample:
    """A sample as it is in the first epoch."""
    torch.manual_seed(fold_in(0, 0, index))
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
        copied, original = other.items[index].parts["image"], one.items[index].parts["image"]
        assert copied.open("rb").read() == original.read_bytes()


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
        path, other = (data.split("train").items[index].parts["image"] for index in range(2))
        path.write_text("no image")
        other.unlink()
        assert isinstance(packing[0], UnreadableError if check else Packed)
        assert str(packing[1]) == f"{other}: {'no such file' if check else 'No such file or directory'}"
        assert isinstance(packing[2], Packed)

    def test_an_ending_that_shards_do_not_have_is_told(self, tmp_path):
        split = dataset(Flickr8k, "image", root=str(flickr8k_tree(tmp_path)), **OWN_SPLIT).split("train")
        paths = split.items.files["image"]
        paths[0] = paths[0].replace(".jpg", ".xyz")
        message = "its ending is not that of an image"
        assert str(Packing(split, sample_rate=0, check=False)[0]) == f"{paths[0]}: {message}"

    def test_what_shards_do_not_hold_is_refused(self):
        class Texts(Source):
            def items(self, stage, roles):
                return [Item({"text": "a"}, {}, "x")]

        reader = TextReader(tokenizer=ByteTokenizer(vocab_size=262, max_length=7))
        split = Dataset(source=Texts(), readers={"text": reader}, on_error="raise").split("train")
        with pytest.raises(ValueError, match=r"^x: shards hold images and sounds, and no text$"):
            Packing(split, sample_rate=0, check=True)[0]


@pytest.mark.parametrize("wrong", [0, -1])
def test_shards_hold_at_least_one_sample(tmp_path, wrong):
    with pytest.raises(ValueError, match=rf"^samples_per_shard={wrong} must be at least 1"):
        ShardWriter(tmp_path, samples_per_shard=wrong)
