"""Decoded files in memory: the samples are the same, and memory is bounded."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from perceiver.data import memory_cache
from perceiver.data.dataset import Dataset, Split
from perceiver.data.files import Segmented, UnreadableError
from perceiver.data.readers.audio import AudioAugment, AudioReader
from perceiver.data.readers.image import ImageAugment, ImageReader
from perceiver.data.readers.segmented_image import SegmentedImageReader
from perceiver.data.sources.base import Item
from perceiver.data.sources.folders import ClassFolders
from perceiver.data.sources.generated import GeneratedSource
from perceiver.data.sources.masks import ImageMasks
from scripts import data_trees
from tests.data.datasets import built, samples
from tests.training.test_data_module import module, trainer

AUGMENT = ImageAugment(horizontal_flip=0.5, min_scale=0.5)
AUDIO = {"sample_rate": 1301, "augment": AudioAugment(gain=3.0, time_shift=0.1, polarity=0.5)}


def dataset(root, kind: str, megabytes: float, seconds: float = 2 * data_trees.SECONDS) -> Dataset:
    """Images, images with masks, or sounds, all with random augmentation."""
    make = data_trees.image_masks if kind == "masks" else lambda path: data_trees.class_folders(path, kind)
    tree = root if root.exists() else make(root).root
    source = built(ImageMasks if kind == "masks" else ClassFolders, root=str(tree), num_classes=3)
    if kind == "audio":
        reader = built(AudioReader, seconds=seconds, hop_seconds=seconds / 2, **AUDIO)
    else:
        options = {"num_classes": 3, "ignore_label": 255, "augment": AUGMENT}
        reader = built(SegmentedImageReader if kind == "masks" else ImageReader, **options)
    name = "audio" if kind == "audio" else "image"
    return Dataset(source=source, readers={name: reader}, on_error="raise", cache_megabytes=megabytes)


def tensors(sample) -> list[torch.Tensor]:
    values = (*sample.inputs.values(), *sample.targets.values())
    return [value for value in values if isinstance(value, torch.Tensor)]


every_kind = pytest.mark.parametrize("kind", ["image", "masks", "audio"])


@every_kind
def test_decoded_files_are_not_read_again_and_samples_stay_the_same(tmp_path, kind):
    plain, cached = (dataset(tmp_path / "data", kind, megabytes) for megabytes in (0, 1))

    def read(splits: list[Split | None]) -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [value for split in splits for one in samples(split) for value in tensors(one)]

    without, within = ([data.split(stage) for stage in ("train", "val")] for data in (plain, cached))
    expected = read(without)
    assert len(expected) > 10
    torch.testing.assert_close(read(within), expected, rtol=0, atol=0)
    for file in (tmp_path / "data").rglob("*.*"):
        file.unlink()
    torch.testing.assert_close(read(within), expected, rtol=0, atol=0)
    with pytest.raises(UnreadableError):
        read(without)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("rank", [0, 1])
def test_workers_of_each_process_read_the_same_batches(tmp_path, kind, rank):
    found = []
    for megabytes in (0, 1):
        data = module(dataset(tmp_path / "data", kind, megabytes), num_workers=2, batch_size=3)
        data.trainer = trainer(batches_done=0, rank=rank, world_size=2)
        loader = data.train_dataloader()
        epochs = []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            epochs += [(batch.ids, tensors(batch)) for batch in loader]
        found.append(epochs)
    (plain_ids, plain), (cached_ids, cached) = (zip(*epochs, strict=True) for epochs in found)
    assert cached_ids == plain_ids
    torch.testing.assert_close(cached, plain, rtol=0, atol=0)


def test_memory_is_bounded_and_divided_among_workers(tmp_path, monkeypatch):
    size = 3 * 13 * 17  # bytes of an image
    for num_workers, count in ((None, 5), (2, 2)):
        info = None if num_workers is None else SimpleNamespace(num_workers=num_workers)
        monkeypatch.setattr(memory_cache, "get_worker_info", lambda info=info: info)
        data = dataset(tmp_path / "data", "image", 5.5 * size / 2**20)
        assert len(samples(data.split("train"))) > 5
        assert len(data.cache.kept) == count
        assert data.cache.num_bytes == count * size


def test_what_was_kept_before_a_worker_was_forked_takes_nothing_from_its_share(tmp_path):
    size = 3 * 13 * 17
    data = dataset(tmp_path / "data", "image", 5.5 * size / 2**20)
    split = data.split("train")
    samples(split)
    assert len(data.cache.kept) == 5

    def read(_: list[int]) -> tuple[int, int]:
        return len(samples(split)), len(data.cache.kept)

    [(read_by_worker, kept)] = DataLoader([0], num_workers=1, collate_fn=read, multiprocessing_context="fork")
    assert kept == min(2 * 5, read_by_worker) > 5


def test_a_sound_of_which_a_part_is_read_is_not_decoded_as_a_whole(tmp_path):
    plain, cached = (dataset(tmp_path / "data", "audio", megabytes, data_trees.SECONDS / 3) for megabytes in (0, 1))
    found = []
    for data in (plain, cached):
        torch.manual_seed(5)
        found.append([tensors(one) for one in samples(data.split("train"))])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert not cached.cache.kept


@pytest.mark.parametrize("kind", ["masks", "audio"])
def test_errors_name_the_same_files_as_without_a_cache(tmp_path, kind):
    plain, cached = (dataset(tmp_path / "data", kind, megabytes) for megabytes in (0, 1))
    if kind == "masks":
        spoiled = sorted((tmp_path / "data" / "train" / "masks").iterdir())[:3]
        for mask in spoiled:
            Image.new("L", (7, 5)).save(mask)
    else:  # a little longer than is read as a whole, so that a crop would be made of all of it
        spoiled = sorted((tmp_path / "data" / "train").rglob("*.wav"))[:3]
        for data in (plain, cached):
            data.readers["audio"].whole = True
        for sound in spoiled:
            soundfile.write(sound, np.random.default_rng(3).uniform(-1.0, 1.0, 650), 1000)

    def errors(data: Dataset) -> list[str]:
        found, split = [], data.split("train")
        for index in range(len(split)):
            try:
                split[index]
            except UnreadableError as error:
                found.append(str(error))
        return found

    expected = errors(plain)
    assert sorted(spoiled) == sorted(file for file in spoiled for error in expected if error.startswith(f"{file}: "))
    assert [errors(cached), errors(cached)] == [expected, expected]


class Noise(GeneratedSource):
    """Images of noise, with the same as the target `mask`; counts how many it draws."""

    name, roles = "noise", ("image",)
    drawn = 0

    def item(self, stage, index, random):
        self.drawn += 1
        image, mask = torch.from_numpy(random.integers(11, size=(4, 13, 17), dtype=np.uint8)).split([3, 1])
        return Item({"image": Segmented(image, mask[0])}, {"label": index}, f"{stage}/{index}")


@pytest.mark.parametrize("redrawn", [True, False])
@pytest.mark.parametrize("megabytes", [0, 1, 3.5 * 4 * 13 * 17 / 2**20])
def test_generated_samples_are_kept_where_they_are_the_same_each_time(redrawn, megabytes):
    counts = {"train": 5, "val": 3, "test": 0}
    options = {"num_classes": 11, "ignore_label": 255, "image_size": 7, "augment": AUGMENT}
    found = []
    for size in (0, megabytes):
        source = Noise(num_samples=counts, seed=3, num_classes=11, redrawn=redrawn)
        readers = {"image": built(SegmentedImageReader, **options)}
        data = Dataset(source=source, readers=readers, on_error="raise", cache_megabytes=size)
        stages = [data.split(stage) for stage in ("val", "train")]
        torch.manual_seed(3)
        found.append([value for _ in range(3) for split in stages for one in samples(split) for value in tensors(one)])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    num_kept = min(3 + 5 * (not redrawn), int(megabytes * 2**20 / (4 * 13 * 17)))
    assert len(data.cache.kept) == num_kept
    assert source.drawn == 3 * (3 + 5) - 2 * num_kept
    assert data.cache.num_bytes == num_kept * 4 * 13 * 17


def test_what_has_no_tensors_is_not_kept():
    class Words(Noise):
        def item(self, stage, index, random):
            return Item({"image": "word"}, {"label": index}, f"{stage}/{index}")

    cache = memory_cache.MemoryCache(1)
    items = Words(num_samples={"train": 0, "val": 3, "test": 0}, seed=3, num_classes=11).items("val", {})
    assert [cache.item(items, index).id for index in (0, 1, 0)] == ["val/0", "val/1", "val/0"]
    assert not cache.kept


def test_a_negative_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cache_megabytes=-1"):
        dataset(tmp_path / "data", "image", -1)
