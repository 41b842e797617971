"""Pairs of frames with the optical flow from the first to the second; and videos, whose flow is predicted."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.data.files import IMAGES, VIDEOS, File, FileKind, FramePair, UnreadableError, following
from perceiver.data.readers.base import Clips, Reading
from perceiver.data.readers.flow_file import read_flow
from perceiver.data.readers.image import check_sizes, read_image
from perceiver.data.readers.pixels import to_gray
from perceiver.data.readers.video import Video, VideoReader

FRAMES = FileKind("frame pair", VIDEOS.endings | IMAGES.endings)


class FramePairReader(VideoReader):
    """Two frames, and the target `flow` [2, height, width] of those that have one: pixels to the right and downwards.

    Frames and flow are resized and cropped together; flow is resized to the nearest pixel and scaled with the image. It
    is NaN where it is not known. A user's image is the first frame of a pair, see `following`; a video is read in
    windows of consecutive frames.

    Args:
        image_size, channels, frames_per_second, seconds, hop_seconds, flip: see `VideoReader`.

    Raises:
        ValueError: clips do not have two frames.
    """

    kind = FRAMES

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
        super().__init__(
            image_size=image_size,
            channels=channels,
            frames_per_second=frames_per_second,
            seconds=seconds,
            hop_seconds=hop_seconds,
            flip=flip,
        )
        if self.num_frames != 2:
            problem = f"at frames_per_second={frames_per_second} are {self.num_frames} frames"
            raise ValueError(f"seconds={seconds} {problem}; flow is predicted from 2")

    def read(self, part: File | FramePair | Video, *, train: bool, clips: Clips | None = None) -> Reading:
        """Read a pair, or the windows of a video.

        Raises:
            UnreadableError: a file is missing or damaged, or frames and flow differ in size.
        """
        if isinstance(part, Path) and IMAGES.has(part.name):
            second = following(part)
            if not second.exists():
                raise UnreadableError(f"{part}: there is no frame after it, {second.name}; give the first of a pair")
            part = FramePair(part, second)
        if not isinstance(part, FramePair):
            return super().read(part, train=train, clips=clips)
        frames = [self._image(one) for one in (part.first, part.second)]
        check_sizes(part.first, frames[0], part.second, frames[1])
        flow = None if part.flow is None else (part.flow if isinstance(part.flow, Tensor) else read_flow(part.flow))
        if flow is not None:
            check_sizes(part.first, frames[0], part.flow, flow)
        top, left, flip = torch.rand(3).tolist() if train else (0.5, 0.5, 1.0)
        video = self._cropped(torch.stack(frames, dim=1).float() / 255.0, top, left)
        flow = None if flow is None else self._cropped_flow(flow, top, left)
        if flip < self.flip:
            video = video.flip(-1)
            flow = None if flow is None else flow.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
        return Reading(video, targets={} if flow is None else {"flow": flow})

    def _image(self, frame: File | Tensor) -> Tensor:
        if not isinstance(frame, Tensor):
            return read_image(frame, self.channels)
        return to_gray(frame) if len(frame) > self.channels else frame.expand(self.channels, -1, -1)

    def _cropped_flow(self, flow: Float[Tensor, "2 _ _"], top: float, left: float) -> Float[Tensor, "2 height width"]:
        """Resize and crop as the frames."""
        sides = self._scaled_sides(flow.shape[-2:])
        scale = torch.tensor([sides[1] / flow.shape[2], sides[0] / flow.shape[1]])
        resized = F.interpolate(flow[None], size=sides, mode="nearest-exact")[0] * scale[:, None, None]
        return self._crop(resized, top, left)
