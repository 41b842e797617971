import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from perceiver.data.files import FileKind
from perceiver.data.sources.class_folders import ClassFolders
from perceiver.data.sources.folders import class_folders, stage_folders
from tests.data.datasets import built

LEAVES = {"plant": FileKind("leaf", frozenset({".leaf", ".lf"}))}
STAGES = ("train", "val", "test")
TRAIN = {f"train/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(23)}
VAL = {f"val/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(5)}
TEST = {f"test/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(3)}
FLAT = {f"{name}/{number}.leaf" for name in ("ash", "elm") for number in range(23)}


@pytest.fixture
def plant(tmp_path):
    """Makes empty files under a root; a name with / behind it is an empty folder."""

    def plant(*names: str) -> Path:
        for name in names:
            path = tmp_path / "root" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return tmp_path / "root"

    return plant


def leaves(root: Path | str, **options) -> ClassFolders:
    return built(ClassFolders, root=str(root), **({"num_classes": 2} | options))


def found(folders: ClassFolders) -> dict[str, list[str]]:
    """The files of each stage, below the root."""
    items = {stage: folders.items(stage, LEAVES) for stage in STAGES}
    return {
        stage: [of_stage.name_of(index) for index in range(len(of_stage))]
        for stage, of_stage in items.items()
        if of_stage is not None
    }


def test_with_all_three_folders_each_is_its_stage(plant):
    assert {stage: set(names) for stage, names in found(leaves(plant(*TRAIN, *VAL, *TEST))).items()} == {
        "train": TRAIN,
        "val": VAL,
        "test": TEST,
    }


def test_without_a_test_folder_the_validation_folder_is_it(plant):
    files = found(leaves(plant(*TRAIN, *VAL)))
    assert {stage: set(names) for stage, names in files.items()} == {"train": TRAIN, "val": VAL, "test": VAL}


@pytest.mark.parametrize("tested", [True, False])
def test_without_a_validation_folder_a_part_of_every_class_is_kept(plant, tested):
    files = found(leaves(plant(*TRAIN, *(TEST if tested else ()))))
    assert sorted(files["train"] + files["val"]) == sorted(TRAIN)
    assert Counter(Path(name).parts[1] for name in files["val"]).keys() == {"ash", "elm"}
    assert ("test" in files) == tested
    assert set(files.get("test", TEST)) == TEST


def test_class_folders_alone_are_split_in_three(plant):
    files = found(leaves(plant(*FLAT)))
    assert sorted(files["train"] + files["val"] + files["test"]) == sorted(FLAT)
    assert len(files["train"]) > len(files["val"]) > 0 < len(files["test"])


@pytest.mark.parametrize("names", [FLAT, TRAIN])
def test_files_that_are_added_or_removed_and_another_root_move_no_other(plant, tmp_path, names):
    root = plant(*names)
    before = found(leaves(root))
    plant(*(name.replace(".leaf", "_new.leaf") for name in names))
    (root / sorted(names)[3]).unlink()
    after = found(leaves(root.rename(tmp_path / "moved")))
    for stage, files in before.items():
        assert set(after[stage]) & names == set(files) - {sorted(names)[3]}
    assert sum(map(len, after.values())) == 2 * len(names) - 1


@pytest.mark.parametrize("names", [FLAT, TRAIN])
def test_splits_are_the_same_every_time(plant, names):
    root = plant(*names)
    first = found(leaves(root))
    torch.manual_seed(23)
    assert found(leaves(root)) == first


def test_fractions_of_zero_leave_no_split(plant):
    assert found(leaves(plant(*FLAT), val_fraction=0.0, test_fraction=0.0)).keys() == {"train"}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "VALID", "Testing"),
        ("seg_train", "seg_val", "seg_test"),
        ("train_images", "dev", "eval"),
        ("training-set", "eval", "test-set"),
    ],
)
def test_stage_folders_are_found_in_every_usual_spelling(plant, train, val, test):
    root = plant(*(f"{stage}/ash/0.leaf" for stage in (train, val, test)), "notes/")
    assert {stage: path.name for stage, path in stage_folders(root).items()} == {
        "train": train,
        "val": val,
        "test": test,
    }
    assert class_folders(root) == ["ash"]


def test_labels_are_the_places_of_the_class_folders_in_sorted_order(plant):
    folders = leaves(plant(*(f"train/{name}/{number}.leaf" for name in "bac" for number in range(5))), num_classes=3)
    assert folders.class_names == ["a", "b", "c"]
    items = folders.items("train", LEAVES)
    names = [Path(items.name_of(index)).parts[-2] for index in range(len(items))]
    assert [folders.class_names[label] for label in items.labels] == names


