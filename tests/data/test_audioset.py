import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.audioset import AudioSet
from tests.data.datasets import dataset
from tests.data.tagged_trees import audioset_tree, noise, segments, table, video

STAGES = ("train", "val", "test")
MIDS = ["/m/0", "/m/1"]


@pytest.fixture
def root(tmp_path) -> Path:
    return audioset_tree(tmp_path)


def data(root: Path, *, num_classes: int = 3, **options) -> Dataset:
    lists = {"train_segments": ["balanced_train_segments.csv"], "eval_segments": "eval_segments.csv"}
    settings = {**lists, "class_labels": "class_labels_indices.csv", "val_fraction": 0.0, **options}
    return dataset(AudioSet, "audio", root=str(root), num_classes=num_classes, **settings)


def names(split) -> set[str]:
    return {Path(split.name_of(index)).stem for index in range(len(split))}


def videos(split) -> list[str]:
    return [Path(split[index].id).stem for index in range(len(split))]


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


def test_every_segment_is_a_sample_with_all_its_tags(root):
    train, test = data(root).split("train"), data(root).split("test")
    assert videos(train) == [video(n) for n in range(23)]
    assert videos(test) == [video(n) for n in range(1000, 1005)]
    assert data(root).split("val") is None
    for n in range(23):
        assert set(train.classes_of(n)) == {n % 3, (n + 1) % 3}
        assert train[n].targets["tags"].nonzero().flatten().tolist() == sorted(train.classes_of(n))
    assert train[0].inputs["audio"].ndim == 2
    assert train[0].id == f"audio/balanced_train_segments/{video(0)}.wav"


def test_classes_have_the_names_that_are_displayed(root):
    assert data(root).class_names == [f"Class {label}, so to say" for label in range(3)]


def test_there_may_be_no_test_set(root):
    assert data(root, eval_segments=None).split("test") is None


def test_training_segments_may_be_in_several_lists(root):
    segments(root / "unbalanced.csv", [(video(n), 0.0, MIDS) for n in range(500, 503)])
    for n in range(500, 503):
        noise(root / "more" / f"{video(n)}.wav")
    both = data(root, train_segments=["balanced_train_segments.csv", "unbalanced.csv"])
    assert videos(both.split("train")) == [video(n) for n in (*range(23), *range(500, 503))]
    one = data(root, train_segments="unbalanced.csv")
    assert videos(one.split("train")) == [video(n) for n in range(500, 503)]


class TestValidation:
    @pytest.fixture
    def many(self, tmp_path) -> Path:
        audioset_tree(tmp_path, num_train=0)
        segments(tmp_path / "balanced_train_segments.csv", [(video(n), 0.0, MIDS) for n in range(1009)])
        for n in range(1009):
            (tmp_path / f"{video(n)}.wav").touch()
        return tmp_path

    def parts(self, root: Path, **options) -> tuple[set[str], set[str]]:
        train, val = (data(root, val_fraction=0.23, **options).split(stage) for stage in ("train", "val"))
        return names(train), names(val)

    def test_it_is_a_random_part_of_the_training_segments(self, many):
        train, val = self.parts(many)
        assert len(train) + len(val) == len(train | val) == 1009
        assert abs(len(val) - 0.23 * 1009) < 3.3 * (0.23 * 0.77 * 1009) ** 0.5  # 1 in 1000
        numbers = torch.tensor([float(name[1:10]) for name in val])
        assert abs(numbers.mean() - 504) < 3.3 * 291 / len(val) ** 0.5

    def test_what_is_missing_or_added_changes_nothing_for_the_rest(self, many):
        train, val = self.parts(many)
        for n in range(0, 1009, 3):
            (many / f"{video(n)}.wav").unlink()
        segments(many / "more.csv", [(video(2003), 0.0, MIDS)])
        (many / f"{video(2003)}.wav").touch()
        fewer = self.parts(many, train_segments=["more.csv", "balanced_train_segments.csv"])
        there = {video(n) for n in range(1009) if n % 3}
        assert tuple(part & there for part in fewer) == (train & there, val & there)

    @pytest.mark.parametrize("fraction", [-0.1, 1.0])
    def test_its_share_must_leave_something(self, root, fraction):
        with pytest.raises(ValueError, match=rf"^val_fraction={fraction}"):
            data(root, val_fraction=fraction)


