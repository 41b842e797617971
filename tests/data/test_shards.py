"""Samples in tars: their targets, their stages, their order, and errors."""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.audio import AudioAugment
from perceiver.data.readers.image import ImageAugment
from perceiver.data.sources.shards import Shards, stage_tars
from perceiver.training.data_module import DataModule
from perceiver.types import Batch
from scripts import data_trees
from scripts.data_trees import captions_of, png_of, target_file, wav_of, write_lines, write_tar
from tests.data.datasets import STAGES, check_error, check_split_error, dataset, names, samples, sizes


def shards(modality, root, **options) -> Dataset:
    return dataset(Shards, modality, root=str(root), **({"num_classes": 3, "target": "label"} | options))


images, sounds = partial(shards, "image", image_size=(13, 17)), partial(shards, "audio")
captioned = partial(images, num_classes=0, target="references")
captioned_sounds = partial(sounds, num_classes=0, target="references")
tagged_sounds = partial(sounds, target="tags")


def order(stage: str) -> list[int]:
    """Return the numbers of a stage's samples in the order of the tree, which has two tars."""
    return [*data_trees.STAGES[stage][0::2], *data_trees.STAGES[stage][1::2]]


@pytest.fixture
def root(tmp_path) -> Path:
    return data_trees.shards(tmp_path / "root", "png", "cls").root


@pytest.mark.parametrize(
    ("make", "kind", "target"),
    [
        *((images, "png", target) for target in ("cls", "label")),
        *((sounds, "wav", target) for target in ("cls", "label")),
        (tagged_sounds, "wav", "tags"),
        *((captioned, "png", target) for target in ("txt", "captions")),
        (captioned_sounds, "wav", "txt"),
    ],
)
def test_samples_have_their_files_and_targets(tmp_path, make, kind, target):
    data = make(data_trees.shards(tmp_path, kind, target).root)
    assert data.class_names == [f"class {label}" for label in range(data.num_classes)]
    for stage in STAGES:
        split = data.split(stage)
        ids = [f"{stage}-{part:06d}.tar/{n:06d}" for part in range(2) for n in data_trees.STAGES[stage][part::2]]
        assert [sample.id for sample in samples(split)] == [f"{id}.{kind}" for id in ids]
        assert names(split) == ids
        for index, number in enumerate(order(stage)):
            sample, label = split[index], number % 3
            texts = captions_of(number)
            classes = {"tags": {label, (label + 1) % 3}, "cls": {label}, "label": {label}}.get(target, set())
            assert set(split.sample_classes(index)) == classes
            if target == "tags":
                assert sample.targets["tags"].tolist() == [float(label in classes) for label in range(3)]
            elif classes:
                assert sample.targets == {"label": label}
            else:
                assert sorted(sample.targets["references"]) == sorted(texts)
                assert stage == "train" or sample.targets == {"caption": texts[0], "references": texts}
            (content,) = sample.inputs.values()
            file = tmp_path / f"x.{kind}"
            file.write_bytes(png_of(number) if kind == "png" else wav_of(number))
            assert torch.equal(content, next(iter(data.read(file).inputs.values())))


def test_training_draws_captions_and_a_tokenizer_gets_all(tmp_path):
    data = captioned(data_trees.shards(tmp_path, "png", "txt").root)
    assert len({data.split("train")[0].targets["caption"] for _ in range(50)}) == 2
    assert list(data.texts()) == [text for number in order("train") for text in captions_of(number)]


