"""Images and sounds with captions: the base class, and every layout."""

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset, Split
from perceiver.data.readers.image import ImageAugment
from perceiver.data.sources.captions import (
    CaptionedFiles,
    Captions,
    Clotho,
    CocoCaptions,
    Flickr8k,
    Karpathy,
    clean_captions,
)
from perceiver.training.data_module import DataModule
from scripts import data_trees
from scripts.data_trees import CLOTHO_SPLITS, Tree, captions_of, coco_json, image_of, write_csv, write_lines
from tests.data.datasets import STAGES, check_error, check_split_error, dataset, names, samples, sizes

LISTED = {"train": {"0.png": ["a", "b", "c"], "deep/1.png": ["d"]}, "val": {"2.png": ["e", "f"]}, "test": {}}


class Listed(CaptionedFiles):
    """A source with given captions; counts how often they are read."""

    def __init__(self, *, root: str, listed) -> None:
        super().__init__(root=root)
        self.listed = listed
        self.reads: Counter[str] = Counter()

    def read_captions(self, stage):
        self.reads[stage] += 1
        if stage not in self.listed:
            return None
        return Captions(self.root / f"{stage}.txt", self.listed[stage], ("images", "more/images", "."))


def listed(root: Path, listed=LISTED, **options) -> Dataset:
    return dataset(Listed, "image", root=str(root), listed=listed, **options)


class TestCaptionedFiles:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        tree = Tree(tmp_path)
        for number, name in enumerate(name for listed in LISTED.values() for name in listed):
            tree.image(f"images/{name}", number)
        return tmp_path

    def test_a_sample_has_its_image_and_captions_and_is_named_by_its_path(self, root):
        train = listed(root).split("train")
        first, second = samples(train)
        assert [first.id, second.id] == ["images/0.png", "images/deep/1.png"]
        assert sorted(first.targets["references"]) == ["a", "b", "c"]
        assert second.targets == {"caption": "d", "references": ["d"]}
        assert torch.equal(first.inputs["image"], listed(root).read(root / "images/0.png").inputs["image"])
        first.targets["references"].clear()
        assert sorted(train[0].targets["references"]) == ["a", "b", "c"]
        assert (listed(root).class_names, list(train.sample_classes(0))) == ([], [])

    def test_in_training_captions_are_shuffled_evenly_and_the_first_is_the_caption(self, root):
        train = listed(root).split("train")
        torch.manual_seed(7)
        targets = [train[0].targets for _ in range(300)]
        orders = Counter(tuple(target["references"]) for target in targets)
        assert orders.keys() == set(permutations("abc"))
        assert min(orders.values()) > 30
        assert all(target["caption"] == target["references"][0] for target in targets)
        torch.manual_seed(7)
        assert [train[0].targets for _ in range(300)] == targets

    def test_in_evaluation_nothing_is_random(self, root):
        data = listed(root, augment=ImageAugment(erasing=1.0))
        before, val = torch.get_rng_state(), data.split("val")
        first, again = val[0], val[0]
        assert torch.equal(torch.get_rng_state(), before)
        assert first.targets == again.targets == {"caption": "e", "references": ["e", "f"]}
        assert torch.equal(first.inputs["image"], again.inputs["image"])
        assert not torch.equal(data.split("train")[0].inputs["image"], listed(root).split("train")[0].inputs["image"])

    def test_a_stage_without_captions_has_no_split(self, root):
        assert sizes(listed(root)) == [2, 1, 0]
        assert listed(root, {"train": LISTED["train"]}).split("val") is None

    def test_captions_are_read_once_and_need_no_image(self, root):
        data = listed(root)
        for _ in range(2):
            assert list(data.texts()) == ["a", "b", "c", "d"]
            sizes(data)
        assert data.source.reads == {"train": 1, "val": 1, "test": 1}
        assert list(listed(root / "nowhere").texts()) == ["a", "b", "c", "d"]

    def test_batches_contain_captions_as_lists(self, root):
        batch = collate(samples(listed(root).split("train")))
        assert [sorted(texts) for texts in batch.targets["references"]] == [["a", "b", "c"], ["d"]]

    def test_the_loader_draws_captions_by_seed_and_epoch_in_any_number_of_workers(self, root):
        def drawn(num_workers: int, seed: int) -> list[list[str]]:
            module = DataModule(
                dataset=listed(root, {**LISTED, "train": {"0.png": [str(nth) for nth in range(97)]}}),
                **{"batch_size": 1, "num_workers": num_workers, "drop_last": False, "class_balanced": False},
                **{"timeout_seconds": 0, "pin_memory": False, "seed": seed},
            )
            loader = module.train_dataloader()
            return [batch.targets["caption"] for epoch in range(3) for batch in loader]

        assert drawn(0, seed=3) == drawn(1, seed=3) != drawn(0, seed=5)

    def test_splits_can_be_pickled(self, root):
        train = pickle.loads(pickle.dumps(listed(root, augment=ImageAugment(crop_padding=3)).split("train")))
        assert train[1].targets["caption"] == "d"

    @pytest.mark.parametrize("folder", ["more/images", "."])
    def test_files_are_in_the_first_folder_that_contains_any_of_them(self, root, folder):
        (root / "more").mkdir()
        (root / "images").rename(root / "more/images")
        if folder == ".":
            for path in (root / "more/images").iterdir():
                path.rename(root / path.name)
        (root / "images").mkdir()
        image_of(7).save(root / "images/7.png")
        assert listed(root).split("val")[0].id == os.path.normpath(f"{folder}/2.png")

    def test_a_missing_file_raises_when_it_is_read_and_all_missing_at_once(self, root):
        (root / "images/0.png").unlink()
        train = listed(root).split("train")
        check_error(lambda: train[0], f"{root}/images/0.png: no such file")
        assert train[1].targets["caption"] == "d"
        (root / "images").rename(root / "pictures")
        parts = (f"root={root}", "none of the 2 files", f"{root}/train.txt", "images, more/images, .")
        check_split_error(listed(root), *parts, error=FileNotFoundError)

    def test_a_file_of_two_stages_is_refused(self, root):
        data = listed(root, {"train": LISTED["train"], "val": {"0.png": ["a"]}})
        data.split("train"), data.split("train")
        check_split_error(data, f"{root}/val.txt: {root}/images/0.png", "val", "train")


