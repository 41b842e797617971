"""Batches: their order and augmentation, resuming, skipped samples, and the probe."""

import logging
from dataclasses import replace
from itertools import pairwise, zip_longest
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.array import ArrayReader
from perceiver.data.sources.base import Item, Source
from perceiver.runtime.errors import ConfigError
from perceiver.training.data_module import DataModule
from perceiver.training.lightning_data import LightningData
from perceiver.types import Batch

SIZES = {"train": 23, "val": 13, "test": 11}


class NoisyItems:
    """Items of two random numbers, labeled by index; those in `broken` cannot be read. Every seventh has class 1."""

    def __init__(self, stage: str, num_samples: int, broken: frozenset[int]) -> None:
        self.stage, self.num_samples, self.broken = stage, num_samples, broken

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Item:
        noise = torch.rand(2)
        if index in self.broken:
            raise UnreadableError(f"{self.stage}/{index}.jpg: broken")
        return Item({"x": noise}, {"label": index}, f"{self.stage}/{index}")

    def sample_classes(self, index: int) -> list[int]:
        return [int(index % 7 == 0)]


class Noisy(Source):
    class_names = ("a", "b")

    def __init__(self, sizes=SIZES, broken=()) -> None:
        super().__init__(num_classes=2)
        self.sizes, self.broken = sizes, frozenset(broken)

    def items(self, stage, roles):
        return NoisyItems(stage, self.sizes[stage], self.broken) if stage in self.sizes else None


class Windowed(Dataset):
    """Samples with an odd index have two or three windows, whose values contain the index."""

    def sample(self, item, *, train):
        sample, index = super().sample(item, train=train), item.targets["label"]
        if index % 2 == 0:
            return sample
        windows = ("early", "late", "later")[: 2 + index % 3]
        values = torch.stack([torch.full((2,), 10.0 * index + place) for place in range(len(windows))])
        return replace(sample, inputs={"x": values}, windows=windows)


def noisy(*args, on_error="raise", kind=Dataset, **options) -> Dataset:
    return kind(source=Noisy(*args, **options), readers={"x": ArrayReader(shape=[2])}, on_error=on_error)


def module(dataset=None, **options) -> DataModule:
    defaults = {"batch_size": 5, "num_workers": 0, "drop_last": False, "class_balanced": False, "seed": 0}
    return DataModule(dataset=dataset or noisy(), timeout_seconds=0, pin_memory=False, **(defaults | options))


def trainer(*, batches_done: int, limit: int | float = 1.0, rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    """The attributes of a restored Trainer that the data module reads."""
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


def test_inputs_other_than_texts_have_no_pieces():
    assert noisy().pieces("x", torch.zeros(1, 3)) is None


class TestAugmentation:
    @pytest.mark.parametrize("other", [{"num_workers": 2}, {"batch_size": 7}, {"batch_size": 1}], ids=str)
    def test_a_sample_depends_neither_on_workers_nor_batches(self, other):
        assert by_id(read_epoch(module(), epoch=3)) == by_id(read_epoch(module(**other), epoch=3))

    @pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
    def test_every_sample_is_augmented_differently_in_each_epoch_and_with_each_seed(self, seed, epoch):
        first, other = by_id(read_epoch(module())), by_id(read_epoch(module(seed=seed), epoch))
        assert first.keys() == other.keys()
        assert len({tuple(value) for epoch in (first, other) for value in epoch.values()}) == 2 * SIZES["train"]

    def test_reading_neither_changes_nor_depends_on_the_global_generator(self):
        data = module(noisy(broken=[2], on_error="skip"))
        before = torch.get_rng_state()
        first = by_id(read_epoch(data))
        list(data.val_dataloader()), data.probe(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        assert by_id(read_epoch(data)) == first


class TestBatches:
    @pytest.mark.parametrize(
        ("options", "sizes"),
        [({}, [5, 5, 5, 5, 3]), ({"drop_last": True}, [5, 5, 5, 5]), ({"batch_size": 1}, [1] * 23)],
        ids=str,
    )
    def test_the_last_training_batch_is_smaller_or_dropped_and_evaluation_keeps_all_in_order(self, options, sizes):
        data = module(**options)
        assert [len(batch) for batch in read_epoch(data)] == sizes
        assert len(data.train_dataloader()) == len(sizes)
        assert ids(data.val_dataloader()) == [f"val/{index}" for index in range(13)]
        assert ids(data.test_dataloader()) == [f"test/{index}" for index in range(11)]

    def test_dropping_the_only_batch_is_refused(self):
        with pytest.raises(ValueError, match=r"loader\.drop_last=true .* 23 .* loader\.batch_size=29"):
            module(batch_size=29, drop_last=True).train_samples  # noqa: B018
        module(batch_size=23, drop_last=True).train_samples  # noqa: B018
        shared = module(batch_size=13, drop_last=True)
        shared.trainer = SimpleNamespace(global_rank=0, world_size=2)
        with pytest.raises(ConfigError, match=r"loader\.drop_last=true .* 11 .* loader\.batch_size=13"):
            shared.train_dataloader()

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}], ids=str)
    def test_impossible_sizes_are_refused(self, wrong):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            module(**wrong)

    def test_a_split_without_samples_has_no_loader(self):
        data = module(noisy({"train": 7}))
        assert data.val_dataloader() == data.test_dataloader() == []
        data = module(noisy({"test": 7}))
        assert len(list(data.test_dataloader())) == 2
        with pytest.raises(ValueError, match="no train"):
            data.train_dataloader()


