import logging
from dataclasses import replace
from itertools import pairwise, zip_longest
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.array import ArrayReader
from perceiver.data.sources.base import Item, Source
from perceiver.training.data_module import DataModule
from perceiver.types import Batch

SIZES = {"train": 23, "val": 13, "test": 11}


class NoisyItems:
    """Items that consist of their index and of what the generator gave; those in `broken` cannot be read.

    Every seventh has class 1, the others class 0.
    """

    def __init__(self, stage: str, num_samples: int, broken: frozenset[int]) -> None:
        self.stage, self.num_samples, self.broken = stage, num_samples, broken

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Item:
        noise = torch.rand(2)
        if index in self.broken:
            raise UnreadableError(f"{self.stage}/{index}.jpg: broken")
        return Item({"x": noise}, {"label": index}, f"{self.stage}/{index}")

    def classes_of(self, index: int) -> list[int]:
        return [int(index % 7 == 0)]


class Noisy(Source):
    class_names = ("a", "b")

    def __init__(self, sizes=SIZES, broken=()) -> None:
        super().__init__(num_classes=2)
        self.sizes, self.broken = sizes, frozenset(broken)

    def items(self, stage, roles):
        return NoisyItems(stage, self.sizes[stage], self.broken) if stage in self.sizes else None


def noisy(*args, on_error="raise", **options) -> Dataset:
    return Dataset(source=Noisy(*args, **options), readers={"x": ArrayReader(shape=[2])}, on_error=on_error)


def test_what_is_no_text_has_no_pieces():
    assert noisy().pieces("x", torch.zeros(1, 3)) is None


def module(dataset=None, *, batch_size=5, num_workers=0, drop_last=False, class_balanced=False, seed=0) -> DataModule:
    return DataModule(
        dataset=dataset or noisy(),
        batch_size=batch_size,
        num_workers=num_workers,
        timeout_seconds=0,
        drop_last=drop_last,
        class_balanced=class_balanced,
        pin_memory=False,
        seed=seed,
    )


