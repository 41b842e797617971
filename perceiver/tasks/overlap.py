"""How well the classes of places are predicted, as a metric."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from perceiver.tasks.segmentation import confusion_matrix, intersection_over_union, overlap_scores


class Overlap(Metric):
    """`mIoU`, the mean over classes that are predicted or true anywhere (PASCAL VOC), and `pixel_accuracy`.

    Args:
        num_classes: classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    names = ("mIoU", "pixel_accuracy")

    counts: Int[Tensor, "classes classes"]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", default=torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.by_class = {"IoU": torch.full((num_classes,), torch.nan)}
        """As of the last `compute`: the intersection over union of each class."""

    def update(self, predicted: Int[Tensor, "*places"], labels: Int[Tensor, "*places"]) -> None:
        self.counts += confusion_matrix(predicted, labels, self.num_classes)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        self.by_class = {"IoU": intersection_over_union(self.counts)}
        return overlap_scores(self.counts)
