"""Arrays of numbers: vectors, time series, precomputed features."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.files import ARRAYS, File, UnreadableError, refuse_special
from perceiver.data.readers.base import Clips, Reader, Reading
from perceiver.types import first_line


class ArrayReader(Reader[Float[Tensor, "..."]]):
    """Arrays from .npy files or memory, as float tensors with channels first.

    Args:
        shape: of the output; null for any size along an axis.
    """

    kind = ARRAYS

    def __init__(self, *, shape: list[int | None]) -> None:
        self.shape = shape

    def read(self, part: File | Float[Tensor, "..."], *, train: bool, clips: Clips | None = None) -> Reading:
        values = part if isinstance(part, Tensor) else _load(part)
        fits = [size in (None, found) for size, found in zip(self.shape, values.shape, strict=False)]
        if values.ndim != len(self.shape) or not all(fits):
            name = "an array" if isinstance(part, Tensor) else str(part)
            raise UnreadableError(f"{name}: has shape {list(values.shape)}, which must be {self.shape}")
        return Reading(values.float())


def _load(file: File) -> Tensor:
    refuse_special(file)
    try:
        with file.open("rb") as raw:
            values = np.load(raw, allow_pickle=False)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            raise UnreadableError(f"{file}: not an array of numbers")
        array = values.astype(np.float32)
    except FileNotFoundError as error:
        raise UnreadableError(f"{file}: no such file") from error
    except OSError as error:
        raise UnreadableError(f"{file}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UnreadableError(f"{file}: not an array ({first_line(error)})") from error
    if not np.isfinite(array).all():
        raise UnreadableError(f"{file}: holds values that are not finite")
    return torch.from_numpy(array)
