import os
import pickle
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.image import ImageAugment
from perceiver.data.sources.captions import CaptionedFiles, Captions, references_in
from perceiver.data.text_checks import tidy
from perceiver.training.data_module import DataModule
from tests.data.caption_trees import photo, samples
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")
LISTED = {
    "train": {"0.png": ["a", "b", "c"], "deep/1.png": ["d"]},
    "val": {"2.png": ["e", "f"]},
    "test": {},
}


class Listed(CaptionedFiles):
    """A source whose captions are given; counts how often it is asked for them."""

    def __init__(self, *, root: str, listed) -> None:
        super().__init__(root=root)
        self.listed = listed
        self.asked: Counter[str] = Counter()

    def read_captions(self, stage):
        self.asked[stage] += 1
        if stage not in self.listed:
            return None
        return Captions(self.root / f"{stage}.txt", self.listed[stage], ("images", "more/images", "."))


def listed(root: Path, listed=LISTED, **options) -> Dataset:
    return dataset(Listed, "image", root=str(root), listed=listed, **({"image_size": 11} | options))


@pytest.fixture
def root(tmp_path) -> Path:
    for names in LISTED.values():
        for name in names:
            photo(tmp_path / "images" / name)
    return tmp_path


def test_a_sample_has_its_image_and_its_captions_and_is_named_by_its_path(root):
    first, second = samples(listed(root).split("train"))
    assert [first.id, second.id] == ["images/0.png", "images/deep/1.png"]
    assert sorted(first.targets["references"]) == ["a", "b", "c"]
    assert second.targets == {"caption": "d", "references": ["d"]}
    red = torch.eye(3)[0][:, None, None].expand(3, 11, 11)
    assert torch.equal(first.inputs["image"], red)
    assert listed(root, channels=1).split("train")[0].inputs["image"].shape == (1, 11, 11)


def test_in_training_the_caption_is_drawn_evenly_by_torchs_generator(root):
    train = listed(root).split("train")
    torch.manual_seed(7)
    drawn = [train[0].targets["caption"] for _ in range(300)]
    assert set(Counter(drawn)) == {"a", "b", "c"}
    assert min(Counter(drawn).values()) > 70
    torch.manual_seed(7)
    assert [train[0].targets["caption"] for _ in range(300)] == drawn


def test_in_training_captions_come_in_any_order_and_the_first_is_the_one(root):
    train = listed(root).split("train")
    orders = [train[0].targets for _ in range(100)]
    assert {tuple(targets["references"]) for targets in orders} == set(permutations("abc"))
    assert all(targets["caption"] == targets["references"][0] for targets in orders)