class TestCleanCaptions:
    def test_empty_captions_are_left_out_and_files_without_any_warned_of_once(self, caplog):
        table = {"x": ["", "a\n dog", " \n"], **{f"{number}.png": [" "] for number in range(7)}, "b": []}
        assert clean_captions(Path("t.csv"), table) == {"x": ["a dog"]}
        (message,) = caplog.messages
        assert all(part in message for part in ("t.csv: ", "8 of 9", "0.png, 1.png, 2.png, 3.png, 4.png, …"))

    def test_tables_without_files_or_captions_and_invalid_texts_are_refused(self):
        check_error(lambda: clean_captions(Path("t.csv"), {"a": [], "b": ["\n"]}), "t.csv: ", "a, b")
        check_error(lambda: clean_captions(Path("t.csv"), {}), "t.csv: no files")
        check_error(lambda: clean_captions(Path("t.csv"), {"x": ["a"], "y": ["a \0"]}), "t.csv: ", "of y", "U+0000")


def images(source: type, root: Path, **options) -> Dataset:
    return dataset(source, "image", root=str(root), **options)


def flickr8k(root: Path) -> Dataset:
    return images(Flickr8k, root, val_fraction=0.14, test_fraction=0.125)


def coco(root: Path, year: int | None = None) -> Dataset:
    return images(CocoCaptions, root, year=year)


def karpathy(root: Path, table: str | None = None, restval: bool = True) -> Dataset:
    return images(Karpathy, root, table=table, restval=restval)


def clotho(root: Path) -> Dataset:
    return dataset(Clotho, "audio", root=str(root))


def references(split: Split) -> dict[str, list[str]]:
    """Return file name, without folders -> captions in the order of the table."""
    items = [split.items[index] for index in range(len(split))]
    return {Path(item.id).name: item.targets["references"] for item in items}


