import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.fsd50k import FSD50K
from tests.data.datasets import dataset
from tests.data.tagged_trees import RATE, fsd50k_tree, noise, table

STAGES = ("train", "val", "test")
DEV = ("fname", "labels", "mids", "split")


@pytest.fixture
def root(tmp_path) -> Path:
    return fsd50k_tree(tmp_path)


def data(root: Path, num_classes: int = 3) -> Dataset:
    return dataset(FSD50K, "audio", root=str(root), num_classes=num_classes)


def ids(split) -> list[str]:
    return [split[index].id for index in range(len(split))]


def truth(root: Path) -> Path:
    return root / "FSD50K.ground_truth"


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


def test_splits_are_those_of_the_tables(root):
    splits = {stage: data(root).split(stage) for stage in STAGES}
    assert {stage: len(split) for stage, split in splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert ids(splits["val"]) == ["FSD50K.dev_audio/102.wav", "FSD50K.dev_audio/105.wav"]
    assert ids(splits["test"]) == ["FSD50K.eval_audio/200.wav", "FSD50K.eval_audio/201.wav"]


def test_classes_are_numbered_by_the_vocabulary_whatever_its_order(root):
    assert data(root).class_names == ["class_0", "class_1", "class_2"]
    train = data(root).split("train")
    assert [train.classes_of(index) for index in range(6)] == [[n % 3, (n + 1) % 3] for n in (0, 1, 3, 4, 6, 7)]


def test_samples_have_their_sound_and_all_their_tags(root):
    sample = data(root).split("val")[1]
    expected, rate = soundfile.read(root / "FSD50K.dev_audio" / "105.wav", dtype="float32")
    assert rate == RATE
    assert torch.equal(sample.inputs["audio"], torch.from_numpy(expected)[None])
    assert sample.targets["tags"].tolist() == [1.0, 0.0, 1.0]


def test_one_cell_may_hold_one_class_or_none(root):
    table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "train"), (101, "", "", "train")])
    train = data(root).split("train")
    assert [train[index].targets["tags"].tolist() for index in range(2)] == [[0, 1, 0], [0, 0, 0]]
    assert data(root).split("val") is None


@pytest.mark.parametrize("names", ["FSD50K.{}", "{}"])
def test_folders_may_leave_out_the_name_of_the_data_set(tmp_path, names):
    fsd50k_tree(tmp_path, names=names)
    assert [len(data(tmp_path).split(stage)) for stage in STAGES] == [6, 2, 2]


def test_one_folder_may_hold_all_clips(root):
    (root / "FSD50K.dev_audio").rename(root / "audio")
    shutil.copytree(root / "FSD50K.eval_audio", root / "audio", dirs_exist_ok=True)
    shutil.rmtree(root / "FSD50K.eval_audio")
    assert {id.split("/")[0] for stage in STAGES for id in ids(data(root).split(stage))} == {"audio"}


def test_without_evaluation_clips_the_validation_clips_are_tested_on(root):
    (truth(root) / "eval.csv").unlink()
    assert ids(data(root).split("test")) == ids(data(root).split("val"))


def test_any_format_will_do_and_wav_goes_first(root):
    folder = root / "FSD50K.dev_audio"
    for number, ending in ((100, ".flac"), (101, ".ogg"), (103, ".WAV")):
        (folder / f"{number}.wav").unlink()
        noise(folder / f"{number}{ending.lower()}").rename(folder / f"{number}{ending}")
    noise(folder / "104.flac")
    (folder / "106.txt").write_text("no sound")
    found = ids(data(root).split("train"))
    assert [os.path.basename(id) for id in found] == [
        *("100.flac", "101.ogg", "103.WAV", "104.wav", "106.wav", "107.wav")
    ]


def test_names_may_have_their_ending(root):
    table(truth(root) / "dev.csv", [DEV, ("100.wav", "class_1", "", "train")])
    assert ids(data(root).split("train")) == ["FSD50K.dev_audio/100.wav"]


def test_a_clip_without_a_file_is_found_out_when_it_is_read(root):
    (root / "FSD50K.dev_audio" / "101.wav").unlink()
    train = data(root).split("train")
    assert len(train) == 6
    with pytest.raises(UnreadableError, match=r"101\.wav: no such file"):
        train[1]


def test_training_and_evaluation_differ(root):
    """A random part of a longer clip, or all of it in windows."""
    soundfile.write(root / "FSD50K.dev_audio" / "100.wav", torch.rand(RATE).numpy() - 0.5, RATE)
    table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "train"), (102, "class_1", "", "val")])
    shutil.copy(root / "FSD50K.dev_audio" / "100.wav", root / "FSD50K.dev_audio" / "102.wav")
    train, val = data(root).split("train"), data(root).split("val")
    assert not torch.equal(train[0].inputs["audio"], train[0].inputs["audio"])
    assert len(val[0].windows) > 1
    assert torch.equal(val[0].inputs["audio"], val[0].inputs["audio"])


