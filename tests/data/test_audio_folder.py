import numpy as np
import pytest
import soundfile

from perceiver.data.audio import AudioAugment, Clips
from perceiver.data.audio_folder import AudioFolder
from perceiver.data.base import UnreadableError
from perceiver.data.sound_file import SOUND_EXTENSIONS

RATE = 1009
STAGES = ("train", "val", "test")


def beeps(level: float, length: int) -> np.ndarray:
    """A wave that is at `level` but for one place in eleven, where it is twice that: what it is at least tells it."""
    return level * (1 + (np.arange(length) % 11 == 0))


@pytest.fixture
def root(tmp_path):
    """Folders of sounds, each at the level of its class."""
    for stage, count in (("train", 5), ("val", 3), ("test", 2)):
        for name, level in (("loud", 0.5), ("quiet", 0.125)):
            folder = tmp_path / "root" / stage / name
            folder.mkdir(parents=True)
            for number in range(count):
                soundfile.write(folder / f"{number}.wav", beeps(level, 2503), RATE)
    return tmp_path / "root"


def dataset(root, augment: AudioAugment | None = None, **options) -> AudioFolder:
    clips = Clips(sample_rate=RATE, seconds=1.0, hop_seconds=0.5, augment=augment, log_mel=None)
    defaults = {
        "num_classes": 2,
        "on_error": "raise",
        "val_fraction": 0.2,
        "test_fraction": 0.1,
        "fold": None,
        "num_folds": 5,
        "clips": clips,
    }
    return AudioFolder(root=str(root), **(defaults | options))


def test_sounds_come_with_the_label_of_their_folder_and_its_name_in_their_id(root):
    data = dataset(root)
    assert data.class_names == ["loud", "quiet"]
    for stage, count in zip(STAGES, (5, 3, 2), strict=True):
        split = data.split(stage)
        samples = [split[index] for index in range(len(split))]
        assert [sample.id for sample in samples] == [
            f"{stage}/{name}/{number}.wav" for name in ("loud", "quiet") for number in range(count)
        ]
        for index, sample in enumerate(samples):
            label = sample.targets["label"]
            assert tuple(split.classes_of(index)) == (label,)
            assert data.class_names[label] in sample.id
            assert sample.inputs["audio"].min() == (0.5, 0.125)[label]


def test_training_sounds_are_crops_and_others_windows(root):
    shapes = {stage: dataset(root).split(stage)[0].inputs["audio"].shape for stage in STAGES}
    assert shapes == {"train": (1, RATE), "val": (4, 1, RATE), "test": (4, 1, RATE)}


def test_only_training_sounds_are_augmented(root):
    data = dataset(root, augment=AudioAugment(gain=0.0, time_shift=0.0, polarity=1.0))
    assert {stage: float(data.split(stage)[0].inputs["audio"].median()) for stage in STAGES} == {
        "train": -0.5,
        "val": 0.5,
        "test": 0.5,
    }


def test_every_ending_counts_whatever_the_content(root):
    for ending in SOUND_EXTENSIONS:
        soundfile.write(root / "train/loud" / f"x{ending.upper()}", beeps(0.5, RATE), 8000, format="OGG")
    split = dataset(root).split("train")
    ids = {split[index].id for index in range(len(split))}
    assert {f"train/loud/x{ending.upper()}" for ending in SOUND_EXTENSIONS} < ids


def test_files_that_are_no_sounds_are_left_out_and_named(root, caplog):
    (root / "train/loud/x.txt").touch()
    (root / "train/loud/x.mp4").touch()
    assert len(dataset(root).split("train")) == 10
    (message,) = caplog.messages
    assert message.startswith(f"{root}/train: ignored files that are not sounds: 1 × .")


def test_folders_without_any_sound_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no sound with one of the endings .*\.wav"):
        dataset(tmp_path, num_classes=1).split("train")


def test_class_folders_alone_are_split_by_fractions(root):
    data = dataset(root / "train", val_fraction=0.25, test_fraction=0.2)
    assert sum(len(data.split(stage)) for stage in STAGES) == 10
    data = dataset(root / "train", val_fraction=0.0, test_fraction=0.0)
    assert [data.split(stage) is None for stage in STAGES] == [False, True, True]


def test_what_cannot_be_read_is_named_when_it_is_read(root):
    (root / "train/loud/0.wav").write_text("no sound")
    split = dataset(root).split("train")
    with pytest.raises(UnreadableError, match=r"train/loud/0\.wav: Format not recognised$"):
        split[0]
    assert split[1].id == "train/loud/1.wav"


def test_building_one_touches_no_disk(tmp_path):
    dataset(tmp_path / "nowhere")
