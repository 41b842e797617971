"""Texts about samples of any modality, whatever loss they are learned by: their metrics, tables and words."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from perceiver.tasks.base import TableRow, Task
from perceiver.tasks.generation import Texts
from perceiver.tasks.text_metrics import Measure, ScoredText
from perceiver.tokenizer import PAD, Tokenizer
from perceiver.types import Answer, Batch, Box, Facts, Model, Outcome, Stage, UnsuitableError

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


class TextTask(Task):
    """Base of tasks that predict a text, the target `caption`.

    Metrics: `loss`, `target_metrics`, and in evaluation those of `measure` for generated texts, compared with
    `references` and, where a sample has them, its `facts`.

    Args:
        tokenizer: text <-> token ids.
        measure: of generated texts.
        monitor: the metric of validation that determines the best checkpoint.
        output: the model's output that holds the logits.

    Attributes:
        answer_key: what a text is called, in the singular.
        averages_windows: whether a text may be about a sample of several windows; not where each has its own part.
    """

    num_answers: int = 1
    answer_key: str
    averages_windows: bool = True

    def __init__(self, *, tokenizer: Tokenizer, measure: Measure, monitor: str, output: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.measure = measure
        self.output = output
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        from perceiver.tasks.gathered import TextMetrics

        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy=math.nan)}
        metrics |= self.target_metrics()
        if stage != "train":
            metrics["texts"] = TextMetrics(self.measure)
        return MetricCollection(metrics, compute_groups=False)

    def target_metrics(self) -> "dict[str, Metric]":
        """Return metrics of the target's own ids, for which no text is generated."""
        return {}

    def generate(self, model: Model, batch: Batch, num_texts: int) -> Texts:
        """Generate texts about each sample.

        Raises:
            TypeError: the model cannot.
            UnsuitableError: a sample has several windows, see `averages_windows`.
        """
        self._check_windows(batch)
        return self._generate(model, batch, num_texts)

    @abstractmethod
    def _generate(self, model: Model, batch: Batch, num_texts: int) -> Texts: ...

    def _check_windows(self, batch: Batch) -> None:
        if self.averages_windows:
            return
        for id, names in zip(batch.ids, batch.windows, strict=False):
            if len(names) > 1:
                raise UnsuitableError(
                    f"{id}: is read in {len(names)} windows, but a {self.answer_key} is of the whole recording; "
                    "set `seconds` of its reader to at least its length"
                )

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        self._check_windows(batch)
        if len(batch) == 0 or "caption" not in batch.targets:  # `token_ids` raises for samples without captions
            return batch
        return replace(batch, targets={**batch.targets, "token_ids": self.token_ids(batch)})

    def get_output(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows length ids"]:
        # A learned vocabulary may be smaller than the model allows for.
        return super().get_output(outputs)[..., : self.tokenizer.num_ids]

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {self.output: self.tokenizer.pieces(range(self.tokenizer.num_ids))}

    def token_ids(self, batch: Batch) -> Int[Tensor, "batch captions length"]:
        """Return the ids of all captions, which a prepared batch contains."""
        if "token_ids" in batch.targets:
            return batch.targets["token_ids"]
        if "caption" not in batch.targets:
            raise ValueError("the samples have no captions; choose data that has them, or another task")
        captions = batch.targets.get("captions") or [[caption] for caption in batch.targets["caption"]]
        ids = self.tokenizer.encode_batch([text for texts in captions for text in texts])
        return rearrange(ids, "(batch captions) length -> batch captions length", batch=len(batch))

    def generated(self, model: Model, batch: Batch) -> dict[str, list[ScoredText]]:
        found = self.generate(model, batch, 1)
        ids = found.ids[:, 0]
        texts = [self.tokenizer.decode(of_text) for of_text in ids.tolist()]
        scores = [{} if one is None else one.scores(text) for text, one in zip(texts, _facts(batch), strict=True)]
        confidence = (found.log_probabilities[:, 0] / self.num_predicted(ids).clamp_min(1)).exp().tolist()
        return {self.output: [*map(ScoredText, texts, batch.targets["references"], scores, batch.groups, confidence)]}

    def num_predicted(self, ids: Int[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
        """Return the number of tokens of each generated text whose probabilities are in that of the text."""
        return (ids != PAD).sum(dim=1) - 1  # not BOS

    def update_generated(self, stage: Stage, texts: Mapping[str, Sequence[ScoredText]]) -> None:
        self.metrics(stage)["texts"].update(texts[self.output])

    def as_predictions(self, texts: Mapping[str, Sequence[ScoredText]]) -> list[list[dict[str, Any]]]:
        return [[{self.answer_key: one.text}] for one in texts[self.output]]

    def target_log_probabilities(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " batch"]:
        """Return the log-probability of the target of each sample: the mean over its tokens."""
        return -self.sample_losses(outputs, batch)[0]

    def outcomes(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[Outcome]]:
        losses, _ = self.sample_losses(outputs, batch)
        targets = self.target_log_probabilities(outputs, batch).exp().tolist()
        return {
            self.output: [
                Outcome(loss, one.text, truth, one.confidence, target)
                for loss, one, truth, target in zip(
                    losses.tolist(), texts[self.output], batch.targets["caption"], targets, strict=True
                )
            ]
        }

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        rows = []
        losses, _ = self.sample_losses(outputs, batch)
        for id, one, loss in zip(batch.ids, texts[self.output], losses.tolist(), strict=True):
            group = {"group": one.group} if "group" in batch.targets else {}
            values: dict[str, Any] = {"id": id, self.answer_key: one.text, "references": " | ".join(one.references)}
            values |= {"confidence": one.confidence, "loss": loss}
            rows.append(TableRow(values | group | self.measure.of_text(one) | dict(one.scores)))
        return {f"{self.answer_key}s": rows}

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        texts = self.generate(model, batch, top)
        return [
            [
                {self.answer_key: self.tokenizer.decode(ids), "log_probability": log_probability}
                for ids, log_probability in zip(row, log_probabilities, strict=True)
                if math.isfinite(log_probability)
            ]
            for row, log_probabilities in zip(texts.ids.tolist(), texts.log_probabilities.tolist(), strict=True)
        ]

    def located(self, boxes: tuple[Box, ...], batch: Batch, row: int) -> tuple[Box, ...]:
        """Return the boxes that the facts of a sample give for a word, in the units of the inputs' axes."""
        return boxes

    def words_of(self, ids: Sequence[int], queries: Sequence[Sequence[int]], batch: Batch, row: int) -> list[Answer]:
        """Return the words of a text about the sample `row` of a batch.

        Args:
            ids: of the text.
            queries: the numbers of the decoder's queries that predict each id.
            batch, row: where the facts about the words are.
        """
        facts = _facts(batch)[row]
        mentions = {} if facts is None else {one.word: one for one in facts.mentions(self.tokenizer.decode(ids))}
        answers = []
        for number, word in enumerate(self.tokenizer.words(ids)):
            pairs = [(query, ids[position]) for position in word.positions for query in queries[position]]
            answer = Answer(
                word.text, tuple(query for query, _ in pairs), self.output, ids=tuple(id for _, id in pairs)
            )
            if known := mentions.get(number):
                answer = replace(answer, kind=known.kind, boxes=self.located(tuple(known.boxes), batch, row))
            answers.append(answer)
        return answers


def _facts(batch: Batch) -> list[Facts | None]:
    return batch.targets.get("facts", [None] * len(batch))
