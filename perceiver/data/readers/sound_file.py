"""Decoding of sound files: any part of a file, at a given sample rate, mixed down to one channel.

libsndfile decodes the formats that it recognizes, and FFmpeg all others, including the sound of videos.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from itertools import chain
from math import ceil, gcd
from typing import IO, Literal, Protocol

import av
import numpy as np
import soundfile
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import InvalidDataError
from jaxtyping import Float, Float32
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from perceiver.data.files import AbsentError, File, Segment, UnreadableError, refuse_special, warn_once
from perceiver.data.readers.container import check_end, first_stream, length_of, open_container, seek, start_of

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sample rates outside of this range are rejected as damaged headers."""
MAX_VALUES = 2**29
"""Longer parts, all channels together, are not read at once: 1.7 hours of stereo at 44.1 kHz, 2 GiB."""
MAX_AMPLITUDE = 1000.0
"""60 dB above full scale: larger values are integers in a floating-point file."""
BLOCK_VALUES = 2**19
"""Values that are decoded at a time, all channels together: only their mean over channels is kept."""
MIN_MIX_POWER = 1e-3
"""A mix with less than this fraction (-30 dB) of its channels' mean power means that they cancel, as they do if one of
two is inverted; the mix of N independent channels has 1/N."""
MP3_LEAD = 20 * 1152
"""Samples of an MP3 that are decoded before a part and dropped: its frames use bits of earlier ones."""
DECODER_LEAD_SECONDS = 0.2
"""What FFmpeg decodes before a part and drops: frames overlap and use earlier ones."""
MAX_JITTER_SECONDS = 0.01
"""Time stamps that differ by more from the number of decoded samples mean a gap."""
UNKNOWN_LENGTH = 2**62
"""Length that libsndfile reports for a flac that was written to a pipe, which it cannot read to its end."""
SOUND_CHUNKS: dict[bytes, tuple[bytes, Literal["little", "big"]]] = {
    b"RIFF": (b"data", "little"),
    b"FORM": (b"SSND", "big"),
}
"""First bytes of wav and aiff -> name of the chunk with the samples, and byte order."""
UNKNOWN_CHUNK_SIZE = 0x7F000000
"""Chunk sizes from here on are written to pipes, where the length is not yet known."""
MAX_FACTOR = 1000
"""Rates are resampled by a product of matrices if neither exceeds so many times their greatest common divisor."""
MIN_OUTPUTS = 64
"""Outputs that are computed together, at least."""
OGG_MAX_PAGE, OGG_HEADER, OGG_LAST_PAGE = 2**16, 27, 4
"""Upper bound of the bytes of a page, bytes of its header before the segment sizes, and flag of the last page."""


