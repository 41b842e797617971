import json
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.audio import AudioAugment
from perceiver.data.readers.image import ImageAugment
from perceiver.data.sources.shards import Shards, stage_tars
from tests.data.caption_trees import COUNTS, captions_of, lines, numbers, samples
from tests.data.datasets import dataset
from tests.data.shard_trees import RATE, png, shard_tree, tar, wav

STAGES = ("train", "val", "test")


def shards(modality, root, **options) -> Dataset:
    defaults = {"num_classes": 3, "target": "label", **({"image_size": (13, 17)} if modality == "image" else {})}
    return dataset(Shards, modality, root=str(root), **(defaults | options))


images, sounds = partial(shards, "image"), partial(shards, "audio")
captioned = partial(images, num_classes=0, target="references")
captioned_sounds = partial(sounds, num_classes=0, target="references")


def order(stage: str) -> list[int]:
    """Numbers of a stage's samples in `shard_tree`, which lie in two tars."""
    return [*numbers(stage)[0::2], *numbers(stage)[1::2]]


def in_tars(stage: str, ending: str) -> list[str]:
    return [f"{stage}-{part:06d}.tar/{n:06d}.{ending}" for part in range(2) for n in numbers(stage)[part::2]]


@pytest.fixture
def root(tmp_path):
    return shard_tree(tmp_path / "root", "image", "cls")


class TestSamples:
    @pytest.mark.parametrize("told", ["cls", "label"])
    def test_an_image_comes_with_its_label(self, tmp_path, told):
        data = images(shard_tree(tmp_path, "image", told))
        assert data.class_names == ["class 0", "class 1", "class 2"]
        for stage in STAGES:
            split = data.split(stage)
            found = samples(split)
            assert [sample.id for sample in found] == in_tars(stage, "png")
            for index, (number, sample) in enumerate(zip(order(stage), found, strict=True)):
                assert sample.targets == {"label": number % 3}
                assert split.classes_of(index) == [number % 3]
                pixels = np.random.default_rng(number).integers(0, 256, (13, 17, 3), dtype=np.uint8)
                assert torch.equal((255 * sample.inputs["image"]).round().byte().permute(1, 2, 0), torch.tensor(pixels))

    @pytest.mark.parametrize("told", ["cls", "label"])
    def test_a_sound_comes_with_its_label(self, tmp_path, told):
        split = sounds(shard_tree(tmp_path, "sound", told)).split("val")
        assert [sample.id for sample in samples(split)] == in_tars("val", "wav")
        for index, number in enumerate(order("val")):
            sample = split[index]
            assert sample.targets == {"label": number % 3}
            assert split.classes_of(index) == [number % 3]
            wave = 0.1 * np.random.default_rng(number).standard_normal(round(0.31 * RATE))
            torch.testing.assert_close(sample.inputs["audio"][0], torch.tensor(wave).float(), atol=2**-15, rtol=0)

    def test_a_sound_comes_with_its_tags(self, tmp_path):
        split = sounds(shard_tree(tmp_path, "sound", "tags"), target="tags").split("test")
        for index, number in enumerate(order("test")):
            tags = {number % 3, (number + 1) % 3}
            assert split[index].targets["tags"].tolist() == [float(label in tags) for label in range(3)]
            assert list(split.classes_of(index)) == sorted(tags)

    @pytest.mark.parametrize("told", ["txt", "captions"])
    @pytest.mark.parametrize(("content", "make"), [("image", captioned), ("sound", captioned_sounds)])
    def test_images_and_sounds_come_with_their_captions(self, tmp_path, content, make, told):
        data = make(shard_tree(tmp_path, content, told))
        assert data.class_names == []
        for stage in STAGES:
            split = data.split(stage)
            assert len(split) == COUNTS[stage]
            for index, number in enumerate(order(stage)):
                targets, texts = split[index].targets, [" ".join(text.split()) for text in captions_of(number)]
                assert sorted(targets["references"]) == sorted(texts)
                assert targets["caption"] in texts
                assert list(split.classes_of(index)) == []
                if stage != "train":
                    assert targets == {"caption": texts[0], "references": texts}

    def test_training_takes_any_caption(self, tmp_path):
        split = captioned(shard_tree(tmp_path, "image", "txt")).split("train")
        assert len({split[0].targets["caption"] for _ in range(50)}) == 2

    def test_a_tokenizer_learns_from_the_training_captions(self, tmp_path):
        data = captioned(shard_tree(tmp_path, "image", "txt"))
        texts = [" ".join(text.split()) for number in order("train") for text in captions_of(number)]
        assert list(data.texts()) == texts

    def test_only_training_samples_are_augmented(self, root, tmp_path):
        heard = shard_tree(tmp_path / "sounds", "sound", "cls")
        upside_down = AudioAugment(gain=0.0, time_shift=0.0, polarity=1.0)
        for name, plain, changed in (
            ("image", images(root), images(root, augment=ImageAugment(erasing=1.0))),
            ("audio", sounds(heard), sounds(heard, augment=upside_down)),
        ):
            for stage in STAGES:
                one, other = (data.split(stage)[0].inputs[name] for data in (plain, changed))
                assert torch.equal(one, other) == (stage != "train")

    def test_a_file_of_ones_own_is_read_alike(self, root, tmp_path):
        (tmp_path / "x.png").write_bytes(png(0))
        sample = images(root).read(tmp_path / "x.png")
        assert torch.equal(sample.inputs["image"], images(root).split("train")[0].inputs["image"])
        assert (sample.targets, sample.id) == ({}, str(tmp_path / "x.png"))

    @pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp", "png"])
    def test_any_image_is_read_whatever_its_ending(self, tmp_path, ending):
        tar(tmp_path / "train.tar", {f"0.{ending}": png(), "0.cls": b"0", "0.seg.png": b"", "0.mask": b""})
        assert images(tmp_path).split("train")[0].inputs["image"].shape == (3, 13, 17)


