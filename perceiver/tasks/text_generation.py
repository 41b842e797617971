"""Texts about samples of any modality: cross-entropy of each token given those before it (teacher forcing)."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from perceiver.tasks.base import TableRow, Task, monitor_mode
from perceiver.tasks.generation import Generation, Texts
from perceiver.tasks.text_metrics import ScoredText, TextMetrics
from perceiver.tokenizer import PAD, Tokenizer
from perceiver.types import Answer, Batch, Box, Facts, GenerativeModel, Memory, Model, QueryKind, Stage


class TextGeneration(Task):
    """Base of tasks that predict a text, the target `caption`; the output must be that of an autoregressive decoder.

    Metrics: `loss`; `perplexity` and `token_accuracy` of the targets by teacher forcing; and in evaluation those of
    `text_metrics` for generated texts, compared with `references` and, where a sample has them, its `facts`.

    Args:
        tokenizer: text <-> token ids.
        label_smoothing: share of the target that is spread over all tokens.
        texts_per_sample: texts of each training sample in one step: 1 for its `caption`; for more, its `references` in
            turn, repeated where there are fewer. The sample is encoded once for all of them.
        monitor: the metric of validation that determines the best checkpoint.
        generation: the decoding strategy.
        output: the model's output that holds the logits.

    Attributes:
        answer_key: what a text is called, in the singular.
    """

    num_answers: int = 1
    answer_key: str

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        label_smoothing: float,
        texts_per_sample: int,
        monitor: str,
        generation: Generation,
        output: str,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.tokenizer = tokenizer
        self.output = output
        self.label_smoothing = label_smoothing
        self.texts_per_sample = texts_per_sample
        self.monitor = monitor
        self.monitor_mode = monitor_mode(monitor)
        self.generation = generation
        self.build_metrics(self._metrics)

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "token_ids"}

    def _metrics(self, stage: Stage) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),
            "perplexity": Perplexity(ignore_index=PAD),
            "token_accuracy": MulticlassAccuracy(
                self.tokenizer.vocab_size, average="micro", ignore_index=PAD, validate_args=False
            ),
        }
        if stage != "train":
            metrics["texts"] = self.text_metrics()
        return MetricCollection(metrics, compute_groups=False)

    @abstractmethod
    def text_metrics(self) -> TextMetrics:
        """Return the metrics of generated texts."""

    @abstractmethod
    def text_scores(self, text: ScoredText) -> dict[str, float]:
        """Return the scores of one text in a table."""

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        if len(batch) == 0 or "caption" not in batch.targets:  # `queries` raises for samples without captions
            return batch
        references = batch.targets.get("references")
        if train and self.texts_per_sample > 1 and references:
            captions = [list(islice(cycle(texts), self.texts_per_sample)) for texts in references]
            batch = replace(batch, targets={**batch.targets, "captions": captions})
        return replace(batch, targets={**batch.targets, "token_ids": self._token_ids(batch)})

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        ids = self._token_ids(batch).to(next(iter(batch.inputs.values())).device)[..., :-1]
        return {self.output: ids[_sample_of_row(batch, ids.device)].flatten(0, 1)}

    def get_output(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows length ids"]:
        # A learned vocabulary may be smaller than the model allows for.
        return super().get_output(outputs)[..., : self.tokenizer.num_ids]

    def _token_ids(self, batch: Batch) -> Int[Tensor, "batch captions length"]:
        """Return the ids of all captions, which a prepared batch contains."""
        if "token_ids" in batch.targets:
            return batch.targets["token_ids"]
        if "caption" not in batch.targets:
            raise ValueError("the samples have no captions; choose data that has them, or another task")
        captions = batch.targets.get("captions") or [[caption] for caption in batch.targets["caption"]]
        ids = self.tokenizer.encode_batch([text for texts in captions for text in texts])
        return rearrange(ids, "(batch captions) length -> batch captions length", batch=len(batch))

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits = self.get_output(outputs)
        if batch.windows:
            rows = sum(map(len, batch.windows))
            logs = rearrange(logits.float().log_softmax(dim=-1), "(rows texts) ... -> rows texts ...", rows=rows)
            logits = batch.log_mean_over_windows(logs).flatten(0, 1)
        return {**outputs, self.output: logits}

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest ids"]]:
        return {self.output: self.get_output(outputs).float().softmax(dim=-1)}

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        logits = self.get_output(outputs)
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            self._token_ids(batch)[..., 1:].flatten().to(logits.device),
            ignore_index=PAD,
            label_smoothing=self.label_smoothing,
        )

    def num_terms(self, batch: Batch) -> Tensor:
        return (self._token_ids(batch)[..., 1:] != PAD).sum()

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        logits = self.get_output(outputs).detach().float()
        ids = self._token_ids(batch)[..., 1:].flatten(0, 1).to(logits.device)
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "perplexity":
                metric.update(logits, ids)
            elif name == "token_accuracy":
                metric.update(logits.argmax(dim=-1), ids)

    def update_generated(self, stage: Stage, model: Model, batch: Batch) -> dict[str, list[ScoredText]]:
        texts = [self.tokenizer.decode(ids) for ids in self.generate(model, batch, 1).ids[:, 0].tolist()]
        scores = [{} if one is None else one.scores(text) for text, one in zip(texts, _facts(batch), strict=True)]
        scored = [*map(ScoredText, texts, batch.targets["references"], scores, batch.groups)]
        self.metrics(stage)["texts"].update(scored)
        return {self.output: scored}

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        rows = []
        for id, one in zip(batch.ids, texts[self.output], strict=True):
            group = {"group": one.group} if "group" in batch.targets else {}
            values = {"id": id, self.answer_key: one.text, "references": " | ".join(one.references)}
            rows.append(TableRow(values | group | self.text_scores(one) | dict(one.scores)))
        return {f"{self.answer_key}s": rows}

    def generate(self, model: Model, batch: Batch, num_texts: int) -> Texts:
        """Generate texts about each sample from the mean probabilities over its windows.

        Raises:
            TypeError: the model cannot generate.
        """
        if not isinstance(model, GenerativeModel):
            raise TypeError(f"{type(model).__name__} generates no texts; it needs encode() and incremental_decoder()")
        memory = model.encode(batch.inputs, batch.masks)
        return self.generation(
            lambda width: _WindowMean(model, memory, batch, self.output, width, self.tokenizer.num_ids),
            batch_size=len(batch),
            num_texts=num_texts,
            max_length=self.tokenizer.max_length,
            device=memory.values.device,
        )

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

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Int[Tensor, "batch length"]]:
        if predicted is None:
            return {self.output: self.generate(model, batch, 1).ids[:, 0]}
        texts = [
            self.tokenizer.encode_prefix(row[0][self.answer_key]) for row in predicted
        ]  # a text that was cut off has no EOS
        ids = pad_sequence(texts, batch_first=True, padding_value=PAD)
        return {self.output: ids.to(next(iter(batch.inputs.values())).device)}

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the words of the text of each row."""
        texts = queries[self.output].tolist()
        return [
            [replace(word, boxes=self.located(word.boxes, batch, row)) for word in self._words(ids, facts)]
            for row, (ids, facts) in enumerate(zip(texts, _facts(batch), strict=True))
        ]

    def located(self, boxes: tuple[Box, ...], batch: Batch, row: int) -> tuple[Box, ...]:
        """Return the boxes that the facts of a sample give for a word, in the units of the inputs' axes."""
        return boxes

    def _words(self, ids: Sequence[int], facts: Facts | None) -> list[Answer]:
        mentions = {} if facts is None else {one.word: one for one in facts.mentions(self.tokenizer.decode(ids))}
        answers = []
        for number, word in enumerate(self.tokenizer.words(ids)):
            queries = tuple(position - 1 for position in word.positions)  # each predicts the token after it
            answer = Answer(word.text, queries, self.output, ids=tuple(ids[position] for position in word.positions))
            if known := mentions.get(number):
                answer = replace(answer, kind=known.kind, boxes=tuple(known.boxes))
            answers.append(answer)
        return answers