class SoundFile:
    """A sound file, of which any part can be read. Its format (wav, mp3, mp4, …) is recognized by its content.

    If the channels of a part cancel when they are mixed, the loudest one is read, with a warning. Constant offsets do
    not count.

    Args:
        path: the file, or a segment of one.
        sample_rate: of the output, in Hz.

    Raises:
        UnreadableError: the file is missing, not a sound, or has no samples.
        AbsentError: it is a video without sound.
    """

    def __init__(self, path: File, sample_rate: int) -> None:
        self.path = path
        self.sample_rate = sample_rate
        with self._open() as sound:
            self.file_rate, self.channels, self.file_length = sound.rate, sound.channels, sound.length
        if not MIN_RATE <= self.file_rate <= MAX_RATE:
            raise UnreadableError(f"{path}: a sample rate of {self.file_rate} Hz is not plausible")
        if self.file_length == 0:
            raise UnreadableError(f"{path}: has no samples")
        if self.file_length >= UNKNOWN_LENGTH:
            raise UnreadableError(f"{path}: does not declare its length")
        self.offset = 0
        if isinstance(path, Segment):
            self.offset, stop = round(path.start * self.file_rate), round(path.stop * self.file_rate)
            if self.offset >= self.file_length:
                raise UnreadableError(f"{path}: begins after the end of the sound, at {self.seconds:.2f} s")
            self.file_length = min(stop, self.file_length) - self.offset

    @property
    def seconds(self) -> float:
        """Length that the header declares; a truncated file may be shorter."""
        return self.file_length / self.file_rate

    def read(self, start: float = 0.0, seconds: float | None = None) -> Float[Tensor, "1 length"]:
        """Read a part of the sound, which ends with the file at the latest.

        Args:
            start: begin of the part, in seconds.
            seconds: length of the part; None for the rest of the file.

        Raises:
            UnreadableError: the file is damaged there or ends before, has values that are not finite, or is too long.
        """
        first = min(round(start * self.file_rate), self.file_length)
        count = self.file_length - first if seconds is None else ceil(seconds * self.file_rate)
        length = count / self.file_rate
        if length * max(self.channels * self.file_rate, self.sample_rate) > MAX_VALUES:
            size = f"{length / 3600:.1f} hours in {self.channels} channels at {self.file_rate} Hz"
            raise UnreadableError(f"{self.path}: {size} are too much to read at once")
        wave, powers = self._decode(first, count)
        if len(wave) == 0:
            raise UnreadableError(f"{self.path}: ends before {start:.2f} s, but declares {self.seconds:.2f} s")
        if not np.isfinite(wave).all():
            raise UnreadableError(f"{self.path}: holds values that are not finite")
        if self.channels > 1 and np.var(wave, dtype=np.float64) < MIN_MIX_POWER * powers.mean():
            channel = int(powers.argmax())
            problem = f"its {self.channels} channels cancel when they are mixed; only the loudest is read"
            warn_once("cancelled", f"{self.path}: {problem}, number {channel + 1}")
            wave, _ = self._decode(first, count, channel)
        if (peak := float(np.abs(wave).max())) > MAX_AMPLITUDE:
            raise UnreadableError(f"{self.path}: holds {peak:g} where full scale is 1")
        wave = resample(wave, self.file_rate, self.sample_rate)
        if seconds is not None:
            wave = wave[: round(seconds * self.sample_rate)]
        return torch.from_numpy(wave)[None]

    def _decode(
        self, first: int, count: int, channel: int | None = None
    ) -> tuple[Float[np.ndarray, " length"], Float[np.ndarray, " channels"]]:
        """Decode one channel, or the mean of all, and the power of each channel about its mean."""
        length, sums, squares = 0, np.zeros(self.channels), np.zeros(self.channels)
        waves = [np.zeros(0, np.float32)]
        with self._open() as sound, np.errstate(all="ignore"):  # the caller checks that values are finite
            for block in sound.blocks(self.offset + first, count):
                length += len(block)
                waves.append(block.mean(axis=1) if channel is None and self.channels > 1 else block[:, channel or 0])
                if self.channels > 1:
                    sums += block.sum(axis=0, dtype=np.float64)
                    squares += np.square(block, dtype=np.float64).sum(axis=0)
            squares /= max(length, 1)
            powers = squares - (sums / max(length, 1)) ** 2
            powers[powers < 1e-12 * squares] = 0.0  # rounding errors
        return np.concatenate(waves), powers

    @contextmanager
    def _open(self) -> Iterator["_Decoder"]:
        """Open the file; errors within the block name it."""
        refuse_special(self.path)
        try:
            with self.path.open("rb") as raw:
                if raw.seek(0, os.SEEK_END) == 0:
                    raise UnreadableError(f"{self.path}: the file is empty")
                if is_truncated(raw):
                    raise UnreadableError(f"{self.path}: is truncated: shorter than its header declares")
                with _decoder(self.path, raw) as decoder:
                    yield decoder
        except FileNotFoundError as error:
            raise UnreadableError(f"{self.path}: no such file") from error
        except OSError as error:
            raise UnreadableError(f"{self.path}: {error.strerror}") from error
        except soundfile.LibsndfileError as error:
            raise UnreadableError(f"{self.path}: {_reason(error)}") from error


