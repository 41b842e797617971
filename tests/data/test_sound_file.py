import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from perceiver.data import files
from perceiver.data.files import UnreadableError
from perceiver.data.readers import sound_file
from perceiver.data.readers.sound_file import SoundFile, resampled

RATE = 16000
RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 44101, 48000, 96000]
KINDS = {
    "8-bit wav": ("WAV", "PCM_U8", 0.01),
    "16-bit wav": ("WAV", "PCM_16", 1e-4),
    "24-bit wav": ("WAV", "PCM_24", 1e-6),
    "float wav": ("WAV", "FLOAT", 1e-6),
    "double wav": ("WAV", "DOUBLE", 1e-6),
    "mu-law wav": ("WAV", "ULAW", 0.02),
    "64-bit wav": ("W64", "PCM_16", 1e-4),
    "flac": ("FLAC", "PCM_16", 1e-4),
    "vorbis": ("OGG", "VORBIS", 0.05),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.05),
    "aiff": ("AIFF", "PCM_16", 1e-4),
    "au": ("AU", "PCM_16", 1e-4),
    "caf": ("CAF", "PCM_16", 1e-4),
}
"""Kind -> format, subtype and how far from the original it may be."""


def sine(frequency: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def noise(length: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(length)


def write(path: Path, wave: np.ndarray, rate: int = RATE, kind: str = "16-bit wav") -> Path:
    soundfile.write(path, wave, rate, format=KINDS[kind][0], subtype=KINDS[kind][1])
    return path


def refused(path: Path, message: str, **part) -> None:
    """Reading is refused with the path, once, and a reason."""
    with pytest.raises(UnreadableError) as error:
        SoundFile(path, RATE).read(**part)
    assert str(error.value) == f"{path}: {message}"


class TestKinds:
    @pytest.mark.parametrize("ending", ["wav", "mp3", "ogg", "flac", "au", "raw", "txt"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_file_is_is_told_by_its_content(self, tmp_path, kind, ending):
        wave = sine(443, RATE, 0.5)
        read = SoundFile(write(tmp_path / f"x.{ending}", wave, kind=kind), RATE).read()
        assert read.shape == (1, 8000)
        assert read.dtype == torch.float32
        inner = slice(500, -500)  # the lossy ones are less exact at the ends
        torch.testing.assert_close(read[0, inner], torch.from_numpy(wave[inner]).float(), atol=KINDS[kind][2], rtol=0.0)

    @pytest.mark.parametrize("ending", ["wav", "au", "snd", "vox", "gsm", "raw", "mp3"])
    def test_a_text_is_no_sound_whatever_it_is_called(self, tmp_path, ending):
        path = tmp_path / f"x.{ending}"
        path.write_text("no sound at all\n" * 1000)
        refused(path, "Format not recognised")

    @pytest.mark.parametrize("channels", [2, 3, 5, 7, 31])
    @pytest.mark.parametrize("kind", ["16-bit wav", "float wav"])
    def test_channels_are_mixed_down_to_their_mean(self, tmp_path, kind, channels):
        waves = 0.03 * np.random.default_rng(0).standard_normal((503, channels))
        path = write(tmp_path / "x.wav", waves, kind=kind)
        expected = torch.from_numpy(waves.mean(axis=1, keepdims=True).T).float()
        torch.testing.assert_close(SoundFile(path, RATE).read(), expected, atol=1e-4, rtol=0.0)

    @pytest.mark.parametrize("block", [499, 10**6])
    @pytest.mark.parametrize("kind", ["16-bit wav", "float wav", "flac", "vorbis", "mp3"])
    @pytest.mark.parametrize("shares", [(0.96, -1.0), (-1.0, 0.99), (1.0, -0.5, -0.5), (0.1, 0.1, 0.8, -1.0, 0.0, 0.0)])
    def test_of_channels_that_cancel_each_other_the_loudest_is_read(
        self, tmp_path, monkeypatch, caplog, shares, kind, block
    ):
        monkeypatch.setattr(files, "_told", set())
        monkeypatch.setattr(sound_file, "BLOCK", block)
        if kind == "mp3":
            shares = (shares[0], -shares[0])[: len(shares)]  # it has two at most, here equally loud
        wave = sine(443, RATE, 0.5)
        offset = 0.1 if kind == "float wav" else 0.0
        path = write(tmp_path / "x.wav", wave[:, None] * shares + offset, kind=kind)
        loudest = np.abs(shares).max()
        for part, expected in (({}, wave), ({"start": 0.1, "seconds": 0.2}, wave[1600:4800])):
            read = SoundFile(path, RATE).read(**part)[0].numpy()[500:-500]
            read = (read - offset) * np.sign(read @ expected[500:-500])
            assert np.abs(read - loudest * expected[500:-500]).max() < KINDS[kind][2] + 0.01
        assert [str(path) in text and "cancel" in text for text in caplog.messages] == [True]

    @pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), (1.0, -0.8), (1.0,)])
    def test_channels_of_which_something_is_left_are_mixed(self, tmp_path, monkeypatch, caplog, shares):
        monkeypatch.setattr(files, "_told", set())
        wave = sine(443, RATE, 0.1)
        read = SoundFile(write(tmp_path / "x.wav", wave[:, None] * shares, kind="float wav"), RATE).read()
        torch.testing.assert_close(read[0], torch.from_numpy(wave * np.mean(shares)).float(), atol=1e-5, rtol=0.0)
        assert caplog.messages == []

    def test_a_sound_as_quiet_as_the_last_bit_is_kept(self, tmp_path):
        path = write(tmp_path / "x.wav", np.full(101, 2.0**-15))
        assert SoundFile(path, RATE).read().unique().tolist() == [2.0**-15]


class TestRates:
    @pytest.mark.parametrize("frequency", [97, 997, 3001])
    @pytest.mark.parametrize("rate", RATES)
    def test_a_sine_keeps_its_frequency_amplitude_and_phase(self, tmp_path, rate, frequency):
        path = write(tmp_path / "x.wav", sine(frequency, rate, 0.5), rate, "float wav")
        read = SoundFile(path, RATE).read()[0]
        assert len(read) == pytest.approx(8000, abs=1)
        expected = torch.from_numpy(sine(frequency, RATE, 0.5)).float()[: len(read)]
        inner = slice(200, len(expected) - 200)
        torch.testing.assert_close(read[inner], expected[inner], atol=2e-3, rtol=0.0)

    def test_what_the_wanted_rate_cannot_hold_is_filtered_out(self):
        aliased = resampled(sine(10007, 44100, 1.0).astype(np.float32), 44100, RATE)
        assert np.abs(aliased[200:-200]).max() < 0.5e-2  # 40 dB below

    @pytest.mark.parametrize("rate", RATES)
    @pytest.mark.parametrize("length", [1, 2, 101, 44103])
    def test_the_length_is_right_to_within_a_sample(self, rate, length):
        assert abs(len(resampled(noise(length).astype(np.float32), rate, RATE)) - length * RATE / rate) < 1

    @pytest.mark.parametrize("rate", [999, 768_001])
    def test_a_rate_that_no_device_has_is_refused(self, tmp_path, rate):
        path = write(tmp_path / "x.wav", noise(101), rate)
        refused(path, f"a sample rate of {rate} Hz is not believable")

    def test_the_slowest_and_the_fastest_are_read(self, tmp_path):
        for rate in (sound_file.MIN_RATE, sound_file.MAX_RATE):
            read = SoundFile(write(tmp_path / "x.wav", noise(rate // 10), rate), RATE).read()
            assert read.shape == (1, RATE // 10)


class TestParts:
    @pytest.mark.parametrize("rate", RATES)
    def test_a_part_is_as_long_as_asked(self, tmp_path, rate):
        file = SoundFile(write(tmp_path / "x.wav", noise(3 * rate), rate), RATE)
        for start in (0.0, 0.1, 0.7317, 1 / 3):
            for seconds in (1 / RATE, 0.1, 1.0, 16001 / RATE):
                assert file.read(start, seconds).shape == (1, round(seconds * RATE))

    @pytest.mark.parametrize("rate", RATES)
    def test_a_part_is_what_the_whole_holds_there(self, tmp_path, rate):
        path = write(tmp_path / "x.wav", noise(2 * rate), rate, "float wav")
        file = SoundFile(path, RATE)
        # Where both rates have a sample: elsewhere a part begins with the nearest one that the file has.
        start = 1.0 if rate == 44101 else 0.48
        first = round(start * RATE)
        part, whole = file.read(start, 0.5), file.read()
        inner = slice(50, -50)
        torch.testing.assert_close(part[:, inner], whole[:, first : first + 8000][:, inner], atol=1e-5, rtol=0.0)

    @pytest.mark.parametrize("kind", ["flac", "vorbis", "mp3"])
    def test_a_part_of_a_compressed_file_is_what_the_whole_holds_there(self, tmp_path, kind):
        file = SoundFile(write(tmp_path / "x.wav", noise(5 * RATE), kind=kind), RATE)
        whole = file.read()
        for start in (0.1, 1.3, 4.4):
            first = round(start * RATE)
            torch.testing.assert_close(file.read(start, 0.5), whole[:, first : first + 8000], atol=1e-5, rtol=0.0)

    def test_an_mp3_is_decoded_alike_at_once_in_blocks_and_in_parts(self, tmp_path, monkeypatch):
        path = write(tmp_path / "x.mp3", sine(443, 44100, 7.0), 44100, "mp3")  # of which frames borrow many bits
        file = SoundFile(path, 44100)
        whole = file.read()
        assert whole[0, 1000:-3000].abs().max() < 0.51
        monkeypatch.setattr(sound_file, "BLOCK", 4999)
        torch.testing.assert_close(file.read(), whole, atol=1e-5, rtol=0.0)
        for first in range(0, 44100 * 5, 23011):
            part = file.read(first / 44100, 0.3)
            torch.testing.assert_close(part, whole[:, first : first + 13230], atol=1e-5, rtol=0.0)

    def test_a_part_ends_with_the_file(self, tmp_path):
        wave = noise(1009)
        file = SoundFile(write(tmp_path / "x.wav", wave), RATE)
        torch.testing.assert_close(
            file.read(1000 / RATE, 1.0)[0].numpy(), wave[1000:].astype(np.float32), atol=1e-4, rtol=0
        )
        assert file.read(1000 / RATE).shape == (1, 9)
        for start in (1009, 1013, 10**9):
            refused(file.path, f"ends before {start / RATE:.2f} s, though it claims 0.06 s", start=start / RATE)

    def test_of_a_long_file_only_the_part_is_decoded(self, tmp_path, decoded):
        path = write(tmp_path / "x.wav", np.zeros(600 * 8000), 8000)
        assert SoundFile(path, RATE).read(431.0, 1.0).shape == (1, RATE)
        assert sum(decoded) == 8000

    @pytest.mark.parametrize("block", [1, 499, 503, 10**6])
    def test_blocks_change_nothing(self, tmp_path, monkeypatch, block):
        path = write(tmp_path / "x.wav", 0.1 * np.random.default_rng(0).standard_normal((503, 2)))
        expected = SoundFile(path, RATE).read()
        monkeypatch.setattr(sound_file, "BLOCK", block)
        assert torch.equal(SoundFile(path, RATE).read(), expected)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many samples were decoded, one entry a call."""
    counts = []
    read = soundfile.SoundFile.read

    def counting(self, *args, **kwargs):
        block = read(self, *args, **kwargs)
        counts.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    return counts


class TestDamage:
    def test_what_is_no_file(self, tmp_path):
        refused(tmp_path / "x.wav", "no such file")
        refused(tmp_path, "Is a directory")
        (tmp_path / "empty.wav").touch()
        refused(tmp_path / "empty.wav", "the file is empty")

    def test_messages_are_short_where_the_path_looks_like_a_message(self, tmp_path):
        path = tmp_path / "a: b: ü.wav"
        path.write_bytes(b"\0" * 1000)
        refused(path, "Format not recognised")

    def test_a_file_without_samples(self, tmp_path):
        refused(write(tmp_path / "x.wav", np.zeros(0)), "there is no sound in it")

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_sample_is_a_sound(self, tmp_path, kind):
        path = write(tmp_path / "x.wav", np.full(1, 0.5), kind=kind)
        assert SoundFile(path, RATE).read().shape == (1, 1)

    @pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes_or_refused(self, tmp_path, kind, share):
        wave = noise(5 * RATE)
        path = write(tmp_path / "x.wav", wave, kind=kind)
        whole = SoundFile(path, RATE).read()
        content = path.read_bytes()
        path.write_bytes(content[: round(share * len(content))])
        try:
            read = SoundFile(path, RATE).read()
        except UnreadableError as error:
            reason = str(error).removeprefix(f"{path}: ")
            assert 5 < len(reason) < 80
            assert str(path) not in reason
            assert kind not in ("au", "64-bit wav") or share < 0.01
        else:
            assert kind in ("au", "64-bit wav", "caf", "mp3"), "whose headers are not read here"
            same = slice(max(read.shape[-1] - 2000, 0))  # the lossy ones end with what the missing part would mend
            assert 0 < read.shape[-1] <= share * 1.1 * len(wave)
            torch.testing.assert_close(read[:, same], whole[:, same], atol=1e-5, rtol=0.0)

    def test_a_flac_that_was_cut_off_says_so(self, tmp_path):
        path = write(tmp_path / "x.wav", noise(5 * RATE), kind="flac")
        path.write_bytes(path.read_bytes()[:50_000])
        refused(path, "flac decoder lost sync")

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if "wav" in kind and kind != "64-bit wav"] + ["aiff"])
    @pytest.mark.parametrize("lacking", [1, 2, 5003])
    def test_a_file_that_lacks_any_of_its_bytes_says_so(self, tmp_path, kind, lacking):
        path = write(tmp_path / "x.wav", noise(5004), kind=kind)
        path.write_bytes(path.read_bytes()[:-lacking])
        refused(path, "was cut off: it is shorter than it claims")

    def test_what_stands_around_the_sound_is_no_part_of_it(self, tmp_path):
        path = write(tmp_path / "x.wav", noise(5004))
        content = path.read_bytes()
        whole = SoundFile(path, RATE).read()
        path.write_bytes(content[:12] + b"LIST" + (5).to_bytes(4, "little") + b"12345\0" + content[12:] + b"LIST\xff")
        assert torch.equal(SoundFile(path, RATE).read(), whole)

    @pytest.mark.parametrize("value", [1001.0, -1001.0, 1e20])
    def test_what_is_louder_than_any_sound_is_refused(self, tmp_path, value):
        wave = noise(101)
        wave[53] = value
        refused(write(tmp_path / "x.wav", wave, kind="float wav"), f"holds {abs(value):g} where full scale is 1")
        wave[53] = np.sign(value) * 999
        assert SoundFile(write(tmp_path / "x.wav", wave, kind="float wav"), RATE).read().abs().max() == 999

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "x.wav")
        refused(tmp_path / "x.wav", "a pipe or a device, and no file")

    @pytest.mark.parametrize("place", [0, 5003, -1])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_values_that_are_no_numbers_are_refused(self, tmp_path, value, place):
        wave = noise(7001)
        wave[place] = value
        refused(write(tmp_path / "x.wav", wave, kind="double wav"), "holds values that are not finite")

    def test_values_that_are_no_numbers_are_refused_in_any_channel(self, tmp_path):
        waves = np.zeros((101, 3))
        waves[53, 1] = np.nan
        refused(write(tmp_path / "x.wav", waves, kind="float wav"), "holds values that are not finite")


class TestLength:
    def test_more_than_can_be_read_at_once_is_refused_before_it_is(self, tmp_path, monkeypatch, decoded):
        path = write(tmp_path / "x.wav", np.zeros((101 * 60, 2)), 1000)
        monkeypatch.setattr(sound_file, "MAX_VALUES", 101 * 60 * RATE // 1000)
        SoundFile(path, RATE).read()
        decoded.clear()
        monkeypatch.setattr(sound_file, "MAX_VALUES", 101 * 60 * RATE // 1000 - 1)
        refused(path, "0.0 hours in 2 channels at 1000 Hz are too much to be read at once")
        assert decoded == []

    def test_a_claim_of_two_weeks_is_refused_unread_and_parts_can_be_read(self, tmp_path, decoded):
        path = claiming(write(tmp_path / "x.flac", noise(5 * RATE), kind="flac"), 2**36 - 1)
        refused(path, "1193.0 hours in 1 channels at 16000 Hz are too much to be read at once")
        assert decoded == []
        assert SoundFile(path, RATE).read(1.0, 1.0).shape == (1, RATE)

    def test_a_flac_that_was_written_to_a_pipe_does_not_say_how_long_it_is(self, tmp_path):
        path = claiming(write(tmp_path / "x.flac", noise(5003), kind="flac"), 0)
        refused(path, "does not say how long it is")

    def test_a_wav_that_claims_more_than_there_is(self, tmp_path):
        path = write(tmp_path / "x.wav", noise(5003))
        content = bytearray(path.read_bytes())
        content[40:44] = b"\xff" * 4
        path.write_bytes(content)
        assert SoundFile(path, RATE).read().shape == (1, 5003)


def claiming(flac: Path, samples: int) -> Path:
    """A flac file with another number of samples in its header, where 0 means unknown."""
    content = bytearray(flac.read_bytes())
    low = int.from_bytes(content[21:26], "big") >> 36 << 36
    content[21:26] = (low | samples).to_bytes(5, "big")
    flac.write_bytes(content)
    return flac
