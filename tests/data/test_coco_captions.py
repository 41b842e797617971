import json
from pathlib import Path

import pytest

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.coco_captions import CocoCaptions
from tests.data.caption_trees import captions_of, coco_json, coco_tree, numbers, photo, references, samples, write_json
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")


@pytest.fixture
def root(tmp_path) -> Path:
    return coco_tree(tmp_path)


def data(root: Path, year: int | None = None) -> Dataset:
    return dataset(CocoCaptions, "image", root=str(root), image_size=11, year=year)


def expected(stage: str) -> dict[str, list[str]]:
    return {f"{number:012d}.jpg": captions_of(number) for number in numbers(stage)}


def ids(split) -> list[str]:
    return [sample.id for sample in samples(split)]


def annotations(root: Path, stage: str = "train") -> Path:
    return root / "annotations" / f"captions_{stage}2017.json"


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


@pytest.mark.parametrize("year", ["2017", "2014", ""])
@pytest.mark.parametrize("images", ["{stage}{year}", "images/{stage}{year}", "images", "Images", "."])
def test_images_have_the_captions_of_their_table(tmp_path, year, images):
    made = data(coco_tree(tmp_path, year=year, images=images))
    assert references(made.split("train")) == expected("train")
    assert references(made.split("val")) | references(made.split("test")) == expected("val")
    assert list(made.texts()) == [text for number in numbers("train") for text in captions_of(number)]


def test_tables_may_be_in_the_root(root):
    for path in sorted((root / "annotations").iterdir()):
        path.rename(root / path.name)
    assert references(data(root).split("train")) == expected("train")


def test_without_captions_for_testing_a_random_half_of_the_validation_images_is_tested_on(tmp_path):
    files = [(number, f"{number}.jpg") for number in range(101)]
    write_json(annotations(coco_tree(tmp_path), "val"), coco_json(files))
    val, test = (list(data(tmp_path).source.captions(stage).references) for stage in ("val", "test"))
    assert len(val) + len(test) == 101
    assert 30 < len(test) < 70
    assert set(val).isdisjoint(test)
    assert set(test) != {name for _, name in files[51:]}
    write_json(annotations(tmp_path, "val"), coco_json(reversed(files)))
    assert list(data(tmp_path).source.captions("test").references) == test


def test_with_captions_for_testing_the_validation_images_stay_whole(root):
    files = [(number, f"{number:012d}.jpg") for number in numbers("test")]
    write_json(annotations(root, "test"), coco_json(files))
    for _, name in files:
        photo(root / "test2017" / name)
    assert references(data(root).split("val")) == expected("val")
    assert references(data(root).split("test")) == expected("test")


def test_without_validation_captions_there_is_training_only(root):
    annotations(root, "val").unlink()
    assert [data(root).split(stage) is None for stage in STAGES] == [False, True, True]


def test_of_two_years_the_later_is_read_unless_the_other_is_asked_for(root):
    coco_tree(root, year="2014")
    assert all(id.startswith("train2017/") for id in ids(data(root).split("train")))
    asked = data(root, year=2014)
    assert all(id.startswith("train2014/") for id in ids(asked.split("train")))
    assert all(id.startswith("val2014/") for id in ids(asked.split("val")))


def test_years_are_not_mixed(root):
    """The validation images of 2014 are mostly among the training images of 2017."""
    coco_tree(root, year="2014")
    annotations(root, "val").unlink()
    assert data(root).split("val") is None


def test_a_table_is_read_once(root, monkeypatch):
    read = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: read.append(text) or loads(text, **options))
    made = data(root)
    for _ in range(2):
        list(made.texts())
        [made.split(stage) for stage in STAGES]
    assert len(read) == 2


def test_images_without_captions_are_left_out_and_warned_of_once(root, caplog):
    content = json.loads(annotations(root).read_text())
    content["annotations"] = [
        {**annotation, "caption": " \n"} if annotation["image_id"] == 3 else annotation
        for annotation in content["annotations"]
        if annotation["image_id"] != 7
    ]
    write_json(annotations(root), content)
    made = data(root)
    assert len(made.split("train")) == len(numbers("train")) - 2
    list(made.texts())
    names = "000000000003.jpg, 000000000007.jpg"
    assert caplog.messages == [f"{annotations(root)}: left out 2 of 11 without a caption: {names}"]