class TestNames:
    @pytest.mark.parametrize(
        "id", ["-0123456789", "_0123456789", "Y0123456789", "abc-def_ghi", "0123456789_", "12345678901"]
    )
    @pytest.mark.parametrize(
        "name",
        [
            *("{}.wav", "{}.flac", "{}.ogg", "{}.mp3", "{}.WAV", "Y{}.wav", "{}_30000.wav", "{}_30000_40000.wav"),
            *("{}_30_40.wav", "{}_30.000_40.000.wav", "{}_30.wav", "Y{}_30.000_40.000.flac", "deep/down/{}.wav"),
        ],
    )
    def test_a_clip_is_found_under_all_that_it_may_be_called(self, tmp_path, id, name):
        audioset_tree(tmp_path, num_train=0)
        segments(tmp_path / "balanced_train_segments.csv", [(id, 30.0, MIDS)])
        path = tmp_path / "elsewhere" / name.format(id)
        path.parent.mkdir(parents=True)
        noise(tmp_path / "noise.wav").rename(path)
        train = data(tmp_path).split("train")
        assert [train[0].id] == [str(path.relative_to(tmp_path))]

    @pytest.mark.parametrize(
        "name",
        [
            *("x0123456789.wav", "0123456789.wav", "-0123456789a.wav", "-0123456789_other.wav", "YY-0123456789.wav"),
            *("-0123456789.txt", "-0123456789_90_100.wav", "-0123456789_90000.wav", ".-0123456789.wav"),
            ".hidden/-0123456789.wav",
        ],
    )
    def test_other_files_are_no_clips(self, tmp_path, name):
        audioset_tree(tmp_path, num_train=0)
        segments(tmp_path / "balanced_train_segments.csv", [("-0123456789", 30.0, MIDS)])
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        with pytest.raises(FileNotFoundError):
            data(tmp_path).split("train")

    def test_capitals_count(self, tmp_path):
        audioset_tree(tmp_path, num_train=0)
        segments(tmp_path / "balanced_train_segments.csv", [("abcdefghijk", 0.0, MIDS), ("ABCDEFGHIJK", 0.0, MIDS)])
        noise(tmp_path / "ABCDEFGHIJK.wav")
        assert videos(data(tmp_path).split("train")) == ["ABCDEFGHIJK"]

    def test_several_segments_of_a_video_each_have_their_file(self, tmp_path):
        audioset_tree(tmp_path, num_train=0)
        rows = [("-0123456789", start, MIDS) for start in (30.0, 0.0, 47.5)]
        segments(tmp_path / "balanced_train_segments.csv", rows)
        for start in (0, 30000, 47500, 90000):
            noise(tmp_path / f"-0123456789_{start}.wav")
        assert videos(data(tmp_path).split("train")) == [f"-0123456789_{start}" for start in (30000, 0, 47500)]

    def test_ids_of_other_lengths_are_names_of_files_too(self, tmp_path):
        audioset_tree(tmp_path, num_train=0)
        segments(tmp_path / "balanced_train_segments.csv", [("dog_1", 0.0, MIDS)])
        noise(tmp_path / "dog_1.wav")
        assert videos(data(tmp_path).split("train")) == ["dog_1"]