class _Decoder(Protocol):
    """An open sound.

    Attributes:
        rate: in Hz.
        channels: their number.
        length: in samples.
    """

    rate: int
    channels: int
    length: int

    def blocks(self, first: int, count: int) -> Iterator[Float[np.ndarray, "samples channels"]]:
        """Decode a part, a block at a time; it ends with the sound at the latest."""
        ...


@contextmanager
def _decoder(path: File, raw: IO[bytes]) -> Iterator[_Decoder]:
    """Open a sound by libsndfile, or by FFmpeg what that does not recognize."""
    try:
        # Never by name: libsndfile would take any text with the name x.au for a sound.
        file = _SequentialSoundFile(_handle(raw), closefd=False)
    except soundfile.LibsndfileError as unrecognized:
        try:
            # Opened again: libsndfile has moved the position of the descriptor, but not that of Python's buffer.
            with open_container(path) as container:
                yield _FfmpegDecoder(path, container)
        except AbsentError:
            raise
        except UnreadableError as error:
            if isinstance(error.__cause__, InvalidDataError):
                raise unrecognized from error
            raise
        return
    with file:
        yield _LibsndfileDecoder(file)


def _reason(error: soundfile.LibsndfileError) -> str:
    # Code 7 is "File does not exist", also of an MP3 without a complete frame.
    return "Format not recognised" if error.code == 7 else error.error_string.removeprefix("Error : ").removesuffix(".")


