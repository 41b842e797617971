import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from perceiver.data.image_folder import ImageFolder, class_folders, stage_folders

STAGES = ("train", "val", "test")
TRAIN = {f"train/{name}/{number}.png" for name in ("ants", "bees") for number in range(23)}
VAL = {f"val/{name}/{number}.png" for name in ("ants", "bees") for number in range(5)}
TEST = {f"test/{name}/{number}.png" for name in ("ants", "bees") for number in range(3)}
FLAT = {f"{name}/{number}.png" for name in ("ants", "bees") for number in range(23)}


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "x.png"
    Image.new("RGB", (5, 7), "red").save(path)
    return path


@pytest.fixture
def plant(tmp_path, picture):
    """Makes files under a root: pictures, or the text given; a name with / behind it is an empty folder."""

    def plant(*names: str, text: str | None = None) -> Path:
        for name in names:
            path = tmp_path / "root" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_text(text)
            elif not name.endswith("/"):
                shutil.copy(picture, path)
        return tmp_path / "root"

    return plant


def dataset(root: Path | str, **options) -> ImageFolder:
    defaults = {"num_classes": 2, "on_error": "raise", "image_size": 7, "channels": 3, "augment": None}
    return ImageFolder(root=str(root), **(defaults | {"val_fraction": 0.2, "test_fraction": 0.1} | options))


def ids(data: ImageFolder) -> dict[str, list[str]]:
    """The ids of the samples of each split."""
    splits = {stage: data.split(stage) for stage in STAGES}
    return {stage: [split[i].id for i in range(len(split))] for stage, split in splits.items() if split is not None}


def test_with_all_three_folders_each_is_its_split(plant):
    found = ids(dataset(plant(*TRAIN, *VAL, *TEST)))
    assert {stage: set(names) for stage, names in found.items()} == {"train": TRAIN, "val": VAL, "test": TEST}


def test_without_a_test_folder_the_validation_folder_is_it(plant):
    found = ids(dataset(plant(*TRAIN, *VAL)))
    assert {stage: set(names) for stage, names in found.items()} == {"train": TRAIN, "val": VAL, "test": VAL}


@pytest.mark.parametrize("tested", [True, False])
def test_without_a_validation_folder_a_part_of_every_class_is_kept(plant, tested):
    found = ids(dataset(plant(*TRAIN, *(TEST if tested else ()))))
    assert sorted(found["train"] + found["val"]) == sorted(TRAIN)
    assert Counter(Path(name).parts[1] for name in found["val"]) == {"ants": 5, "bees": 5}
    assert ("test" in found) == tested
    assert set(found.get("test", TEST)) == TEST


def test_class_folders_alone_are_split_in_three(plant):
    found = ids(dataset(plant(*FLAT)))
    assert sorted(found["train"] + found["val"] + found["test"]) == sorted(FLAT)
    assert {stage: Counter(Path(name).parts[0] for name in names) for stage, names in found.items()} == {
        "train": {"ants": 17, "bees": 17},
        "val": {"ants": 4, "bees": 4},
        "test": {"ants": 2, "bees": 2},
    }


@pytest.mark.parametrize("names", [FLAT, TRAIN])
def test_splits_are_the_same_every_time(plant, names):
    root = plant(*names)
    first = ids(dataset(root))
    torch.manual_seed(23)
    assert ids(dataset(root)) == first


def test_fractions_of_zero_leave_no_split(plant):
    assert ids(dataset(plant(*FLAT), val_fraction=0.0, test_fraction=0.0)).keys() == {"train"}


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "VALID", "validation"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_stage_folders_are_found_in_every_usual_spelling(plant, train, val, test):
    root = plant(*(f"{stage}/ants/0.png" for stage in (train, val, test)), "notes/")
    assert {stage: path.name for stage, path in stage_folders(root).items()} == {
        "train": train,
        "val": val,
        "test": test,
    }
    assert class_folders(root) == ["ants"]


def test_labels_are_the_places_of_the_class_folders_in_sorted_order(plant):
    root = plant(*(f"train/{name}/{number}.png" for name in ("b", "a", "c") for number in range(5)))
    data = dataset(root, num_classes=3)
    assert data.class_names == ["a", "b", "c"]
    split = data.split("train")
    for sample in (split[index] for index in range(len(split))):
        assert data.class_names[sample.targets["label"]] == Path(sample.id).parts[1]


def test_any_extension_and_any_depth_count(plant):
    names = {"a/1.PNG", "a/2.JpEg", "a/deep/er/3.png", "b/4.tif", "b/5.webp", "b/spa ce/ü.jpg"}
    data = dataset(plant(*names), val_fraction=0.0, test_fraction=0.0)
    assert set(ids(data)["train"]) == names