class TestUnreadable:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_they_are_skipped_and_reported_once(self, num_workers, caplog):
        broken = [0, 1, 2, 3, 4, 7, 11]
        data = module(noisy(broken=broken, on_error="skip"), num_workers=num_workers)
        whole = by_id(read_epoch(module()))
        with caplog.at_level(logging.WARNING, logger="perceiver.training.data_module"):
            for _ in range(2):
                batches = [data.report_unreadable(batch) for batch in read_epoch(data)]
        assert by_id(batches) == {id: x for id, x in whole.items() if int(id.split("/")[1]) not in broken}
        messages = [f"train/{index}.jpg: broken" for index in broken]
        assert sorted(message for batch in batches for message in batch.unreadable) == sorted(messages)
        assert sorted(data.unreadable) == sorted(messages)
        assert [sum(message in record.getMessage() for record in caplog.records) for message in messages] == [1] * 7

    def test_a_batch_may_become_empty(self):
        batches = list(module(noisy(broken=range(5), on_error="skip")).val_dataloader())
        assert [len(batch) for batch in batches] == [0, 5, 3]
        assert len(batches[0].unreadable) == 5

    def test_a_stage_without_a_readable_sample_is_refused_with_the_first_reasons(self):
        data = module(noisy(broken=range(13), on_error="skip"))
        data.check_readable("train")
        for stage in ("val", "test"):
            reason = rf"{SIZES[stage]} samples for {stage} .*data\.on_error=skip.*{stage}/2"
            with pytest.raises(UnreadableError, match=reason):
                data.check_readable("train", stage)
        module(noisy(broken=range(13))).check_readable("val")  # whose first sample will end the run itself
        module(noisy({"train": 5}, on_error="skip")).check_readable("train", "val")


class TestProbe:
    @pytest.mark.parametrize(
        ("stages", "source"),
        [(["train", "val", "test"], "val"), (["train", "test"], "test"), (["train"], "train")],
    )
    def test_it_is_a_fixed_part_of_validation_test_or_training(self, stages, source):
        data = module(noisy({stage: SIZES[stage] for stage in stages}))
        first = data.probe(5)
        torch.rand(3)
        assert by_id([data.probe(5)]) == by_id([first])
        assert len(first) == 5
        assert all(id.startswith(source) for id in first.ids)

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 13, 29])
    def test_its_samples_are_evenly_spread_over_the_split(self, size):
        positions = [int(id.split("/")[1]) for id in module().probe(size).ids]
        assert len(positions) == min(size, 13)
        gaps = {later - earlier for earlier, later in pairwise([*positions, 13])}
        assert positions[0] == 0
        assert max(gaps) - min(gaps) <= 1

    @pytest.mark.parametrize("indices", [[7], [11, 2, 5], (3, 1)], ids=str)
    def test_chosen_samples_are_those_of_any_probe_in_the_given_order(self, indices):
        probe, every = module().probe(indices), module().probe(13)
        assert probe.ids == [f"val/{index}" for index in indices]
        assert torch.equal(probe.inputs["x"], every.inputs["x"][list(indices)])

    @pytest.mark.parametrize(("indices", "wrong"), [([13], 13), ([2, 999, 17], 999), ([0, -3], -3)], ids=str)
    def test_an_index_out_of_range_is_refused(self, indices, wrong):
        with pytest.raises(ValueError, match=rf"^there is no sample {wrong}; the split has 0 to 12$"):
            module().probe(indices)

    def test_it_has_the_first_window_of_each_readable_sample(self):
        data = module(noisy(broken=[0, 4], on_error="skip", kind=Windowed))
        probe, readable = data.probe(13), [index for index in range(13) if index not in (0, 4)]
        assert probe.windows == []
        assert probe.targets["label"].tolist() == readable
        assert probe.ids == [f"val/{index}{' early' * (index % 2)}" for index in readable]
        firsts = {index: row for index, row in zip(readable, probe.inputs["x"].tolist(), strict=True) if index % 2}
        assert firsts == {index: [10.0 * index] * 2 for index in firsts}
        chosen = data.probe([7, 4, 2])
        assert (chosen.ids, chosen.unreadable) == (["val/7 early", "val/2"], ["val/4.jpg: broken"])

    def test_an_unreadable_sample_is_an_error_unless_skipped(self):
        with pytest.raises(UnreadableError, match=r"^val/0\.jpg: broken$"):
            module(noisy(broken=[0])).probe(3)


