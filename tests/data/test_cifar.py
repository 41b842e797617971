import io
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources import cifar
from perceiver.data.sources.cifar import CIFAR, RELEASES, read_pickle
from tests.data.datasets import dataset as make

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
PER_FILE = {"cifar10": 50, "cifar100": 500}
VARIANTS = pytest.mark.parametrize("variant", ["cifar10", "cifar100"])


def pixels(file: str, num_samples: int) -> np.ndarray:
    seed = sum(file.encode())
    return np.random.default_rng(seed).integers(256, size=(num_samples, 3072), dtype=np.uint8)


def write(root: Path, variant: str, *, only=None, as_array=False, **changes) -> Path:
    """Small files in the layout of the release; `changes` replace entries of the batches."""
    release, count = RELEASES[variant], PER_FILE[variant]
    folder = root / release.folder
    folder.mkdir(parents=True)
    for file in (*release.train_files, release.test_file):
        if only is None or file in only:
            labels = np.random.default_rng(0).permutation(np.arange(count) % NUM_CLASSES[variant])
            batch = {
                "data": pixels(file, count),
                release.label_key: labels if as_array else labels.tolist(),
                "filenames": [f"x_{row:06d}.png" for row in range(count)],
                "batch_label": f"é {file}",
            }
            (folder / file).write_bytes(pickle.dumps(batch | changes, protocol=2))
    meta = {release.names_key: [f"class{label}" for label in range(NUM_CLASSES[variant])]}
    (folder / release.meta_file).write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def dataset(root: Path, variant="cifar10", **options) -> Dataset:
    defaults = {"num_classes": NUM_CLASSES[variant], "image_size": 32}
    return make(CIFAR, "image", variant=variant, root=str(root), **(defaults | options))


def read(split) -> dict[str, tuple[torch.Tensor, int]]:
    samples = [split[index] for index in range(len(split))]
    return {sample.id: (sample.inputs["image"], sample.targets["label"]) for sample in samples}


@VARIANTS
@pytest.mark.parametrize("as_array", [False, True], ids=["labels as list", "labels as array"])
def test_every_image_of_the_release_is_in_one_split_with_its_label(tmp_path, variant, as_array):
    folder = write(tmp_path, variant, as_array=as_array)
    data, release = dataset(tmp_path, variant), RELEASES[variant]
    splits = {stage: read(data.split(stage)) for stage in ("train", "val", "test")}
    total = PER_FILE[variant] * len(release.train_files)
    assert not splits["train"].keys() & splits["val"].keys()
    assert len(splits["train"]) + len(splits["val"]) == total
    assert len(splits["val"]) == pytest.approx(total / 5, rel=0.2)
    for files, samples in (
        (release.train_files, splits["train"] | splits["val"]),
        ((release.test_file,), splits["test"]),
    ):
        for file in files:
            batch = read_pickle(folder / file)
            for row, name in enumerate(batch["filenames"]):
                image, label = samples[f"{file}/{name}"]
                assert label == batch[release.label_key][row]
                if row < 3:  # planes of red, green and blue, row by row
                    wanted = torch.tensor(pixels(file, PER_FILE[variant])[row]).reshape(3, 32, 32) / 255
                    torch.testing.assert_close(image, wanted)


@VARIANTS
def test_class_names_are_those_of_the_release(tmp_path, variant):
    write(tmp_path, variant)
    assert dataset(tmp_path, variant).class_names == [f"class{label}" for label in range(NUM_CLASSES[variant])]


def test_the_validation_split_is_the_same_every_time(tmp_path):
    write(tmp_path, "cifar10")
    first = dataset(tmp_path).split("val").items.ids
    torch.manual_seed(23)
    assert dataset(tmp_path).split("val").items.ids == first


def test_without_a_validation_fraction_there_is_no_validation_split(tmp_path):
    write(tmp_path, "cifar10")
    data = dataset(tmp_path, val_fraction=0.0)
    assert data.split("val") is None
    assert len(data.split("train")) == 250


def test_a_partial_copy_is_used_and_said_to_be_one(tmp_path, caplog):
    write(tmp_path, "cifar10", only=("data_batch_2", "data_batch_5"))
    data = dataset(tmp_path)
    data.prepare()
    with caplog.at_level(logging.WARNING):
        train, val = data.split("train"), data.split("val")
    assert {id.split("/")[0] for id in (*train.items.ids, *val.items.ids)} == {"data_batch_2", "data_batch_5"}
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["2 of 5 training files are there"]
    with pytest.raises(FileNotFoundError, match="test_batch"):
        data.split("test")


