"""Files of optical flow: `.flo` of Middlebury (Baker et al. 2007), and PNG of 16 bits of KITTI (Geiger et al. 2013)."""

import struct

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.files import File, UnreadableError, refuse_special
from perceiver.data.readers.container import open_container
from perceiver.data.readers.image import MAX_PIXELS

MAGIC = b"PIEH"
"""The first bytes of a `.flo` file, 202021.25 as a float."""
LARGEST = 1e9
"""A component in a `.flo` file that is larger, or NaN, is not known."""


def read_flow(file: File) -> Float[Tensor, "2 height width"]:
    """Read a field of flow, in pixels to the right and downwards; NaN where it is not known.

    Raises:
        UnreadableError: the file is missing, truncated, too large or of another kind.
    """
    refuse_special(file)
    try:
        with file.open("rb") as raw:
            content = raw.read(len(MAGIC))
            if content == MAGIC:
                return _read_flo(file, raw.read(8), raw.read(8 * MAX_PIXELS + 1))
            content += raw.read()
    except FileNotFoundError as error:
        raise UnreadableError(f"{file}: no such file") from error
    except OSError as error:
        raise UnreadableError(f"{file}: {error.strerror or error}") from error
    if not content.startswith(b"\x89PNG"):
        raise UnreadableError(f"{file}: neither a .flo file, which begins with {MAGIC.decode()}, nor a PNG of flow")
    return _read_png(file)


def _read_flo(file: File, header: bytes, content: bytes) -> Float[Tensor, "2 height width"]:
    if len(header) < 8:
        raise UnreadableError(f"{file}: truncated in its header")
    width, height = struct.unpack("<ii", header)
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise UnreadableError(f"{file}: claims a size of {width}×{height}; 1 to {MAX_PIXELS:,} pixels can be read")
    if len(content) != 8 * width * height:
        problem = f"has {len(content)} bytes of flow, not the {8 * width * height} of {width}×{height} pixels"
        raise UnreadableError(f"{file}: {problem}")
    values = np.frombuffer(content, "<f4").reshape(height, width, 2)
    known = (np.abs(values) <= LARGEST).all(axis=-1, keepdims=True)
    return torch.from_numpy(np.where(known, values, np.float32(np.nan)).transpose(2, 0, 1).copy())


def _read_png(file: File) -> Float[Tensor, "2 height width"]:
    """Read 2¹⁵ + 64 · flow from the first two channels, where the third is not 0."""
    with open_container(file) as container:
        frame = next(iter(container.decode(video=0)), None)
        if frame is None:
            raise UnreadableError(f"{file}: a PNG without an image")
        if frame.format.name not in ("rgb48be", "rgb48le"):
            raise UnreadableError(f"{file}: a PNG of the kind {frame.format.name}, not of 3 channels of 16 bits")
        values = frame.to_ndarray(format="rgb48le")
    flow = (values[..., :2].astype(np.float32) - 2**15) / 64.0
    flow[values[..., 2] == 0] = np.nan
    return torch.from_numpy(flow.transpose(2, 0, 1).copy())
