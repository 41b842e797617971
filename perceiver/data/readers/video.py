"""Videos as clips of some seconds at a fixed frame rate and size, decoded by FFmpeg through PyAV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from torch import Tensor

from perceiver.data.files import VIDEOS, File, Segment, UnreadableError
from perceiver.data.readers.base import Clips, Reader, Reading, window_starts
from perceiver.data.readers.container import check_end, first_stream, length_of, open_container, seek, start_of
from perceiver.data.readers.pixels import resize

Video = Float[Tensor, "channels frames height width"]
MAX_VALUES = 2**29
"""Values of all windows of a video together, 2 GiB."""
ROUNDING = 1e-6
"""Seconds by which the time stamp of a frame may exceed the time at which it is displayed."""


class VideoReader(Reader[Video]):
    """Videos of any container, codec and frame rate, or frames in memory at `frames_per_second`.

    A clip has the frame that is displayed at each multiple of 1 / frames_per_second after its start, so that variable
    frame rates keep their timing. Training reads a random clip of `seconds`; evaluation reads windows of that length,
    whose predictions the task averages. A shorter video is kept as it is. Frames are resized by their shorter side and
    cropped to a square: at the center or, in training, anywhere.

    Args:
        image_size: side, or [height, width], of the frames, in pixels. They are resized to cover it and cropped at the
            center, in training anywhere.
        channels: 1 (gray) or 3 (RGB).
        frames_per_second: of the clips.
        seconds: length of clips and windows.
        hop_seconds: from the start of one window to that of the next.
        flip: probability of a mirror image in training.
    """

    kind = VIDEOS

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        frames_per_second: float,
        seconds: float,
        hop_seconds: float,
        flip: float,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels={channels} must be 1 (gray) or 3 (RGB)")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        sizes = {"frames_per_second": frames_per_second}
        for name, value in (sizes | {"seconds": seconds, "hop_seconds": hop_seconds}).items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        if hop_seconds > seconds:
            raise ValueError(f"hop_seconds={hop_seconds} is more than seconds={seconds}: windows would leave gaps")
        if not 0.0 <= flip <= 1.0:
            raise ValueError(f"flip={flip} must be in [0, 1]")
        self.size = (height, width)
        self.channels = channels
        self.frames_per_second = frames_per_second
        self.num_frames, self.hop = (max(round(value * frames_per_second), 1) for value in (seconds, hop_seconds))
        self.flip = flip

    def read(self, part: File | Video, *, train: bool, clips: Clips | None = None) -> Reading:
        """Read a random clip of a video, all of it in windows, or the times of `clips`.

        Raises:
            UnreadableError: the file is not a video, is damaged or truncated.
            AbsentError: it has sound only.
        """
        with nullcontext(part) if isinstance(part, Tensor) else opened(part) as video:
            if clips is None:
                length = self._length(video)
                num_frames = min(length, self.num_frames)
                starts = np.array(window_starts(length, self.num_frames, self.hop), dtype=np.float64)
                if train:
                    starts = np.array([float(torch.rand(())) * (length - num_frames)])
                clips = Clips(tuple((starts / self.frames_per_second).tolist()), num_frames / self.frames_per_second)
            num_frames = min(max(round(clips.seconds * self.frames_per_second), 1), self.num_frames)
            if self.channels * len(clips.starts) * num_frames * prod(self.size) > MAX_VALUES:
                problem = f"{len(clips.starts)} windows of {num_frames} frames are too much to read at once"
                raise UnreadableError(f"{part}: {problem}; a larger hop_seconds or fewer frames_per_second help")
            videos = self._read(video, clips.starts, num_frames)
        if train:
            return Reading(self._augmented(videos[0]), clips)
        return Reading.of_clips([self._cropped(video, 0.5, 0.5) for video in videos], clips)

    def _length(self, video: "VideoFile | Video") -> int:
        """Return the number of frames of a whole video at `frames_per_second`."""
        if isinstance(video, Tensor):
            return video.shape[1]
        return max(round(video.seconds * self.frames_per_second), 1)

    def _read(self, video: "VideoFile | Video", starts: Sequence[float], num_frames: int) -> list[Video]:
        """Read clips by their starts, in ascending order; after the end of a video, its last frame is repeated."""
        times = np.add.outer(np.array(starts), np.arange(num_frames) / self.frames_per_second).round(6)
        if isinstance(video, Tensor):
            numbers = np.minimum(np.rint(times * self.frames_per_second), video.shape[1] - 1).astype(np.int64)
            if (np.diff(numbers) == 1).all():
                return [video[:, first : first + num_frames] for first in numbers[:, 0]]
            return [video[:, rows] for rows in torch.from_numpy(numbers)]
        distinct, places = np.unique(times, return_inverse=True)
        decoded = torch.from_numpy(video.read(distinct.tolist(), self.size, self.channels))
        frames = decoded.permute(3, 0, 1, 2).float() / 255.0
        return [frames[:, rows] for rows in places.reshape(times.shape).tolist()]

    def _augmented(self, video: Video) -> Video:
        top, left, flip = torch.rand(3).tolist()
        video = self._cropped(video, top, left)
        return video.flip(-1) if flip < self.flip else video

    def _cropped(self, video: Video, top: float, left: float) -> Video:
        """Resize and crop; `top` and `left` are the fractions of what is cut off there."""
        sides = self._scaled_sides(video.shape[-2:])
        if list(video.shape[-2:]) != sides:
            video = resize(video.transpose(0, 1), sides).transpose(0, 1)
        return self._crop(video, top, left)

    def _scaled_sides(self, sides: Sequence[int]) -> list[int]:
        """Return the sides of a frame that is resized to cover `size`."""
        scale = max(target / side for target, side in zip(self.size, sides, strict=True))
        # The side that is cropped is rounded down, as by torchvision for the shorter side.
        return [max(int(side * scale + 1e-6), target) for side, target in zip(sides, self.size, strict=True)]

    def _crop(self, values: Tensor, top: float, left: float) -> Tensor:
        (height, width), (rows, columns) = values.shape[-2:], self.size
        y, x = round(top * (height - rows)), round(left * (width - columns))
        return values[..., y : y + rows, x : x + columns]


class VideoFile:
    """An open video; times are in seconds after the start of its container, or of a segment.

    Attributes:
        seconds: declared length.

    Raises:
        AbsentError: the container has no video.
        UnreadableError: a segment begins after the end of the video.
    """

    def __init__(self, container: InputContainer, file: File) -> None:
        stream = first_stream(container, "video", file)
        assert isinstance(stream, VideoStream)
        self.container, self.stream, self.file = container, stream, file
        end = length_of(container, stream)
        self.start, self.seconds = 0.0, end
        if isinstance(file, Segment):
            self.start, self.seconds = file.start, min(file.stop, end) - file.start
            if self.seconds <= 0:
                raise UnreadableError(f"{file}: begins after the end of the video, at {end:.2f} s")

    def read(
        self, times: Sequence[float], size: tuple[int, int], channels: int
    ) -> UInt8[np.ndarray, "frames height width channels"]:
        """Return the frames that are displayed at ascending times, as small as covers `size`, [height, width].

        Raises:
            UnreadableError: a frame is damaged, or the file is truncated.
        """
        wanted = [self.start + min(time, self.seconds) for time in times]
        if wanted[0] > 1.0:
            seek(self.container, self.stream, wanted[0])
        found: list[np.ndarray] = []
        displayed: np.ndarray | None = None
        time = 0.0
        for frame in self.container.decode(self.stream):
            time = (frame.time or 0.0) - start_of(self.container)
            while displayed is not None and len(found) < len(wanted) and time > wanted[len(found)] + ROUNDING:
                found.append(displayed)
            if len(found) == len(wanted):
                break
            displayed = _upright(frame, size, channels)
        if displayed is None:
            raise UnreadableError(f"{self.file}: has no frame that can be decoded")
        if len(found) < len(wanted):
            check_end(self.file, time, self.start + self.seconds)
        return np.stack(found + [displayed] * (len(wanted) - len(found)))


@contextmanager
def opened(file: File) -> Iterator[VideoFile]:
    """Open a video.

    Raises:
        UnreadableError: it is missing, not a video or damaged.
        AbsentError: it has sound only.
    """
    with open_container(file) as container:
        yield VideoFile(container, file)


def _upright(frame: av.VideoFrame, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Return a frame as it is displayed, as small as covers `size`."""
    height, width = size if frame.rotation % 180 == 0 else reversed(size)
    scale = max(height / frame.height, width / frame.width)
    width, height = max(round(frame.width * scale), width), max(round(frame.height * scale), height)
    pixels = "rgb24" if channels == 3 else "gray"
    array = frame.reformat(width=width, height=height, format=pixels, interpolation="AREA").to_ndarray()
    return np.rot90(array.reshape(height, width, channels), frame.rotation // 90 % 4)