def test_grey_images_weigh_colours_as_reading_a_file_does(tmp_path):
    folder = write(tmp_path, "cifar10")
    rgb = pixels("test_batch", 1).reshape(3, 32, 32).transpose(1, 2, 0)
    Image.fromarray(rgb).save(folder / "x.png")
    data = dataset(tmp_path, channels=1)
    test = data.split("test")[0].inputs["image"]
    torch.testing.assert_close(test, data.read(folder / "x.png").inputs["image"], rtol=0, atol=1.1 / 255)


class Payload:
    """Unpickled by `pickle.load`, it makes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize(
    "payload",
    [
        lambda victim: {"data": Payload(victim)},
        lambda victim: Payload(victim),
        lambda victim: {"data": np.array([Payload(victim)], dtype=object)},
    ],
    ids=["in a dict", "bare", "in an array"],
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, payload):
    path, victim = tmp_path / "data_batch_1", tmp_path / "victim"
    path.write_bytes(pickle.dumps(payload(victim), protocol=2))
    with pytest.raises(UnreadableError, match=r"data_batch_1.*refuses"):
        read_pickle(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()  # the payload was a real one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pickle of arrays"),
        (b"\x80\x02}q", "not a pickle of arrays"),
        (pickle.dumps([1]), "list, not a dict"),
    ],
    ids=["empty", "truncated", "a list"],
)
def test_a_damaged_pickle_is_unreadable_and_named(tmp_path, content, message):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UnreadableError, match=f"data_batch_1: .*{message}"):
        read_pickle(tmp_path / "data_batch_1")
    with pytest.raises(UnreadableError, match="missing: no such file"):
        read_pickle(tmp_path / "missing")


@pytest.mark.parametrize(
    "changes", [{"data": [1, 2, 3]}, {"data": "x"}, {"labels": [1]}, {"labels": None}, {"data": None}], ids=str
)
def test_a_pickle_that_is_no_batch_is_unreadable_and_named(tmp_path, changes):
    write(tmp_path, "cifar10", **changes)
    with pytest.raises(UnreadableError, match="data_batch_1: not a CIFAR batch"):
        dataset(tmp_path).split("train")


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_out_of_range_are_refused(tmp_path, wrong):
    write(tmp_path, "cifar10", labels=[0] * 49 + [wrong])
    with pytest.raises(UnreadableError, match=f"data_batch_1: not a CIFAR batch: label {wrong} of image 49"):
        dataset(tmp_path).split("train")


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"num_classes=10: cifar100 has 100"):
        dataset(tmp_path, "cifar100", num_classes=10)


def test_what_is_there_is_not_downloaded(tmp_path, monkeypatch):
    write(tmp_path, "cifar10")
    monkeypatch.setattr(cifar, "download_url", lambda *args: pytest.fail("asked the network"))
    dataset(tmp_path).prepare()


@pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_without_files_and_network_the_error_says_what_to_do(tmp_path, monkeypatch, failure):
    def fail(*args):
        raise failure

    monkeypatch.setattr(cifar, "download_url", fail)
    with pytest.raises(FileNotFoundError) as caught:
        dataset(tmp_path).prepare()
    for part in (str(tmp_path), "cifar-10-batches-py", str(failure), "data.root"):
        assert part in str(caught.value)


def serve(monkeypatch, members: dict[str, bytes]) -> None:
    """Have `download_url` put down an archive with these members."""

    def download(url: str, root: Path, filename: str, md5: str) -> None:
        root.mkdir(exist_ok=True)
        with tarfile.open(root / filename, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    monkeypatch.setattr(cifar, "download_url", download)


@VARIANTS
def test_missing_files_are_downloaded_and_unpacked(tmp_path, monkeypatch, variant):
    folder = write(tmp_path / "source", variant)
    serve(monkeypatch, {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
    data = dataset(tmp_path / "new", variant)
    data.prepare()
    assert read(data.split("test")).keys() == read(dataset(tmp_path / "source", variant).split("test")).keys()


@pytest.mark.parametrize("name", ["../victim", "cifar-10-batches-py/../../victim"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(tmp_path, monkeypatch, name):
    serve(monkeypatch, {name: b"x"})
    with pytest.raises(UnreadableError, match=r"cifar-10-python\.tar\.gz: not the archive of the release .*victim"):
        dataset(tmp_path / "root").prepare()
    assert not (tmp_path / "victim").exists()