def test_any_of_the_endings_and_any_depth_count(plant):
    names = {"a/1.LEAF", "a/2.Lf", "a/deep/er/3.leaf", "b/4.lf", "b/spa ce/ü.leaf"}
    assert set(found(leaves(plant(*names), val_fraction=0.0, test_fraction=0.0))["train"]) == names


def test_links_are_followed(plant, tmp_path):
    root = plant("train/a/0.leaf", "train/b/0.leaf", "../elsewhere/more/1.leaf")
    (root / "train/a/link").symlink_to(tmp_path / "elsewhere")
    (root / "train/c").symlink_to(tmp_path / "elsewhere")
    files = found(leaves(root, num_classes=3, val_fraction=0.0))["train"]
    assert set(files) == {"train/a/0.leaf", "train/a/link/more/1.leaf", "train/b/0.leaf", "train/c/more/1.leaf"}


def test_what_is_hidden_is_no_part_of_it(plant, caplog):
    root = plant(*FLAT, "ash/.ipynb_checkpoints/0.leaf", "ash/._0.leaf", "ash/.DS_Store", ".git/0.leaf")
    with caplog.at_level(logging.WARNING):
        files = found(leaves(root))
    assert sorted(name for names in files.values() for name in names) == sorted(FLAT)
    assert caplog.records == []


def test_files_of_other_kinds_are_left_out_counted_and_named_once(plant, caplog):
    root = plant(*FLAT, "ash/x.gif", "elm/y.GIF", "elm/notes.txt", "elm/Makefile", "ash/folder.leaf/")
    with caplog.at_level(logging.WARNING):
        files = found(leaves(root))
    assert sorted(name for names in files.values() for name in names) == sorted(FLAT)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{root}: ignored files that are not leafs: 2 × .gif, ")
    for part in ("1 × .txt", "1 × Makefile"):
        assert part in record.getMessage()


@pytest.mark.parametrize("names", [FLAT, TRAIN | TEST])
def test_files_beside_the_class_folders_are_left_out_counted_and_named(plant, caplog, names):
    beside = sorted({str(Path(name).parents[1]) for name in names})
    root = plant(*names, "x.leaf", "y.LF", *(f"{folder}/z.leaf" for folder in beside if folder != "."))
    with caplog.at_level(logging.WARNING):
        assert set().union(*found(leaves(root)).values()) == names
    told = {str(root): "2 leafs", **{f"{root}/{folder}": "1 leaf " for folder in beside if folder != "."}}
    assert {text.partition(": ")[0]: text.partition(": ")[2][:7] for text in caplog.messages} == told
    assert all(text.endswith(": x.leaf, y.LF") or text.endswith(": z.leaf") for text in caplog.messages)


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (("train", "test", "car"), ["train", "test"]),
        (("dev", "ops"), ["dev"]),
        (("trn/a", "trn/b", "val/a", "val/b"), ["val"]),
        (("one/a", "one/b", "two/a", "two/b"), ["one, two", "a, b"]),
        (("one/a", "two/b"), []),
        (("one/a", "two"), []),
    ],
)
def test_class_folders_that_may_be_stages_are_warned_of(plant, caplog, classes, told):
    root = plant(*(f"{name}/{number}.leaf" for name in classes for number in range(5)))
    num_classes = len({name.partition("/")[0] for name in classes})
    with caplog.at_level(logging.WARNING):
        assert sum(map(len, found(leaves(root, num_classes=num_classes)).values())) == 5 * len(classes)
    assert len(caplog.messages) == bool(told)
    assert all(text.startswith(f"{root}: taken for classes: ") for text in caplog.messages)
    assert all(name in text for name in told for text in caplog.messages)


def test_a_class_without_files_is_warned_of(plant, caplog):
    root = plant(*FLAT, "yew/")
    with caplog.at_level(logging.WARNING):
        files = found(leaves(root, num_classes=3))
    assert sum(map(len, files.values())) == len(FLAT)
    assert [record.getMessage() for record in caplog.records] == [f"{root}: no leaf of yew"]


def test_one_class_is_enough(plant):
    folders = leaves(plant(*(f"only/{number}.leaf" for number in range(23))), num_classes=1)
    assert folders.class_names == ["only"]
    assert found(folders).keys() == set(STAGES)


def test_a_wrong_number_of_classes_is_refused_with_both_numbers(plant):
    folders = leaves(plant(*(f"c{number}/0.leaf" for number in range(7))), num_classes=5)
    for ask in (lambda: folders.class_names, lambda: folders.items("train", LEAVES)):
        with pytest.raises(ValueError, match=r"num_classes=5.*has 7 class folders: c0, c1, c2, c3, c4, …$"):
            ask()