def refused(root: Path, message: str, error: type[Exception] = UnreadableError, year: int | None = None) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    made = data(root, year)
    with pytest.raises(error) as raised:
        [made.split(stage) for stage in STAGES]
    assert str(raised.value).replace(str(root), "ROOT").replace("ROOT/annotations/", "") == message


class TestMistakes:
    def test_a_root_without_captions(self, tmp_path):
        wanted = "captions_train2017.json or captions_train2014.json or captions_train.json"
        refused(tmp_path, f"root=ROOT: there is no {wanted} in it, nor in annotations", FileNotFoundError)

    def test_a_year_that_is_not_there(self, root):
        message = "root=ROOT: there is no captions_train2014.json in it, nor in annotations"
        refused(root, message, FileNotFoundError, year=2014)

    def test_a_root_without_images(self, root):
        (root / "train2017").rename(root / "pictures")
        looked = "looked in train2017, images/train2017, Images/train2017, images, Images, ."
        message = f"root=ROOT: none of the 11 files of captions_train2017.json is in it; {looked}"
        refused(root, message, FileNotFoundError)

    def test_what_is_not_json(self, root):
        annotations(root).write_text("images")
        refused(root, "captions_train2017.json: not JSON: Expecting value: line 1 column 1 (char 0)")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "there is no 'images'"),
            ({"annotations": []}, "there is no 'images'"),
            ({"images": {}}, "images='{}' is not a list"),
            ({"images": ["0.jpg"]}, "images[0]: there is no 'id'"),
            ({"images": [{"id": 5}]}, "images[0]: there is no 'file_name'"),
            ({"images": [{"id": 5, "file_name": 7}]}, "images[0]: file_name='7' is not a text"),
            ({"images": [{"id": 5, "file_name": "../x"}]}, "images[0]: file_name='../x' is not a name of a file"),
            ({"images": []}, "there is no 'annotations'"),
            ({"images": [], "annotations": [{}]}, "annotations[0]: there is no 'image_id'"),
            ({"images": [], "annotations": [{"image_id": 5}]}, "annotations[0]: image_id=5 is the id of no image"),
            ({"images": [], "annotations": []}, "there is no file in it"),
            (
                {"images": [{"id": 5, "file_name": "x"}], "annotations": [{"image_id": 5}]},
                "annotations[0]: there is no 'caption'",
            ),
            (
                {"images": [{"id": 5, "file_name": "x"}], "annotations": [{"image_id": 5, "caption": None}]},
                "annotations[0]: caption='None' is not a text",
            ),
            (
                {"images": [{"id": 5, "file_name": "x"}], "annotations": []},
                "there is no caption of any file in it: x",
            ),
        ],
        ids=range(14),
    )
    def test_another_structure(self, root, content, message):
        write_json(annotations(root), content)
        refused(root, f"captions_train2017.json: {message}")

    @pytest.mark.parametrize(
        ("second", "message"), [((0, "x.jpg"), "id=0"), ((5, "000000000000.jpg"), "file_name='000000000000.jpg'")]
    )
    def test_an_image_that_is_listed_twice(self, root, second, message):
        write_json(annotations(root), coco_json([(0, "000000000000.jpg"), second]))
        refused(root, f"captions_train2017.json: images[1]: {message} is there a second time")

    def test_an_image_that_two_tables_have(self, tmp_path):
        coco_tree(tmp_path, images="images")
        write_json(annotations(tmp_path, "val"), coco_json([(nth, f"{nth:012d}.jpg") for nth in (11, 3, 12)]))
        made = data(tmp_path)
        message = r"captions_val2017\.json: .*/0{11}3\.jpg is for \w+, but it is for train, too$"
        with pytest.raises(UnreadableError, match=message):
            [made.split(stage) for stage in STAGES]
