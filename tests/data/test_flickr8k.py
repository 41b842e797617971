from pathlib import Path

import pytest

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.flickr8k import Flickr8k
from tests.data.caption_trees import COUNTS, captions_of, flickr8k_tree, lines, numbers, photo, references, samples
from tests.data.datasets import dataset
from tests.data.tagged_trees import table

STAGES = ("train", "val", "test")
EXPECTED = {stage: {f"{number}.jpg": captions_of(number) for number in numbers(stage)} for stage in STAGES}


@pytest.fixture
def root(tmp_path) -> Path:
    return flickr8k_tree(tmp_path)


def data(root: Path) -> Dataset:
    return dataset(Flickr8k, "image", root=str(root), image_size=11, val_fraction=0.14, test_fraction=0.125)


def splits(root: Path) -> dict[str, dict[str, list[str]]]:
    made = data(root)
    return {stage: references(made.split(stage)) for stage in STAGES}


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


@pytest.mark.parametrize("original", [False, True], ids=["Kaggle's form", "original form"])
def test_splits_are_those_of_the_lists_and_captions_those_of_the_table(tmp_path, original):
    assert splits(flickr8k_tree(tmp_path, original=original)) == EXPECTED


def test_samples_show_what_their_captions_say(root):
    for sample in samples(data(root).split("val")):
        colour = ["red", "green", "blue"][int(sample.inputs["image"].mean(dim=(1, 2)).argmax())]
        assert all(colour in text for text in sample.targets["references"])
        assert sample.id == f"Images/{Path(sample.id).name}"


def test_texts_are_the_training_captions_and_no_image_is_read(root):
    for path in (root / "Images").iterdir():
        path.unlink()
    assert list(data(root).texts()) == [text for number in numbers("train") for text in captions_of(number)]


@pytest.mark.parametrize("folder", ["Flickr8k_text", "Flickr8k_Text", "annotations", "text"])
def test_tables_and_lists_may_be_in_any_of_the_usual_folders(root, folder):
    (root / folder).mkdir()
    (root / "captions.txt").rename(root / folder / "captions.txt")
    (root / "Flickr_8k.devImages.txt").rename(root / folder / "Flickr_8k.devImages.txt")
    assert splits(root) == EXPECTED


@pytest.mark.parametrize(
    "folder", ["images", "Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "flickr30k-images", "."]
)
def test_images_may_be_in_any_of_the_usual_folders(root, folder):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "Images").iterdir()):
        path.rename(root / folder / path.name)
    assert splits(root) == EXPECTED


