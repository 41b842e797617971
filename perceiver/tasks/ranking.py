"""Ranking metrics by class and on average: mAP, AUC and d′.

As on AudioSet (Gemmeke et al. 2017), the mean is over classes with positives. torchmetrics' own means
count a class without positives as 0.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities.data import dim_zero_cat

LARGEST_AUC = 1.0 - 1e-6
"""Bounds d′, which is infinite for a perfect ranking, by 6.7."""


class Ranking(Metric):
    """`mAP`, `AUC` and `d_prime` over all samples; NaN where no class has what they need.

    Scores may be any numbers, since only their order counts; logits keep it where probabilities are rounded to 1. A
    class with a NaN score has no metrics.

    Args:
        num_classes: classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    names = ("mAP", "AUC", "d_prime")

    scores: list[Float[Tensor, "batch classes"]]
    tags: list[Bool[Tensor, "batch classes"]]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("tags", default=[], dist_reduce_fx="cat")
        self.by_class: dict[str, Float[Tensor, " classes"] | Int[Tensor, " classes"]] = {}
        """As of the last `compute`: `AP` of classes with positives, `AUC` of those that also have negatives;
        `precision` and `recall` of what has a score above 0; NaN where they are not defined; and the number of
        `positives`."""

    def update(self, scores: Float[Tensor, "batch classes"], tags: Bool[Tensor, "batch classes"]) -> None:
        self.scores.append(scores)
        self.tags.append(tags)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # The empty states of a process without samples must have the shape and type of those they are gathered with.
        if len(self.scores) == 0:
            self.scores = [torch.zeros(0, self.num_classes, device=self.device)]
            self.tags = [torch.zeros(0, self.num_classes, dtype=torch.bool, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        self.by_class = by_class = self._by_class()
        auc = by_class["AUC"].nanmean()
        d_prime = 2.0**0.5 * torch.special.ndtri(auc.double().clamp(1.0 - LARGEST_AUC, LARGEST_AUC)).float()
        return {"mAP": by_class["AP"].nanmean(), "AUC": auc, "d_prime": d_prime}

    def _by_class(self) -> dict[str, Float[Tensor, " classes"] | Int[Tensor, " classes"]]:
        if len(self.scores) == 0:  # no sample could be read
            scores = torch.zeros(0, self.num_classes, device=self.device)
            tags = scores.bool()
        else:
            scores, tags = dim_zero_cat(self.scores), dim_zero_cat(self.tags)
        positives = tags.sum(dim=0)
        average_precision, auc = torch.full((2, self.num_classes), torch.nan, device=self.device)
        for label, count in enumerate(positives.tolist()):
            if scores[:, label].isnan().any():
                continue
            ranked = _ranks(scores[:, label]), tags[:, label].int()
            if count > 0:
                average_precision[label] = binary_average_precision(*ranked, validate_args=False)
            if 0 < count < len(tags):
                auc[label] = binary_auroc(*ranked, validate_args=False)
        chosen = scores > 0.0
        hits = (chosen & tags).sum(dim=0)
        by_class = {"AP": average_precision, "AUC": auc}
        by_class |= {"precision": hits / chosen.sum(dim=0), "recall": hits / positives}  # 0 / 0 is NaN
        return by_class | {"positives": positives}


def _ranks(scores: Float[Tensor, " samples"]) -> Float64[Tensor, " samples"]:
    """Return ranks in [0, 1): of numbers outside of it, torchmetrics takes the sigmoid, which rounds."""
    return torch.unique(scores, return_inverse=True)[1].double() / len(scores)
