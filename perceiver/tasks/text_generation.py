"""Texts about samples of any modality: cross-entropy of each token given those before it (teacher forcing)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from perceiver.tasks.generation import Generation, Texts
from perceiver.tasks.text_metrics import Measure
from perceiver.tasks.texts import TextTask
from perceiver.tokenizer import PAD, Tokenizer
from perceiver.types import Answer, Batch, GenerativeModel, Memory, Model, QueryKind, Stage

if TYPE_CHECKING:
    from torchmetrics import Metric


class TextGeneration(TextTask):
    """Base of tasks whose texts are predicted token by token; the output must be that of an autoregressive decoder.

    Metrics: those of `TextTask`; `perplexity` and `token_accuracy` of the targets by teacher forcing.

    Args:
        tokenizer, measure, monitor, output: see `TextTask`.
        label_smoothing: share of the target that is spread over all tokens.
        texts_per_sample: texts of each training sample in one step: 1 for its `caption`; for more, its `references` in
            turn, repeated where there are fewer. The sample is encoded once for all of them.
        generation: the decoding strategy.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        measure: Measure,
        label_smoothing: float,
        texts_per_sample: int,
        monitor: str,
        generation: Generation,
        output: str,
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        super().__init__(tokenizer=tokenizer, measure=measure, monitor=monitor, output=output)
        self.label_smoothing = label_smoothing
        self.texts_per_sample = texts_per_sample
        self.generation = generation

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "token_ids"}

    def target_metrics(self) -> "dict[str, Metric]":
        from torchmetrics.classification import MulticlassAccuracy
        from torchmetrics.text import Perplexity

        return {
            "perplexity": Perplexity(ignore_index=PAD),
            "token_accuracy": MulticlassAccuracy(
                self.tokenizer.vocab_size, average="micro", ignore_index=PAD, validate_args=False
            ),
        }

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        references = batch.targets.get("references")
        if train and self.texts_per_sample > 1 and references and "caption" in batch.targets:
            captions = [list(islice(cycle(texts), self.texts_per_sample)) for texts in references]
            batch = replace(batch, targets={**batch.targets, "captions": captions})
        return super().prepare(batch, train=train)

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        ids = self.token_ids(batch).to(next(iter(batch.inputs.values())).device)[..., :-1]
        return {self.output: ids[_sample_of_row(batch, ids.device)].flatten(0, 1)}

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
            self.token_ids(batch)[..., 1:].flatten().to(logits.device),
            ignore_index=PAD,
            label_smoothing=self.label_smoothing,
        )

    def num_terms(self, batch: Batch) -> Tensor:
        return (self.token_ids(batch)[..., 1:] != PAD).sum()

    def target_log_probabilities(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " batch"]:
        """Return them without the label smoothing of the loss; of several captions the first."""
        ids = self.token_ids(batch)[:, 0, 1:]
        logits = rearrange(self.get_output(outputs).float(), "(batch texts) ... -> batch texts ...", batch=len(batch))
        losses = F.cross_entropy(logits[:, 0].mT, ids.to(logits.device), ignore_index=PAD, reduction="none")
        return -losses.sum(dim=1) / (ids != PAD).sum(dim=1).clamp_min(1).to(logits.device)

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        logits = self.get_output(outputs).detach().float()
        ids = self.token_ids(batch)[..., 1:].flatten(0, 1).to(logits.device)
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "perplexity":
                metric.update(logits, ids)
            elif name == "token_accuracy":
                metric.update(logits.argmax(dim=-1), ids)

    def _generate(self, model: Model, batch: Batch, num_texts: int) -> Texts:
        """Generate texts from the mean probabilities over the windows of each sample."""
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
        places = [[(position - 1,) for position in range(len(ids))] for ids in texts]  # each predicts the one after it
        return [self.words_of(*text, batch, row) for row, text in enumerate(zip(texts, places, strict=True))]


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
