"""Videos from files: frames at their times, sound in step with them, and files that lack one of the two."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from perceiver.data.dataset import Dataset
from perceiver.data.files import SOUNDS, VIDEOS, AbsentError, Segment, UnreadableError
from perceiver.data.readers.audio import AudioReader
from perceiver.data.readers.label import LabelReader
from perceiver.data.readers.sound_file import SoundFile
from perceiver.data.readers.video import VideoReader, opened
from perceiver.data.sources.base import Item
from perceiver.data.sources.folders import ClassFolders
from perceiver.data.sources.shards import Shards
from scripts.data_trees import write_tar
from tests.data.datasets import built

RATE, SIZE = 8000, 16
TICK = Fraction(1, 1000)


def write_video(path: Path, times: list[int], *, sound_ms: int = 0, begin_ms: int = 0, wide: bool = False) -> Path:
    """Write frames that are displayed from some milliseconds on, the last for 100 ms; the sound is a ramp.

    Args:
        times: of the frames, whose brightness is their number.
        sound_ms: length of the sound, whose values are its time in units of 10 s; 0 for no sound.
        begin_ms: start of the sound.
        wide: frames are twice as wide as high, and white on the right.
    """
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = SIZE * (1 + wide), SIZE, "yuv444p"
        video.codec_context.time_base = video.time_base = TICK
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono") if sound_ms else None
        for number, time in enumerate(times):
            pixels = np.full((SIZE, SIZE * (1 + wide), 3), 3 * (number % 80), np.uint8)
            pixels[:, SIZE:] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, TICK
            for packet in video.encode(frame):
                packet.duration = 100
                container.mux(packet)
        container.mux(video.encode(None))
        if audio is not None:
            ramp = (np.arange(sound_ms * RATE // 1000) / RATE / 10 * 2**15).astype(np.int16)
            for start in range(0, len(ramp), RATE // 20):
                sound = av.AudioFrame.from_ndarray(ramp[None, start : start + RATE // 20], "s16", "mono")
                sound.sample_rate, sound.time_base = RATE, Fraction(1, RATE)
                sound.pts = begin_ms * RATE // 1000 + start
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def video_reader(**options) -> VideoReader:
    sizes = {
        "image_size": SIZE,
        "channels": 3,
        "frames_per_second": 10.0,
        "seconds": 0.5,
        "hop_seconds": 0.3,
        "flip": 0.0,
    }
    return VideoReader(**(sizes | options))


def audio_reader(**options) -> AudioReader:
    sizes = {"sample_rate": RATE, "seconds": 0.5, "hop_seconds": 0.3, "augment": None, "log_mel": None}
    return AudioReader(**(sizes | options))


def dataset(source=None) -> Dataset:
    return Dataset(source=source, readers={"video": video_reader(), "audio": audio_reader()}, on_error="raise")


def both(path: Path | Segment, *, train: bool):
    return dataset().sample(Item({"video": path, "audio": path}, {}, str(path)), train=train)


def numbers(video: torch.Tensor) -> list[int]:
    """Return the number of each frame."""
    assert video.std(dim=(0, 2, 3)).max() < 0.002
    return (video.mean(dim=(0, 2, 3)) * 255 / 3).round().int().tolist()


class TestFrames:
    @pytest.mark.parametrize("times", [range(0, 1300, 40), [0, 10, 20, 210, 390, 400, 590, 980, 1290], [0, 700]])
    def test_the_frame_that_is_displayed_at_each_time_is_read(self, tmp_path, times):
        path = write_video(tmp_path / "a.mkv", [*times])
        reading = video_reader(seconds=5.0).read(path, train=False)
        wanted = [sum(time <= 100 * number for time in times) - 1 for number in range(reading.values.shape[1])]
        assert numbers(reading.values) == wanted
        assert abs(reading.values.shape[1] - (max(times) / 100 + 1)) <= 1

    def test_windows_cover_the_video_and_end_with_it(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 1200, 100)])
        reading = video_reader().read(path, train=False)
        assert [numbers(window) for window in reading.values] == [[*range(n, n + 5)] for n in (0, 3, 6, 7)]
        assert reading.windows[:2] == ("0.00-0.50 s", "0.30-0.80 s")

    def test_clips_of_training_begin_anywhere(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 2000, 50)])
        starts = set()
        for _ in range(23):
            reading = video_reader().read(path, train=True)
            first = numbers(reading.values)[0]
            assert numbers(reading.values) == [*range(first, first + 10, 2)]
            assert first == int(reading.clips.starts[0] / 0.05 + 1e-6)
            starts.add(first)
        assert len(starts) > 7
        assert max(starts) <= 30

    def test_frames_in_memory_are_read_like_those_of_a_file(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 1200, 100)])
        frames = video_reader(seconds=9.0).read(path, train=False).values
        of_file, in_memory = (video_reader().read(part, train=False) for part in (path, frames))
        assert torch.equal(of_file.values, in_memory.values)
        assert of_file.clips == in_memory.clips

    def test_the_middle_of_a_wide_frame_is_read_and_in_training_any_part_of_it(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [0, 100, 200], wide=True)
        evaluated = video_reader().read(path, train=False).values
        assert evaluated.shape == (3, 3, SIZE, SIZE)
        assert evaluated[..., SIZE // 2 :].min() > 0.9 > evaluated[..., : SIZE // 2].max()
        shares = [video_reader(flip=0.5).read(path, train=True).values for _ in range(11)]
        assert len({float(values.mean()) for values in shares}) > 3
        assert len({bool(values[..., 0].mean() > values[..., -1].mean()) for values in shares}) == 2

    def test_frames_may_be_oblong(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [0, 100, 200], wide=True)
        whole = video_reader(image_size=[SIZE, 2 * SIZE]).read(path, train=False).values
        assert whole.shape == (3, 3, SIZE, 2 * SIZE)
        square = video_reader().read(path, train=False).values
        assert torch.equal(whole[..., SIZE // 2 : SIZE // 2 + SIZE], square)
        in_memory = video_reader(image_size=[SIZE, 2 * SIZE]).read(whole, train=False).values
        assert torch.equal(in_memory, whole)
        assert video_reader(image_size=[2 * SIZE, SIZE]).read(path, train=True).values.shape == (3, 3, 2 * SIZE, SIZE)

    def test_the_rotation_in_the_header_is_applied(self, tmp_path):
        frames = [av.VideoFrame.from_ndarray(np.zeros((SIZE, 2 * SIZE, 3), np.uint8), "rgb24") for _ in range(5)]
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 2 * SIZE, SIZE, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with opened(tmp_path / "a.mp4") as video:
            assert video.read([0.0], (SIZE, SIZE), 3).shape == (1, SIZE, 2 * SIZE, 3)
        content = bytearray((tmp_path / "a.mp4").read_bytes())
        matrix = content.index(b"tkhd") + 4 + 40
        for place, value in enumerate((0, 1, 0, -1, 0, 0)):
            content[matrix + 4 * place : matrix + 4 * place + 4] = (value * 2**16).to_bytes(4, "big", signed=True)
        (tmp_path / "a.mp4").write_bytes(content)
        with opened(tmp_path / "a.mp4") as video:
            assert video.read([0.0], (SIZE, SIZE), 3).shape == (1, 2 * SIZE, SIZE, 3)
            assert video.read([0.0], (SIZE, 3 * SIZE), 3).shape == (1, 6 * SIZE, 3 * SIZE, 3)


class TestSound:
    @pytest.mark.parametrize("begin_ms", [0, 200])
    def test_clips_of_sound_and_video_begin_at_the_same_time(self, tmp_path, begin_ms):
        path = write_video(tmp_path / "a.mkv", [*range(0, 1500, 100)], sound_ms=1500, begin_ms=begin_ms)
        for _ in range(7):
            sample = both(path, train=True)
            # Each frame is displayed for 0.1 s; the sound tells its own time.
            times = sample.inputs["audio"][0].reshape(5, -1).mean(dim=1) * 10.0 + begin_ms / 1000 - 0.05
            for number, time in zip(numbers(sample.inputs["video"]), times.tolist(), strict=True):
                assert time <= begin_ms / 1000 or abs(time - number / 10) <= 0.1

    def test_windows_of_sound_are_those_of_the_video(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 1200, 100)], sound_ms=1000)
        sample = both(path, train=False)
        assert len(sample.inputs["video"]) == len(sample.inputs["audio"]) == len(sample.windows) == 4
        for start, wave in zip((0.0, 0.3, 0.6, 0.7), sample.inputs["audio"], strict=True):
            time = start + torch.arange(RATE // 2) / RATE
            expected = torch.where(time < 1.0, time / 10, 0.0)  # silence after its end
            assert (wave[0] - expected).abs().max() < 1e-3

    def test_a_video_without_sound_lacks_this_modality_alone(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [0, 100, 200])
        for train in (True, False):
            assert both(path, train=train).inputs.keys() == {"video"}
        with pytest.raises(AbsentError, match=r"a\.mkv: .*audio"):
            audio_reader().read(path, train=False)
        readers = {"label": LabelReader(), "video": video_reader(), "audio": audio_reader()}
        labeled = Dataset(source=None, readers=readers, on_error="raise")
        sample = labeled.sample(Item({"video": path, "audio": path}, {"label": 3}, "a"), train=False)
        assert sample.inputs.keys() == {"label", "video"}
        other = write_video(tmp_path / "b.mkv", [0, 100])
        with pytest.raises(AbsentError, match=r"b\.mkv"):  # a file of its own must have sound
            dataset().sample(Item({"video": path, "audio": other}, {}, "a"), train=False)

    def test_a_modality_may_be_withheld_to_test_without_it(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [0, 100, 200], sound_ms=300)
        readers = {"video": video_reader(), "audio": audio_reader()}
        muted = Dataset(source=None, readers=readers, on_error="raise", modalities=["video"])
        sample = muted.sample(Item({"video": path, "audio": path}, {}, "a"), train=False)
        assert sample.inputs.keys() == {"video"}
        for rest in (None, {"augment": None}):  # of a reader that was removed in part
            with pytest.raises(ValueError, match=r"readers\.audio=.*~data\.readers\.audio"):
                Dataset(source=None, readers=readers | {"audio": rest}, on_error="raise")
        with pytest.raises(ValueError, match="'text'"):
            Dataset(source=None, readers=readers, on_error="raise", modalities=["text"])

    def test_a_file_with_sound_alone_is_no_video(self, tmp_path):
        with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=RATE, layout="stereo")
            noise = (0.1 * np.random.default_rng(0).standard_normal((2, 4 * RATE))).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, "fltp", "stereo")
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
        sound = SoundFile(tmp_path / "a.m4a", RATE)
        whole = sound.read()
        assert abs(whole.shape[-1] - 4 * RATE) < 2048
        assert torch.allclose(sound.read(1.5, 0.25), whole[:, 3 * RATE // 2 :][:, : RATE // 4], atol=1e-3)
        with pytest.raises(AbsentError, match=r"a\.m4a: .*video"):
            video_reader().read(tmp_path / "a.m4a", train=False)

    def test_a_segment_is_a_recording_of_its_own(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 2000, 100)], sound_ms=2000)
        sample = both(Segment(path, 0.7, 1.2), train=False)
        assert numbers(sample.inputs["video"]) == [7, 8, 9, 10, 11]
        assert (sample.inputs["audio"][0] - (0.07 + torch.arange(RATE // 2) / RATE / 10)).abs().max() < 1e-3
        for train in (True, False):
            with pytest.raises(UnreadableError, match=r"a\.mkv 3-4 s: .*2\.\d"):
                both(Segment(path, 3.0, 4.0), train=train)


class TestDamage:
    def test_one_frame_is_a_video(self, tmp_path):
        for train in (True, False):
            values = video_reader().read(write_video(tmp_path / "a.mkv", [0]), train=train).values
            assert values.shape == (3, 1, SIZE, SIZE)

    @pytest.mark.parametrize("content", [b"", b"no video" * 99, b"\0\0\0\x18ftypisom" + bytes(99)])
    def test_what_is_not_a_video_is_named(self, tmp_path, content):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        for name in ("a.mp4", "b.mp4"):
            with pytest.raises(UnreadableError, match=name):
                video_reader().read(tmp_path / name, train=False)

    def test_a_truncated_video_is_refused_and_not_padded(self, tmp_path):
        path = write_video(tmp_path / "a.mkv", [*range(0, 9000, 40)], sound_ms=9000)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3])
        for reader in (video_reader(), audio_reader()):
            with pytest.raises(UnreadableError, match=r"a\.mkv"):
                reader.read(path, train=False)

    def test_a_playlist_opens_no_other_file(self, tmp_path):
        write_video(tmp_path / "a.mkv", [0, 100], sound_ms=200)
        (tmp_path / "b.mp4").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/a.mkv\n#EXT-X-ENDLIST"
        )
        for reader in (video_reader(), audio_reader()):
            with pytest.raises(UnreadableError, match=r"b\.mp4"):
                reader.read(tmp_path / "b.mp4", train=False)

    def test_a_video_that_would_fill_the_memory_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("perceiver.data.readers.video.MAX_VALUES", 3 * SIZE * SIZE * 11)
        path = write_video(tmp_path / "a.mkv", [*range(0, 2000, 100)])
        with pytest.raises(UnreadableError, match=r"a\.mkv: .*hop_seconds"):
            video_reader().read(path, train=False)
        video_reader().read(path, train=True)


def test_a_folder_of_videos_gives_frames_and_sound_of_each(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "a.mkv", [0, 100, 200], sound_ms=300)
        write_video(tmp_path / name / "b.mkv", [0, 100, 200])
    write_video(tmp_path / "two" / "b.mka", [0], sound_ms=300)  # a sound of its own is preferred
    options = {"root": str(tmp_path), "num_classes": 2, "val_fraction": 0.0, "test_fraction": 0.0}
    source = built(ClassFolders, **options)
    split = dataset(source).split("train")
    for roles in ({"video": VIDEOS, "audio": SOUNDS}, {"audio": SOUNDS, "video": VIDEOS}):
        b = built(ClassFolders, **options).items("train", roles)[3].parts
        assert (b["video"].name, b["audio"].name) == ("b.mkv", "b.mka")
    items = {split.items[index].id: split.items[index].parts for index in range(len(split))}
    assert {id: parts["audio"].name for id, parts in items.items()} == {
        "one/a": "a.mkv",
        "one/b": "b.mkv",
        "two/a": "a.mkv",
        "two/b": "b.mka",
    }
    assert [split[index].inputs.keys() == {"video"} for index in range(4)] == [False, True, False, False]


def test_a_shard_of_videos_gives_frames_and_sound_of_each(tmp_path):
    video = write_video(tmp_path / "a.mkv", [0, 100, 200], sound_ms=300).read_bytes()
    sound = write_video(tmp_path / "b.mkv", [0], sound_ms=500).read_bytes()
    (tmp_path / "tars").mkdir()
    members = {"x.mkv": video, "x.cls": b"0", "y.mkv": video, "y.mka": sound, "y.cls": b"1"}
    write_tar(tmp_path / "tars" / "train-0.tar", members)
    source = Shards(root=str(tmp_path / "tars"), target="label", num_classes=2, val_fraction=0.0, test_fraction=0.0)
    split = dataset(source).split("train")
    items = [split.items[index].parts for index in range(2)]
    assert [[parts[role].name for role in ("video", "audio")] for parts in items] == [
        ["x.mkv", "x.mkv"],
        ["y.mkv", "y.mka"],
    ]
    assert [split[index].inputs.keys() for index in range(2)] == [{"video", "audio"}] * 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 2}, "channels=2"),
        ({"frames_per_second": -1.0}, "frames_per_second=-1"),
        ({"hop_seconds": 0.7}, r"hop_seconds=0.7 .*seconds=0.5"),
        ({"flip": 1.5}, "flip=1.5"),
    ],
)
def test_settings_out_of_range_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        video_reader(**wrong)