class _LibsndfileDecoder:
    def __init__(self, file: soundfile.SoundFile) -> None:
        self.file = file
        self.rate, self.channels, self.length = file.samplerate, file.channels, file.frames

    def blocks(self, first: int, count: int) -> Iterator[Float[np.ndarray, "samples channels"]]:
        lead = min(first, MP3_LEAD) if self.file.format == "MP3" else 0
        self.file.seek(first - lead)
        self.file.read(lead)
        block_size = -(-BLOCK_VALUES // self.channels)
        while count > 0:
            block = self.file.read(min(count, block_size), dtype="float32", always_2d=True)
            if len(block) == 0:
                return
            count -= len(block)
            yield block


class _FfmpegDecoder:
    def __init__(self, path: File, container: InputContainer) -> None:
        stream = first_stream(container, "audio", path)
        assert isinstance(stream, AudioStream)
        self.path, self.container, self.stream = path, container, stream
        self.rate, self.channels = stream.rate, stream.channels
        self.length = round(length_of(container, stream) * stream.rate)

    def blocks(self, first: int, count: int) -> Iterator[Float[np.ndarray, "samples channels"]]:
        if first:
            seek(self.container, self.stream, max(first / self.rate - DECODER_LEAD_SECONDS, 0.0))
        to_float = av.AudioResampler(format="flt")
        position, stop = first, first + count
        for frame in chain(self.container.decode(self.stream), [None]):
            for part in to_float.resample(frame):
                values = part.to_ndarray().reshape(-1, self.channels)
                begin = position
                if part.pts is not None and part.time_base is not None:
                    begin = round((float(part.pts * part.time_base) - start_of(self.container)) * self.rate)
                if begin > position + MAX_JITTER_SECONDS * self.rate:  # the sound begins later, or has a gap
                    silence = min(begin, stop) - position
                    yield np.zeros((silence, self.channels), np.float32)
                    position += silence
                values = values[max(position - begin, 0) :][: stop - position]
                position += len(values)
                if len(values):
                    yield values
            if position >= stop:
                return
        check_end(self.path, position / self.rate, min(stop, self.length) / self.rate)


class _SequentialSoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on from the current position, to which soundfile would seek again, and then decode an MP3 wrongly."""

    def seekable(self) -> bool:
        return False


def _handle(raw: IO[bytes]) -> int | IO[bytes]:
    """Return the descriptor of a file on disk, which libsndfile reads by itself."""
    if isinstance(raw, BytesIO):
        return raw
    os.lseek(raw.fileno(), 0, os.SEEK_SET)  # Python's buffer has moved it
    return raw.fileno()


def resample(wave: Float32[np.ndarray, " length"], rate: int, new_rate: int) -> Float32[np.ndarray, " resampled"]:
    """Resample a wave, also between rates without a common factor, as `scipy.signal.resample_poly` does.

    Rates with a large common factor need few different filters, which are applied as a product of matrices.
    """
    if rate == new_rate:
        return wave
    factor = gcd(rate, new_rate)
    up, down = new_rate // factor, rate // factor
    # The wave is extended by its mean: with zeros, a constant offset would click at both ends.
    if max(up, down) > MAX_FACTOR:
        from scipy.signal import resample_poly  # takes a second to import

        return resample_poly(wave, up, down, padtype="mean")
    several = ceil(MIN_OUTPUTS / up)
    up, down = several * up, several * down
    filters, lead = _filters(up, down, several)
    length, mean = ceil(len(wave) * up / down), wave.mean()
    padded = np.zeros((ceil(length / up) - 1) * down + len(filters), np.float32)
    part = padded[lead : lead + len(wave)]
    np.subtract(wave[: len(part)], mean, out=part)
    resampled = (np.ascontiguousarray(sliding_window_view(padded, len(filters))[::down]) @ filters).ravel()[:length]
    resampled += mean
    return resampled


@lru_cache(maxsize=8)
def _filters(up: int, down: int, several: int) -> tuple[Float32[np.ndarray, "inputs outputs"], int]:
    """Return the weights of successive inputs for `up` successive outputs, and how many inputs precede the first one.

    They are samples of the low-pass filter of `resample_poly`; `several` is the common factor of `up` and `down`.
    """
    from scipy.signal import firwin

    largest = max(up, down) // several
    low_pass = firwin(20 * largest + 1, 1.0 / largest, window=("kaiser", 5.0)) * (up // several)
    lead = 10 * largest * several // up
    inputs = np.arange(-lead, down + lead)[:, None]
    places = (np.arange(up) * down - inputs * up) // several + 10 * largest
    inside = (places >= 0) & (places < len(low_pass))
    return np.where(inside, low_pass[places.clip(0, len(low_pass) - 1)], 0.0).astype(np.float32), lead


def is_truncated(file: IO[bytes]) -> bool:
    """Return whether a wav, aiff or Ogg file lacks its end, which libsndfile does not report.

    False for other formats, and for files of unknown length that were written to a pipe. The file is rewound.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(4)
    if magic == b"OggS":
        truncated = _lacks_last_page(file, end)
    else:
        truncated = magic in SOUND_CHUNKS and _lacks_samples(file, end, *SOUND_CHUNKS[magic])
    file.seek(0)
    return truncated


def _lacks_samples(file: IO[bytes], end: int, sound_chunk: bytes, order: Literal["little", "big"]) -> bool:
    """Return whether the chunk with the samples exceeds the end of a wav or aiff."""
    start = 12
    while start + 8 <= end:
        file.seek(start)
        name, size = file.read(4), int.from_bytes(file.read(4), order)
        if name == sound_chunk:
            return size < UNKNOWN_CHUNK_SIZE and start + 8 + size > end
        start += 8 + size + size % 2
    return False


def _lacks_last_page(file: IO[bytes], end: int) -> bool:
    file.seek(max(end - OGG_MAX_PAGE, 0))
    tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    if len(page) < OGG_HEADER or not page[5] & OGG_LAST_PAGE:
        return True
    num_segments = page[OGG_HEADER - 1]
    segments = page[OGG_HEADER : OGG_HEADER + num_segments]
    return len(segments) < num_segments or OGG_HEADER + num_segments + sum(segments) > len(page)