def test_only_training_samples_are_augmented(root, tmp_path):
    data_trees.shards(tmp_path, "wav", "cls")
    inverted = AudioAugment(gain=0.0, time_shift=0.0, polarity=1.0)
    for name, plain, changed in (
        ("image", images(root), images(root, augment=ImageAugment(erasing=1.0))),
        ("audio", sounds(tmp_path), sounds(tmp_path, augment=inverted)),
    ):
        for stage in STAGES:
            one, other = (data.split(stage)[0].inputs[name] for data in (plain, changed))
            assert torch.equal(one, other) == (stage != "train")


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp", "png"])
def test_any_image_is_read_whatever_its_ending_and_other_files_ignored(tmp_path, ending):
    write_tar(tmp_path / "train.tar", {f"0.{ending}": png_of(), "0.cls": b"0", "0.seg.png": b"", "0.mask": b""})
    assert images(tmp_path).split("train")[0].inputs["image"].shape == (3, 13, 17)


def test_json_may_contain_more_than_the_target(tmp_path):
    everything = json.dumps({"label": 2, "tags": [0, 1], "captions": ["a b"], "url": None}).encode()
    write_tar(tmp_path / "train.tar", {"0.png": png_of(), "0.wav": wav_of(), "0.json": everything})
    assert images(tmp_path).split("train")[0].targets == {"label": 2}
    assert captioned(tmp_path).split("train")[0].targets == {"caption": "a b", "references": ["a b"]}
    assert tagged_sounds(tmp_path).split("train")[0].targets["tags"].tolist() == [1.0, 1.0, 0.0]