def _facts(batch: Batch) -> list[Facts | None]:
    return batch.targets.get("facts", [None] * len(batch))


def _sample_of_row(batch: Batch, device: torch.device) -> Int[Tensor, " rows"]:
    """Return the index of the sample that each row is a window of."""
    windows = batch.windows or [("",)] * len(batch)
    return torch.tensor([number for number, names in enumerate(windows) for _ in names], device=device)


class _WindowMean:
    """An `IncrementalDecoder` of samples whose log-probabilities are those of the mean over their windows.

    Args:
        model: decodes each window.
        memory: one row for each window.
        batch: the samples.
        output: the model's output that holds the logits.
        width: texts per sample.
        num_ids: size of the vocabulary; further logits are ignored.
    """

    def __init__(
        self, model: GenerativeModel, memory: Memory, batch: Batch, output: str, width: int, num_ids: int
    ) -> None:
        self.batch = batch
        self.width = width
        self.num_ids = num_ids
        self.sample = _sample_of_row(batch, memory.values.device)
        self.texts = model.incremental_decoder(memory.repeat(width), output)

    def next(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows ids"]:
        by_sample = rearrange(ids, "(batch width) -> batch width", width=self.width)
        logits = self.texts.next(by_sample[self.sample].flatten())[:, : self.num_ids].float()
        by_window = rearrange(logits.log_softmax(dim=1), "(windows width) ids -> windows width ids", width=self.width)
        return self.batch.log_mean_over_windows(by_window).flatten(0, 1)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        by_sample = rearrange(rows % self.width, "(batch width) -> batch width", width=self.width)
        first = torch.arange(len(self.sample), device=rows.device)[:, None] * self.width
        self.texts.select((first + by_sample[self.sample]).flatten())