def test_in_evaluation_the_caption_is_the_first_and_nothing_is_random(root):
    val = listed(root, augment=ImageAugment(erasing=1.0)).split("val")
    before = torch.get_rng_state()
    first, again = val[0], val[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert first.targets == again.targets == {"caption": "e", "references": ["e", "f"]}
    assert torch.equal(first.inputs["image"], again.inputs["image"])


def test_training_images_are_augmented(root):
    train = listed(root, augment=ImageAugment(erasing=1.0)).split("train")
    assert not torch.equal(train[0].inputs["image"], listed(root).split("train")[0].inputs["image"])


def test_what_is_changed_in_a_sample_is_not_changed_in_the_data(root):
    train = listed(root).split("train")
    train[0].targets["references"].clear()
    assert sorted(train[0].targets["references"]) == ["a", "b", "c"]


def test_there_are_no_classes(root):
    data = listed(root)
    assert data.class_names == []
    assert data.num_classes == 0
    assert list(data.split("train").classes_of(0)) == []


def test_a_stage_without_captions_has_no_split(root):
    assert listed(root).split("test") is None
    assert listed(root, {"train": LISTED["train"]}).split("val") is None


def test_texts_are_all_captions_of_the_training_files_and_no_file_is_needed_for_them(tmp_path):
    assert list(listed(tmp_path).texts()) == ["a", "b", "c", "d"]


def test_captions_are_read_once(root):
    data = listed(root)
    for _ in range(2):
        list(data.texts())
        [data.split(stage) for stage in STAGES]
    assert data.source.asked == {"train": 1, "val": 1, "test": 1}


def test_batches_hold_captions_as_lists(root):
    batch = collate(samples(listed(root).split("train")))
    assert batch.inputs["image"].shape == (2, 3, 11, 11)
    assert [sorted(texts) for texts in batch.targets["references"]] == [["a", "b", "c"], ["d"]]
    assert batch.targets["caption"][1] == "d"


def test_the_loader_draws_captions_by_seed_and_epoch_in_any_number_of_workers(root):
    def drawn(num_workers: int, seed: int) -> list[list[str]]:
        module = DataModule(
            dataset=listed(root, {**LISTED, "train": {"0.png": [str(nth) for nth in range(97)]}}),
            **{"batch_size": 1, "num_workers": num_workers, "drop_last": False, "class_balanced": False},
            timeout_seconds=0,
            **{"pin_memory": False, "seed": seed},
        )
        loader = module.train_dataloader()
        return [batch.targets["caption"] for epoch in range(3) for batch in loader]

    assert drawn(0, seed=3) == drawn(1, seed=3) != drawn(0, seed=5)


def test_splits_can_be_sent_to_workers(root):
    train = pickle.loads(pickle.dumps(listed(root, augment=ImageAugment(crop_padding=3)).split("train")))
    assert train[1].targets["caption"] == "d"


def test_a_users_file_is_read_as_for_evaluation(root):
    sample = listed(root, augment=ImageAugment(erasing=1.0)).read(root / "images" / "2.png")
    assert sample.targets == {}
    assert torch.equal(sample.inputs["image"], listed(root).split("val")[0].inputs["image"])


@pytest.mark.parametrize("folder", ["more/images", "."])
def test_files_may_be_in_any_of_the_folders(root, folder):
    (root / "more").mkdir()
    (root / "images").rename(root / "more" / "images")
    if folder == ".":
        for path in (root / "more" / "images").iterdir():
            path.rename(root / path.name)
    assert [sample.id for sample in samples(listed(root).split("val"))] == [os.path.normpath(f"{folder}/2.png")]


def test_a_folder_without_any_of_the_files_is_passed_over(root):
    (root / "images").rename(root / "elsewhere")
    photo(root / "images" / "7.png")
    (root / "more").mkdir()
    (root / "elsewhere").rename(root / "more" / "images")
    assert listed(root).split("val")[0].id == "more/images/2.png"


def test_a_file_that_is_missing_is_found_out_when_it_is_read(root):
    (root / "images" / "0.png").unlink()
    train = listed(root).split("train")
    assert len(train) == 2
    with pytest.raises(UnreadableError, match=r"images/0\.png: no such file"):
        train[0]
    assert train[1].targets["caption"] == "d"


class TestMistakes:
    def test_files_of_which_none_is_there(self, root):
        (root / "images").rename(root / "pictures")
        with pytest.raises(FileNotFoundError) as raised:
            listed(root).split("train")
        looked = "looked in images, more/images, ."
        assert str(raised.value) == f"root={root}: none of the 2 files of {root}/train.txt is in it; {looked}"

    def test_a_file_that_two_stages_have(self, root):
        data = listed(root, {"train": LISTED["train"], "val": {"0.png": ["a"]}})
        data.split("train")
        data.split("train")
        message = rf"^{root}/val\.txt: {root}/images/0\.png is for val, but it is for train, too$"
        with pytest.raises(UnreadableError, match=message):
            data.split("val")


class TestReferences:
    @pytest.mark.parametrize("text", ["  a  dog ", "a\ndog", "a\r\n dog\n", "a\tdog", "a\u00a0dog"])
    def test_white_space_becomes_single_spaces(self, text):
        assert tidy(text) == "a dog"

    def test_empty_captions_are_left_out(self, caplog):
        assert references_in(Path("t.csv"), {"x": ["", "a\n dog", " \n"], "y": ["b"]}) == {"x": ["a dog"], "y": ["b"]}
        assert caplog.messages == []

    def test_files_without_any_caption_are_left_out_and_warned_of_once(self, caplog):
        listed = {"a": ["x"], **{f"{number}.png": [" "] for number in range(7)}, "b": []}
        assert references_in(Path("t.csv"), listed) == {"a": ["x"]}
        names = "0.png, 1.png, 2.png, 3.png, 4.png, …"
        assert caplog.messages == [f"t.csv: left out 8 of 9 without a caption: {names}"]

    def test_no_file_with_a_caption(self):
        with pytest.raises(UnreadableError, match=r"^t\.csv: there is no caption of any file in it: a, b$"):
            references_in(Path("t.csv"), {"a": [], "b": ["\n"]})

    def test_no_file_at_all(self):
        with pytest.raises(UnreadableError, match=r"^t\.csv: there is no file in it$"):
            references_in(Path("t.csv"), {})

    @pytest.mark.parametrize("stray", ["\0", "\x1b[31m", "\x7f", "\x92", "\ud800"], ids=ascii)
    def test_what_nobody_can_have_written(self, stray):
        listed = {"x": ["a dog"], "y": ["a cat", f"a {stray} dog"]}
        message = rf"^t\.csv: a caption of y: U\+{ord(stray[0]):04X}, character 3, is no text$"
        with pytest.raises(UnreadableError, match=message):
            references_in(Path("t.csv"), listed)

    def test_what_nobody_has_the_time_to_write(self):
        with pytest.raises(UnreadableError, match=r"^t\.csv: a caption of x: a text of 2,000,000 char"):
            references_in(Path("t.csv"), {"x": ["a " * 1_000_000]})

    @pytest.mark.parametrize("text", ["é 😀 हिन्दी", "👩‍👩‍👧", "a\u200bb", "<pad> <eos> [BOS]", "\ufffd"])
    def test_any_characters_else_are_kept(self, text):
        assert references_in(Path("t.csv"), {"x": [text]}) == {"x": [text]}
