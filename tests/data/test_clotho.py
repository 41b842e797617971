from pathlib import Path

import pytest
import soundfile
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.clotho import Clotho
from tests.data.caption_trees import captions_of, clotho_tree, numbers, references, samples
from tests.data.datasets import dataset
from tests.data.tagged_trees import RATE, table

STAGES = ("train", "val", "test")
HEADER = ("file_name", "caption_1", "caption_2", "caption_3", "caption_4", "caption_5")


@pytest.fixture
def root(tmp_path) -> Path:
    return clotho_tree(tmp_path)


def data(root: Path) -> Dataset:
    return dataset(Clotho, "audio", root=str(root))


def expected(stage: str) -> dict[str, list[str]]:
    return {f"{number}.wav": captions_of(number, 5) for number in numbers(stage)}


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


@pytest.mark.parametrize(
    "audio", ["{}", "clotho_audio_{}", "clotho_audio_{0}/{0}", "clotho_audio_files/{}", "audio/{}", "audio", "."]
)
def test_sounds_have_the_captions_of_their_table(tmp_path, audio):
    made = data(clotho_tree(tmp_path, audio=audio))
    assert {stage: references(made.split(stage)) for stage in STAGES} == {stage: expected(stage) for stage in STAGES}
    assert list(made.texts()) == [text for texts in expected("train").values() for text in texts]


@pytest.mark.parametrize("folder", ["clotho_csv_files", "annotations", "csv"])
def test_tables_may_be_in_a_folder(root, folder):
    (root / folder).mkdir()
    for path in sorted(root.glob("*.csv")):
        path.rename(root / folder / path.name)
    assert references(data(root).split("test")) == expected("test")


def test_samples_have_their_sound_and_no_classes(root):
    split = data(root).split("val")
    sample = split[1]
    wave, rate = soundfile.read(root / sample.id, dtype="float32")
    assert rate == RATE
    assert torch.equal(sample.inputs["audio"], torch.from_numpy(wave)[None])
    assert sample.targets["caption"] == captions_of(12, 5)[0]
    assert list(split.classes_of(1)) == data(root).class_names == []


def test_in_training_parts_and_captions_are_drawn(root):
    soundfile.write(root / "development" / "0.wav", torch.rand(RATE).numpy() - 0.5, RATE)
    train = data(root).split("train")
    drawn = [train[0] for _ in range(31)]
    assert {sample.targets["caption"] for sample in drawn} == set(captions_of(0, 5))
    assert not torch.equal(drawn[0].inputs["audio"], drawn[1].inputs["audio"])


def test_in_evaluation_long_sounds_are_looked_at_in_windows(root):
    soundfile.write(root / "evaluation" / "16.wav", torch.rand(RATE).numpy() - 0.5, RATE)
    sample = data(root).split("test")[0]
    assert len(sample.windows) > 1
    assert sample.targets["references"] == captions_of(16, 5)


def test_a_users_file_is_read_as_for_evaluation(root):
    sample = data(root).read(root / "validation" / "11.wav")
    assert sample.targets == {}
    assert torch.equal(sample.inputs["audio"], data(root).split("val")[0].inputs["audio"])


def test_version_1_has_no_validation_split(root):
    (root / "clotho_captions_validation.csv").unlink()
    assert [data(root).split(stage) is None for stage in STAGES] == [False, True, False]


def test_one_name_may_be_in_two_splits_that_have_folders_of_their_own(root):
    (root / "evaluation" / "16.wav").rename(root / "evaluation" / "0.wav")
    path = root / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("16.wav", "0.wav"))
    made = data(root)
    assert [len(made.split(stage)) for stage in STAGES] == [len(numbers(stage)) for stage in STAGES]


def test_captions_that_are_empty_are_left_out_and_so_are_sounds_without_any(root, caplog):
    rows = [("11.wav", "a\nbell", "", " ", "", "b"), ("12.wav", "", "", "", "", "")]
    table(root / "clotho_captions_validation.csv", [HEADER, *rows])
    assert references(data(root).split("val")) == {"11.wav": ["a bell", "b"]}
    assert caplog.messages == [f"{root}/clotho_captions_validation.csv: left out 1 of 2 without a caption: 12.wav"]


def test_a_sound_that_is_missing_is_found_out_when_it_is_read(root):
    (root / "validation" / "12.wav").unlink()
    val = data(root).split("val")
    assert len(val) == len(numbers("val"))
    with pytest.raises(UnreadableError, match=r"validation/12\.wav: no such file"):
        samples(val)


def refused(root: Path, message: str, error: type[Exception] = UnreadableError) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    made = data(root)
    with pytest.raises(error) as raised:
        [made.split(stage) for stage in STAGES]
    assert str(raised.value).replace(str(root), "ROOT") == message


class TestMistakes:
    def test_a_root_without_captions(self, tmp_path):
        message = "root=ROOT: there is no clotho_captions_development.csv in it, nor in clotho_csv_files"
        refused(tmp_path, f"{message}, annotations, csv", FileNotFoundError)

    def test_a_root_without_sounds(self, root):
        (root / "validation").rename(root / "sounds")
        looked = (
            "validation, clotho_audio_validation, clotho_audio_validation/validation, clotho_audio_files/validation"
        )
        message = "root=ROOT: none of the 5 files of ROOT/clotho_captions_validation.csv is in it"
        looked = f"{looked}, audio/validation, audio, clotho_audio_files, ."
        refused(root, f"{message}; looked in {looked}", FileNotFoundError)

    @pytest.mark.parametrize("column", ["file_name", "caption_3"])
    def test_a_column_that_is_missing(self, root, column):
        path = root / "clotho_captions_validation.csv"
        path.write_text(path.read_text().replace(column, "other", 1))
        with pytest.raises(
            UnreadableError, match=rf"validation\.csv: there is no column '{column}'; there are: .*other"
        ):
            [data(root).split(stage) for stage in STAGES]

    def test_a_sound_that_is_listed_twice(self, root):
        table(root / "clotho_captions_evaluation.csv", [HEADER, ("16.wav", *"abcde"), ("16.wav", *"fghij")])
        refused(root, "ROOT/clotho_captions_evaluation.csv: line 3: file_name='16.wav' is there a second time")

    def test_a_sound_that_two_tables_have(self, tmp_path):
        clotho_tree(tmp_path, audio="audio")
        table(tmp_path / "clotho_captions_evaluation.csv", [HEADER, ("16.wav", *"abcde"), ("3.wav", *"fghij")])
        message = "ROOT/audio/3.wav is for test, but it is for train, too"
        refused(tmp_path, f"ROOT/clotho_captions_evaluation.csv: {message}")

    @pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "..", ""])
    def test_a_name_that_leads_out_of_the_folder(self, root, name):
        table(root / "clotho_captions_evaluation.csv", [HEADER, (name, *"abcde")])
        refused(root, f"ROOT/clotho_captions_evaluation.csv: line 2: file_name={name!r} is not a name of a file")

    def test_another_encoding(self, root):
        path = root / "clotho_captions_evaluation.csv"
        path.write_bytes(path.read_text().replace("seen", "ä").encode("latin1"))
        refused(root, "ROOT/clotho_captions_evaluation.csv: not text in UTF-8")
