"""Decoding of sound files of all formats, rates and channels, whole or in part, damaged or too long."""

import io
import os
from math import gcd
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly as scipy

from perceiver.data.files import UnreadableError
from perceiver.data.readers import sound_file
from perceiver.data.readers.sound_file import SoundFile, is_truncated, resample

RATE = 16000
RATES = [8000, 11025, 16000, 44100, 44101, 96000]
FORMATS = {
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
"""Name -> format, subtype and largest deviation from the original."""
UNCHECKED = ("au", "64-bit wav", "caf", "mp3", "flac")
"""Formats whose headers `is_truncated` does not read."""


def sine(frequency: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def noise(*shape: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(shape)


def write(path: Path, wave: np.ndarray, rate: int = RATE, name: str = "16-bit wav") -> Path:
    soundfile.write(path, wave, rate, format=FORMATS[name][0], subtype=FORMATS[name][1])
    return path


def read(path: Path, **part: float) -> torch.Tensor:
    return SoundFile(path, RATE).read(**part)


def assert_close(wave: torch.Tensor, expected: torch.Tensor | np.ndarray, atol: float = 1e-5):
    torch.testing.assert_close(wave, torch.as_tensor(expected).float().reshape(wave.shape), atol=atol, rtol=0.0)


def assert_unreadable(path: Path, message: str, **part: float):
    """Reading fails with the path, once, and a reason."""
    with pytest.raises(UnreadableError, match=message) as error:
        read(path, **part)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count(str(path)) == 1


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_the_format_is_recognized_by_content(self, tmp_path, name):
        wave = sine(443, RATE, 0.5)
        inner = slice(500, -500)  # lossy formats are less exact at the ends
        for ending in ("wav", "mp3", "flac", "raw", "txt"):
            decoded = read(write(tmp_path / f"x.{ending}", wave, name=name))
            assert decoded.shape == (1, 8000)
            assert_close(decoded[:, inner], wave[inner], atol=FORMATS[name][2])
        last_bit = read(write(tmp_path / "one.wav", np.full(1, 2.0**-15), name=name))
        assert last_bit.shape == (1, 1)
        assert last_bit.item() == 2.0**-15 or "16" not in FORMATS[name][1]

    @pytest.mark.parametrize("ending", ["wav", "au", "snd", "vox", "gsm", "raw", "mp3"])
    def test_text_is_not_a_sound_by_any_name(self, tmp_path, ending):
        path = tmp_path / f"a: b: ü.{ending}"
        path.write_text("not a sound\n" * 1000)
        assert_unreadable(path, "Format not recognised$")

    @pytest.mark.parametrize(("name", "channels"), [("16-bit wav", 2), ("float wav", 3), ("16-bit wav", 31)])
    def test_channels_are_averaged(self, tmp_path, name, channels):
        waves = 0.3 * noise(503, channels)
        assert_close(read(write(tmp_path / "x.wav", waves, name=name)), waves.mean(axis=1), atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "gains", "block"),
        [
            ("16-bit wav", (0.96, -1.0), 499),
            ("float wav", (-1.0, 0.99), 10**6),
            ("flac", (1.0, -0.5, -0.5), 499),
            ("vorbis", (0.1, 0.1, 0.8, -1.0, 0.0, 0.0), 10**6),
            ("float wav", (0.1, 0.1, 0.8, -1.0, 0.0, 0.0), 499),
            ("mp3", (1.0, -1.0), 499),
        ],
    )
    def test_of_cancelling_channels_the_loudest_is_read(self, tmp_path, monkeypatch, warnings, name, gains, block):
        monkeypatch.setattr(sound_file, "BLOCK_VALUES", block)
        wave, inner = sine(443, RATE, 0.5), slice(500, -500)
        offset = 0.1 if name == "float wav" else 0.0
        path = write(tmp_path / "x.wav", wave[:, None] * gains + offset, name=name)
        for part, expected in (({}, wave), ({"start": 0.1, "seconds": 0.2}, wave[1600:4800])):
            decoded = read(path, **part)[0].numpy()[inner] - offset
            decoded *= np.sign(decoded @ expected[inner])
            assert np.abs(decoded - np.abs(gains).max() * expected[inner]).max() < FORMATS[name][2] + 0.01
        assert len(warnings.messages) == 1
        assert str(path) in warnings.messages[0]
        assert "cancel" in warnings.messages[0]

    @pytest.mark.parametrize("gains", [(1.0, 0.0), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), (1.0, -0.8), (1.0,)])
    def test_channels_that_cancel_in_part_are_averaged(self, tmp_path, warnings, gains):
        wave = sine(443, RATE, 0.1)
        path = write(tmp_path / "x.wav", wave[:, None] * gains, name="float wav")
        assert_close(read(path), wave * np.mean(gains))
        assert warnings.messages == []


class TestRates:
    @pytest.mark.parametrize("rate", RATES)
    def test_a_sine_keeps_frequency_amplitude_and_phase(self, tmp_path, rate):
        for frequency in (97, 997, 3001):
            decoded = read(write(tmp_path / "x.wav", sine(frequency, rate, 0.5), rate, "float wav"))
            assert decoded.shape[-1] == pytest.approx(8000, abs=1)
            inner = slice(200, decoded.shape[-1] - 200)
            assert_close(decoded[:, inner], sine(frequency, RATE, 0.5)[inner], atol=2e-3)

    def test_aliases_are_filtered_out(self):
        aliased = resample(sine(10007, 44100, 1.0).astype(np.float32), 44100, RATE)
        assert np.abs(aliased[200:-200]).max() < 0.5e-2  # 40 dB below

    @pytest.mark.parametrize("rate", RATES)
    def test_the_length_is_right_to_within_a_sample(self, rate):
        for length in (1, 2, 101, 44103):
            assert abs(len(resample(noise(length).astype(np.float32), rate, RATE)) - length * RATE / rate) < 1

    @pytest.mark.parametrize(
        ("rate", "new_rate"),
        [(44100, 16000), (16000, 44100), (48000, 16000), (8000, 16000), (44100, 44101), (997, 1000), (1009, 1000)],
    )
    def test_the_result_is_that_of_scipy(self, monkeypatch, rate, new_rate):
        """By a product of matrices as well as where there are too many different filters for that."""
        calls = []
        monkeypatch.setattr(
            "scipy.signal.resample_poly", lambda *args, **given: calls.append(1) or scipy(*args, **given)
        )
        factor = gcd(rate, new_rate)
        for length in (1, 2, 53, 442, 4099):
            wave = (noise(length) + 0.3).astype(np.float32)
            expected = scipy(wave.astype(float), new_rate // factor, rate // factor, padtype="mean")
            found = resample(wave, rate, new_rate)
            assert found.shape == expected.shape
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-6)
        assert bool(calls) == (max(rate, new_rate) > sound_file.MAX_FACTOR * factor)

    def test_implausible_rates_are_refused(self, tmp_path):
        for rate in (sound_file.MIN_RATE, sound_file.MAX_RATE):
            assert read(write(tmp_path / "x.wav", noise(rate // 10), rate)).shape == (1, RATE // 10)
        for rate in (sound_file.MIN_RATE - 1, sound_file.MAX_RATE + 1):
            assert_unreadable(write(tmp_path / "x.wav", noise(101), rate), f"{rate} Hz")


class TestParts:
    @pytest.mark.parametrize("rate", RATES)
    def test_a_part_has_its_length_and_equals_that_of_the_whole(self, tmp_path, rate):
        file = SoundFile(write(tmp_path / "x.wav", noise(2 * rate), rate, "float wav"), RATE)
        for start, seconds in ((0.0, 1 / RATE), (0.7317, 0.1), (1 / 3, 1.0), (0.1, 16001 / RATE)):
            assert file.read(start, seconds).shape == (1, round(seconds * RATE))
        # A time at which both rates have a sample; otherwise a part begins with the nearest sample of the file.
        start, inner = 1.0 if rate == 44101 else 0.48, slice(50, -50)
        expected = file.read()[:, round(start * RATE) :][:, :8000]
        assert_close(file.read(start, 0.5)[:, inner], expected[:, inner])

    @pytest.mark.parametrize("name", ["flac", "vorbis", "mp3"])
    def test_a_part_of_a_compressed_file_equals_that_of_the_whole(self, tmp_path, name):
        file = SoundFile(write(tmp_path / "x.wav", noise(5 * RATE), name=name), RATE)
        for start in (0.1, 1.3, 4.4):
            assert_close(file.read(start, 0.5), file.read()[:, round(start * RATE) :][:, :8000])

    @pytest.mark.parametrize("name", ["16-bit wav", "mp3"])
    def test_blocks_change_nothing(self, tmp_path, monkeypatch, name):
        """In an MP3, the frames of a sine borrow many bits of earlier ones."""
        path = write(tmp_path / "x.wav", np.stack([sine(443, 44100, 3.0)] * 2, axis=1), 44100, name)
        file = SoundFile(path, 44100)
        expected = file.read()
        assert expected[0, 1000:-3000].abs().max() < 0.51
        for block in (4999, 10**7):
            monkeypatch.setattr(sound_file, "BLOCK_VALUES", block)
            assert_close(file.read(), expected)
            for first in range(0, 88200, 23011):
                assert_close(file.read(first / 44100, 0.3), expected[:, first : first + 13230])

    def test_a_part_ends_with_the_file(self, tmp_path):
        wave = noise(1009)
        file = SoundFile(write(tmp_path / "x.wav", wave), RATE)
        assert_close(file.read(1000 / RATE, 1.0), wave[1000:], atol=1e-4)
        assert file.read(1000 / RATE).shape == (1, 9)
        for start in (1009, 10**9):
            assert_unreadable(file.path, f"ends before {start / RATE:.2f} s.* 0.06 s", start=start / RATE)

    def test_only_the_part_is_decoded(self, tmp_path, decoded):
        path = write(tmp_path / "x.wav", np.zeros(600 * 8000), 8000)
        assert read(path, start=431.0, seconds=1.0).shape == (1, RATE)
        assert sum(decoded) == 8000


class TestDamage:
    def test_what_is_not_a_sound_file(self, tmp_path):
        assert_unreadable(tmp_path / "x.wav", "no such file$")
        assert_unreadable(tmp_path, "Is a directory$")
        (tmp_path / "empty.wav").touch()
        assert_unreadable(tmp_path / "empty.wav", "the file is empty$")
        assert_unreadable(write(tmp_path / "x.wav", np.zeros(0)), "has no samples$")
        os.mkfifo(tmp_path / "pipe.wav")
        assert_unreadable(tmp_path / "pipe.wav", "a pipe or a device")

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_truncated_file_is_unreadable_or_read_as_far_as_it_goes(self, tmp_path, name):
        wave = noise(5 * RATE)
        path = write(tmp_path / "x.wav", wave, name=name)
        expected, content = read(path), path.read_bytes()
        for share in (0.001, 0.01, 0.1, 0.5, 0.9):
            path.write_bytes(content[: round(share * len(content))])
            try:
                decoded = read(path)
            except UnreadableError as error:
                reason = str(error).removeprefix(f"{path}: ")
                assert 5 < len(reason) < 80
                assert name not in ("au", "64-bit wav") or share < 0.01
                if share > 0.1 and name not in ("au", "64-bit wav", "caf", "mp3"):
                    assert reason.startswith("flac decoder lost sync" if name == "flac" else "is truncated")
            else:
                assert name in UNCHECKED
                assert 0 < decoded.shape[-1] <= share * 1.1 * len(wave)
                same = slice(max(decoded.shape[-1] - 2000, 0))  # the last frames of lossy formats need later ones
                assert_close(decoded[:, same], expected[:, same])

    def test_other_chunks_are_no_part_of_the_sound(self, tmp_path):
        path = write(tmp_path / "x.wav", noise(5004))
        content, expected = path.read_bytes(), read(path)
        path.write_bytes(content[:12] + b"LIST" + (5).to_bytes(4, "little") + b"12345\0" + content[12:] + b"LIST\xff")
        assert torch.equal(read(path), expected)

    @pytest.mark.parametrize("value", [1001.0, -1001.0, 1e20])
    def test_integers_in_a_float_file_are_refused(self, tmp_path, value):
        wave = noise(101)
        wave[53] = value
        assert_unreadable(write(tmp_path / "x.wav", wave, name="float wav"), f"{abs(value):g} ".replace("+", r"\+"))
        wave[53] = np.sign(value) * 999
        assert read(write(tmp_path / "x.wav", wave, name="float wav")).abs().max() == 999

    @pytest.mark.parametrize(("value", "position"), [(np.nan, 0), (np.inf, 5003), (-np.inf, -1), (1e300, 5003)])
    def test_values_that_are_not_finite_are_refused_in_any_channel(self, tmp_path, value, position):
        for wave in (noise(7001), noise(7001, 3)):
            wave[(position, 1)[: wave.ndim]] = value
            assert_unreadable(write(tmp_path / "x.wav", wave, name="double wav"), "not finite")


class TestLength:
    def test_parts_that_are_too_long_are_refused_before_decoding(self, tmp_path, monkeypatch, decoded):
        path = write(tmp_path / "x.wav", np.zeros((101 * 60, 2)), 1000)
        monkeypatch.setattr(sound_file, "MAX_VALUES", 101 * 60 * RATE // 1000)
        read(path)
        decoded.clear()
        monkeypatch.setattr(sound_file, "MAX_VALUES", 101 * 60 * RATE // 1000 - 1)
        assert_unreadable(path, "0.0 hours in 2 channels at 1000 Hz")
        assert decoded == []

    def test_a_flac_with_a_wrong_length(self, tmp_path, decoded):
        path = write(tmp_path / "x.flac", noise(5 * RATE), name="flac")
        declare_length(path, 2**36 - 1)
        assert_unreadable(path, "1193.0 hours in 1 channels at 16000 Hz")
        assert decoded == []
        assert read(path, start=1.0, seconds=1.0).shape == (1, RATE)
        declare_length(path, 0)  # as in a pipe
        assert_unreadable(path, "does not declare its length")


def declare_length(flac: Path, samples: int):
    """Change the number of samples in the header of a flac."""
    content = bytearray(flac.read_bytes())
    low = int.from_bytes(content[21:26], "big") >> 36 << 36
    content[21:26] = (low | samples).to_bytes(5, "big")
    flac.write_bytes(content)


class TestTruncation:
    @pytest.mark.parametrize("name", ["WAV", "AIFF", "OGG", "FLAC", "AU", "MP3", "CAF"])
    def test_only_files_without_their_end_are_truncated(self, name):
        file = io.BytesIO()
        soundfile.write(file, noise(40_000), 8000, format=name)
        assert not is_truncated(file)
        assert file.tell() == 0
        content = file.getvalue()
        for kept in (len(content) - 1, len(content) - 2, len(content) - 101, len(content) // 2, len(content) // 3):
            assert is_truncated(io.BytesIO(content[:kept])) == (name in ("WAV", "AIFF", "OGG"))

    @pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000])
    def test_a_wav_of_unknown_length_is_not_truncated(self, tmp_path, size):
        path = write(tmp_path / "x.wav", noise(5003))
        content = bytearray(path.read_bytes())
        content[40:44] = size.to_bytes(4, "little")
        assert not is_truncated(io.BytesIO(content))
        if size == 0xFFFFFFFF:
            path.write_bytes(content)
            assert read(path).shape == (1, 5003)

    @pytest.mark.parametrize("content", [b"", b"R", b"RIFF", b"OggS", b"RIFF\0\0\0\0WAVE" + b"\xff" * 50, b"\0" * 997])
    def test_any_bytes_have_an_answer(self, content):
        assert is_truncated(io.BytesIO(content)) in (True, False)