class TestLayout:
    def test_tars_may_lie_in_folders_and_stages_be_spelled_otherwise(self, tmp_path):
        for name in ("training/9.tar", "training/10.tar", "Validation_0.tar", "test-a.tar", "test.tar", "train.txt"):
            tar(tmp_path / name, {"0.cls": b"0"})
        found = stage_tars(tmp_path)
        assert {stage: [str(path.relative_to(tmp_path)) for path in paths] for stage, paths in found.items()} == {
            "train": ["training/10.tar", "training/9.tar"],
            "val": ["Validation_0.tar"],
            "test": ["test-a.tar", "test.tar"],
        }

    def test_tars_of_no_stage_are_left_out_and_named(self, tmp_path, caplog):
        for name in ("train-0.tar", "trainval-0.tar", "imagenet-train-0.tar", ".train-1.tar"):
            tar(tmp_path / name, {"0.cls": b"0"})
        assert stage_tars(tmp_path) == {"train": [tmp_path / "train-0.tar"]}
        (message,) = caplog.messages
        assert message.endswith("none of train, val and test: imagenet-train-0.tar, trainval-0.tar")

    def test_a_compressed_tar_is_not_overlooked(self, root):
        (root / "train-000000.tar").rename(root / "train-000000.tar.gz")
        (root / "train-000000.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
        with pytest.raises(UnreadableError, match=r"train-000000\.tar\.gz: compressed with gzip, .*; decompress it$"):
            images(root).split("train")

    def test_without_training_tars_there_is_nothing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            images(tmp_path / "nowhere").split("train")
        tar(tmp_path / "val-0.tar", {"0.cls": b"0"})
        with pytest.raises(FileNotFoundError, match=r"neither a train\*\.tar nor a folder train with tars in it"):
            images(tmp_path).split("val")

    def test_building_one_touches_no_disk(self, tmp_path):
        images(tmp_path / "nowhere"), sounds(tmp_path), captioned(tmp_path), captioned_sounds(tmp_path)

    @pytest.mark.parametrize("wrong", [{"val_fraction": 1.0}, {"test_fraction": -0.1}], ids=str)
    def test_fractions_are_shares(self, tmp_path, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            images(tmp_path, **wrong)


class TestClasses:
    def test_without_names_classes_are_called_as_they_are_numbered(self, root):
        (root / "classes.txt").unlink()
        assert images(root).class_names == ["0", "1", "2"]

    def test_their_number_must_be_right(self, root):
        message = rf"^num_classes=5, but {root}/classes\.txt has 3 classes: class 0, class 1, class 2$"
        with pytest.raises(ValueError, match=message):
            images(root, num_classes=5).class_names  # noqa: B018

    @pytest.mark.parametrize("ends", ["\n", "", "\r\n"])
    def test_lines_may_end_as_they_like(self, root, ends):
        (root / "classes.txt").write_bytes(f"a b{ends or chr(10)}ä{ends or chr(10)}c{ends}".encode())
        assert images(root).class_names == ["a b", "ä", "c"]

    def test_none_may_be_empty(self, root):
        lines(root / "classes.txt", ["a", " ", "c"])
        with pytest.raises(UnreadableError, match=r"classes\.txt: line 2: there is no class in it$"):
            images(root).class_names  # noqa: B018


class TestSplitOff:
    @pytest.fixture
    def large(self, tmp_path):
        """Of class 0 sixty samples, of class 1 thirty, of class 2 ten; one has none that there is."""
        labels = [0] * 60 + [1] * 30 + [2] * 10 + [99]
        files = {f"{n:03d}.{e}": c for n, label in enumerate(labels) for e, c in (("cls", b"%d" % label), ("png", b""))}
        half = len(files) // 4 * 2
        tar(tmp_path / "train-0.tar", dict(list(files.items())[:half]))
        tar(tmp_path / "train-1.tar", dict(list(files.items())[half:]))
        return tmp_path

    def keys(self, data, stage: str) -> list[str]:
        split = data.split(stage)
        return [split.items.sample(index).key for index in range(len(split))]

    def test_parts_share_nothing_and_lose_nothing(self, large):
        data = images(large)
        parts = {stage: self.keys(data, stage) for stage in STAGES}
        assert len(parts["train"]) > len(parts["val"]) > 3 < len(parts["test"])
        assert sorted(key for keys in parts.values() for key in keys) == [f"{number:03d}" for number in range(101)]
        assert all(keys == sorted(keys) for keys in parts.values())

    def test_they_are_the_same_each_time(self, large):
        assert [self.keys(images(large), stage) for stage in STAGES] == [
            self.keys(images(large), stage) for stage in STAGES
        ]

    def test_only_what_has_no_tars_is_split_off(self, large):
        shutil.copy(large / "train-0.tar", large / "val-0.tar")
        data = images(large)
        assert len(data.split("val")) == 50
        assert len(data.split("train")) + len(data.split("test")) == 101

    def test_nothing_is_split_off_where_none_is_wanted(self, large):
        data = images(large, val_fraction=0.0, test_fraction=0.0)
        assert [data.split(stage) is None for stage in STAGES] == [False, True, True]
        assert len(data.split("train")) == 101

    def test_captions_are_split_off_too(self, tmp_path):
        data = captioned(shard_tree(tmp_path, "image", "txt", stages=["train"]))
        assert [len(data.split(stage)) for stage in STAGES] == [8, 2, 1]
        assert len(list(data.texts())) == 2 * 8


def broken(tmp_path, files: dict[str, bytes], make=images, **options):
    """A split of two samples, of which the first is whole and the other has these files besides."""
    whole = {"0.png": png(), "0.wav": wav(), "0.cls": b"0", "0.txt": b"a", "0.json": b'{"tags": []}'}
    tar(tmp_path / "train-0.tar", whole | {f"x/1.{ending}": content for ending, content in files.items()})
    return make(tmp_path, val_fraction=0.0, test_fraction=0.0, **options).split("train")


P, W = {"png": png()}, {"wav": wav()}
TAGS = {"make": sounds, "target": "tags"}


class TestUnreadable:
    @pytest.mark.parametrize(
        ("files", "options", "message"),
        [
            ({"cls": b"0"}, {}, ": no image in it; there are: .cls"),
            (P | {"jpg": b"", "cls": b"0"}, {}, ": 2 images in it; there are: .png, .cls, .jpg"),
            (P | {"cls": b"0"}, {"make": sounds}, ": no sound in it; there are: .png, .cls"),
            (P, {}, ": no .cls and no .json in it; there are: .png"),
            (P | {"cls": b"3"}, {}, ": class 3: they are numbered from 0 to 2"),
            (P | {"cls": b"-1"}, {}, ".cls: '-1' is not the number of a class"),
            (P | {"cls": b""}, {}, ".cls: '' is not the number of a class"),
            (P | {"cls": b"cat"}, {}, ".cls: 'cat' is not the number of a class"),
            (P | {"cls": b"1.0"}, {}, ".cls: '1.0' is not the number of a class"),
            (P | {"cls": b"1_0"}, {}, ".cls: '1_0' is not the number of a class"),
            (P | {"cls": "１".encode()}, {}, ".cls: '１' is not the number of a class"),
            (P | {"cls": b"9" * 5000}, {}, f".cls: {'9' * 40!r} is not the number of a class"),
            (P | {"cls": b"\xff"}, {}, ".cls: not text in UTF-8"),
            (P | {"json": b'{"label": 3}'}, {}, ": class 3: they are numbered from 0 to 2"),
            (P | {"json": b'{"label": -1}'}, {}, ": class -1: they are numbered from 0 to 2"),
            (P | {"json": b'{"label": "1"}'}, {}, ".json: label='1' is not a whole number"),
            (P | {"json": b'{"label": 1.0}'}, {}, ".json: label='1.0' is not a whole number"),
            (P | {"json": b'{"label": true}'}, {}, ".json: label='True' is not a whole number"),
            (P | {"json": b'{"label": null}'}, {}, ".json: label='None' is not a whole number"),
            (P | {"json": b'{"class": 1}'}, {}, ".json: there is no 'label'"),
            (P | {"json": b"[1]"}, {}, ".json: there is no 'label'"),
            (P | {"json": b'{"label": 1'}, {}, ".json: not JSON: …"),
            (P | {"json": b"[" * 100_000}, {}, ".json: not JSON: …"),
            (P | {"json": b"\xff\xfe"}, {}, ".json: not text in UTF-8"),
            (W, TAGS, ": no .json in it; there are: .wav"),
            (W | {"json": b'{"tags": 1}'}, TAGS, ".json: tags='1' is not a list"),
            (W | {"json": b'{"tags": [1, 3]}'}, TAGS, ": class 3: they are numbered from 0 to 2"),
            (W | {"json": b'{"tags": [1, "2"]}'}, TAGS, ".json: tags: '2' is not the number of a class"),
            (W | {"json": b'{"tags": [true]}'}, TAGS, ".json: tags: 'True' is not the number of a class"),
            (W | {"json": b'{"tags": [1, 1]}'}, TAGS, ".json: tags: a class is there twice"),
            (P, {"make": captioned}, ": no .txt and no .json in it; there are: .png"),
            (P | {"txt": b" \n\t\n"}, {"make": captioned}, ": there is no caption in it"),
            (P | {"txt": b"a \xff"}, {"make": captioned}, ".txt: not text in UTF-8"),
            (P | {"txt": b"a \0"}, {"make": captioned}, ": a caption: U+0000, character 3, is no text"),
            (P | {"json": b'{"captions": []}'}, {"make": captioned}, ": there is no caption in it"),
            (P | {"json": b'{"captions": "a"}'}, {"make": captioned}, ".json: captions='a' is not a list"),
            (P | {"json": b'{"captions": ["a", 1]}'}, {"make": captioned}, ".json: captions: '1' is not a text"),
            (P | {"json": b'{"captions": ["a", " "]}'}, {"make": captioned}, ".json: captions: ' ' is not a text"),
            (P | {"json": b'{"captions": ["\\ud800"]}'}, {"make": captioned}, ": a caption: U+D800, …"),
            ({"png": b"no image", "cls": b"0"}, {}, ".png: not an image"),
            ({"png": png()[:300], "cls": b"0"}, {}, ".png: …"),
            ({"png": b"", "cls": b"0"}, {}, ".png: not an image"),
            ({"wav": b"no sound", "cls": b"0"}, {"make": sounds}, ".wav: Format not recognised"),
            ({"wav": b"", "cls": b"0"}, {"make": sounds}, ".wav: the file is empty"),
        ],
    )
    def test_what_is_wrong_with_a_sample_is_told_with_its_tar_and_its_key(self, tmp_path, files, options, message):
        split = broken(tmp_path, files, **options)
        split[0]
        with pytest.raises(UnreadableError) as error:
            split[1]
        start, dots, _ = f"{tmp_path}/train-0.tar/x/1{message}".partition("…")
        assert str(error.value).startswith(start) if dots else str(error.value) == start
        assert "0x" not in str(error.value), "the same each time"

    def test_its_classes_are_none(self, tmp_path):
        split = broken(tmp_path, {"png": png(), "cls": b"cat"})
        assert [list(split.classes_of(index)) for index in range(2)] == [[0], []]

    def test_it_teaches_a_tokenizer_nothing(self, tmp_path):
        assert list(broken(tmp_path, {"png": png()}, make=captioned, on_error="skip").dataset.texts()) == ["a"]
        with pytest.raises(UnreadableError, match=r"x/1: no \.txt"):
            list(captioned(tmp_path, val_fraction=0.0, test_fraction=0.0).texts())

    def test_no_damaged_tar_ends_in_another_error(self, tmp_path):
        """A few hundred changed bytes, one after the other."""
        root = shard_tree(tmp_path, "image", "label", stages=["train"])
        path = root / "train-000000.tar"
        whole, told = path.read_bytes(), Counter()
        for place in np.random.default_rng(0).choice(len(whole), 300, replace=False).tolist():
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                split = images(root, val_fraction=0.0, test_fraction=0.0).split("train")
            except UnreadableError as error:
                told["tar refused"] += str(error).startswith(f"{path}")
                continue
            for index in range(len(split)):
                try:
                    told["read"] += split[index].inputs["image"].shape == (3, 13, 17)
                except UnreadableError as error:
                    told["refused"] += str(error).startswith(f"{path}/")
        assert min(told["tar refused"], told["read"], told["refused"]) > 20


def test_json_may_hold_more_than_is_asked_for(tmp_path):
    everything = json.dumps({"label": 2, "tags": [0, 1], "captions": ["a b"], "url": None}).encode()
    tar(tmp_path / "train.tar", {"0.png": png(), "0.json": everything})
    tar(tmp_path / "sounds/train.tar", {"0.wav": wav(), "0.json": everything})
    assert images(tmp_path).split("train")[0].targets == {"label": 2}
    assert captioned(tmp_path).split("train")[0].targets == {"caption": "a b", "references": ["a b"]}
    tags = sounds(tmp_path / "sounds", target="tags").split("train")[0].targets["tags"]
    assert tags.tolist() == [1.0, 1.0, 0.0]