def check_captions(data: Dataset, ending: str = "png", count: int = 2, more: tuple[int, ...] = ()) -> None:
    """Assert that the splits have the captions of the trees, `more` among the training samples, and existing files."""
    numbers = data_trees.STAGES | {"train": [*data_trees.STAGES["train"], *more]}
    for stage in STAGES:
        expected = {f"{number}.{ending}": captions_of(number, count) for number in numbers[stage]}
        split = data.split(stage)
        assert references(split) == expected
        assert all((data.source.root / name).is_file() for name in names(split))
    assert list(data.texts()) == [text for number in numbers["train"] for text in captions_of(number, count)]


def move(root: Path, files: str, folder: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(root.glob(files)):
        path.rename(root / folder / path.name)


def test_constructors_do_not_access_the_disk():
    for make in (flickr8k, coco, karpathy, clotho):
        make(Path("/nowhere"))


@pytest.mark.parametrize(
    ("make", "tree", "tables", "searched"),
    [
        (flickr8k, data_trees.flickr8k, "captions.txt or Flickr8k.token.txt", "., Flickr8k_text, Flickr8k_Text"),
        (coco, data_trees.coco, "captions_train2017.json or captions_train2014.json", "annotations, ."),
        (karpathy, data_trees.karpathy, "dataset_coco.json or dataset_flickr8k.json", "., annotations"),
        (clotho, data_trees.clotho, "clotho_captions_development.csv", "., clotho_csv_files, annotations, csv"),
    ],
)
def test_a_root_without_tables_or_without_files_is_refused_with_what_was_searched(
    tmp_path, make, tree, tables, searched
):
    check_split_error(make(tmp_path), f"root={tmp_path}", tables, searched, error=FileNotFoundError)
    files = tree(tmp_path)
    for path in {path.parent for path in files.images + files.sounds}:
        path.rename(path.with_name(f"other_{path.name}"))
    check_split_error(make(tmp_path), f"root={tmp_path}", "none of the", str(tmp_path), error=FileNotFoundError)


class TestFlickr8k:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.flickr8k(tmp_path).root

    @pytest.mark.parametrize("original", [False, True], ids=["Kaggle's form", "original form"])
    def test_splits_are_those_of_the_lists(self, tmp_path, original):
        check_captions(flickr8k(data_trees.flickr8k(tmp_path, original=original).root))

    @pytest.mark.parametrize("folder", ["Flickr8k_text", "Flickr8k_Text", "annotations", "text"])
    def test_tables_may_be_in_any_usual_folder(self, root, folder):
        move(root, "captions.txt", folder)
        move(root, "Flickr_8k.devImages.txt", folder)
        check_captions(flickr8k(root))

    @pytest.mark.parametrize(
        "folder", ["images", "Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "flickr30k-images", "."]
    )
    def test_images_may_be_in_any_usual_folder(self, root, folder):
        move(root, "Images/*", folder)
        check_captions(flickr8k(root))

    def test_flickr30k_is_read_in_the_same_way(self, tmp_path):
        data_trees.flickr8k(tmp_path, original=True)
        (tmp_path / "Flickr8k_text/Flickr8k.token.txt").rename(tmp_path / "results_20130124.token")
        check_captions(flickr8k(tmp_path))

    def test_without_lists_shares_are_held_out_whatever_the_order_of_the_table(self, tmp_path):
        rows = [(f"{number}.png", f"text {number}") for number in range(1009)]
        parts = []
        for order in (rows, rows[::-1]):
            write_csv(tmp_path / "captions.txt", [("image", "caption"), *order])
            parts.append({stage: set(flickr8k(tmp_path).source.captions(stage).references) for stage in STAGES})
        assert parts[0] == parts[1]
        assert [len(part) for part in parts[0].values()] == pytest.approx([757, 126, 126], rel=0.2)
        assert len(set().union(*parts[0].values())) == 1009

    def test_a_stage_without_a_list_has_no_split(self, root):
        (root / "Flickr_8k.devImages.txt").unlink()
        assert sizes(flickr8k(root)) == [11, 0, 3]
        (root / "Flickr_8k.trainImages.txt").unlink()
        check_split_error(flickr8k(root), f"root={root}", "Flickr_8k.trainImages.txt", error=FileNotFoundError)

    def test_images_without_captions_are_warned_of_once(self, root, caplog):
        rows = [("image", "caption"), ("0.png", "a\nlong\r\n text "), ("0.png", " "), ("1.png", ""), ("2.png", "x")]
        write_csv(root / "captions.txt", rows)
        write_lines(root / "Flickr_8k.trainImages.txt", ["0.png", "1.png", "2.png", "3.png"])
        data = flickr8k(root)
        assert references(data.split("train")) == {"0.png": ["a long text"], "2.png": ["x"]}
        assert list(data.texts()) == ["a long text", "x"]
        (message,) = caplog.messages
        assert all(part in message for part in (f"{root}/Flickr_8k.trainImages.txt: ", "2 of 4", "1.png, 3.png"))

    @pytest.mark.parametrize(
        ("file", "lines", "message"),
        [
            ("captions.txt", ["other,caption", "0.png,a"], "no column 'image'"),
            ("captions.txt", ["image,caption", "0.png,a dog, running"], "line 2: 3 cells for 2 columns"),
            ("captions.txt", ["image,caption", "0.png,x", "../x,y"], "line 3: image='../x'"),
            ("captions.txt", ["image,caption", "0.png,x", "1.png,\x1b"], "line 3: caption: character 1, U+001B"),
            ("Flickr_8k.devImages.txt", ["a.png", "b.png"], "a.png, b.png"),
            ("Flickr_8k.devImages.txt", ["11.png", "", "12.png", "11.png"], "line 4: image='11.png' appears twice"),
            ("Flickr_8k.devImages.txt", ["11.png", "/x"], "line 2: image='/x'"),
            ("Flickr_8k.testImages.txt", ["17.png", "12.png"], "/Images/12.png is in both test and val"),
            ("Flickr_8k.trainImages.txt", [""], "no files"),
        ],
    )
    def test_errors_name_the_file_and_the_line(self, root, file, lines, message):
        write_lines(root / file, lines)
        check_split_error(flickr8k(root), f"{root}/{file}: ", message)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("0.png\ta dog", "image='0.png'"),
            ("0.png#0 a", "no tab"),
            ("..#0\tx", "image='..'"),
            ("0.png#0\ty", "image='0.png#0' appears twice"),
        ],
    )
    def test_errors_of_token_files_name_the_line(self, root, line, message):
        (root / "captions.txt").unlink()
        write_lines(root / "Flickr8k.token.txt", ["0.png#0\tx", line])
        check_split_error(flickr8k(root), f"{root}/Flickr8k.token.txt: line 2: {message}")


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


