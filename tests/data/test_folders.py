"""Class folders: which folders are stages and classes, which files are samples."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import IMAGES, SOUNDS, FileKind
from perceiver.data.readers.audio import AudioAugment, AudioReader
from perceiver.data.readers.image import ImageAugment, ImageReader
from perceiver.data.sources.base import ItemTable, multi_hot
from perceiver.data.sources.folders import ClassFolders, find_classes, stage_folders
from scripts import data_trees
from scripts.data_trees import CLASSES, RATE, image_of, wave_of, write_sound
from tests.data.datasets import HELD_OUT, STAGES, built, check_error, check_split_error, dataset, names, samples

LEAVES = {"plant": FileKind("leaf", frozenset({".leaf", ".lf"}))}
TRAIN = {f"train/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(23)}
VAL = {f"val/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(5)}
TEST = {f"test/{name}/{number}.leaf" for name in ("ash", "elm") for number in range(3)}
FLAT = {f"{name}/{number}.leaf" for name in ("ash", "elm") for number in range(23)}


@pytest.fixture
def plant(tmp_path):
    """Make empty files under a root; a name that ends with / is an empty folder."""

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
    """Return the files of each stage, below the root."""
    items = {stage: folders.items(stage, LEAVES) for stage in STAGES}
    return {stage: list(table.ids) for stage, table in items.items() if table is not None}


class TestStages:
    def test_each_folder_is_a_stage_and_val_replaces_a_missing_test(self, plant):
        root = plant(*TRAIN, *VAL)
        files = found(leaves(root))
        assert {stage: set(paths) for stage, paths in files.items()} == {"train": TRAIN, "val": VAL, "test": VAL}
        assert set(found(leaves(plant(*TEST)))["test"]) == TEST

    @pytest.mark.parametrize("tested", [True, False])
    def test_without_a_validation_folder_a_part_of_every_class_is_held_out(self, plant, tested):
        files = found(leaves(plant(*TRAIN, *(TEST if tested else ()))))
        assert sorted(files["train"] + files["val"]) == sorted(TRAIN)
        assert Counter(Path(name).parts[1] for name in files["val"]).keys() == {"ash", "elm"}
        assert ("test" in files) == tested

    def test_class_folders_alone_are_split_in_three_unless_the_fractions_are_zero(self, plant):
        files = found(leaves(plant(*FLAT)))
        assert sorted(files["train"] + files["val"] + files["test"]) == sorted(FLAT)
        assert len(files["train"]) > len(files["val"]) > 0 < len(files["test"])
        assert found(leaves(plant(), val_fraction=0.0, test_fraction=0.0)).keys() == {"train"}

    @pytest.mark.parametrize("paths", [FLAT, TRAIN])
    def test_added_or_removed_files_another_root_and_seed_move_no_other_file(self, plant, tmp_path, paths):
        root = plant(*paths)
        before = found(leaves(root))
        plant(*(name.replace(".leaf", "_new.leaf") for name in paths))
        removed = sorted(paths)[3]
        (root / removed).unlink()
        torch.manual_seed(23)
        after = found(leaves(root.rename(tmp_path / "moved")))
        for stage, files in before.items():
            assert set(after[stage]) & paths == set(files) - {removed}
        assert sum(map(len, after.values())) == 2 * len(paths) - 1

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
    def test_all_usual_spellings_are_found(self, plant, train, val, test):
        root = plant(*(f"{stage}/ash/0.leaf" for stage in (train, val, test)), "notes/")
        folders = {stage: path.name for stage, path in stage_folders(root).items()}
        assert folders == {"train": train, "val": val, "test": test}
        assert find_classes(root) == ["ash"]

    def test_two_folders_for_one_stage_are_refused(self, plant):
        root = plant(*TRAIN, "val/ash/0.leaf", "valid/ash/0.leaf")
        check_error(lambda: stage_folders(root), f"root={root}", "val and valid", error=ValueError)

    def test_a_class_may_have_the_name_of_a_stage(self, plant):
        root = plant("train/0.leaf", "train/1.leaf", "car/0.leaf", "test tube/0.leaf")
        assert find_classes(root) == ["car", "test tube", "train"]

    @pytest.mark.parametrize(
        ("classes", "named"),
        [
            (("train", "test", "car"), ["train", "test"]),
            (("dev", "ops"), ["dev"]),
            (("trn/a", "trn/b", "val/a", "val/b"), ["val"]),
            (("one/a", "one/b", "two/a", "two/b"), ["one, two", "a, b"]),
            (("one/a", "two/b"), []),
            (("one/a", "two"), []),
        ],
    )
    def test_classes_that_may_be_stages_are_warned_of(self, plant, caplog, classes, named):
        root = plant(*(f"{name}/{number}.leaf" for name in classes for number in range(5)))
        num_classes = len({name.partition("/")[0] for name in classes})
        assert sum(map(len, found(leaves(root, num_classes=num_classes)).values())) == 5 * len(classes)
        assert len(caplog.messages) == bool(named)
        assert all(name in text for name in (str(root), *named) for text in caplog.messages)

    def test_a_class_that_a_stage_lacks_and_test_files_without_classes_are_warned_of(self, plant, caplog):
        root = plant(*TRAIN, "test/ash/0.leaf")
        assert found(leaves(root))["test"] == ["test/ash/0.leaf"]
        assert caplog.messages == [f"{root}/test: no leaf of elm"]
        caplog.clear()
        (root / "test/ash/0.leaf").rename(root / "test/0.leaf")
        (root / "test/ash").rmdir()
        assert "test" not in found(leaves(root))
        assert str(root / "test") in caplog.text


class TestClasses:
    def test_labels_are_the_indices_of_the_class_folders_in_sorted_order(self, plant):
        paths = (f"train/{name}/{number}.leaf" for name in "bac" for number in range(5))
        folders = leaves(plant(*paths), num_classes=3)
        assert folders.class_names == ["a", "b", "c"]
        items = folders.items("train", LEAVES)
        assert [folders.class_names[label] for label in items.labels] == [Path(id).parts[-2] for id in items.ids]

    def test_one_class_is_enough(self, plant):
        folders = leaves(plant(*(f"only/{number}.leaf" for number in range(23))), num_classes=1)
        assert folders.class_names == ["only"]
        assert found(folders).keys() == set(STAGES)

    def test_another_number_of_classes_is_refused_with_both_numbers(self, plant):
        folders = leaves(plant(*(f"c{number}/0.leaf" for number in range(7))), num_classes=5)
        for action in (lambda: folders.class_names, lambda: folders.items("train", LEAVES)):
            check_error(action, "num_classes=5", "7 class folders: c0, c1, c2, c3, c4, …", error=ValueError)

    def test_a_test_class_that_training_lacks_is_refused_by_name(self, plant):
        folders = leaves(plant(*TRAIN, *TEST, "test/yew/0.leaf"))
        check_error(lambda: folders.items("test", LEAVES), "/test", "'yew'", error=ValueError)

    @pytest.mark.parametrize(
        ("paths", "message"),
        [
            ([], "no such folder"),
            (["x.leaf"], "no class folders"),
            (["train/x.leaf"], "no class folders (in its folder train)"),
            (["val/a/0.leaf", "test/a/0.leaf"], "none named train"),
        ],
    )
    def test_a_root_without_class_folders_is_refused(self, plant, tmp_path, paths, message):
        plant(*paths)
        for action in (find_classes, lambda root: leaves(root).items("train", LEAVES)):
            check_error(lambda action=action: action(tmp_path / "root"), "root=", message, error=FileNotFoundError)

    def test_a_name_that_is_not_utf8_is_refused(self, plant):
        root = plant(*FLAT)
        os.rename(root / "ash", os.fsencode(root) + b"/\xff")
        check_error(lambda: find_classes(root), f"root={root}", r"'\udcff'", error=ValueError)


class TestFiles:
    def test_any_ending_and_any_depth_count(self, plant):
        paths = {"a/1.LEAF", "a/2.Lf", "a/deep/er/3.leaf", "b/4.lf", "b/spa ce/ü.leaf"}
        assert set(found(leaves(plant(*paths), val_fraction=0.0, test_fraction=0.0))["train"]) == paths

    def test_links_are_followed_but_not_back(self, plant, tmp_path):
        root = plant("train/a/0.leaf", "train/b/0.leaf", "../elsewhere/more/1.leaf")
        (root / "train/a/link").symlink_to(tmp_path / "elsewhere")
        (root / "train/c").symlink_to(tmp_path / "elsewhere")
        files = found(leaves(root, num_classes=3, val_fraction=0.0))["train"]
        assert set(files) == {"train/a/0.leaf", "train/a/link/more/1.leaf", "train/b/0.leaf", "train/c/more/1.leaf"}
        for target in ("..", "../..", "."):
            link = root / "train/a/back"
            link.symlink_to(target)
            check_error(lambda: leaves(root, num_classes=3).items("train", LEAVES), f"{link}: ", error=ValueError)
            link.unlink()

    def test_hidden_files_are_ignored_without_a_warning(self, plant, caplog):
        root = plant(*FLAT, "ash/.ipynb_checkpoints/0.leaf", "ash/._0.leaf", "ash/.DS_Store", ".git/0.leaf")
        assert {name for files in found(leaves(root)).values() for name in files} == FLAT
        assert caplog.records == []

    def test_files_of_other_kinds_are_counted_and_named_once(self, plant, caplog):
        root = plant(*FLAT, "ash/x.gif", "elm/y.GIF", "elm/notes.txt", "elm/Makefile", "ash/folder.leaf/")
        assert {name for files in found(leaves(root)).values() for name in files} == FLAT
        (message,) = caplog.messages
        assert all(part in message for part in (f"{root}: ", "leafs", "2 × .gif", "1 × .txt", "1 × Makefile"))

    @pytest.mark.parametrize("paths", [FLAT, TRAIN | TEST])
    def test_files_outside_of_class_folders_are_counted_and_named(self, plant, caplog, paths):
        beside = sorted({str(Path(name).parents[1]) for name in paths} - {"."})
        root = plant(*paths, "x.leaf", "y.LF", *(f"{folder}/z.leaf" for folder in beside))
        assert set().union(*found(leaves(root)).values()) == paths
        counts = {str(root): "2 leafs", **{f"{root}/{folder}": "1 leaf " for folder in beside}}
        assert {text.partition(": ")[0]: text.partition(": ")[2][:7] for text in caplog.messages} == counts
        assert all(text.endswith(": x.leaf, y.LF") or text.endswith(": z.leaf") for text in caplog.messages)

    def test_folders_without_any_file_of_the_kind_are_refused(self, plant, caplog):
        root = plant("a/x.txt", "b/y.txt", "c/")
        action = lambda: leaves(root, num_classes=3).items("train", LEAVES)  # noqa: E731
        check_error(action, f"{root}: ", "leaf", ".leaf .lf", error=FileNotFoundError)
        plant("a/x.leaf")
        action()
        assert f"{root}: no leaf of b, c" in caplog.messages

    def test_tilde_is_the_home_folder(self, plant, monkeypatch):
        root = plant(*FLAT)
        monkeypatch.setenv("HOME", str(root.parent))
        assert find_classes(Path("~/root")) == ["ash", "elm"]
        assert found(leaves("~/root")) == found(leaves(root))

    def test_the_disk_is_searched_once(self, plant, monkeypatch):
        folders, walked, walk = leaves(plant(*FLAT)), [], os.walk
        monkeypatch.setattr(os, "walk", lambda folder, **options: (walked.append(folder), walk(folder, **options))[1])
        found(folders), found(folders)
        assert len(walked) == len(set(walked)) == 2

    def test_folders_of_systems_and_archives_are_neither_classes_nor_layers(self, plant, caplog):
        paths = [f"photos/seg_train/seg_train/{name}" for name in ("ash/0.leaf", "elm/1.leaf")]
        root = plant(*paths, "photos/seg_test/seg_test/ash/2.leaf", "__MACOSX/photos/ash/0.leaf")
        plant("photos/seg_pred/4.leaf")
        plant("photos/seg_train/seg_train/ash/Thumbs.db", "photos/seg_train/seg_train/@eaDir/3.leaf")
        with caplog.at_level(logging.WARNING):
            files = found(leaves(root, val_fraction=0.0))
        assert set(files["train"]) == set(paths)
        assert files["test"] == ["photos/seg_test/seg_test/ash/2.leaf"]
        assert "seg_pred" in caplog.text  # next to the folders of stages
        assert "elm" in caplog.text  # has no test files
        assert "Thumbs" not in caplog.text


CLIPS = {"sample_rate": RATE, "seconds": 0.2, "hop_seconds": 0.1}
KINDS = {"image": (IMAGES, "png", {"image_size": (13, 17)}), "audio": (SOUNDS, "wav", CLIPS)}
CHANGED = {"image": ImageAugment(erasing=1.0), "audio": AudioAugment(gain=0.0, time_shift=0.0, polarity=1.0)}


@pytest.mark.parametrize("modality", ["image", "audio"])
class TestSamples:
    @pytest.fixture
    def root(self, tmp_path, modality) -> Path:
        return data_trees.class_folders(tmp_path / "root", modality).root

    def data(self, root, modality, **options) -> Dataset:
        return dataset(ClassFolders, modality, root=str(root), num_classes=3, **KINDS[modality][2], **options)

    def test_a_sample_has_the_label_of_its_folder_and_the_content_of_its_file(self, root, modality):
        data = self.data(root, modality)
        assert data.class_names == list(CLASSES)
        for stage, numbers in data_trees.STAGES.items():
            split = data.split(stage)
            paths = [f"{stage}/{CLASSES[number % 3]}/{number}.{KINDS[modality][1]}" for number in numbers]
            assert sorted(names(split)) == sorted(paths)
            assert split.modalities == [modality]
            for index, sample in enumerate(samples(split)):
                number = int(Path(sample.id).stem)
                assert sample.targets == {"label": number % 3}
                assert list(split.sample_classes(index)) == [number % 3]
                if modality == "image":
                    pixels = torch.tensor(np.array(image_of(number))).permute(2, 0, 1)
                    torch.testing.assert_close(sample.inputs["image"], pixels / 255)
                else:
                    wave = torch.tensor(wave_of(number)).float()
                    values = sample.inputs["audio"] if stage == "train" else sample.inputs["audio"][0]
                    crops = wave.unfold(0, values.shape[-1], 1)
                    assert (crops - values).abs().amax(dim=1).min() < 1e-4

    def test_only_training_samples_are_augmented(self, root, modality):
        plain, changed = self.data(root, modality), self.data(root, modality, augment=CHANGED[modality])
        for stage in STAGES:
            one, other = (torch.manual_seed(7) and data.split(stage)[0].inputs[modality] for data in (plain, changed))
            assert torch.equal(one, other) == (stage != "train")

    def test_every_ending_counts_whatever_the_content_and_an_unreadable_file_is_named(self, root, modality):
        for ending in KINDS[modality][0].endings:
            (root / "train/cat" / f"x{ending.upper()}").write_text("neither an image nor a sound")
        split = self.data(root, modality).split("train")
        new = {f"train/cat/x{ending.upper()}" for ending in KINDS[modality][0].endings}
        assert new < set(names(split))
        index = next(index for index, name in enumerate(names(split)) if name in new)
        check_error(lambda: split[index], f"{root}/{names(split)[index]}: ")


class TestSeveralReaders:
    """Files with the same name but for the ending are one sample."""

    def data(self, root: Path, **options) -> Dataset:
        readers = {"image": built(ImageReader, image_size=7), "audio": built(AudioReader)}
        source = built(ClassFolders, root=str(root), num_classes=2, **options)
        return Dataset(source=source, readers=readers, on_error="raise")

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """Thirty-nine samples, some without their image or their sound; one folder is nested."""
        tree = data_trees.Tree(tmp_path / "root")
        for number in range(40):
            path = f"{('ants', 'bees')[number % 2]}/{'deep/' if number < 5 else ''}{number}"
            if number % 5 != 2:
                tree.image(f"{path}.png", number)
            if number % 7 != 3:
                tree.sound(f"{path}.wav", number)
        return tree.root

    def test_a_sample_has_the_modalities_for_which_there_is_a_file(self, root):
        found = {}
        for split in (self.data(root).split(stage) for stage in STAGES):
            assert split.modalities == ["image", "audio"]
            found |= dict(zip(names(split), samples(split), strict=True))
        assert len(found) == 39  # number 17 would lack both
        for name, sample in found.items():
            number = int(Path(name).name)
            assert ("image" in sample.inputs, "audio" in sample.inputs) == (number % 5 != 2, number % 7 != 3)
            assert sample.id == name

    def test_a_second_file_moves_no_sample(self, root):
        before = {stage: names(self.data(root, **HELD_OUT).split(stage)) for stage in STAGES}
        image_of(0).save(root / "ants/12.png")
        write_sound(root / "bees/3.wav")  # next to deep/3.png, but not a part of it
        after = {stage: names(self.data(root, **HELD_OUT).split(stage)) for stage in STAGES}
        assert {name for stage in STAGES for name in after[stage]} == {"bees/3"}.union(*before.values())
        assert all(set(before[stage]) <= set(after[stage]) for stage in STAGES)

    def test_the_ending_of_a_users_file_selects_the_reader(self, root):
        data = self.data(root)
        for ending, modality in (("png", "image"), ("wav", "audio")):
            assert data.read(root / f"ants/6.{ending}").inputs.keys() == {modality}
        check_error(lambda: data.read(root / "ants/6.txt"), "6.txt: ", "image nor sound")

    def test_two_files_of_one_kind_for_one_sample_are_refused(self, root):
        image_of(0).save(root / "ants/6.jpg")
        check_split_error(self.data(root), "ants/6.png", "ants/6.jpg", error=ValueError)


class TestItemTable:
    PATHS = ("0.wav", "1.wav", "2.wav")

    def test_files_have_a_label_tags_or_references_and_are_named_below_the_root(self):
        tables = {
            "label": ItemTable.of_files(Path("/x"), {"audio": self.PATHS}, labels=[5, 0, 2]),
            "tags": ItemTable.of_files(Path("/x"), {"audio": self.PATHS}, tags=[[5, 1], [], [2]], num_classes=7),
            "references": ItemTable.of_files(Path("/x"), {"audio": self.PATHS}, references=[["a"], ["b"], ["c", "d"]]),
        }
        classes = {"label": [[5], [0], [2]], "tags": [[5, 1], [], [2]], "references": [[], [], []]}
        for target, table in tables.items():
            for part, kept in ((table, [0, 1, 2]), (table.subset([2, 0]), [2, 0])):
                assert [part[index].id for index in range(len(part))] == [self.PATHS[index] for index in kept]
                assert part[0].parts == {"audio": Path("/x") / self.PATHS[kept[0]]}
                assert [list(part.sample_classes(index)) for index in range(len(part))] == [
                    classes[target][index] for index in kept
                ]
                assert part[0].targets.keys() == {target}
        assert tables["tags"][0].targets["tags"].tolist() == multi_hot([1, 5], 7).tolist() == [0, 1, 0, 0, 0, 1, 0]
        assert tables["label"].subset([]) is None

    def test_roles_are_those_of_which_any_item_has_a_part(self):
        table = ItemTable.of_files(Path("/x"), {"image": ["a.png", ""], "audio": ["", "b.wav"]})
        assert (table.roles, list(table.ids)) == (["image", "audio"], ["a", "b"])
        assert table.subset([1]).roles == ["audio"]