def test_links_are_followed(plant, tmp_path):
    root = plant("train/a/0.png", "train/b/0.png")
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    shutil.copy(root / "train/a/0.png", tmp_path / "elsewhere" / "more" / "1.png")
    (root / "train/a/link").symlink_to(tmp_path / "elsewhere")
    (root / "train/c").symlink_to(tmp_path / "elsewhere")
    found = ids(dataset(root, num_classes=3, val_fraction=0.0))["train"]
    assert set(found) == {"train/a/0.png", "train/a/link/more/1.png", "train/b/0.png", "train/c/more/1.png"}


def test_what_is_hidden_is_no_part_of_it(plant, caplog):
    root = plant(*FLAT, "ants/.ipynb_checkpoints/0.png", "ants/._0.png", "ants/.DS_Store", ".git/0.png")
    data = dataset(root)
    with caplog.at_level(logging.WARNING):
        found = ids(data)
    assert sorted(name for names in found.values() for name in names) == sorted(FLAT)
    assert caplog.records == []


def test_files_that_are_no_images_are_left_out_counted_and_named_once(plant, caplog):
    root = plant(*FLAT)
    plant("ants/x.gif", "bees/y.GIF", "bees/notes.txt", "bees/Makefile", text="not an image")
    plant("ants/folder.png/")
    with caplog.at_level(logging.WARNING):
        found = ids(dataset(root))
    assert sorted(name for names in found.values() for name in names) == sorted(FLAT)
    (record,) = caplog.records
    for part in (str(root), "2 × .gif", "1 × .txt", "1 × Makefile"):
        assert part in record.getMessage()


def test_a_class_without_images_is_warned_of(plant, caplog):
    root = plant(*FLAT, "wasps/")
    with caplog.at_level(logging.WARNING):
        found = ids(dataset(root, num_classes=3))
    assert sum(map(len, found.values())) == len(FLAT)
    assert [record.getMessage() for record in caplog.records] == [f"{root}: no image of wasps"]


def test_one_class_is_enough(plant):
    data = dataset(plant(*(f"only/{number}.png" for number in range(23))), num_classes=1)
    assert data.class_names == ["only"]
    assert {stage: len(names) for stage, names in ids(data).items()} == {"train": 17, "val": 4, "test": 2}


def test_a_wrong_number_of_classes_is_refused_with_both_numbers(plant):
    data = dataset(plant(*(f"c{number}/0.png" for number in range(7))), num_classes=5)
    for ask in (lambda: data.class_names, lambda: data.split("train")):
        with pytest.raises(ValueError, match=r"num_classes=5.*has 7 class folders: c0, c1, c2, c3, c4, …$"):
            ask()


def test_a_test_class_that_training_does_not_know_is_refused_by_name(plant):
    data = dataset(plant(*TRAIN, *TEST, "test/wasps/0.png"))
    with pytest.raises(ValueError, match=r"test.*'wasps' is not among the training classes"):
        data.split("test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "root=.*no such folder"),
        (["x.png"], "no class folders"),
        (["train/x.png"], "no class folders"),
        (["val/a/0.png", "test/a/0.png"], "none called train"),
    ],
    ids=["missing", "images without folders", "train without folders", "nothing to train on"],
)
def test_a_root_without_class_folders_is_refused(plant, tmp_path, names, message):
    plant(*names)
    with pytest.raises(FileNotFoundError, match=message):
        class_folders(tmp_path / "root")
    with pytest.raises(FileNotFoundError, match=message):
        dataset(tmp_path / "root").split("train")


def test_folders_without_any_image_are_refused(plant):
    plant("a/x.txt", "b/y.txt", text="not an image")
    with pytest.raises(FileNotFoundError, match=r"no image with one of the endings .*\.jpg"):
        dataset(plant("c/"), num_classes=3).split("train")


def test_the_home_folder_may_be_written_as_a_tilde(plant, monkeypatch):
    root = plant(*FLAT)
    monkeypatch.setenv("HOME", str(root.parent))
    assert class_folders(Path("~/root")) == ["ants", "bees"]
    assert ids(dataset("~/root")) == ids(dataset(root))


def test_the_disk_is_searched_once_a_folder(plant, monkeypatch):
    data = dataset(plant(*FLAT))
    walked = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda folder, **options: (walked.append(folder), walk(folder, **options))[1])
    ids(data), ids(data)
    assert len(walked) == len(set(walked)) == 2