class TestCocoCaptions:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.coco(tmp_path).root

    @pytest.mark.parametrize("year", ["2017", "2014", ""])
    @pytest.mark.parametrize("folder", ["{stage}{year}", "images/{stage}{year}", "images", "Images", "."])
    def test_images_have_the_captions_of_their_table(self, tmp_path, year, folder):
        check_captions(coco(data_trees.coco(tmp_path, year, folder, STAGES).root))

    def test_tables_may_be_in_the_root_and_are_read_once(self, root, monkeypatch):
        move(root, "annotations/*", ".")
        read, loads = [], json.loads
        monkeypatch.setattr(json, "loads", lambda text, **options: read.append(text) or loads(text, **options))
        data = coco(root)
        for _ in range(2):
            list(data.texts())
            assert sum(sizes(data)) == 16
        assert len(read) == 2

    def test_without_captions_for_testing_half_of_the_validation_images_are_used(self, root):
        path = root / "annotations/captions_val2017.json"
        halves = []
        for numbers in (range(101), range(100, -1, -1)):
            path.write_text(json.dumps(coco_json(numbers)))
            halves.append([set(coco(root).source.captions(stage).references) for stage in ("val", "test")])
        assert halves[0] == halves[1]
        assert {len(set.union(*halves[0])), sum(map(len, halves[0]))} == {101}
        assert 30 < len(halves[0][1]) < 70
        path.unlink()
        assert sizes(coco(root)) == [11, 0, 0]

    def test_one_year_is_read_the_later_unless_another_is_selected(self, root):
        data_trees.coco(root, "2014")
        for year, expected in ((None, 2017), (2014, 2014)):
            assert {Path(name).parts[0] for name in names(coco(root, year).split("train"))} == {f"train{expected}"}
            assert {Path(name).parts[0] for name in names(coco(root, year).split("val"))} == {f"val{expected}"}
        (root / "annotations/captions_val2017.json").unlink()
        assert coco(root).split("val") is None  # those of 2014 are mostly among the training images of 2017
        (root / "annotations/captions_train2014.json").unlink()
        check_split_error(coco(root, 2014), "captions_train2014.json", error=FileNotFoundError)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "no key 'images'"),
            ({"images": {}}, "images='{}' is not a list"),
            ({"images": ["0.png"]}, "images[0]: no key 'id'"),
            ({"images": [{"id": 5, "file_name": 7}]}, "images[0]: file_name='7' is not a string"),
            ({"images": [{"id": 5, "file_name": "../x"}]}, "images[0]: file_name='../x'"),
            ({"images": [{"id": 5, "file_name": "x"}, {"id": 5, "file_name": "y"}]}, "images[1]: id=5 appears twice"),
            ({"images": [{"id": 5, "file_name": "x"}, {"id": 6, "file_name": "x"}]}, "file_name='x' appears twice"),
            ({"images": []}, "no key 'annotations'"),
            ({"images": [], "annotations": [{"image_id": 5}]}, "annotations[0]: image_id=5"),
            ({"images": [], "annotations": []}, "no files"),
            ({"images": [{"id": 5, "file_name": "x"}], "annotations": [{"image_id": 5}]}, "[0]: no key 'caption'"),
            ({"images": [{"id": 5, "file_name": "x"}], "annotations": []}, "x"),
        ],
        ids=range(12),
    )
    def test_errors_name_the_file_and_the_place(self, root, content, message):
        path = root / "annotations/captions_train2017.json"
        path.write_text(json.dumps(content))
        check_split_error(coco(root), f"{path}: ", message)

    def test_an_image_of_two_tables_is_refused(self, tmp_path):
        data_trees.coco(tmp_path, images="images")
        path = tmp_path / "annotations/captions_val2017.json"
        path.write_text(json.dumps(coco_json((11, 3, 12))))
        check_split_error(coco(tmp_path), f"{path}: {tmp_path}/images/3.png", "train")