class TestClassBalance:
    def test_classes_are_equally_frequent_in_epochs_of_the_same_length(self):
        found = [id for epoch in range(29) for id in ids(read_epoch(module(class_balanced=True), epoch))]
        assert len(found) == 29 * SIZES["train"]
        rare = sum(int(id.split("/")[1]) % 7 == 0 for id in found)
        assert abs(rare - len(found) / 2) < 3.3 * (len(found) / 4) ** 0.5  # 1 in 1000
        data = module(class_balanced=True)
        assert ids(data.val_dataloader()) == [f"val/{index}" for index in range(13)], "evaluation is not balanced"

    def test_repeated_samples_are_augmented_anew_whatever_workers_and_batches(self):
        first = read_epoch(module(class_balanced=True))
        values = torch.cat([batch.inputs["x"] for batch in first])
        assert len(set(ids(first))) < len(ids(first)) == len({tuple(x) for x in values.tolist()})
        for other in ({"num_workers": 2}, {"batch_size": 7}):
            again = read_epoch(module(class_balanced=True, **other))
            assert ids(again) == ids(first)
            assert torch.equal(torch.cat([batch.inputs["x"] for batch in again]), values)

    def test_processes_share_one_draw(self):
        whole, parts = ids(read_epoch(module(class_balanced=True))), []
        for rank in range(2):
            data = module(class_balanced=True)
            data.trainer = trainer(batches_done=0, rank=rank, world_size=2)
            parts.append(ids(data.train_dataloader()))
        assert [id for pair in zip_longest(*parts) for id in pair if id is not None] == whole

    def test_samples_without_classes_are_refused(self, monkeypatch):
        monkeypatch.setattr(NoisyItems, "sample_classes", lambda self, index: [])
        assert len(module().train_samples) == SIZES["train"]
        for attribute in ("train_samples", "train_dataloader"):
            with pytest.raises(ValueError, match=r"^loader\.class_balanced=true: "):
                getattr(module(class_balanced=True), attribute)()


class TestResume:
    @pytest.mark.parametrize(
        ("epoch", "done", "drop_last", "num_workers"),
        [(0, 0, True, 0), (0, 2, False, 2), (2, 3, True, 2), (2, 3, False, 0), (1, 0, False, 0)],
    )
    def test_exactly_the_remaining_samples_are_read(self, epoch, done, drop_last, num_workers):
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
    def test_an_epoch_may_be_limited(self, limit):
        data = module()
        data.trainer = trainer(batches_done=2 * 3 + 1, limit=limit)
        assert ids(data.train_dataloader()) == ids(read_epoch(module(), epoch=2)[1:])

    @pytest.mark.parametrize("rank", [0, 1])
    def test_each_process_reads_its_own_samples(self, rank):
        whole, data = module(), module()
        whole.trainer = trainer(batches_done=0, rank=rank, world_size=2)
        data.trainer = trainer(batches_done=2, rank=rank, world_size=2)
        rest = ids(data.train_dataloader())
        assert len(rest) == 2 - rank  # of 23 samples the second process has 11
        assert rest == ids(whole.train_dataloader())[10:]


class Recorder(lightning.LightningModule):
    """Trains nothing and records its batches."""

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
    """Train, and return all batches."""
    recorder = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(**quiet, use_distributed_sampler=False, **options)
    trainer.fit(recorder, datamodule=LightningData(data), ckpt_path=ckpt_path)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")
class TestUnderLightning:
    @pytest.mark.parametrize(("limit", "class_balanced"), [(None, False), (3, True)])
    def test_a_run_resumed_anywhere_reads_the_batches_of_an_uninterrupted_one(self, tmp_path, limit, class_balanced):
        options = {"max_epochs": 3, "limit_train_batches": limit}
        saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit(module(class_balanced=class_balanced), **options, callbacks=[saver])
        assert len(whole) == 3 * (limit or 5)
        for step in range(1, len(whole)):
            data, last = module(class_balanced=class_balanced), tmp_path / f"step={step}.ckpt"
            assert fit(data, **options, enable_checkpointing=False, ckpt_path=last) == whole[step:]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_the_error_of_an_unreadable_sample_names_the_file_alone(self, num_workers):
        data = module(noisy(broken=[7]), num_workers=num_workers)
        with pytest.raises(UnreadableError, match=r"^train/7\.jpg: broken$"):
            fit(data, max_epochs=1, enable_checkpointing=False)

    def test_overfit_batches_has_the_same_batches_each_epoch(self):
        seen = fit(module(), max_epochs=2, overfit_batches=2, enable_checkpointing=False)
        assert len(seen) == 4
        assert seen[:2] == seen[2:]
