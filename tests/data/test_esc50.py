from pathlib import Path

import numpy as np
import pytest
import soundfile

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.esc50 import ESC50
from tests.data.datasets import dataset as make

RATE = 1009
HEADER = "filename,fold,target,category,esc10,src_file,take"
CATEGORIES = {0: "dog", 1: "rooster", 12: "fire", 43: "car_horn", 7: "hen"}
ESC10 = {0, 1, 12}
ROWS = [
    f"{fold}-{take}-A-{target}.wav,{fold},{target},{name},{target in ESC10},{take},A"
    for fold in (1, 2, 3)
    for take in (101, 103)
    for target, name in CATEGORIES.items()
]


@pytest.fixture
def root(tmp_path):
    """A table of three folds of two clips of each of five classes, two of them not in ESC-10."""
    write_table(tmp_path, HEADER, *ROWS)
    return tmp_path


def write_table(root: Path, *lines: str, encoding: str = "utf-8") -> None:
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta" / "esc50.csv").write_bytes("\n".join([*lines, ""]).encode(encoding))


def dataset(root: Path | str, **options) -> Dataset:
    clips = {"sample_rate": RATE, "seconds": 1.0, "hop_seconds": 0.5}
    defaults = {"num_classes": 5, "fold": 2, "val_fraction": 0.0, "esc10": False}
    return make(ESC50, "audio", root=str(root), **(clips | defaults | options))


def ids(data: Dataset, stage: str) -> set[str]:
    split = data.split(stage)
    return {split.name_of(index) for index in range(len(split))}


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_one_fold_is_tested_and_the_others_are_trained_on(root, fold):
    data = dataset(root, fold=fold)
    everything = {f"audio/{row.partition(',')[0]}" for row in ROWS}
    assert ids(data, "test") == {id for id in everything if id.startswith(f"audio/{fold}-")}
    assert ids(data, "train") == everything - ids(data, "test")
    assert data.split("val") is None


def test_labels_are_the_places_of_the_targets_in_ascending_order(root):
    data = dataset(root)
    assert data.class_names == ["dog", "rooster", "hen", "fire", "car_horn"]
    targets = sorted(CATEGORIES)
    for stage in ("train", "test"):
        split = data.split(stage)
        for index in range(len(split)):
            target = int(Path(split.name_of(index)).stem.rpartition("-")[2])
            assert list(split.classes_of(index)) == [targets.index(target)]


def test_esc10_takes_its_classes_only(root):
    data = dataset(root, esc10=True, num_classes=3)
    assert data.class_names == ["dog", "rooster", "fire"]
    assert len(data.split("train")) == 12
    assert len(data.split("test")) == 6


def test_sounds_are_cropped_for_training_and_tested_in_windows(root):
    (root / "audio").mkdir()
    for row in ROWS:
        soundfile.write(root / "audio" / row.partition(",")[0], 0.5 * np.sin(np.arange(2503)), RATE)
    data = dataset(root)
    train, test = data.split("train")[0], data.split("test")[0]
    assert (train.id, train.targets, train.inputs["audio"].shape) == ("audio/1-101-A-0.wav", {"label": 0}, (1, RATE))
    assert (test.id, test.targets, test.inputs["audio"].shape) == ("audio/2-101-A-0.wav", {"label": 0}, (4, 1, RATE))


def test_a_clip_without_a_file_is_named_when_it_is_read(root):
    split = dataset(root).split("train")
    with pytest.raises(UnreadableError, match=f"^{root}/audio/1-101-A-0.wav: no such file$"):
        split[0]


def test_the_columns_may_come_in_any_order_and_the_table_with_a_byte_order_mark(root):
    expected = ids(dataset(root), "train")
    write_table(root, *(",".join(reversed(line.split(","))) for line in (HEADER, *ROWS)), encoding="utf-8-sig")
    assert ids(dataset(root), "train") == expected


def test_building_one_touches_no_disk_and_tilde_is_home(root, monkeypatch):
    dataset(root / "nowhere")
    monkeypatch.setenv("HOME", str(root))
    assert len(dataset("~").split("test")) == 10