class TestKarpathy:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.karpathy(tmp_path).root

    @pytest.mark.parametrize("name", ["coco", "flickr8k", "flickr30k"])
    def test_splits_are_those_of_the_images(self, tmp_path, name):
        check_captions(karpathy(data_trees.karpathy(tmp_path, name).root), more=(23, 29))

    def test_restval_is_for_training_only_if_selected(self, root):
        check_captions(karpathy(root, restval=False))

    @pytest.mark.parametrize("folder", [".", "images", "Images"])
    @pytest.mark.parametrize("flat", [False, True])
    def test_images_are_in_the_folders_that_the_table_names_or_all_in_one(self, root, folder, flat):
        for name in ("train2014", "val2014"):
            move(root, f"{name}/*" if flat else name, folder)
            if flat:
                (root / name).rmdir()
        data = karpathy(root)
        check_captions(data, more=(23, 29))
        assert len({Path(name).parent for name in names(data.split("train"))}) == (1 if flat else 2)

    @pytest.mark.parametrize("folder", ["annotations", "caption_datasets", "karpathy"])
    def test_the_table_may_be_in_a_folder(self, root, folder):
        move(root, "dataset_coco.json", folder)
        check_captions(karpathy(root), more=(23, 29))

    def test_of_several_tables_one_must_be_selected(self, root):
        data_trees.karpathy(root, "flickr8k")
        check_split_error(karpathy(root), "dataset_coco.json and dataset_flickr8k.json", "table=", error=ValueError)
        check_captions(karpathy(root, table="dataset_flickr8k.json"), more=(23, 29))
        check_split_error(karpathy(root, table="mine.json"), f"{root}/mine.json", error=FileNotFoundError)

    def test_a_stage_without_images_has_no_split_but_training_must_have_some(self, root):
        keep = lambda split: edit_json(  # noqa: E731
            root / "dataset_coco.json", lambda c: {"images": [i for i in c["images"] if i["split"] == split]}
        )
        keep("train")
        assert sizes(karpathy(root)) == [11, 0, 0]
        keep("none")
        check_split_error(karpathy(root), f"{root}/dataset_coco.json: no files")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"filename": None}, "filename='None' is not a string"),
            ({"filename": "../x.png"}, "filename='../x.png'"),
            ({"filepath": "/etc"}, "filepath='/etc'"),
            ({"filename": "0.png"}, "filename='train2014/0.png' appears twice"),
            ({"split": "dev"}, "split='dev' must be train, restval, val or test"),
            ({"split": ["val"]}, "split="),
            ({"sentences": "a dog"}, "sentences='a dog' is not a list"),
        ],
        ids=range(7),
    )
    def test_errors_name_the_file_and_the_image(self, root, change, message):
        path = root / "dataset_coco.json"
        edit_json(path, lambda content: content["images"][3].update(change))
        check_split_error(karpathy(root), f"{path}: images[3]: {message}")

    def test_missing_keys_are_named(self, root):
        path = root / "dataset_coco.json"
        edit_json(path, lambda content: content["images"][3]["sentences"][1].pop("raw") and None)
        check_split_error(karpathy(root), f"{path}: images[3].sentences[1]: no key 'raw'")
        for key in ("sentences", "split", "filename"):
            edit_json(path, lambda content, key=key: content["images"][3].pop(key) and None)
            check_split_error(karpathy(root), f"{path}: images[3]: no key {key!r}")


