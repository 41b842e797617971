"""CIFAR in the released format, and what its pickles may and may not build."""

import codecs
import io
import pickle
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.dataset import Dataset
from perceiver.data.sources import cifar
from perceiver.data.sources.cifar import CIFAR, RELEASES, read_pickle
from scripts.data_trees import cifar as cifar_tree
from tests.data.datasets import check_error, check_split_error, dataset, names, samples, sizes

VARIANTS = pytest.mark.parametrize("variant", ["cifar10", "cifar100"])


def data(root: Path, variant="cifar10", **options) -> Dataset:
    defaults = {"num_classes": RELEASES[variant].num_classes, "image_size": 32}
    return dataset(CIFAR, "image", variant=variant, root=str(root), **(defaults | options))


@VARIANTS
@pytest.mark.parametrize("as_array", [False, True], ids=["labels as list", "labels as array"])
def test_every_image_is_in_one_split_with_its_label(tmp_path, variant, as_array):
    release, count = RELEASES[variant], 5 * RELEASES[variant].num_classes
    labels = np.random.default_rng(1).permutation(np.arange(count) % release.num_classes)
    cifar_tree(tmp_path, variant, **{release.label_key: labels if as_array else labels.tolist()})
    made = data(tmp_path, variant)
    assert made.class_names == [f"class {label}" for label in range(release.num_classes)]
    train, val, test = ({s.id: s for s in samples(made.split(stage))} for stage in ("train", "val", "test"))
    assert not train.keys() & val.keys()
    assert len(val) == pytest.approx(0.2 * count * len(release.train_files), rel=0.25)
    for files, found in ((release.train_files, train | val), ((release.test_file,), test)):
        assert found.keys() == {f"{file}/{index}.png" for file in files for index in range(count)}
        for file in files:
            pixels = read_pickle(tmp_path / release.folder / file)["data"]
            for index in range(count):
                sample = found[f"{file}/{index}.png"]
                assert sample.targets == {"label": labels[index]}
                if index < 3:  # planes of red, green and blue, row by row
                    expected = torch.tensor(pixels[index]).reshape(3, 32, 32) / 255
                    torch.testing.assert_close(sample.inputs["image"], expected)


def test_the_validation_split_is_deterministic_and_optional(tmp_path):
    cifar_tree(tmp_path)
    first = names(data(tmp_path).split("val"))
    torch.manual_seed(23)
    assert names(data(tmp_path).split("val")) == first
    assert sizes(data(tmp_path, val_fraction=0.0)) == [250, 0, 50]


def test_a_partial_copy_is_used_with_a_warning(tmp_path, caplog):
    cifar_tree(tmp_path, files=("data_batch_2", "data_batch_5"))
    made = data(tmp_path)
    made.prepare()
    assert {name.split("/")[0] for name in names(made.split("train"))} == {"data_batch_2", "data_batch_5"}
    assert [message.partition(": ")[2] for message in caplog.messages] == ["only 2 of 5 training files exist"]
    check_error(lambda: made.split("test"), "test_batch", error=FileNotFoundError)


def test_images_in_memory_become_gray_as_those_of_files(tmp_path):
    cifar_tree(tmp_path)
    pixels = read_pickle(tmp_path / "cifar-10-batches-py/test_batch")["data"][0]
    Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(tmp_path / "x.png")
    made = data(tmp_path, channels=1)
    one, other = (sample.inputs["image"] for sample in (made.split("test")[0], made.read(tmp_path / "x.png")))
    torch.testing.assert_close(one, other, rtol=0, atol=1.1 / 255)