def test_the_table_of_flickr30k_is_read_alike(tmp_path):
    flickr8k_tree(tmp_path, original=True)
    (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").rename(tmp_path / "results_20130124.token")
    assert splits(tmp_path) == EXPECTED


class TestWithoutLists:
    def test_every_image_is_in_one_split_and_an_eighth_each_for_validation_and_testing(self, tmp_path):
        table(tmp_path / "captions.txt", [("image", "caption"), *((f"{n}.jpg", f"text {n}") for n in range(8017))])
        photo(tmp_path / "Images" / "0.jpg")
        parts = {stage: data(tmp_path).source.captions(stage).references for stage in STAGES}
        assert len(parts["test"]) == pytest.approx(1002, rel=0.1)
        assert len(parts["val"]) == pytest.approx(1002, rel=0.1)
        assert len(set().union(*parts.values())) == 8017
        assert set(parts["test"]) != {f"{n}.jpg" for n in range(7015, 8017)}

    def test_the_parts_are_the_same_whatever_the_order_of_the_table(self, tmp_path):
        first = splits(flickr8k_tree(tmp_path, lists=False))
        header, *rows = (tmp_path / "captions.txt").read_text().splitlines()
        lines(tmp_path / "captions.txt", [header, *sorted(rows, reverse=True)])
        again = splits(tmp_path)
        assert [set(first[stage]) for stage in STAGES] == [set(again[stage]) for stage in STAGES]
        assert sum(map(len, first.values())) == sum(COUNTS.values())


def test_without_a_list_of_a_stage_it_has_no_split(root):
    (root / "Flickr_8k.devImages.txt").unlink()
    assert [data(root).split(stage) is None for stage in STAGES] == [False, True, False]


def test_captions_with_line_ends_and_without_anything(root, caplog):
    rows = [("image", "caption"), ("0.jpg", "a\nlong\r\n text "), ("0.jpg", " "), ("1.jpg", ""), ("2.jpg", "x")]
    table(root / "captions.txt", rows)
    lines(root / "Flickr_8k.trainImages.txt", ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    train = data(root)
    assert references(train.split("train")) == {"0.jpg": ["a long text"], "2.jpg": ["x"]}
    assert list(train.texts()) == ["a long text", "x"]
    assert caplog.messages == [f"{root}/Flickr_8k.trainImages.txt: left out 2 of 4 without a caption: 1.jpg, 3.jpg"]


def test_without_lists_images_without_captions_are_warned_of_once(tmp_path, caplog):
    flickr8k_tree(tmp_path, lists=False)
    with (tmp_path / "captions.txt").open("a") as file:
        file.write("x.jpg,\n")
    splits(tmp_path)
    assert caplog.messages == [f"{tmp_path}/captions.txt: left out 1 of 20 without a caption: x.jpg"]


def refused(root: Path, message: str, error: type[Exception] = UnreadableError) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    with pytest.raises(error) as raised:
        splits(root)
    assert str(raised.value).replace(str(root), "ROOT") == message


class TestMistakes:
    def test_a_root_without_captions(self, tmp_path):
        wanted = "captions.txt or Flickr8k.token.txt or results_20130124.token"
        folders = "Flickr8k_text, Flickr8k_Text, annotations, text"
        refused(tmp_path, f"root=ROOT: there is no {wanted} in it, nor in {folders}", FileNotFoundError)

    def test_lists_without_one_for_training(self, root):
        (root / "Flickr_8k.trainImages.txt").unlink()
        folders = "Flickr8k_text, Flickr8k_Text, annotations, text"
        message = f"root=ROOT: there is no Flickr_8k.trainImages.txt in it, nor in {folders}"
        refused(root, message, FileNotFoundError)

    def test_a_root_without_images(self, root):
        (root / "Images").rename(root / "pictures")
        folders = "Images, images, Flicker8k_Dataset, Flickr8k_Dataset, Flickr8k_Dataset/Flicker8k_Dataset"
        message = "root=ROOT: none of the 11 files of ROOT/Flickr_8k.trainImages.txt is in it"
        refused(root, f"{message}; looked in {folders}, flickr30k-images, flickr30k_images, .", FileNotFoundError)

    @pytest.mark.parametrize("column", ["image", "caption"])
    def test_a_column_that_is_missing(self, root, column):
        text = (root / "captions.txt").read_text()
        (root / "captions.txt").write_text(text.replace(column, "other", 1))
        with pytest.raises(UnreadableError, match=rf"captions\.txt: there is no column '{column}'; there are: .*other"):
            splits(root)

    def test_captions_with_commas_that_are_not_quoted(self, root):
        lines(root / "captions.txt", ["image,caption", "0.jpg,a dog, running"])
        refused(root, "ROOT/captions.txt: line 2: 3 cells for 2 columns")

    def test_a_list_of_other_images(self, root):
        lines(root / "Flickr_8k.devImages.txt", ["a.jpg", "b.jpg"])
        refused(root, "ROOT/Flickr_8k.devImages.txt: there is no caption of any file in it: a.jpg, b.jpg")

    def test_an_image_that_is_listed_twice(self, root):
        lines(root / "Flickr_8k.devImages.txt", ["11.jpg", "", "12.jpg", "11.jpg"])
        refused(root, "ROOT/Flickr_8k.devImages.txt: line 4: image='11.jpg' is there a second time")

    def test_an_image_that_two_lists_have(self, root):
        lines(root / "Flickr_8k.testImages.txt", ["17.jpg", "12.jpg"])
        refused(root, "ROOT/Flickr_8k.testImages.txt: ROOT/Images/12.jpg is for test, but it is for val, too")

    def test_an_empty_list_for_training(self, root):
        lines(root / "Flickr_8k.trainImages.txt", [""])
        refused(root, "ROOT/Flickr_8k.trainImages.txt: there is no file in it")

    def test_a_table_without_rows(self, tmp_path):
        lines(flickr8k_tree(tmp_path, lists=False) / "captions.txt", ["image,caption"])
        refused(tmp_path, "ROOT/captions.txt: there is no file in it")

    @pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", ".."])
    def test_a_name_that_leads_out_of_the_folder(self, root, name):
        table(root / "captions.txt", [("image", "caption"), ("0.jpg", "x"), (name, "y")])
        refused(root, f"ROOT/captions.txt: line 3: image={name!r} is not a name of a file")
        lines(flickr8k_tree(root) / "Flickr_8k.trainImages.txt", ["0.jpg", name])
        refused(root, f"ROOT/Flickr_8k.trainImages.txt: line 2: image={name!r} is not a name of a file")
        (root / "captions.txt").unlink()
        lines(root / "Flickr8k.token.txt", [f"{name}#0\tx"])
        lines(root / "Flickr_8k.trainImages.txt", ["0.jpg"])
        refused(root, f"ROOT/Flickr8k.token.txt: line 1: image={name!r} is not a name of a file")

    @pytest.mark.parametrize(
        ("line", "message"),
        [("0.jpg\ta dog", "image='0.jpg' has no number after a #"), ("0.jpg#0 a", "no tab between image and caption")],
    )
    def test_lines_that_are_not_those_of_a_token_file(self, root, line, message):
        (root / "captions.txt").unlink()
        lines(root / "Flickr8k.token.txt", ["0.jpg#0\tx", line])
        refused(root, f"ROOT/Flickr8k.token.txt: line 2: {message}")

    def test_another_encoding(self, root):
        (root / "captions.txt").write_bytes("image,caption\n0.jpg,ä\n".encode("latin1"))
        refused(root, "ROOT/captions.txt: not text in UTF-8")