def refused(root: Path, message: str, error: type[Exception] = UnreadableError, num_classes: int = 3) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    with pytest.raises(error) as raised:
        [data(root, num_classes).split(stage) for stage in STAGES]
    assert str(raised.value).replace(str(root), "ROOT").replace("FSD50K.ground_truth/", "") == message


class TestMistakes:
    def test_a_class_that_is_in_no_vocabulary(self, root):
        table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "train"), (101, "class_1,clas_2", "", "train")])
        refused(root, "ROOT/dev.csv: line 3: labels: 'clas_2' is no class of ROOT/vocabulary.csv")

    def test_an_empty_name_between_two_commas(self, root):
        table(truth(root) / "eval.csv", [("fname", "labels"), (200, "class_1,,class_2")])
        refused(root, "ROOT/eval.csv: line 2: labels: '' is no class of ROOT/vocabulary.csv")

    def test_another_number_of_classes(self, root):
        refused(root, "num_classes=5, but ROOT/vocabulary.csv has 3 classes", ValueError, num_classes=5)

    @pytest.mark.parametrize("labels", [(0, 1, 3), (1, 2, 3), (0, -1, 1), (0, 1, 1)], ids=str)
    def test_classes_that_are_not_numbered_in_a_row(self, root, labels):
        table(truth(root) / "vocabulary.csv", [(label, f"class_{n}", "/m/x") for n, label in enumerate(labels)])
        wrong = next(n for n, label in enumerate(labels) if label in labels[:n] or not 0 <= label < 3)
        message = f"line {wrong + 1}: idx={labels[wrong]}: the classes must be numbered from 0 to 2"
        refused(root, f"ROOT/vocabulary.csv: {message}")

    def test_a_class_that_is_there_twice(self, root):
        table(truth(root) / "vocabulary.csv", [(0, "a", "/m/x"), (1, "b", "/m/y"), (2, "a", "/m/z")])
        refused(root, "ROOT/vocabulary.csv: line 3: label='a' is there a second time")

    def test_a_label_that_is_no_number(self, root):
        table(truth(root) / "vocabulary.csv", [("idx", "label", "mid"), (0, "a", "/m/y"), (1, "b", "/m/z")])
        refused(root, "ROOT/vocabulary.csv: line 1: idx='idx' is not a whole number")

    @pytest.mark.parametrize("column", ["fname", "labels", "split"])
    def test_a_column_that_is_missing(self, root, column):
        rows = (truth(root) / "dev.csv").read_text()
        (truth(root) / "dev.csv").write_text(rows.replace(column, "other", 1))
        with pytest.raises(UnreadableError, match=rf"dev\.csv: there is no column '{column}'"):
            data(root).split("train")

    def test_a_split_that_is_neither(self, root):
        table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "test")])
        refused(root, "ROOT/dev.csv: line 2: split='test' must be train or val")

    def test_a_clip_that_is_there_twice(self, root):
        table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "train"), (100, "class_2", "", "val")])
        refused(root, "ROOT/dev.csv: line 3: fname='100' is there a second time")

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ""])
    def test_a_name_that_leads_out_of_the_folder(self, root, name):
        table(truth(root) / "dev.csv", [DEV, (100, "class_1", "", "train"), (name, "class_1", "", "train")])
        with pytest.raises(UnreadableError, match=r"dev\.csv: line 3: fname="):
            data(root).split("train")

    def test_clips_of_another_data_set(self, root):
        for path in (root / "FSD50K.dev_audio").iterdir():
            path.rename(path.with_name(f"other{path.name}"))
        refused(root, "ROOT/FSD50K.dev_audio: none of the 6 clips of ROOT/dev.csv is in it", FileNotFoundError)

    def test_folders_that_are_missing(self, root):
        shutil.rmtree(root / "FSD50K.eval_audio")
        folders = "FSD50K.eval_audio, eval_audio, audio"
        refused(root, f"root=ROOT: none of the folders {folders} is in it", FileNotFoundError)

    def test_a_root_that_is_not_there(self, tmp_path):
        folders = "FSD50K.ground_truth, ground_truth"
        refused(tmp_path / "nowhere", f"root=ROOT: none of the folders {folders} is in it", FileNotFoundError)


@pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data")
def test_real_mixtures():
    root = Path(os.environ["PERCEIVER_DATA"]) / "audio" / "esc10_mixtures_multilabel"
    mixtures = data(root, num_classes=10)
    assert mixtures.class_names[:2] == ["Baby_cry_and_infant_cry", "Bark"]
    train, val = mixtures.split("train"), mixtures.split("val")
    assert (len(train), len(val), len(mixtures.split("test"))) == (60, 20, 20)
    assert train.classes_of(0) == [mixtures.class_names.index(name) for name in ("Bark", "Rain")]
    counts = Counter(len(train.classes_of(index)) for index in range(60))
    assert set(counts) == {1, 2, 3}
    sample = val[0]
    assert sample.inputs["audio"].ndim == 3
    assert sample.targets["tags"].sum() == len(val.classes_of(0))
    assert not {train[index].id for index in range(0, 60, 7)} & {val[index].id for index in range(0, 20, 7)}