class TestLayout:
    def test_tars_may_be_in_folders_and_stages_spelled_differently(self, tmp_path):
        for name in ("training/9.tar", "training/10.tar", "Validation_0.tar", "test-a.tar", "test.tar", "train.txt"):
            write_tar(tmp_path / name, {"0.cls": b"0"})
        found = stage_tars(tmp_path)
        assert {stage: [str(path.relative_to(tmp_path)) for path in paths] for stage, paths in found.items()} == {
            "train": ["training/10.tar", "training/9.tar"],
            "val": ["Validation_0.tar"],
            "test": ["test-a.tar", "test.tar"],
        }

    def test_tars_of_no_stage_are_ignored_and_named(self, tmp_path, caplog):
        for name in ("train-0.tar", "trainval-0.tar", "imagenet-train-0.tar", ".train-1.tar"):
            write_tar(tmp_path / name, {"0.cls": b"0"})
        assert stage_tars(tmp_path) == {"train": [tmp_path / "train-0.tar"]}
        assert [text.rpartition(": ")[2] for text in caplog.messages] == ["imagenet-train-0.tar, trainval-0.tar"]

    def test_missing_and_compressed_training_tars_are_refused(self, tmp_path):
        images(tmp_path / "nowhere")
        check_split_error(images(tmp_path / "nowhere"), "no such folder", error=FileNotFoundError)
        write_tar(tmp_path / "val-0.tar", {"0.cls": b"0"})
        check_split_error(images(tmp_path), f"root={tmp_path}", "train*.tar", error=FileNotFoundError)
        (tmp_path / "train-0.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
        check_split_error(images(tmp_path), f"{tmp_path}/train-0.tar.gz: ", "gzip")

    @pytest.mark.parametrize(
        "wrong",
        [{"val_fraction": 1.0}, {"test_fraction": -0.1}, {"target": "class"}, {"num_classes": 0}],
        ids=str,
    )
    def test_options_are_checked(self, tmp_path, wrong):
        check_error(lambda: images(tmp_path, **wrong), next(iter(wrong)), error=ValueError)
        check_error(lambda: captioned(tmp_path, num_classes=3), "num_classes=3", "references", error=ValueError)


class TestClasses:
    @pytest.mark.parametrize("end", [b"\n", b"", b"\r\n"])
    def test_names_are_the_lines_of_a_file_or_numbers(self, root, end):
        (root / "classes.txt").write_bytes((end or b"\n").join([b"a b", "ä".encode(), b"c"]) + end)
        assert images(root).class_names == ["a b", "ä", "c"]
        (root / "classes.txt").unlink()
        assert images(root).class_names == ["0", "1", "2"]

    def test_their_number_is_checked_and_none_may_be_empty(self, root):
        path, action = root / "classes.txt", lambda: images(root, num_classes=5).class_names
        check_error(action, "num_classes=5", f"{path}", "3 classes: class 0, class 1, class 2", error=ValueError)
        write_lines(path, ["a", " ", "c"])
        check_error(lambda: images(root).class_names, f"{path}: line 2: ")


class TestHeldOut:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        for part in range(2):
            names = [f"{n:03d}" for n in range(50 * part, 50 + 51 * part)]
            write_tar(tmp_path / f"train-{part}.tar", {f"{name}.cls": b"0" for name in names})
        return tmp_path

    def test_stages_are_disjoint_complete_and_deterministic(self, root):
        parts = [{stage: names(images(root).split(stage)) for stage in STAGES} for _ in range(2)]
        assert parts[0] == parts[1]
        assert len(parts[0]["train"]) > len(parts[0]["val"]) > 3 < len(parts[0]["test"])
        every = [f"train-{n >= 50:d}.tar/{n:03d}" for n in range(101)]
        assert sorted(name for part in parts[0].values() for name in part) == every
        assert all(part == sorted(part) for part in parts[0].values())

    def test_only_stages_without_tars_are_held_out_and_only_if_wanted(self, root):
        assert sizes(images(root, val_fraction=0.0, test_fraction=0.0)) == [101, 0, 0]
        shutil.copy(root / "train-0.tar", root / "val-0.tar")
        train, val, test = sizes(images(root))
        assert (train + test, val) == (101, 50)

    def test_texts_are_those_of_the_training_part(self, tmp_path):
        data = captioned(data_trees.shards(tmp_path, "png", "txt", stages=["train"]).root)
        assert sum(sizes(data)) == 11
        assert len(list(data.texts())) == 2 * sizes(data)[0] < 22


def damaged(tmp_path, files: dict[str, bytes], make=images, **options):
    """Return a split of two samples, the first of which is valid and the second has these files."""
    valid = {"0.png": png_of(), "0.wav": wav_of(), "0.cls": b"0", "0.txt": b"a", "0.json": b'{"tags": []}'}
    write_tar(tmp_path / "train-0.tar", valid | {f"x/1.{ending}": content for ending, content in files.items()})
    return make(tmp_path, val_fraction=0.0, test_fraction=0.0, **options).split("train")


P, W = {"png": png_of()}, {"wav": wav_of()}


class TestUnreadable:
    @pytest.mark.parametrize(
        ("make", "files", "message"),
        [
            (images, {"cls": b"0"}, ": no image; files: .cls"),
            (images, P | {"jpg": b"", "cls": b"0"}, ": 2 images; files: .png, .cls, .jpg"),
            (sounds, P | {"cls": b"0"}, ": no sound; files: .png, .cls"),
            (images, P, ": no .cls and no .json; files: .png"),
            (images, P | {"cls": b"3"}, ": class 3: "),
            *((images, P | {"cls": text}, ".cls: ") for text in (b"-1", b"", b"cat", b"1.0", b"1_0", "１".encode())),
            (images, P | {"cls": b"9" * 5000}, f".cls: {'9' * 40!r} is not a class number"),
            (images, P | {"cls": b"\xff"}, ".cls: not UTF-8 text"),
            (images, P | {"json": b'{"label": 3}'}, ": class 3: "),
            (images, P | {"json": b'{"label": -1}'}, ": class -1: "),
            *((images, P | {"json": b'{"label": %s}' % text}, ".json: label=") for text in (b'"1"', b"1.0", b"true")),
            (images, P | {"json": b'{"class": 1}'}, ".json: no key 'label'"),
            (images, P | {"json": b'{"label": 1'}, ".json: not JSON"),
            (tagged_sounds, W, ": no .json; files: .wav"),
            (tagged_sounds, W | {"json": b'{"tags": 1}'}, ".json: tags='1' is not a list"),
            (tagged_sounds, W | {"json": b'{"tags": [1, 3]}'}, ": class 3: "),
            (tagged_sounds, W | {"json": b'{"tags": [1, "2"]}'}, ".json: tags: '2'"),
            (tagged_sounds, W | {"json": b'{"tags": [true]}'}, ".json: tags: 'True'"),
            (tagged_sounds, W | {"json": b'{"tags": [1, 1]}'}, ".json: tags: a class appears twice"),
            (captioned, P, ": no .txt and no .json; files: .png"),
            (captioned, P | {"txt": b" \n\t\n"}, ": no captions"),
            (captioned, P | {"txt": b"a \xff"}, ".txt: not UTF-8 text"),
            (captioned, P | {"txt": b"a \0"}, ": a caption: character 3, U+0000"),
            (captioned, P | {"json": b'{"captions": []}'}, ": no captions"),
            (captioned, P | {"json": b'{"captions": "a"}'}, ".json: captions='a' is not a list"),
            (captioned, P | {"json": b'{"captions": ["a", 1]}'}, ".json: captions: '1'"),
            (captioned, P | {"json": b'{"captions": ["a", " "]}'}, ".json: captions: ' '"),
            (captioned, P | {"json": b'{"captions": ["\\ud800"]}'}, ": a caption: character 1, U+D800"),
            (images, {"png": b"no image", "cls": b"0"}, ".png: "),
            (images, {"png": png_of()[:300], "cls": b"0"}, ".png: "),
            (sounds, {"wav": b"no sound", "cls": b"0"}, ".wav: "),
        ],
        ids=range(38),
    )
    def test_errors_name_the_tar_and_the_key(self, tmp_path, make, files, message):
        split = damaged(tmp_path, files, make)
        split[0]
        check_error(lambda: split[1], f"{tmp_path}/train-0.tar/x/1{message}")

    def test_it_has_no_classes_and_no_texts(self, tmp_path):
        split = damaged(tmp_path, {"png": png_of(), "cls": b"cat"})
        assert [list(split.sample_classes(index)) for index in range(2)] == [[0], []]
        assert list(damaged(tmp_path, P, captioned, on_error="skip").dataset.texts()) == ["a"]
        check_error(lambda: list(captioned(tmp_path, val_fraction=0.0, test_fraction=0.0).texts()), "x/1: no .txt")

    def test_no_damaged_byte_raises_another_error(self, tmp_path):
        path = data_trees.shards(tmp_path, "png", "label", stages=["train"]).tables[0].path
        tar, outcomes = path.read_bytes(), Counter()
        for place in np.random.default_rng(0).choice(len(tar), 101, replace=False).tolist():
            path.write_bytes(tar[:place] + bytes([tar[place] ^ 4]) + tar[place + 1 :])
            try:
                split = images(tmp_path, val_fraction=0.0, test_fraction=0.0).split("train")
            except UnreadableError as error:
                outcomes["tar refused"] += str(error).startswith(f"{path}")
                continue
            for index in range(6):
                try:
                    outcomes["read"] += split[index].inputs["image"].shape == (3, 13, 17)
                except UnreadableError as error:
                    outcomes["sample refused"] += str(error).startswith(f"{path}/")
        assert min(outcomes[name] for name in ("tar refused", "read", "sample refused")) > 7


class TestOrder:
    """The order in the data module is that of any other data set."""

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """Twenty-three samples in three tars, one of which is small."""
        for part, (first, last) in enumerate([(0, 11), (11, 12), (12, 23)]):
            files = {}
            for number in range(first, last):
                ending, target = target_file(number, "cls", 3)
                files |= {f"{number:06d}.png": png_of(number), f"{number:06d}.{ending}": target.encode()}
            write_tar(tmp_path / f"train-{part}.tar", files)
        return tmp_path

    @staticmethod
    def data_module(
        root, rank=0, world_size=1, batches_done=0, *, num_workers=0, class_balanced=False, on_error="raise"
    ) -> DataModule:
        """Return the data module of one process of a run that is resumed after some batches."""
        augment = ImageAugment(crop_padding=2, horizontal_flip=0.5)
        options = {"val_fraction": 0.0, "test_fraction": 0.0, "augment": augment, "on_error": on_error}
        data = DataModule(
            dataset=images(root, **options),
            **{"batch_size": 3, "num_workers": num_workers, "timeout_seconds": 0, "drop_last": False},
            **{"class_balanced": class_balanced, "pin_memory": False, "seed": 0},
        )
        progress = SimpleNamespace(total=SimpleNamespace(processed=batches_done))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(fit_loop=loop, limit_train_batches=1.0, global_rank=rank, world_size=world_size)
        return data

    @staticmethod
    def read_epoch(data: DataModule, epoch: int = 0) -> list[Batch]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader)

    @staticmethod
    def ids(batches: list[Batch]) -> list[str]:
        return [id for batch in batches for id in batch.ids]

    @pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (3, 0)])
    def test_ranks_share_each_epoch(self, root, world_size, num_workers):
        expected = [f"train-{min(n // 11, 1) + (n >= 12)}.tar/{n:06d}.png" for n in range(23)]
        orders = []
        for epoch in range(2):
            data = [self.data_module(root, rank, world_size, num_workers=num_workers) for rank in range(world_size)]
            ranks = [self.ids(self.read_epoch(one, epoch)) for one in data]
            assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
            assert sorted(id for rank in ranks for id in rank) == expected
            orders.append(ranks)
        assert orders[0] != orders[1]

    @pytest.mark.parametrize("world_size", [1, 3])
    def test_resuming_gives_exactly_the_remaining_samples(self, root, world_size):
        rank = world_size - 1
        epochs = [self.read_epoch(self.data_module(root, rank, world_size), epoch) for epoch in range(3)]
        length = len(epochs[0])
        for done in range(2 * length + 1):
            epoch, offset = divmod(done, length)
            data = self.data_module(root, rank, world_size, done, num_workers=2 * (done == length + 1))
            rest = self.read_epoch(data, epoch)
            assert self.ids(rest) == self.ids(epochs[epoch][offset:])
            for one, other in zip(rest, epochs[epoch][offset:], strict=True):
                assert torch.equal(one.inputs["image"], other.inputs["image"])

    def test_classes_may_be_balanced(self, root):
        found = self.ids(self.read_epoch(self.data_module(root, class_balanced=True)))
        assert len(set(found)) < len(found) == 23

    @pytest.mark.slow
    def test_workers_may_be_spawned_instead_of_forked(self, root):
        loader = self.data_module(root, num_workers=1).train_dataloader()
        loader.multiprocessing_context = "spawn"
        expected = sorted(self.ids(self.read_epoch(self.data_module(root))))
        assert sorted(id for batch in loader for id in batch.ids) == expected

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_unreadable_samples_are_skipped_and_named_or_raise(self, tmp_path, num_workers):
        files = [{f"{n}.png": png_of(n), f"{n}.cls": b"%d" % n} for n in range(5)]
        write_tar(tmp_path / "train-0.tar", {name: content for file in files for name, content in file.items()})
        data = self.data_module(tmp_path, on_error="skip", num_workers=num_workers)
        for epoch in range(2):
            batches = [data.report_unreadable(batch) for batch in self.read_epoch(data, epoch)]
            assert sorted(self.ids(batches)) == [f"train-0.tar/{n}.png" for n in range(3)]
        named = [f"{tmp_path}/train-0.tar/{n}: class {n}" for n in (3, 4)]
        assert [text.rpartition(":")[0] for text in sorted(data.unreadable)] == named
        data = self.data_module(tmp_path)
        action = lambda: [data.report_unreadable(batch) for batch in self.read_epoch(data)]  # noqa: E731
        check_error(action, "train-0.tar/", "class")
