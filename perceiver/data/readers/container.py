"""Containers of video and sound, opened by FFmpeg through PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream

from perceiver.data.files import AbsentError, File, UnreadableError, refuse_special

MISSING = 0.1
"""A stream is truncated if it ends by this fraction, and by `MISSING_SECONDS`, before its declared end."""
MISSING_SECONDS = 1.0


@contextmanager
def open_container(file: File) -> Iterator[InputContainer]:
    """Open a container; errors within the block name the file.

    Raises:
        UnreadableError: it is missing, not a container, or damaged.
    """
    refuse_special(file)
    try:
        # A playlist must not open other files or addresses.
        options = {"protocol_whitelist": "none"}
        with (
            file.open("rb") as raw,
            av.open(_Nameless(raw), mode="r", metadata_errors="ignore", options=options) as container,
        ):
            assert isinstance(container, InputContainer)
            yield container
    except FFmpegError as error:
        raise UnreadableError(f"{file}: not readable as video or sound ({error.strerror})") from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{file}: no such file") from error
    except OSError as error:
        raise UnreadableError(f"{file}: {error.strerror or error}") from error


class _Nameless:
    """An open file without its name, from which FFmpeg would conclude the format."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.read, self.seek, self.tell = raw.read, raw.seek, raw.tell


def first_stream(container: InputContainer, kind: str, file: File) -> Stream:
    """Return the first stream of a kind, `video` or `audio`, that is not a cover picture.

    Raises:
        AbsentError: there is none.
    """
    for stream in container.streams:
        if stream.type == kind and not stream.disposition & Disposition.attached_pic:
            return stream
    raise AbsentError(f"{file}: has no {kind} stream")


def start_of(container: InputContainer) -> float:
    """Return the time stamp of the start of a container in seconds, from which the times of all streams are counted."""
    return (container.start_time or 0) / av.time_base


def length_of(container: InputContainer, stream: Stream) -> float:
    """Return the length of a stream in seconds: the declared one, or else that of its packets; rewinds to the start."""
    assert stream.time_base is not None
    if stream.duration:
        begin = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base) - start_of(container)
        return begin + float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    last = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    container.seek(0)
    return last - start_of(container)


def seek(container: InputContainer, stream: Stream, seconds: float) -> None:
    """Continue at the last point before a time from which the stream can be decoded."""
    assert stream.time_base is not None
    try:
        container.seek(int((seconds + start_of(container)) / stream.time_base), stream=stream)
    except FFmpegError:  # without an index
        container.seek(0)


def check_end(file: File, end: float, declared: float) -> None:
    """Raise if a stream ends long before its declared end.

    Raises:
        UnreadableError: it does.
    """
    if declared - end > max(MISSING_SECONDS, MISSING * declared):
        raise UnreadableError(f"{file}: is truncated: ends after {end:.2f} s, but declares {declared:.2f} s")
