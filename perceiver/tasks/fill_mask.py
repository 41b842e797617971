"""The ids of a text that stand for unknown ones, predicted (masked language modeling, Devlin et al. 2019)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from perceiver.tasks.base import Task
from perceiver.tokenizer import MASK, Tokenizer
from perceiver.types import Answer, Batch, Model, Stage

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class FillMask(Task):
    """Fills each place of a text that has the id MASK, independently of the others. For prediction only.

    Args:
        modality: of the text.
        tokenizer: whose ids the text has.
        output: the model's output that holds the logits, [batch, places, vocab], of at least as many places as the
            text has.
    """

    answer_key = "filled"
    num_answers = 1

    def __init__(self, *, modality: str, tokenizer: Tokenizer, output: str = "logits") -> None:
        super().__init__()
        self.modality = modality
        self.tokenizer = tokenizer
        self.output = output
        self.set_monitor("loss")

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        return MetricCollection({"loss": MeanMetric(nan_strategy=math.nan)})

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        raise ValueError(f"{type(self).__name__} predicts only; task=reconstruction trains on texts")

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        raise ValueError(f"{type(self).__name__} predicts only; task=reconstruction trains on texts")

    def _ids(self, batch: Batch) -> Int[Tensor, "batch length"]:
        return batch.inputs[self.modality][:, 0]

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "batch places vocab"]]:
        return {self.output: self.get_output(outputs).float().softmax(dim=-1)}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {self.output: self.tokenizer.pieces(range(self.tokenizer.num_ids))}

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return each text with the most probable ids in place of MASK, and the sum of their log-probabilities."""
        ids = self._ids(batch)
        logs = self.get_output(self.outputs(model, batch)).float().log_softmax(dim=-1)[:, : ids.shape[1]]
        values, best = logs.max(dim=-1)
        is_masked = ids == MASK
        texts = [self.tokenizer.decode(row) for row in best.where(is_masked, ids).tolist()]
        totals = values.where(is_masked, 0.0).sum(dim=1).tolist()
        return [[{"filled": text, "log_probability": total}] for text, total in zip(texts, totals, strict=True)]

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the most probable id of each place with MASK."""
        best = self.get_output(outputs).argmax(dim=-1)
        rows = []
        for row, ids in enumerate(self._ids(batch)):
            places = (ids == MASK).nonzero().flatten().tolist()
            chosen = best[row, places].tolist()
            names = self.tokenizer.pieces(chosen)
            rows.append(
                [
                    Answer(name, (place,), self.output, ids=(id,))
                    for name, place, id in zip(names, places, chosen, strict=True)
                ]
            )
        return rows