class TestMissingClips:
    def test_segments_without_a_file_are_left_out_with_one_warning(self, root, caplog):
        gone = [video(n) for n in range(1, 14, 2)]
        for id in gone:
            (root / "audio" / "balanced_train_segments" / f"{id}.wav").unlink()
        with caplog.at_level(logging.WARNING):
            found = data(root, val_fraction=0.3)
            left = [videos(found.split(stage)) for stage in ("train", "val")]
        assert {id for part in left for id in part} == {video(n) for n in range(23)} - set(gone)
        (record,) = caplog.records
        message = "balanced_train_segments.csv: 7 of 23 segments have no file: "
        assert record.getMessage() == message + ", ".join(gone[:5]) + ", …"

    def test_if_there_is_none_at_all_it_is_said_where_was_looked(self, root):
        shutil.rmtree(root / "audio" / "eval_segments")
        with pytest.raises(FileNotFoundError) as error:
            data(root).split("test")
        message = str(error.value)
        assert message.startswith(f"root={root}: of the 5 segments in eval_segments.csv none is there; looked in every")
        assert f"{video(1000)}.wav" in message

    @pytest.mark.parametrize("name", ["balanced_train_segments.csv", "class_labels_indices.csv"])
    def test_a_missing_table_is_named(self, root, name):
        (root / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            data(root).split("train")


class TestMistakes:
    def refused(self, root: Path, message: str) -> None:
        with pytest.raises(UnreadableError) as error:
            data(root).split("train")
        assert str(error.value).replace(str(root), "ROOT") == message

    def test_a_class_that_is_not_in_the_table_of_classes(self, root):
        segments(root / "balanced_train_segments.csv", [(video(0), 0.0, MIDS), (video(1), 0.0, ["/m/1", "/m/99"])])
        table = "balanced_train_segments.csv: line 5: positive_labels"
        self.refused(root, f"ROOT/{table}: '/m/99' is no class of ROOT/class_labels_indices.csv")

    def test_a_beginning_that_is_no_number(self, root):
        (root / "balanced_train_segments.csv").write_text(f'{video(0)}, soon, 10, "/m/0"\n')
        self.refused(root, "ROOT/balanced_train_segments.csv: line 1: start_seconds='soon' is not a number of seconds")

    def test_a_line_with_too_few_cells(self, root):
        (root / "balanced_train_segments.csv").write_text(f"# comment\n{video(0)}, 0.0, 10.0\n")
        with pytest.raises(UnreadableError, match=r"balanced_train_segments\.csv: line 2: "):
            data(root).split("train")

    def test_a_segment_that_is_there_twice(self, root):
        segments(root / "balanced_train_segments.csv", [(video(3), 7.0, MIDS), (video(3), 7.0, MIDS)])
        self.refused(
            root, f"ROOT/balanced_train_segments.csv: line 5: YTID={video(3)!r} from 7 s on is there a second time"
        )

    def test_another_number_of_classes(self, root):
        with pytest.raises(ValueError, match=r"^num_classes=5, but .*class_labels_indices\.csv has 3 classes"):
            data(root, num_classes=5).class_names  # noqa: B018

    def test_a_class_that_is_there_twice(self, root):
        rows = [("index", "mid", "display_name"), (0, "/m/0", "a"), (1, "/m/1", "b"), (2, "/m/0", "c")]
        table(root / "class_labels_indices.csv", rows)
        self.refused(root, "ROOT/class_labels_indices.csv: line 4: mid='/m/0' is there a second time")


@pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA names no folder of real data")
def test_the_real_classes(tmp_path):
    table = Path(os.environ["PERCEIVER_DATA"]) / "audio" / "audioset_class_labels_indices.csv"
    segments(tmp_path / "balanced_train_segments.csv", [("--PJHxphWEs", 30.0, ["/m/09x0r", "/t/dd00088"])])
    noise(tmp_path / "audio" / "--PJHxphWEs_30000.flac")
    found = data(tmp_path, num_classes=527, class_labels=str(table))
    assert len(set(found.class_names)) == 527
    assert [found.class_names[label] for label in found.split("train").classes_of(0)] == ["Speech", "Gush"]