class TestClotho:
    HEADER = ("file_name", *(f"caption_{nth}" for nth in range(1, 6)))

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.clotho(tmp_path).root

    @pytest.mark.parametrize(
        "audio", ["{}", "clotho_audio_{}", "clotho_audio_{0}/{0}", "clotho_audio_files/{}", "audio/{}", "audio", "."]
    )
    def test_sounds_have_the_captions_of_their_table(self, tmp_path, audio):
        check_captions(clotho(data_trees.clotho(tmp_path, audio).root), "wav", 5)

    @pytest.mark.parametrize("folder", ["clotho_csv_files", "annotations", "csv"])
    def test_tables_may_be_in_a_folder(self, root, folder):
        move(root, "*.csv", folder)
        check_captions(clotho(root), "wav", 5)

    def test_version_1_has_no_validation_split(self, root):
        (root / "clotho_captions_validation.csv").unlink()
        assert sizes(clotho(root)) == [11, 0, 3]

    def test_splits_with_folders_of_their_own_may_share_names(self, root):
        rows = [(f"{nth}.wav", *"abcde") for nth in range(3)]
        write_csv(root / "clotho_captions_evaluation.csv", [self.HEADER, *rows])
        for nth, path in enumerate(sorted((root / "evaluation").iterdir())):
            path.rename(path.with_name(f"{nth}.wav"))
        assert sizes(clotho(root)) == [11, 5, 3]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("16.wav", *"fghij"), "line 3: file_name='16.wav' appears twice"),
            (("../x.wav", *"fghij"), "line 3: file_name='../x.wav'"),
            (("17.wav", *"fghi"), "line 3: 5 cells for 6 columns"),
            (("17.wav", *"fgh", "\0", "i"), "17.wav: character 1, U+0000"),
        ],
    )
    def test_errors_name_the_file_and_the_line(self, root, row, message):
        path = write_csv(root / "clotho_captions_evaluation.csv", [self.HEADER, ("16.wav", *"abcde"), row])
        check_split_error(clotho(root), f"{path}: ", message)

    @pytest.mark.parametrize("column", ["file_name", "caption_3"])
    def test_missing_columns_are_named(self, root, column):
        path = root / f"clotho_captions_{CLOTHO_SPLITS['val']}.csv"
        path.write_text(path.read_text().replace(column, "other", 1))
        check_split_error(clotho(root), f"{path}: no column {column!r}", "other")