@pytest.mark.parametrize("ask", [lambda data: data.prepare(), lambda data: data.class_names, lambda d: d.split("test")])
def test_what_is_not_there_is_told_with_where_to_get_it(tmp_path, ask):
    with pytest.raises(FileNotFoundError, match=f"^root={tmp_path}: there is no meta/esc50.csv in it; unpack github"):
        ask(dataset(tmp_path))


def test_another_number_of_classes_is_refused_with_both_numbers(root):
    for ask in (lambda data: data.class_names, lambda data: data.split("val")):
        with pytest.raises(ValueError, match=r"^num_classes=50, but .*esc50.csv has 5 classes: dog, rooster, hen, "):
            ask(dataset(root, num_classes=50))


def test_where_there_are_ten_classes_esc10_is_named(tmp_path):
    write_table(tmp_path, HEADER, *(f"{n}.wav,{n % 2},{3 * n},c{n},True,{n},A" for n in range(10)))
    with pytest.raises(ValueError, match=r"has 10 classes: c0, c1, c2, c3, c4, …; data=esc10 is for ESC-10$"):
        dataset(tmp_path, num_classes=50).split("train")


@pytest.mark.parametrize("fold", [0, 4, -1])
def test_a_fold_that_is_not_there_is_refused(root, fold):
    for stage in ("train", "val", "test"):
        with pytest.raises(ValueError, match=f"^fold={fold}: the folds are 1, 2, 3$"):
            dataset(root, fold=fold).split(stage)


def test_a_single_fold_leaves_nothing_to_train_on(root):
    write_table(root, HEADER, *(row for row in ROWS if row.startswith("2-")))
    for stage in ("train", "test"):
        with pytest.raises(ValueError, match=r"^fold=2: the only one in .*esc50.csv, so that there is none to train"):
            dataset(root).split(stage)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.wav,one,0,dog,True,1,A", "line 32: fold='one' is not a whole number"),
        ("a.wav,1,,dog,True,1,A", "line 32: target='' is not a whole number"),
        ("a.wav,1,0,dog,maybe,1,A", "line 32: esc10='maybe' is neither True nor False"),
        ("a.wav,1,0,cat,True,1,A", "line 32: category='cat', but target=0 was 'dog' before"),
        ("../a.wav,1,0,dog,True,1,A", r"line 32: filename='\.\./a\.wav' is not a name of a file"),
        ("/a.wav,1,0,dog,True,1,A", "line 32: filename='/a.wav' is not a name of a file"),
        (",1,0,dog,True,1,A", "line 32: filename='' is not a name of a file"),
        ("1-101-A-0.wav,1,0,dog,True,1,A", "line 32: filename='1-101-A-0.wav' is there a second time"),
        ("a.wav,1,0", "line 32: 3 cells for 7 columns"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_line(root, line, message):
    write_table(root, HEADER, *ROWS, line)
    with pytest.raises(UnreadableError, match=f"^{root}/meta/esc50.csv: {message}$"):
        dataset(root).split("train")


@pytest.mark.parametrize(
    ("lines", "encoding", "message"),
    [
        (
            [HEADER.replace("target", "label"), *ROWS],
            "utf-8",
            "there is no column 'target'; there are: filename, fold, ",
        ),
        (ROWS, "utf-8", "there is no column 'filename'"),
        ([HEADER], "utf-8", "no clip in it$"),
        ([HEADER, "é.wav,1,0,dog,True,1,A"], "latin1", "not text in UTF-8$"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, lines, encoding, message):
    write_table(tmp_path, *lines, encoding=encoding)
    with pytest.raises(UnreadableError, match=f"^{tmp_path}/meta/esc50.csv: {message}"):
        dataset(tmp_path).split("train")


def test_a_table_without_esc10_is_refused_where_it_is_wanted(root):
    write_table(root, HEADER, *(row for row in ROWS if "True" not in row))
    with pytest.raises(UnreadableError, match=r"esc50.csv: no clip of ESC-10 in it$"):
        dataset(root, esc10=True, num_classes=10).split("train")
