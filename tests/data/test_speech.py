"""Transcripts in the layouts of LibriSpeech, LJSpeech, digits and tables; synthetic sequences of sound events."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from perceiver.data.files import Joined, UnreadableError
from perceiver.data.readers.audio import AudioReader
from perceiver.data.sources.lists import ListedTexts
from perceiver.data.sources.speech import DIGITS, DigitStrings, LibriSpeech, LJSpeech
from perceiver.data.splits import HeldOut
from perceiver.data.synthetic.sound_scenes import EVENTS
from perceiver.data.synthetic.sound_sequences import SoundSequences
from tests.data.datasets import STAGES, built, check_error, dataset, sizes

RATE = 2003
ROLES = {"audio": AudioReader.kind}


def write(path: Path, seconds: float = 0.1, level: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.random.default_rng(0).uniform(-1, 1, round(seconds * RATE))
    soundfile.write(path, wave, RATE)


def transcripts(source, stage: str) -> dict[str, str]:
    split = dataset_of(source).split(stage)
    found = [] if split is None else [split[index] for index in range(len(split))]
    assert all(sample.inputs["audio"].shape == (1, 200) for sample in found)
    for index, sample in enumerate(found):  # the more is said, the longer it takes
        assert split.sample_length(index) == len(sample.targets["caption"])
    return {sample.id: sample.targets["caption"] for sample in found}


def dataset_of(source):
    return dataset(lambda: source, "audio", whole=True)


def librispeech(root: Path, **subsets) -> LibriSpeech:
    return LibriSpeech(root=str(root), subsets={"train": ["a"], "val": [], "test": ["b", "c"]} | subsets)


@pytest.mark.parametrize("folder", ["", "LibriSpeech"])
def test_librispeech_is_read_by_subsets(tmp_path, folder):
    for subset, speaker in (("a", "11"), ("b", "13"), ("c", "17")):
        chapter = tmp_path / folder / subset / speaker / "7"
        for number in range(2):
            write(chapter / f"{speaker}-7-{number:04d}.flac")
        (chapter / f"{speaker}-7.trans.txt").write_text(f"{speaker}-7-0000 HE  SAW {speaker}\n{speaker}-7-0001 IT'S")
    source = librispeech(tmp_path)
    assert set(transcripts(source, "train").values()) == {"HE SAW 11", "IT'S"}
    assert list(source.texts(on_error="raise")) == ["HE SAW 11", "IT'S"]
    assert len(transcripts(source, "test")) == 4
    assert source.items("val", ROLES) is None
    check_error(lambda: librispeech(tmp_path, train=["d"]).items("train", ROLES), "no d", error=FileNotFoundError)
    table = tmp_path / folder / "a" / "11" / "7" / "11-7.trans.txt"
    for line, part in (("11-7-0001", "11-7-0001"), ("../x Y", "'../x'"), ("11-7-0000 Y", "twice")):
        table.write_text(f"11-7-0000 X\n{line}\n")
        check_error(lambda: librispeech(tmp_path).items("train", ROLES), "11-7.trans.txt", "line 2", part)


def test_ljspeech_has_no_quotes_and_its_last_column_is_read_out(tmp_path):
    for number in range(40):
        write(tmp_path / "wavs" / f"LJ-{number}.wav")
    rows = [f'LJ-{number}|"Dr. {number}|doctor\u2028{number}' for number in range(38)]
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, "LJ-38|doctor 38| ", "LJ-39|only"]))
    source = LJSpeech(root=str(tmp_path), held_out=HeldOut(val_fraction=0.2, test_fraction=0.2))
    found = {stage: transcripts(source, stage) for stage in STAGES}
    assert sorted(text for texts in found.values() for text in texts.values()) == sorted(
        [*(f"doctor {number}" for number in range(39)), "only"]
    )
    assert min(map(len, found.values())) > 2


def test_a_table_of_transcripts_may_have_parts_splits_and_groups(tmp_path):
    write(tmp_path / "a.wav", seconds=1.0)
    held_out = HeldOut(val_fraction=0.2, test_fraction=0.2)
    table = tmp_path / "transcripts.csv"

    def source() -> ListedTexts:
        return ListedTexts(root=str(tmp_path), table=table.name, group_column=None, held_out=held_out)

    table.write_text('path,text,start,stop,split\na.wav,"one,  two",0,0.1,train\na.wav,three,0.5,0.6,test\n')
    assert transcripts(source(), "train") == {"a.wav 0-0.1 s": "one, two"}
    assert transcripts(source(), "test") == {"a.wav 0.5-0.6 s": "three"}
    assert list(source().texts(on_error="raise")) == ["one, two"]
    table.write_text("path,text\na.wav, \n")
    check_error(lambda: source().items("train", ROLES), "transcripts.csv", "line 2", "text is empty")
    table.write_text("file,text\na.wav,one\n")
    check_error(lambda: source().items("train", ROLES), "transcripts.csv", "no column 'path'", "file, text")


def digits(root: Path, **options) -> DigitStrings:
    defaults = {
        "num_samples": {"train": 7, "val": 5, "test": 3},
        "lengths": (2, 5),
        "pause_seconds": (0.0, 0.1),
        "val_indices": [1],
        "test_indices": [0],
        "test_speakers": None,
        "seed": 3,
    }
    return DigitStrings(root=str(root), **(defaults | options))


@pytest.fixture
def recordings(tmp_path) -> Path:
    for speaker in ("ann", "bo_b"):
        for digit in range(10):
            for index in range(4):
                (tmp_path / "recordings").mkdir(exist_ok=True)
                (tmp_path / "recordings" / f"{digit}_{speaker}_{index}.wav").touch()
    return tmp_path


def parts(source: DigitStrings, stage: str) -> list[list[str]]:
    """Names of the files of each string, which are those of the digits in its text."""
    found = []
    items = source.items(stage, ROLES)
    for index in range(len(items)):
        item = items[index]
        names = [path.stem for path in item.parts["audio"].files]
        assert [DIGITS[int(name[0])] for name in names] == item.targets["caption"].split()
        assert len(item.parts["audio"].pauses) == len(names) + 1
        assert 2 <= len(names) <= 5
        assert len({name[1:-1] for name in names}) == 1  # one speaker
        found.append(names)
    return found


def test_digit_strings_are_of_one_speaker_and_of_the_recordings_of_their_stage(recordings):
    source = digits(recordings)
    for stage, indices in (("train", "23"), ("val", "1"), ("test", "0")):
        torch.manual_seed(0)
        found = parts(source, stage)
        assert {name[-1] for names in found for name in names} <= set(indices)
        torch.manual_seed(1)
        assert (parts(source, stage) == found) == (stage != "train")
    other = digits(recordings, test_speakers=["bo_b"], num_samples=dict.fromkeys(STAGES, 31))
    for stage, speaker, indices in (("train", "ann", "023"), ("val", "ann", "1"), ("test", "bo_b", "0123")):
        names = [name for names in parts(other, stage) for name in names]
        assert {name[2:-2] for name in names} == {speaker}
        assert {name[-1] for name in names} == set(indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples="),
        ({"lengths": (3, 2)}, r"lengths=\[3, 2\]"),
        ({"pause_seconds": (-0.1, 0.1)}, r"pause_seconds=\["),
        ({"val_indices": [0]}, r"val_indices=\[0\]"),
        ({"seed": -1}, "seed=-1"),
        ({"test_speakers": ["cy"]}, "test_speakers: .*'cy'; there are ann, bo_b"),
        ({"test_indices": [0, 2, 3]}, "no recordings for train"),
    ],
)
def test_invalid_settings_of_digit_strings_are_refused(recordings, options, message):
    with pytest.raises(ValueError, match=message):
        digits(recordings, **options).items("train", ROLES)


def test_recordings_must_be_named_and_complete(recordings):
    (recordings / "recordings" / "7_ann_0.wav").unlink()
    with pytest.raises(ValueError, match="no recordings by ann for test of 7"):
        digits(recordings).items("test", ROLES)
    with pytest.raises(FileNotFoundError, match="<digit>_<speaker>_<index>"):
        digits(recordings / "nowhere").items("train", ROLES)


def test_recordings_are_joined_with_pauses(tmp_path):
    for name, level in (("a", 0.25), ("b", 0.5)):
        write(tmp_path / f"{name}.wav", level=level)
    reader = built(AudioReader, seconds=1.0, hop_seconds=1.0, whole=True)
    one, other = (reader.read(tmp_path / f"{name}.wav", train=False).values for name in "ab")
    joined = Joined((tmp_path / "a.wav", tmp_path / "b.wav"), (0.0, 0.1, 0.05))
    expected = torch.cat([one, torch.zeros(1, 200), other, torch.zeros(1, 100)], dim=1)
    assert torch.equal(reader.read(joined, train=False).values, expected)
    assert torch.equal(reader.read(joined, train=True).values, expected)


@pytest.mark.parametrize("train", [True, False])
def test_a_recording_that_is_read_as_a_whole_must_not_be_longer(tmp_path, train):
    write(tmp_path / "long.wav", seconds=0.4)
    reader = built(AudioReader, whole=True)  # 0.31 s
    with pytest.raises(UnreadableError, match=r"long\.wav: 0\.40 s .*seconds=0\.31"):
        reader.read(tmp_path / "long.wav", train=train)
    with pytest.raises(UnreadableError, match="seconds=0"):
        reader.read(torch.rand(1, 999), train=train)
    write(tmp_path / "short.wav", seconds=0.1)
    joined = Joined((tmp_path / "short.wav", tmp_path / "long.wav"), (0.0, 0.1, 0.2))
    with pytest.raises(UnreadableError, match=r"short\.wav, .*long\.wav: 0\.80 s "):
        reader.read(joined, train=train)
    assert reader.read(torch.rand(1, 621 + 11), train=train).values.shape == (1, 621)
    assert reader.decoded(tmp_path / "short.wav") is not None
    for part in (tmp_path / "long.wav", joined):  # left as it is: the times of another modality may be read of it
        assert reader.decoded(part) is None


def sequences(**options) -> SoundSequences:
    defaults = {
        "sample_rate": 16_000,
        "num_samples": {"train": 7, "val": 5, "test": 11},
        "lengths": (1, 4),
        "event_seconds": (0.4, 0.6),
        "pause_seconds": (0.05, 0.2),
        "snr": (60.0, 60.0),
        "seed": 3,
    }
    return SoundSequences(**(defaults | options))


def test_every_word_of_a_sequence_has_the_time_of_its_event():
    items = sequences().items("test", ROLES)
    kinds = {name.replace("_", " ") for name in EVENTS}
    for index in range(len(items)):
        item = items[index]
        text, wave = item.targets["caption"], item.parts["audio"][0]
        mentions = item.targets["facts"].mentions(text)
        assert [one.word for one in mentions] == list(range(len(text.split())))
        events: dict[tuple[float, float], list[str]] = {}
        for mention, word in zip(mentions, text.split(), strict=True):
            (box,) = mention.boxes
            events.setdefault(box.ranges["time"], []).append(word)
        assert {" ".join(words) for words in events.values()} <= kinds
        assert sorted(events) == list(events)
        assert items.sample_length(index) == len(events)
        quiet = torch.ones(len(wave), dtype=torch.bool)
        for onset, offset in events:
            quiet[round(onset * 16_000) : round(offset * 16_000)] = False
        assert wave[quiet].square().sum() < 1e-3 * wave.square().sum()


def test_tested_sequences_depend_on_seed_stage_and_index_only():
    first, again = (sequences().items("val", ROLES)[3] for _ in range(2))
    assert torch.equal(first.parts["audio"], again.parts["audio"])
    assert not torch.equal(
        sequences(seed=4).items("val", ROLES)[3].parts["audio"][:, :99], first.parts["audio"][:, :99]
    )
    train = sequences().items("train", ROLES)
    one, other = train[2], train[2]
    assert one.targets == other.targets
    assert "facts" not in one.targets
    assert one.parts["audio"].shape != other.parts["audio"].shape
    assert list(sequences().texts(on_error="raise")) == [train[index].targets["caption"] for index in range(7)]
    assert sequences(num_samples={"train": 1, "val": 0, "test": 1}).items("val", ROLES) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 8000}, "sample_rate=8000"),
        ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples="),
        ({"lengths": (0, 2)}, r"lengths=\[0, 2\]"),
        ({"event_seconds": (0.2, 0.6)}, r"event_seconds=\["),
        ({"pause_seconds": (0.2, 0.1)}, r"pause_seconds=\["),
        ({"snr": (3.0, -3.0)}, r"snr=\["),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_settings_of_sequences_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sequences(**options)


needs_data = pytest.mark.skipif("PERCEIVER_DATA" not in os.environ, reason="PERCEIVER_DATA is not set")


@needs_data
def test_real_recordings():
    root = Path(os.environ["PERCEIVER_DATA"]) / "speech"
    options = {"sample_rate": 8000, "seconds": 36.0, "hop_seconds": 36.0, "whole": True}
    data = dataset(
        LibriSpeech,
        "audio",
        root=str(root / "LibriSpeech"),
        subsets={"train": ["test-clean"], "val": [], "test": []},
        **options,
    )
    assert sizes(data) == [len(list((root / "LibriSpeech" / "test-clean").rglob("*.flac"))), 0, 0]
    assert data.split("train")[0].targets["caption"].isupper()
    data = dataset(
        LJSpeech,
        "audio",
        root=str(root / "LJSpeech-1.1"),
        held_out=HeldOut(val_fraction=0.2, test_fraction=0.2),
        **options,
    )
    assert sum(sizes(data)) == len((root / "LJSpeech-1.1" / "metadata.csv").read_text("utf-8").splitlines())
    data = dataset(lambda: digits(root / "fsdd"), "audio", **options)
    for stage in STAGES:
        sample = data.split(stage)[0]
        assert sample.inputs["audio"].shape[1] > 2000 * len(sample.targets["caption"].split())