class Call:
    """Unpickled as usual, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def doubled(times: int) -> object:
    content: object = b"0123456789"
    for _ in range(times):
        content = Call(codecs.encode, content, "hex")
    return content


class TestReadPickle:
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("kind", ["u1", "i8", "<f4", "S5"])
    def test_arrays_and_plain_values_are_restored(self, tmp_path, protocol, kind):
        array = np.arange(15).reshape(3, 5).astype(kind)
        content = {"labels": [1, 2], "names": ["é", "b"], "one": np.int64(3), "half": 0.5}
        (tmp_path / "x").write_bytes(pickle.dumps({"data": array} | content, protocol=protocol))
        read = read_pickle(tmp_path / "x")
        found = read.pop("data")
        assert found.dtype == array.dtype
        assert (found == array).all()
        assert read == content

    @pytest.mark.parametrize(
        "content",
        [
            lambda path: {"data": Call(Path.touch, path)},
            lambda path: Call(Path.touch, path),
            lambda path: {"data": np.array([Call(Path.touch, path)], dtype=object)},
        ],
        ids=["in a dict", "bare", "in an array"],
    )
    def test_nothing_in_it_is_executed(self, tmp_path, content):
        path, marker = tmp_path / "data_batch_1", tmp_path / "marker"
        path.write_bytes(pickle.dumps(content(marker), protocol=2))
        check_error(lambda: read_pickle(path), f"{path}: ", "refuses")
        assert not marker.exists()
        pickle.loads(path.read_bytes())
        assert marker.exists()  # the payload works

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not a pickle of arrays"),
            (b"\x80\x02}q", "not a pickle of arrays"),
            ([1], "a list, not a dict"),
            ({3: 5}, "a key of type int"),
            ({"a": doubled(40)}, "refuses to encode as 'hex'"),
            ({"a": Call(np.ndarray, (10**11,), np.dtype("f8"))}, "not a pickle of arrays"),
            (b"\x80\x02" + b"]" * 3_000_000 + b".", "more than 2,097,152 values"),
        ],
        ids=["empty", "truncated", "list", "key", "doubled", "large array", "many values"],
    )
    def test_damaged_or_expensive_pickles_are_refused_quickly(self, tmp_path, content, message):
        path = tmp_path / "x"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
        began = time.monotonic()
        check_error(lambda: read_pickle(path), f"{path}: ", message)
        assert time.monotonic() - began < 5

    def test_missing_and_large_files_and_other_arrays_are_refused(self, tmp_path, monkeypatch):
        check_error(lambda: read_pickle(tmp_path / "x"), f"{tmp_path}/x: no such file")
        with pytest.raises(pickle.UnpicklingError, match="in another way"):
            cifar._array(cifar.NDARRAY, (10**11,), "b")
        (tmp_path / "x").write_bytes(pickle.dumps({"a": "0123456789"}))
        monkeypatch.setattr(cifar, "MAX_BYTES", 10)
        check_error(lambda: read_pickle(tmp_path / "x"), "bytes are more than 10")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [1, 2, 3]}, "'data'"),
        ({"data": np.zeros((50, 3071), np.uint8)}, "'data'"),
        ({"data": None}, "'data'"),
        ({"labels": [1]}, "'labels'"),
        ({"labels": [[0]] * 50}, "'labels'"),
        ({"labels": [True] * 50}, "'labels'"),
        ({"labels": [0] * 49 + [-1]}, "label -1 of image 49"),
        ({"labels": [0] * 49 + [10]}, "label 10 of image 49"),
        ({"filenames": ["x"]}, "'filenames'"),
        ({"filenames": ["x"] * 50}, "the name 'x' appears twice"),
    ],
    ids=range(10),
)
def test_a_pickle_that_is_not_a_batch_is_refused_by_name(tmp_path, changes, message):
    folder = cifar_tree(tmp_path, **changes).root / "cifar-10-batches-py"
    check_split_error(data(tmp_path), f"{folder}/data_batch_1: not a CIFAR batch: {message}")


@pytest.mark.parametrize("wrong", [None, "a", ["a"] * 10, ["a"], [""] * 10, [1] * 10], ids=str)
def test_class_names_are_checked(tmp_path, wrong):
    path = cifar_tree(tmp_path, files=()).root / "cifar-10-batches-py/batches.meta"
    path.write_bytes(pickle.dumps({"label_names": wrong}))
    check_error(lambda: data(tmp_path).class_names, f"{path}: label_names")


def test_another_number_of_classes_is_refused(tmp_path):
    check_error(lambda: data(tmp_path, "cifar100", num_classes=10), "num_classes=10", "100", error=ValueError)


class TestDownload:
    @staticmethod
    def serve(monkeypatch, members: dict[str, bytes]) -> None:
        """Make `download_url` write an archive with these members."""

        def download(url: str, root: Path, filename: str, md5: str) -> None:
            root.mkdir(exist_ok=True)
            with tarfile.open(root / filename, "w:gz") as archive:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

        monkeypatch.setattr(cifar, "download_url", download)

    @VARIANTS
    def test_only_missing_files_are_downloaded(self, tmp_path, monkeypatch, variant):
        cifar_tree(tmp_path / "source", variant)
        folder = tmp_path / "source" / RELEASES[variant].folder
        monkeypatch.setattr(cifar, "download_url", lambda *args: pytest.fail("accessed the network"))
        data(tmp_path / "source", variant).prepare()
        self.serve(monkeypatch, {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
        made = data(tmp_path / "new", variant)
        made.prepare()
        assert names(made.split("test")) == names(data(tmp_path / "source", variant).split("test"))

    @pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
    def test_a_failure_says_what_to_do(self, tmp_path, monkeypatch, failure):
        def fail(*args):
            raise failure

        monkeypatch.setattr(cifar, "download_url", fail)
        parts = (str(tmp_path), "cifar-10-batches-py", str(failure), "data.root")
        check_error(lambda: data(tmp_path).prepare(), *parts, error=FileNotFoundError)

    @pytest.mark.parametrize("name", ["../victim", "cifar-10-batches-py/../../victim"])
    def test_an_archive_with_names_outside_of_its_folder_is_refused(self, tmp_path, monkeypatch, name):
        self.serve(monkeypatch, {name: b"x"})
        check_error(lambda: data(tmp_path / "root").prepare(), "cifar-10-python.tar.gz: ", "victim")
        assert not (tmp_path / "victim").exists()