def trainer(*, batches_done: int, limit: int | float = 1.0, rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    """As much of a restored Trainer as the data module looks at."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=batches_done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(fit_loop=loop, limit_train_batches=limit, global_rank=rank, world_size=world_size)


def read_epoch(data: DataModule, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_id(batches: list[Batch]) -> dict[str, list[float]]:
    rows = [(id, x) for batch in batches for id, x in zip(batch.ids, batch.inputs["x"].tolist(), strict=True)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def ids(batches: list[Batch]) -> list[str]:
    return [id for batch in batches for id in batch.ids]


@pytest.mark.parametrize("other", [{"num_workers": 2}, {"batch_size": 7}, {"batch_size": 1}, {}], ids=str)
def test_a_sample_is_the_same_whoever_reads_it_and_whatever_batch_it_lies_in(other):
    assert by_id(read_epoch(module(), epoch=3)) == by_id(read_epoch(module(**other), epoch=3))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_and_another_seed_augment_every_sample_differently(seed, epoch):
    first, other = by_id(read_epoch(module())), by_id(read_epoch(module(seed=seed), epoch))
    assert first.keys() == other.keys()
    assert all(first[id] != other[id] for id in first)


def test_no_two_samples_are_augmented_alike():
    values = by_id(read_epoch(module())).values()
    assert len({tuple(value) for value in values}) == SIZES["train"]


def test_reading_leaves_the_global_generator_alone():
    data = module(noisy(broken=[2], on_error="skip"))
    before = torch.get_rng_state()
    read_epoch(data), list(data.val_dataloader()), data.probe(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_does_not_change_what_is_read():
    first = by_id(read_epoch(module()))
    torch.rand(5)
    assert by_id(read_epoch(module())) == first


@pytest.mark.parametrize(
    ("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])], ids=["kept", "dropped"]
)
def test_the_last_batch_is_smaller_or_dropped(drop_last, sizes):
    data = module(drop_last=drop_last)
    assert [len(batch) for batch in read_epoch(data)] == sizes
    assert len(data.train_dataloader()) == len(sizes)


def test_evaluation_drops_nothing_and_keeps_the_order():
    data = module(drop_last=True)
    assert ids(data.val_dataloader()) == [f"val/{index}" for index in range(13)]
    assert ids(data.test_dataloader()) == [f"test/{index}" for index in range(11)]


def test_batches_of_one():
    assert [len(batch) for batch in read_epoch(module(batch_size=1))] == [1] * SIZES["train"]


def test_dropping_the_only_batch_is_refused():
    with pytest.raises(ValueError, match=r"loader\.drop_last=true .* 23 .* loader\.batch_size=29"):
        module(batch_size=29, drop_last=True).train_samples  # noqa: B018
    module(batch_size=23, drop_last=True).train_samples  # noqa: B018
    shared = module(batch_size=13, drop_last=True)
    shared.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(MisconfigurationException, match=r"loader\.drop_last=true .* 11 .* loader\.batch_size=13"):
        shared.train_dataloader()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}], ids=str)
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        module(**wrong)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_keeps_the_rest_of_a_batch_and_names_each_file_once(num_workers, caplog):
    broken = [0, 1, 2, 3, 4, 7, 11]
    data = module(noisy(broken=broken, on_error="skip"), num_workers=num_workers)
    whole = by_id(read_epoch(module()))
    with caplog.at_level(logging.WARNING, logger="perceiver.training.data_module"):
        for _ in range(2):
            batches = [data.on_before_batch_transfer(batch, 0) for batch in read_epoch(data)]
    assert by_id(batches) == {id: x for id, x in whole.items() if int(id.split("/")[1]) not in broken}
    messages = [f"train/{index}.jpg: broken" for index in broken]
    assert sorted(message for batch in batches for message in batch.unreadable) == sorted(messages)
    assert sorted(data.unreadable) == sorted(messages)
    assert [sum(message in record.getMessage() for record in caplog.records) for message in messages] == [1] * 7


def test_a_batch_of_which_nothing_can_be_read_is_empty():
    batches = list(module(noisy(broken=range(5), on_error="skip")).val_dataloader())
    assert [len(batch) for batch in batches] == [0, 5, 3]
    assert len(batches[0].unreadable) == 5


def test_a_stage_of_which_nothing_can_be_read_is_refused_with_the_first_reasons():
    data = module(noisy(broken=range(13), on_error="skip"))
    data.check_readable("train")
    for stage in ("val", "test"):
        with pytest.raises(
            UnreadableError, match=rf"{SIZES[stage]} samples for {stage} .*data\.on_error=skip.*{stage}/2"
        ):
            data.check_readable("train", stage)
    module(noisy(broken=range(13))).check_readable("val")  # whose first sample will end the run itself
    module(noisy({"train": 5}, on_error="skip")).check_readable("train", "val")


def test_a_probe_with_an_unreadable_sample_raises_if_none_may_be_skipped():
    with pytest.raises(UnreadableError, match=r"^val/0\.jpg: broken$"):
        module(noisy(broken=[0])).probe(3)


@pytest.mark.parametrize(
    ("stages", "source"),
    [(["train", "val", "test"], "val"), (["train", "test"], "test"), (["train", "val"], "val"), (["train"], "train")],
)
def test_the_probe_comes_from_the_best_split_there_is_and_never_changes(stages, source):
    data = module(noisy({stage: SIZES[stage] for stage in stages}))
    first = data.probe(5)
    torch.rand(3)
    assert by_id([data.probe(5)]) == by_id([first])
    assert len(first) == 5
    assert all(id.startswith(source) for id in first.ids)


@pytest.mark.parametrize(("wanted", "got"), [(1, 1), (13, 13), (29, 13)])
def test_the_probe_holds_as_many_samples_as_asked_for_and_there_are(wanted, got):
    assert len(set(module().probe(wanted).ids)) == got


@pytest.mark.parametrize("numbers", [[7], [11, 2, 5], [12, 0], (3, 1)], ids=str)
def test_a_probe_of_chosen_numbers_holds_these_in_their_order(numbers):
    probe, every = module().probe(numbers), module().probe(13)
    assert probe.ids == [f"val/{index}" for index in numbers]
    assert probe.targets["label"].tolist() == list(numbers)
    assert torch.equal(probe.inputs["x"], every.inputs["x"][list(numbers)]), "whatever else is asked for"


@pytest.mark.parametrize(("numbers", "wrong"), [([13], 13), ([2, 999, 17], 999), ([-1], -1), ([0, -3], -3)], ids=str)
def test_a_number_that_no_sample_has_is_refused(numbers, wrong):
    with pytest.raises(ValueError, match=rf"^there is no sample {wrong}; the split has 0 to 12$"):
        module().probe(numbers)


def test_of_chosen_numbers_too_it_holds_the_first_views_of_what_can_be_read():
    probe = module(windowed(broken=[4], on_error="skip")).probe([7, 4, 2])
    assert probe.ids == ["val/7 early", "val/2"]
    assert probe.inputs["x"].shape == (2, 2)
    assert probe.unreadable == ["val/4.jpg: broken"]


def test_the_probe_is_spread_over_the_split():
    positions = [int(id.split("/")[1]) for id in module().probe(3).ids]
    assert positions == sorted(positions)
    assert max(positions) > 13 / 2


def test_the_probe_leaves_out_what_cannot_be_read():
    probe = module(noisy(broken=[0], on_error="skip")).probe(3)
    assert len(probe) == 2
    assert probe.unreadable == ["val/0.jpg: broken"]


class Windowed(Dataset):
    """Of whose samples every other is looked at in two or three windows, all with the index of the sample in them."""

    def sample(self, item, *, train):
        sample, index = super().sample(item, train=train), item.targets["label"]
        if index % 2 == 0:
            return sample
        windows = ("early", "late", "later")[: 2 + index % 3]
        values = torch.stack([torch.full((2,), 10.0 * index + place) for place in range(len(windows))])
        return replace(sample, inputs={"x": values}, windows=windows)


def windowed(*, on_error="raise", **options) -> Dataset:
    return Windowed(source=Noisy(**options), readers={"x": ArrayReader(shape=[2])}, on_error=on_error)


def test_the_probe_holds_the_first_view_of_each_sample():
    probe = module(windowed()).probe(13)
    assert probe.windows == []
    assert probe.inputs["x"].shape == (13, 2)
    assert probe.targets["label"].tolist() == list(range(13))
    assert probe.ids == [f"val/{index}{' early' * (index % 2)}" for index in range(13)]
    assert probe.inputs["x"][1::2].tolist() == [[10.0 * index] * 2 for index in range(1, 13, 2)]


def test_the_probe_leaves_out_what_cannot_be_read_among_views_too():
    probe = module(windowed(broken=[0, 1], on_error="skip")).probe(13)
    assert len(probe) == len(probe.inputs["x"]) == 11


def test_a_larger_probe_is_spread_as_evenly():
    for wanted in (1, 2, 3, 5, 13):
        positions = [int(id.split("/")[1]) for id in module().probe(wanted).ids]
        gaps = {later - earlier for earlier, later in pairwise([*positions, 13])}
        assert positions[0] == 0
        assert max(gaps) - min(gaps) <= 1


class TestClassBalance:
    def balanced_ids(self, epoch: int = 0, **options) -> list[str]:
        return ids(read_epoch(module(class_balanced=True, **options), epoch))

    def test_an_epoch_is_as_long_as_ever_and_its_classes_come_equally_often(self):
        found = [id for epoch in range(29) for id in self.balanced_ids(epoch)]
        assert len(found) == 29 * SIZES["train"]
        rare = sum(int(id.split("/")[1]) % 7 == 0 for id in found)
        assert abs(rare - len(found) / 2) < 3.3 * (len(found) / 4) ** 0.5  # 1 in 1000

    def test_a_sample_that_comes_again_in_an_epoch_is_augmented_anew(self):
        batches = read_epoch(module(class_balanced=True))
        assert len(set(ids(batches))) < len(ids(batches))
        values = [tuple(x) for batch in batches for x in batch.inputs["x"].tolist()]
        assert len(set(values)) == len(values)

    def test_workers_and_batch_size_change_nothing(self):
        first = read_epoch(module(class_balanced=True))
        for other in ({"num_workers": 2}, {"batch_size": 7}):
            again = read_epoch(module(class_balanced=True, **other))
            assert ids(again) == ids(first)
            xs = [torch.cat([batch.inputs["x"] for batch in batches]) for batches in (first, again)]
            assert torch.equal(*xs)

    def test_evaluation_is_left_alone(self):
        data = module(class_balanced=True)
        assert ids(data.val_dataloader()) == [f"val/{index}" for index in range(13)]

    def test_ranks_share_out_one_draw(self):
        whole, parts = self.balanced_ids(), []
        for rank in range(2):
            data = module(class_balanced=True)
            data.trainer = trainer(batches_done=0, rank=rank, world_size=2)
            parts.append(ids(data.train_dataloader()))
        assert [id for pair in zip_longest(*parts) for id in pair if id is not None] == whole

    def test_there_must_be_classes(self, monkeypatch):
        monkeypatch.setattr(NoisyItems, "classes_of", lambda self, index: [])
        assert len(module().train_samples) == SIZES["train"]
        with pytest.raises(ValueError, match=r"^loader\.class_balanced=true: "):
            module(class_balanced=True).train_samples  # noqa: B018
        with pytest.raises(ValueError, match=r"^loader\.class_balanced=true: "):
            module(class_balanced=True).train_dataloader()


def test_without_validation_and_test_samples_there_are_no_loaders_for_them():
    data = module(noisy({"train": 7}))
    assert data.val_dataloader() == []
    assert data.test_dataloader() == []


def test_without_training_samples_training_is_refused():
    data = module(noisy({"test": 7}))
    assert len(list(data.test_dataloader())) == 2
    with pytest.raises(ValueError, match="no train"):
        data.train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("epoch", "done"), [(0, 0), (0, 2), (2, 3), (1, 0)])
def test_a_resumed_run_reads_exactly_what_is_left(epoch, done, drop_last, num_workers):
    whole = [read_epoch(module(drop_last=drop_last), epoch) for epoch in range(epoch + 2)]
    data = module(drop_last=drop_last, num_workers=num_workers)
    data.trainer = trainer(batches_done=sum(map(len, whole[:epoch])) + done)
    loader = data.train_dataloader()
    for later, batches in enumerate(whole[epoch:], start=epoch):
        loader.sampler.set_epoch(later)
        rest = list(loader)
        assert ids(rest) == ids(batches[done if later == epoch else 0 :])
        assert by_id(rest).items() <= by_id(batches).items()


@pytest.mark.parametrize("limit", [3, 0.61])
def test_an_epoch_cut_short_by_limit_train_batches_counts_as_one(limit):
    data = module()
    data.trainer = trainer(batches_done=2 * 3 + 1, limit=limit)
    assert ids(data.train_dataloader()) == ids(read_epoch(module(), epoch=2)[1:])


def test_each_rank_resumes_its_own_part():
    for rank in range(2):
        whole, data = module(), module()
        whole.trainer = trainer(batches_done=0, rank=rank, world_size=2)
        data.trainer = trainer(batches_done=2, rank=rank, world_size=2)
        rest = ids(data.train_dataloader())
        assert len(rest) == 2 - rank  # of 23 samples the second has 11
        assert rest == ids(whole.train_dataloader())[10:]


class Recorder(lightning.LightningModule):
    """Trains nothing and writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[tuple[str, float, float]]] = []

    def training_step(self, batch):
        self.seen.append([(id, *x) for id, x in zip(batch.ids, batch.inputs["x"].tolist(), strict=True)])
        return self.weight * 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: DataModule, *, ckpt_path=None, **options) -> list[list[tuple[str, float, float]]]:
    """Train, and give all batches that were seen."""
    recorder = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(**quiet, use_distributed_sampler=False, **options)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt_path)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")
class TestUnderLightning:
    @pytest.mark.parametrize(("limit", "class_balanced"), [(None, False), (3, False), (None, True)])
    def test_a_run_resumed_anywhere_sees_what_an_uninterrupted_one_sees(self, tmp_path, limit, class_balanced):
        options = {"max_epochs": 3, "limit_train_batches": limit}
        saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit(module(class_balanced=class_balanced), **options, callbacks=[saver])
        assert len(whole) == 3 * (limit or 5)
        for step in range(1, len(whole)):
            data, last = module(class_balanced=class_balanced), tmp_path / f"step={step}.ckpt"
            resumed = fit(data, **options, enable_checkpointing=False, ckpt_path=last)
            assert resumed == whole[step:]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_raising_names_the_file_and_nothing_else(self, num_workers):
        data = module(noisy(broken=[7]), num_workers=num_workers)
        with pytest.raises(UnreadableError, match=r"^train/7\.jpg: broken$"):
            fit(data, max_epochs=1, enable_checkpointing=False)

    def test_overfit_batches_shows_the_same_batches_each_epoch(self):
        seen = fit(module(), max_epochs=2, overfit_batches=2, enable_checkpointing=False)
        assert len(seen) == 4
        assert seen[:2] == seen[2:]
