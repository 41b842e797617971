"""Labeled sounds listed in tables: ESC-50, FSD50K, AudioSet."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.sources.sounds import ESC50, FSD50K
from perceiver.data.sources.web_videos import AudioSet
from scripts import data_trees
from scripts.data_trees import Tree, segments, video, write_csv, write_lines, write_sound
from tests.data.datasets import check_error, check_split_error, dataset, names, samples, sizes

REAL = pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data")


def esc50(root: Path | str, **options) -> Dataset:
    defaults = {"num_classes": 5, "fold": 2, "val_fraction": 0.0, "esc10": False}
    return dataset(ESC50, "audio", root=str(root), **(defaults | options))


def fsd50k(root: Path, num_classes: int = 3) -> Dataset:
    return dataset(FSD50K, "audio", root=str(root), num_classes=num_classes)


def audioset(root: Path, *, num_classes: int = 3, **options) -> Dataset:
    lists = {"train_segments": ["balanced_train_segments.csv"], "eval_segments": "eval_segments.csv"}
    settings = {**lists, "class_labels": "class_labels_indices.csv", "val_fraction": 0.0, **options}
    return dataset(AudioSet, "audio", root=str(root), num_classes=num_classes, **settings)


def test_constructors_do_not_access_the_disk():
    for make in (esc50, fsd50k, audioset):
        make(Path("/nowhere"))


def test_a_sound_is_cropped_for_training_and_read_in_windows_for_evaluation(tmp_path):
    root = data_trees.fsd50k(tmp_path).root
    for number in ("000", "011"):
        soundfile.write(root / f"FSD50K.dev_audio/{number}.wav", torch.rand(2003).numpy() - 0.5, 2003)
    train, val = fsd50k(root).split("train"), fsd50k(root).split("val")
    assert train[0].inputs["audio"].shape == (1, 621)
    assert not torch.equal(train[0].inputs["audio"], train[0].inputs["audio"])
    assert val[0].inputs["audio"].shape == (len(val[0].windows), 1, 621)
    assert torch.equal(val[0].inputs["audio"], val[0].inputs["audio"])


class TestESC50:
    TARGETS = (12, 0, 43, 1, 7)

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.esc50(tmp_path, self.TARGETS, folds=3).root

    @pytest.mark.parametrize("fold", [1, 2, 3])
    def test_one_fold_is_for_testing_and_the_others_for_training(self, root, fold):
        data = esc50(root, fold=fold)
        assert {name[6] for name in names(data.split("test"))} == {str(fold)}
        assert {name[6] for name in names(data.split("train"))} == set("123") - {str(fold)}
        assert sizes(data) == [20, 0, 10]

    def test_labels_are_the_ranks_of_the_targets(self, root):
        data = esc50(root)
        assert data.class_names == ["class 0", "class 1", "class 7", "class 12", "class 43"]
        split = data.split("train")
        for index, sample in enumerate(samples(split)):
            label = sorted(self.TARGETS).index(int(Path(sample.id).stem.split("-")[2]))
            assert (sample.targets, list(split.sample_classes(index))) == ({"label": label}, [label])

    def test_esc10_consists_of_its_classes(self, root):
        data = esc50(root, esc10=True, num_classes=3)
        assert (data.class_names, sizes(data)) == (["class 0", "class 1", "class 7"], [12, 0, 6])
        path = write_csv(root / "meta/esc50.csv", [self.rows(root)[0], ("x.wav", 1, 0, "a", "False", 1, "A")])
        check_split_error(esc50(root, esc10=True, num_classes=3), f"{path}: no clips of ESC-10")

    def rows(self, root: Path) -> list[list[str]]:
        return [line.split(",") for line in (root / "meta/esc50.csv").read_text().splitlines()]

    def test_validation_holds_out_whole_recordings(self, root):
        header, *rows = self.rows(root)
        for index, row in enumerate(rows):
            row[5] = str(index // 3)
        write_csv(root / "meta/esc50.csv", [header, *rows])
        data = esc50(root, val_fraction=0.4)
        recording = {f"audio/{row[0]}": row[5] for row in rows}
        train, val = ({recording[name] for name in names(data.split(stage))} for stage in ("train", "val"))
        assert sizes(data)[0] + sizes(data)[1] == 20
        assert train
        assert val
        assert not train & val

    def test_a_missing_file_is_named_when_it_is_read(self, root):
        (root / "audio/1-0-12.wav").unlink()
        check_error(lambda: esc50(root).split("train")[0], f"{root}/audio/1-0-12.wav: no such file")

    def test_columns_may_be_in_any_order_and_tilde_is_the_home_folder(self, root, monkeypatch):
        expected = names(esc50(root).split("train"))
        write_csv(root / "meta/esc50.csv", [row[::-1] for row in self.rows(root)])
        monkeypatch.setenv("HOME", str(root))
        assert names(esc50("~").split("train")) == expected

    @pytest.mark.parametrize(
        "action", [lambda data: data.prepare(), lambda data: data.class_names, lambda data: data.split("test")]
    )
    def test_a_missing_table_is_named_with_its_origin(self, tmp_path, action):
        parts = (f"root={tmp_path}", "meta/esc50.csv", "github.com/karolpiczak/ESC-50")
        check_error(lambda: action(esc50(tmp_path)), *parts, error=FileNotFoundError)

    def test_another_number_of_classes_is_refused_with_both_numbers(self, root):
        data = esc50(root, num_classes=50)
        for action in (lambda: data.class_names, lambda: data.split("val")):
            check_error(action, "num_classes=50", "5 classes", error=ValueError)
        data_trees.esc50(root, range(10))
        check_split_error(esc50(root, num_classes=50), "10 classes", "data=esc10", error=ValueError)

    def test_folds_that_do_not_exist_or_are_the_only_one_are_refused(self, root):
        for fold in (0, 4, -1):
            check_split_error(esc50(root, fold=fold), f"fold={fold}", "1, 2, 3", error=ValueError)
        data_trees.esc50(root, self.TARGETS, folds=1)
        for stage in ("train", "test"):
            check_split_error(esc50(root, fold=1), "fold=1", "esc50.csv", error=ValueError, stages=[stage])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("a.wav,one,0,class 0,True,1,A", "fold='one' is not an integer"),
            ("a.wav,1,,class 0,True,1,A", "target='' is not an integer"),
            ("a.wav,1,-1,class 0,True,1,A", "target=-1"),
            ("a.wav,1,0,class 0,maybe,1,A", "esc10='maybe'"),
            ("a.wav,1,0,cat,True,1,A", "target=0, category='cat' contradicts"),
            ("a.wav,1,5,class 0,True,1,A", "target=5, category='class 0' contradicts"),
            ("../a.wav,1,0,class 0,True,1,A", "filename='../a.wav'"),
            ("1-0-12.wav,1,0,class 0,True,1,A", "filename='1-0-12.wav' appears twice"),
            ("a.wav,1,0", "3 cells for 7 columns"),
        ],
    )
    def test_errors_name_the_line(self, root, row, message):
        path = root / "meta/esc50.csv"
        write_lines(path, [*path.read_text().splitlines(), row])
        check_split_error(esc50(root), f"{path}: line 32: {message}")


class TestFSD50K:
    DEV = ("fname", "labels", "mids", "split")

    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.fsd50k(tmp_path).root

    def write(self, root: Path, *rows, name: str = "dev", header=DEV) -> Path:
        return write_csv(root / f"FSD50K.ground_truth/{name}.csv", [header, *rows] if header else rows)

    def test_splits_and_classes_are_those_of_the_tables(self, root):
        data = fsd50k(root)
        assert data.class_names == ["class 0", "class 1", "class 2"]  # the vocabulary lists them backwards
        for stage, numbers in data_trees.STAGES.items():
            folder = "FSD50K.eval_audio" if stage == "test" else "FSD50K.dev_audio"
            split = data.split(stage)
            assert names(split) == [f"{folder}/{number:03d}.wav" for number in numbers]
            for index, number in enumerate(numbers):
                classes = {number % 3, (number + 1) % 3}
                assert set(split.sample_classes(index)) == classes
                assert split[index].targets["tags"].tolist() == [float(label in classes) for label in range(3)]
        wave, _ = soundfile.read(root / "FSD50K.dev_audio/011.wav", dtype="float32")
        assert torch.equal(data.split("val")[0].inputs["audio"], torch.from_numpy(wave)[None])

    def test_a_cell_may_contain_one_class_or_none(self, root):
        self.write(root, ("000", "class 1", "", "train"), ("001", "", "", "train"))
        tags = [sample.targets["tags"].tolist() for sample in samples(fsd50k(root).split("train"))]
        assert tags == [[0, 1, 0], [0, 0, 0]]
        assert fsd50k(root).split("val") is None

    def test_folders_may_omit_the_prefix_and_one_may_contain_all_clips(self, root, tmp_path):
        data_trees.fsd50k(tmp_path / "other", names="{}")
        assert sizes(fsd50k(tmp_path / "other")) == [11, 5, 3]
        (root / "FSD50K.dev_audio").rename(root / "audio")
        shutil.copytree(root / "FSD50K.eval_audio", root / "audio", dirs_exist_ok=True)
        shutil.rmtree(root / "FSD50K.eval_audio")
        assert sizes(fsd50k(root)) == [11, 5, 3]

    def test_without_eval_clips_the_validation_clips_are_for_testing(self, root):
        (root / "FSD50K.ground_truth/eval.csv").unlink()
        assert names(fsd50k(root).split("test")) == names(fsd50k(root).split("val"))

    def test_any_format_is_read_and_wav_is_preferred(self, root):
        folder = root / "FSD50K.dev_audio"
        for number, ending in (("000", ".flac"), ("001", ".ogg"), ("003", ".WAV")):
            (folder / f"{number}.wav").unlink()
            write_sound(folder / f"{number}{ending.lower()}").rename(folder / f"{number}{ending}")
        write_sound(folder / "004.flac")
        rows = [(name, "class 1", "", "train") for name in ("000", "001", "003", "004", "005.wav")]
        self.write(root, *rows)
        found = [Path(name).name for name in names(fsd50k(root).split("train"))]
        assert found == ["000.flac", "001.ogg", "003.WAV", "004.wav", "005.wav"]

    def test_a_missing_file_raises_when_it_is_read_and_all_missing_at_once(self, root):
        (root / "FSD50K.dev_audio/001.wav").unlink()
        train = fsd50k(root).split("train")
        assert len(train) == 11
        check_error(lambda: train[1], "001.wav: no such file")
        shutil.rmtree(root / "FSD50K.dev_audio")
        (root / "FSD50K.dev_audio").mkdir()
        check_split_error(fsd50k(root), f"{root}/FSD50K.dev_audio", "none of the 11 clips", error=FileNotFoundError)
        shutil.rmtree(root / "FSD50K.dev_audio")
        check_split_error(fsd50k(root), f"root={root}", "FSD50K.dev_audio, dev_audio, audio", error=FileNotFoundError)
        shutil.rmtree(root / "FSD50K.ground_truth")
        check_split_error(fsd50k(root), f"root={root}", "FSD50K.ground_truth, ground_truth", error=FileNotFoundError)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("001", "class 1,clas 2", "", "train"), "labels: 'clas 2' is not a class of"),
            (("001", "class 1,,class 2", "", "train"), "labels: '' is not a class of"),
            (("001", "class 1", "", "test"), "split='test' must be train or val"),
            (("000", "class 1", "", "val"), "fname='000' appears twice"),
            (("000.wav", "class 1", "", "train"), "fname='000.wav' is the same file"),
            (("../x", "class 1", "", "train"), "fname='../x'"),
            (("", "class 1", "", "train"), "fname=''"),
        ],
    )
    def test_errors_name_the_file_and_the_line(self, root, row, message):
        path = self.write(root, ("000", "class 1", "", "train"), row)
        check_split_error(fsd50k(root), f"{path}: line 3: {message}")

    def test_clips_of_both_tables_and_tables_without_training_clips_are_refused(self, root):
        shutil.copytree(root / "FSD50K.dev_audio", root / "audio")
        for folder in ("FSD50K.dev_audio", "FSD50K.eval_audio"):
            shutil.rmtree(root / folder)
        path = self.write(root, ("000", "class 1"), name="eval", header=("fname", "labels"))
        check_split_error(fsd50k(root), f"{path}: {root}/audio/000.wav", "dev.csv")
        path = self.write(root, ("000", "class 1", "", "val"))
        check_split_error(fsd50k(root), f"{path}: ", "training")
        path = self.write(root)
        check_split_error(fsd50k(root), f"{path}: no clips")

    @pytest.mark.parametrize(
        ("rows", "line", "message"),
        [
            *(
                ([(label, f"class {nth}", "") for nth, label in enumerate(labels)], wrong + 1, f"idx={labels[wrong]}")
                for labels, wrong in (((0, 1, 3), 2), ((0, -1, 1), 1), ((0, 1, 1), 2), (("idx", 0, 1), 0))
            ),
            ([(0, "a", ""), (1, "b", ""), (2, "a", "")], 3, "label='a' appears twice"),
            ([(0, "a", ""), (1, " ", ""), (2, "c", "")], 2, "label is empty"),
        ],
    )
    def test_errors_of_the_vocabulary_name_the_line(self, root, rows, line, message):
        message = message.replace("idx=idx", "idx='idx' is not an integer")
        path = self.write(root, *rows, name="vocabulary", header=None)
        check_split_error(fsd50k(root), f"{path}: line {line}: {message}")

    def test_another_number_of_classes_is_refused_with_both_numbers(self, root):
        check_split_error(fsd50k(root, 5), "num_classes=5", "vocabulary.csv has 3 classes", error=ValueError)

    @pytest.mark.parametrize("column", ["fname", "labels", "split"])
    def test_missing_columns_are_named(self, root, column):
        path = root / "FSD50K.ground_truth/dev.csv"
        path.write_text(path.read_text().replace(column, "other", 1))
        check_split_error(fsd50k(root), f"{path}: no column {column!r}")


class TestAudioSet:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        return data_trees.audioset(tmp_path).root

    @staticmethod
    def write(root: Path, *listed: tuple[str, float], name: str = "balanced_train") -> Path:
        segments(Tree(root), name, [(id, start, (0, 1)) for id, start in listed])
        return root / f"{name}_segments.csv"

    @staticmethod
    def stems(split) -> list[str]:
        return [Path(name).stem for name in names(split)]

    def test_every_segment_is_a_sample_with_all_its_tags(self, root):
        data = audioset(root)
        assert data.class_names == [f"Class {label}, quoted" for label in range(3)]
        train, test = data.split("train"), data.split("test")
        assert names(train) == [f"audio/{video(n)}.wav" for n in range(16)]
        assert names(test) == [f"audio/{video(n)}.wav" for n in range(16, 19)]
        for n in range(16):
            assert set(train.sample_classes(n)) == {n % 3, (n + 1) % 3}
            assert train[n].targets["tags"].nonzero().flatten().tolist() == sorted(train.sample_classes(n))
        assert sizes(audioset(root, eval_segments=None)) == [16, 0, 0]

    def test_training_segments_may_be_in_several_lists(self, root):
        new = [video(n) for n in range(500, 503)]
        self.write(root, *((id, 0.0) for id in new), name="more")
        for id in new:
            write_sound(root / "deep/down" / f"{id}.wav")
        both = audioset(root, train_segments=["balanced_train_segments.csv", "more_segments.csv"])
        assert self.stems(both.split("train")) == [*(video(n) for n in range(16)), *new]
        assert self.stems(audioset(root, train_segments="more_segments.csv").split("train")) == new

    def test_validation_is_random_and_stays_when_clips_are_missing_or_added(self, root):
        ids = [video(n) for n in range(1009)]
        self.write(root, *((id, 0.0) for id in ids))
        for id in ids:
            (root / f"{id}.wav").touch()

        def parts(**options) -> list[set[str]]:
            data = audioset(root, val_fraction=0.23, **options)
            return [set(self.stems(data.split(stage))) for stage in ("train", "val")]

        train, val = parts()
        assert len(train) + len(val) == len(train | val) == 1009
        assert abs(len(val) - 0.23 * 1009) < 3.3 * (0.23 * 0.77 * 1009) ** 0.5  # 1 in 1000
        numbers = torch.tensor([float(name[1:10]) for name in val])
        assert abs(numbers.mean() - 504) < 3.3 * 291 / len(val) ** 0.5
        for id in ids[16::3]:
            (root / f"{id}.wav").unlink()
        self.write(root, (video(2003), 0.0), name="more")
        (root / f"{video(2003)}.wav").touch()
        left = {*ids} - {*ids[16::3]}
        fewer = parts(train_segments=["more_segments.csv", "balanced_train_segments.csv"])
        assert [part & left for part in fewer] == [train & left, val & left]

    @pytest.mark.parametrize("id", ["-0123456789", "_0123456789", "Y0123456789", "abc-def_ghi", "0123456789_"])
    def test_a_clip_is_found_under_all_usual_names(self, root, id):
        patterns = [
            *("{}.wav", "{}.flac", "{}.ogg", "{}.mp3", "{}.WAV", "Y{}.wav", "{}_30000.wav", "{}_30000_40000.wav"),
            *("{}_30_40.wav", "{}_30.000_40.000.wav", "{}_30.wav", "Y{}_30.000_40.000.flac", "deep/down/{}.wav"),
        ]
        self.write(root, (id, 30.0))
        for pattern in patterns:
            path = root / "elsewhere" / pattern.format(id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            assert names(audioset(root).split("train")) == [str(path.relative_to(root))]
            path.unlink()

    @pytest.mark.parametrize(
        "name",
        [
            *("x0123456789.wav", "0123456789.wav", "-0123456789a.wav", "-0123456789_other.wav", "YY-0123456789.wav"),
            *("-0123456789.txt", "-0123456789_90_100.wav", "-0123456789_90000.wav", ".-0123456789.wav"),
            ".hidden/-0123456789.wav",
        ],
    )
    def test_files_with_other_names_are_not_its_clip(self, root, name):
        self.write(root, ("-0123456789", 30.0))
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
        check_split_error(audioset(root), "-0123456789.wav", error=FileNotFoundError)

    def test_case_start_and_other_lengths_distinguish_clips(self, root):
        starts = [("-0123456789", start) for start in (30.0, 0.0, 47.5)]
        self.write(root, ("abcdefghijk", 0.0), ("ABCDEFGHIJK", 0.0), *starts, ("dog_1", 0.0))
        files = ["ABCDEFGHIJK", *(f"-0123456789_{start}" for start in (0, 30000, 47500, 90000)), "dog_1"]
        for stem in files:
            (root / f"{stem}.wav").touch()
        expected = ["ABCDEFGHIJK", "-0123456789_30000", "-0123456789_0", "-0123456789_47500", "dog_1"]
        assert self.stems(audioset(root).split("train")) == expected

    def test_segments_without_a_file_are_left_out_with_one_warning(self, root, caplog):
        removed = [video(n) for n in range(1, 14, 2)]
        for id in removed:
            (root / f"audio/{id}.wav").unlink()
        data = audioset(root, val_fraction=0.3)
        left = {id for stage in ("train", "val") for id in self.stems(data.split(stage))}
        assert left == {video(n) for n in range(16)} - set(removed)
        (message,) = caplog.messages
        assert all(part in message for part in ("balanced_train_segments.csv: ", "7 of 16", ", ".join(removed[:5])))

    def test_missing_clips_and_tables_are_named(self, root):
        shutil.rmtree(root / "audio")
        parts = (f"root={root}", "16 segments of balanced_train_segments.csv", f"{video(0)}.wav")
        check_split_error(audioset(root), *parts, error=FileNotFoundError)
        for name in ("class_labels_indices.csv", "balanced_train_segments.csv"):
            (root / name).unlink()
            check_split_error(audioset(root), f"{root}/{name}", error=FileNotFoundError)

    def test_a_test_clip_that_is_also_for_training_is_refused(self, root):
        self.write(root, (video(3), 3.0), name="eval")
        check_split_error(audioset(root), f"{root}/eval_segments.csv: ", f"{video(3)}.wav")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (f'{video(0)}, 0, 10, "/m/1,/m/99"', "positive_labels: '/m/99' is not a class of"),
            (f'{video(0)}, soon, 10, "/m/0"', "start_seconds='soon'"),
            (f'{video(0)}, 10, 10, "/m/0"', "end_seconds=10 is not after start_seconds=10"),
            (f"{video(0)}, 0.0, 10.0", "3 cells for 4 columns"),
            (f'{video(3)}, 7, 17, "/m/0"', f"YTID={video(3)!r} appears twice with start_seconds=7"),
        ],
    )
    def test_errors_name_the_file_and_the_line(self, root, line, message):
        path = write_lines(
            root / "balanced_train_segments.csv", ["# comment", f'{video(3)}, 7.000, 17.000, "/m/0,/m/1"', line]
        )
        check_split_error(audioset(root), f"{path}: line 3: {message}")

    def test_errors_of_the_classes_are_named(self, root):
        check_error(lambda: audioset(root, num_classes=5).class_names, "num_classes=5", "3 classes", error=ValueError)
        rows = [("index", "mid", "display_name"), (0, "/m/0", "a"), (1, "/m/1", "b"), (2, "/m/0", "c")]
        path = write_csv(root / "class_labels_indices.csv", rows)
        check_split_error(audioset(root), f"{path}: line 4: mid='/m/0' appears twice")

    @pytest.mark.parametrize("fraction", [-0.1, 1.0])
    def test_the_validation_fraction_is_checked(self, root, fraction):
        check_error(lambda: audioset(root, val_fraction=fraction), f"val_fraction={fraction}", error=ValueError)


@REAL
def test_real_classes_of_audioset(tmp_path):
    table = Path(os.environ["PERCEIVER_DATA"]) / "audio" / "audioset_class_labels_indices.csv"
    write_lines(tmp_path / "balanced_train_segments.csv", ['--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"'])
    write_sound(tmp_path / "audio" / "--PJHxphWEs_30000.flac")
    found = audioset(tmp_path, num_classes=527, class_labels=str(table))
    assert len(set(found.class_names)) == 527
    assert [found.class_names[label] for label in found.split("train").sample_classes(0)] == ["Speech", "Gush"]


@REAL
def test_real_mixtures_in_the_layout_of_fsd50k():
    mixtures = fsd50k(Path(os.environ["PERCEIVER_DATA"]) / "audio" / "esc10_mixtures_multilabel", num_classes=10)
    assert mixtures.class_names[:2] == ["Baby_cry_and_infant_cry", "Bark"]
    train, val = mixtures.split("train"), mixtures.split("val")
    assert sizes(mixtures) == [60, 20, 20]
    assert train.sample_classes(0) == [mixtures.class_names.index(name) for name in ("Bark", "Rain")]
    assert set(Counter(len(train.sample_classes(index)) for index in range(60))) == {1, 2, 3}
    sample = val[0]
    assert sample.inputs["audio"].ndim == 3
    assert sample.targets["tags"].sum() == len(val.sample_classes(0))
