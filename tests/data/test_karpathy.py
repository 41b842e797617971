import json
from pathlib import Path

import pytest

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.karpathy import Karpathy
from tests.data.caption_trees import captions_of, karpathy_tree, numbers, references, samples, write_json
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")
RESTVAL = (23, 29)
FOLDERS = (
    "Images, images, Flicker8k_Dataset, Flickr8k_Dataset, Flickr8k_Dataset/Flicker8k_Dataset, "
    "flickr30k-images, flickr30k_images, ."
)


@pytest.fixture
def root(tmp_path) -> Path:
    return karpathy_tree(tmp_path)


def data(root: Path, **options) -> Dataset:
    return dataset(Karpathy, "image", root=str(root), **({"image_size": 11, "table": None, "restval": True} | options))


def expected(stage: str) -> dict[str, list[str]]:
    more = RESTVAL if stage == "train" else ()
    return {f"{number}.jpg": captions_of(number) for number in (*numbers(stage), *more)}


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


@pytest.mark.parametrize("name", ["coco", "flickr8k", "flickr30k"])
def test_splits_are_those_that_the_images_name(tmp_path, name):
    made = data(karpathy_tree(tmp_path, name=name))
    assert {stage: references(made.split(stage)) for stage in STAGES} == {stage: expected(stage) for stage in STAGES}
    assert list(made.texts()) == [text for texts in expected("train").values() for text in texts]


def test_the_rest_of_the_validation_images_is_trained_on_only_if_asked_for(root):
    names = {Path(sample.id).stem for sample in samples(data(root, restval=False).split("train"))}
    assert names == {str(number) for number in numbers("train")}
    assert not {str(number) for number in RESTVAL} & names


@pytest.mark.parametrize("folder", [".", "images", "Images"])
def test_images_are_in_the_folders_that_they_say(root, folder):
    if folder != ".":
        for name in ("train2014", "val2014"):
            (root / folder).mkdir(exist_ok=True)
            (root / name).rename(root / folder / name)
    ids = [sample.id for sample in samples(data(root).split("train"))]
    folders = [Path(folder, name) for name in ("train2014", "val2014")]
    assert [id for id in ids if Path(id).parent in folders] == ids
    assert len({Path(id).parent for id in ids}) == 2


@pytest.mark.parametrize("folder", ["images", "."])
def test_or_all_in_one_folder(root, folder):
    (root / folder).mkdir(exist_ok=True)
    for name in ("train2014", "val2014"):
        for path in sorted((root / name).iterdir()):
            path.rename(root / folder / path.name)
        (root / name).rmdir()
    assert references(data(root).split("train")) == expected("train")


@pytest.mark.parametrize("folder", ["annotations", "caption_datasets", "karpathy"])
def test_the_table_may_be_in_a_folder(root, folder):
    (root / folder).mkdir()
    (root / "dataset_coco.json").rename(root / folder / "dataset_coco.json")
    assert references(data(root).split("test")) == expected("test")


def test_the_table_may_be_given(root):
    (root / "dataset_coco.json").rename(root / "mine.json")
    assert references(data(root, table="mine.json").split("val")) == expected("val")


def test_a_stage_without_images_has_no_split(root):
    content = json.loads((root / "dataset_coco.json").read_text())
    write_json(root / "dataset_coco.json", {"images": [i for i in content["images"] if i["split"] == "train"]})
    assert [data(root).split(stage) is None for stage in STAGES] == [False, True, True]


def test_images_without_captions_are_left_out_and_warned_of_once(root, caplog):
    content = json.loads((root / "dataset_coco.json").read_text())
    content["images"][1]["sentences"] = []
    content["images"][2]["sentences"] = [{"raw": "a\n dog "}, {"raw": "\n"}]
    write_json(root / "dataset_coco.json", content)
    made = data(root)
    found = references(made.split("train"))
    list(made.texts())
    assert "1.jpg" not in found
    assert found["2.jpg"] == ["a dog"]
    name = "train2014/1.jpg"
    assert caplog.messages == [f"{root}/dataset_coco.json: left out 1 of 13 without a caption: {name}"]


def refused(root: Path, message: str, error: type[Exception] = UnreadableError, **options) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    made = data(root, **options)
    with pytest.raises(error) as raised:
        [made.split(stage) for stage in STAGES]
    assert str(raised.value).replace(str(root), "ROOT") == message


class TestMistakes:
    def test_a_root_without_a_table(self, tmp_path):
        wanted = "dataset_coco.json or dataset_flickr8k.json or dataset_flickr30k.json"
        folders = "annotations, caption_datasets, karpathy"
        refused(tmp_path, f"root=ROOT: there is no {wanted} in it, nor in {folders}", FileNotFoundError)

    def test_a_table_that_is_given_and_not_there(self, root):
        refused(root, "ROOT/mine.json: no such file", FileNotFoundError, table="mine.json")

    def test_several_tables(self, root):
        karpathy_tree(root, name="flickr8k")
        both = "dataset_coco.json and dataset_flickr8k.json"
        refused(root, f"root=ROOT has {both}: say with table= which of them is meant", ValueError)
        assert len(data(root, table="dataset_flickr8k.json").split("test")) == len(numbers("test"))

    def test_a_root_without_images(self, tmp_path):
        karpathy_tree(tmp_path, name="flickr8k")
        (tmp_path / "Images").rename(tmp_path / "pictures")
        message = "root=ROOT: none of the 13 files of ROOT/dataset_flickr8k.json is in it"
        refused(tmp_path, f"{message}; looked in {FOLDERS}", FileNotFoundError)

    def test_what_is_not_json(self, root):
        (root / "dataset_coco.json").write_text('{"images": [')
        refused(root, "ROOT/dataset_coco.json: not JSON: Expecting value: line 1 column 13 (char 12)")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"filename": None}, "filename='None' is not a text"),
            ({"filename": "../x.jpg"}, "filename='../x.jpg' is not a name of a file"),
            ({"filepath": "/etc"}, "filepath='/etc' is not a name of a file"),
            ({"filename": "0.jpg"}, "filename='train2014/0.jpg' is there a second time"),
            ({"split": "dev"}, "split='dev' must be train, restval, val or test"),
            ({"split": ["val"]}, """split="['val']" is not a text"""),
            ({"sentences": "a dog"}, "sentences='a dog' is not a list"),
        ],
        ids=range(7),
    )
    def test_another_structure(self, root, change, message):
        content = json.loads((root / "dataset_coco.json").read_text())
        content["images"][3] |= change
        write_json(root / "dataset_coco.json", content)
        refused(root, f"ROOT/dataset_coco.json: images[3]: {message}")

    @pytest.mark.parametrize("key", ["filename", "split", "sentences"])
    def test_a_key_that_is_missing(self, root, key):
        content = json.loads((root / "dataset_coco.json").read_text())
        del content["images"][3][key]
        write_json(root / "dataset_coco.json", content)
        refused(root, f"ROOT/dataset_coco.json: images[3]: there is no {key!r}")

    def test_a_sentence_without_its_text(self, root):
        content = json.loads((root / "dataset_coco.json").read_text())
        content["images"][3]["sentences"][1] = {"tokens": ["a", "dog"]}
        write_json(root / "dataset_coco.json", content)
        refused(root, "ROOT/dataset_coco.json: images[3].sentences[1]: there is no 'raw'")

    def test_a_table_without_images_to_train_on(self, root):
        write_json(root / "dataset_coco.json", {"images": []})
        refused(root, "ROOT/dataset_coco.json: there is no file in it")