def test_a_test_class_that_training_does_not_know_is_refused_by_name(plant):
    folders = leaves(plant(*TRAIN, *TEST, "test/yew/0.leaf"))
    with pytest.raises(ValueError, match=r"test.*'yew' is not among the training classes"):
        folders.items("test", LEAVES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "root=.*no such folder"),
        (["x.leaf"], "no class folders"),
        (["train/x.leaf"], "no class folders.* folder train"),
        (["val/a/0.leaf", "test/a/0.leaf"], "none called train"),
    ],
    ids=["missing", "files without folders", "train without folders", "nothing to train on"],
)
def test_a_root_without_class_folders_is_refused(plant, tmp_path, names, message):
    plant(*names)
    with pytest.raises(FileNotFoundError, match=message):
        class_folders(tmp_path / "root")
    with pytest.raises(FileNotFoundError, match=message):
        leaves(tmp_path / "root").items("train", LEAVES)


def test_folders_without_any_file_of_the_kind_are_refused(plant):
    root = plant("a/x.txt", "b/y.txt", "c/")
    with pytest.raises(FileNotFoundError, match=f"^{root}: no leaf with one of the endings .leaf .lf in it$"):
        leaves(root, num_classes=3).items("train", LEAVES)


def test_the_home_folder_may_be_written_as_a_tilde(plant, monkeypatch):
    root = plant(*FLAT)
    monkeypatch.setenv("HOME", str(root.parent))
    assert class_folders(Path("~/root")) == ["ash", "elm"]
    assert found(leaves("~/root")) == found(leaves(root))


def test_the_disk_is_searched_once_a_folder(plant, monkeypatch):
    folders = leaves(plant(*FLAT))
    walked = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda folder, **options: (walked.append(folder), walk(folder, **options))[1])
    found(folders), found(folders)
    assert len(walked) == len(set(walked)) == 2


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_back_is_refused_instead_of_being_followed_for_ever(plant, target):
    root = plant(*FLAT)
    (root / "ash" / "back").symlink_to(target)
    with pytest.raises(ValueError, match=rf"^{root}/ash/back: a link to a folder that it is in itself$"):
        leaves(root).items("train", LEAVES)


def test_folders_that_systems_and_archives_leave_are_no_classes_and_no_layers(plant, caplog):
    names = [f"photos/seg_train/seg_train/{name}" for name in ("ash/0.leaf", "elm/1.leaf")]
    root = plant(*names, "photos/seg_test/seg_test/ash/2.leaf", "__MACOSX/photos/ash/0.leaf", "photos/ash/Thumbs.db")
    (root / "photos/ash/Thumbs.db").unlink(), (root / "photos/ash").rmdir()
    plant(
        "photos/seg_train/seg_train/ash/Thumbs.db", "photos/seg_train/seg_train/@eaDir/3.leaf", "photos/seg_pred/4.leaf"
    )
    with caplog.at_level(logging.WARNING):
        files = found(leaves(root, val_fraction=0.0))
    assert set(files["train"]) == set(names)
    assert files["test"] == ["photos/seg_test/seg_test/ash/2.leaf"]
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "seg_pred" in messages  # beside the folders of stages
    assert "elm" in messages  # of which there is none to test
    assert "Thumbs" not in messages


def test_a_class_may_be_called_like_a_stage(plant):
    root = plant("train/0.leaf", "train/1.leaf", "car/0.leaf", "test tube/0.leaf")
    assert class_folders(root) == ["car", "test tube", "train"]


def test_a_class_that_a_split_lacks_and_test_files_without_classes_are_warned_of(plant, caplog):
    root = plant(*TRAIN, "test/ash/0.leaf")
    with caplog.at_level(logging.WARNING):
        assert found(leaves(root))["test"] == ["test/ash/0.leaf"]
    assert [record.getMessage() for record in caplog.records] == [f"{root}/test: no leaf of elm"]
    caplog.clear()
    (root / "test/ash/0.leaf").rename(root / "test/0.leaf")
    (root / "test/ash").rmdir()
    with caplog.at_level(logging.WARNING):
        assert "test" not in found(leaves(root))
    assert str(root / "test") in caplog.text


def test_two_folders_for_one_stage_are_refused(plant):
    root = plant(*TRAIN, "val/ash/0.leaf", "valid/ash/0.leaf")
    with pytest.raises(ValueError, match=rf"^root={root}: the folders val and valid are both for val$"):
        stage_folders(root)


def test_a_class_whose_name_cannot_be_written_down_is_refused(plant):
    root = plant(*FLAT)
    os.rename(root / "ash", os.fsencode(root) + b"/\xff")
    with pytest.raises(ValueError, match=r"name of the class folder '\\udcff' is no text in UTF-8$"):
        class_folders(root)
