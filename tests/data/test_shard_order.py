"""The order of samples in shards, through the one data module: as of any other data set."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from perceiver.data.files import UnreadableError
from perceiver.data.readers.image import ImageAugment
from perceiver.data.sources.shards import Shards
from perceiver.training.data_module import DataModule
from perceiver.types import Batch
from tests.data.datasets import dataset
from tests.data.shard_trees import png, tar

WORLDS = (1, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """23 samples in three tars of which one is small."""
    root = tmp_path_factory.mktemp("shards")
    for part, (first, last) in enumerate([(0, 11), (11, 12), (12, 23)]):
        files = {
            f"{number:06d}.{ending}": content
            for number in range(first, last)
            for ending, content in (("png", png(number)), ("cls", b"%d" % (number % 3)))
        }
        tar(root / f"train-{part}.tar", files)
    return root


def data_module(
    root, rank=0, world_size=1, batches_done=0, *, num_workers=0, class_balanced=False, on_error="raise"
) -> DataModule:
    """As one process of a run has it that is continued behind some batches."""
    augment = ImageAugment(crop_padding=2, horizontal_flip=0.5)
    options = {"num_classes": 3, "target": "label", "val_fraction": 0.0, "test_fraction": 0.0}
    images = {"image_size": (13, 17), "augment": augment}
    data = DataModule(
        dataset=dataset(Shards, "image", root=str(root), on_error=on_error, **options, **images),
        batch_size=3,
        num_workers=num_workers,
        timeout_seconds=0,
        drop_last=False,
        class_balanced=class_balanced,
        pin_memory=False,
        seed=0,
    )
    progress = SimpleNamespace(total=SimpleNamespace(processed=batches_done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(fit_loop=loop, limit_train_batches=1.0, global_rank=rank, world_size=world_size)
    return data


def read_epoch(data: DataModule, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def ids(batches: list[Batch]) -> list[str]:
    return [id for batch in batches for id in batch.ids]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_share_out_each_epoch(root, world_size, num_workers):
    expected = {f"train-{min(n // 11, 1) + (n >= 12)}.tar/{n:06d}.png" for n in range(23)}
    orders = []
    for epoch in range(2):
        ranks = [
            ids(read_epoch(data_module(root, rank, world_size, num_workers=num_workers), epoch))
            for rank in range(world_size)
        ]
        flat = [id for rank in ranks for id in rank]
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
        assert sorted(flat) == sorted(expected)
        orders.append(ranks)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("world_size", WORLDS)
def test_resuming_anywhere_gives_exactly_the_rest(root, world_size):
    for rank in range(world_size):
        whole = [read_epoch(data_module(root, rank, world_size), epoch) for epoch in range(3)]
        per_epoch = len(whole[0])
        for done in range(2 * per_epoch + 1):
            epoch, offset = divmod(done, per_epoch)
            workers = 2 * (done in (1, per_epoch + 1))
            rest = read_epoch(data_module(root, rank, world_size, done, num_workers=workers), epoch)
            assert ids(rest) == ids(whole[epoch][offset:])
            for one, other in zip(rest, whole[epoch][offset:], strict=True):
                assert torch.equal(one.inputs["image"], other.inputs["image"])


def test_classes_may_be_balanced(root):
    found = ids(read_epoch(data_module(root, class_balanced=True)))
    assert len(found) == 23
    assert len(set(found)) < 23


@pytest.mark.slow
def test_workers_may_be_started_afresh(root):
    """Instead of being forked: everything goes to them as it is pickled."""
    loader = data_module(root, num_workers=1).train_dataloader()
    loader.multiprocessing_context = "spawn"
    assert sorted(id for batch in loader for id in batch.ids) == sorted(ids(read_epoch(data_module(root))))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_read_is_left_out_and_named_or_ends_it(tmp_path, num_workers):
    files = {f"{n}.{ending}": content for n in range(5) for ending, content in (("png", png(n)), ("cls", b"%d" % n))}
    tar(tmp_path / "train-0.tar", files)
    data = data_module(tmp_path, on_error="skip", num_workers=num_workers)
    for epoch in range(2):
        batches = [data.on_before_batch_transfer(batch, 0) for batch in read_epoch(data, epoch)]
        assert sorted(ids(batches)) == [f"train-0.tar/{n}.png" for n in range(3)]
    reason = "they are numbered from 0 to 2"
    assert sorted(data.unreadable) == [f"{tmp_path}/train-0.tar/{n}: class {n}: {reason}" for n in (3, 4)]
    data = data_module(tmp_path)
    with pytest.raises(UnreadableError, match=r"train-0\.tar/[34]: class [34]: "):
        [data.on_before_batch_transfer(batch, 0) for batch in read_epoch(data)]
