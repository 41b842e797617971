"""The label of a sample as an input."""

import torch

from perceiver.data.files import LABELS, File
from perceiver.data.readers.base import Clips, Reader, Reading


class LabelReader(Reader[int]):
    """The target `label` as [1, 1], for any data with labels; a file of a user has none.

    As the model reads the answer, a task must hide it in evaluation (`Reconstruction.masked_in_evaluation`).
    """

    kind = LABELS
    target = "label"

    def read(self, part: File | int, *, train: bool, clips: Clips | None = None) -> Reading:
        return Reading(torch.tensor([[part]]))
