"""A text about a sample, whatever that is: cross-entropy of each word behind those before it (teacher forcing)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from perceiver.tasks.base import LOWER_IS_BETTER, TableRow, Task
from perceiver.tasks.generation import Generation, Texts, Writer
from perceiver.tasks.text_metrics import Record, TextMetrics, rouge_l, words_of
from perceiver.tokenizer import PAD, Tokenizer
from perceiver.types import Answer, Batch, Facts, Stage


class Captioning(Task):
    """Texts, from the target `caption`; the model's decoder must take words (`TextDecoder`).

    Metrics: `loss`; `perplexity` and `token_accuracy` of the captions, given the words before; and in evaluation those
    of `TextMetrics` on texts that the model writes by itself, held against `references` and, where a sample has them,
    its `facts`.

    Args:
        tokenizer: text <-> words.
        label_smoothing: share of the target that is spread over all words.
        captions_per_sample: captions that are learned at once of each training sample: 1 is its `caption`, more are
            drawn from its `references`, again and again where there are fewer. The sample is read but once for all.
        monitor: the metric that says which checkpoint is best.
        generation: how texts are written.
    """

    num_answers: ClassVar[int] = 1
    asks: ClassVar[bool] = True
    table: ClassVar[str] = "captions"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        label_smoothing: float,
        captions_per_sample: int,
        monitor: str,
        generation: Generation,
    ) -> None:
        super().__init__()
        if captions_per_sample < 1:
            raise ValueError(f"captions_per_sample={captions_per_sample} must be at least 1")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing
        self.captions_per_sample = captions_per_sample
        self.monitor = monitor
        self.monitor_mode: Literal["min", "max"] = "min" if monitor in LOWER_IS_BETTER else "max"
        self.generation = generation
        self.keep_metrics(self._metrics)

    def _metrics(self, stage: Stage) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),
            "perplexity": Perplexity(ignore_index=PAD),
            "token_accuracy": MulticlassAccuracy(
                self.tokenizer.vocab_size, average="micro", ignore_index=PAD, validate_args=False
            ),
        }
        if stage != "train":
            metrics["written"] = TextMetrics()
        return MetricCollection(metrics, compute_groups=False)

    def training_batch(self, batch: Batch) -> Batch:
        # A batch of which nothing could be read has no targets; what else lacks them is told in `outputs`.
        if len(batch) == 0 or "caption" not in batch.targets:
            return batch  # of which nothing could be read; or what lacks them is told in `outputs`
        references = batch.targets.get("references")
        if self.captions_per_sample > 1 and references:
            captions = [list(islice(cycle(texts), self.captions_per_sample)) for texts in references]
            batch = replace(batch, targets={**batch.targets, "captions": captions})
        return replace(batch, targets={**batch.targets, "words": self._encoded(batch)})

    def outputs(self, model: nn.Module, batch: Batch) -> Float[Tensor, "rows length vocab"]:
        words = self._captions(batch, model)[..., :-1]
        of_rows = words[_sample_of_row(batch, words.device)]
        return self._logits(model(batch.inputs, batch.masks, of_rows.flatten(0, 1)))

    def _logits(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows ids"]:
        """Those of words that there are: a vocabulary may turn out smaller than the model has room for."""
        return logits[..., : self.tokenizer.num_ids]

    def _captions(self, batch: Batch, near: nn.Module | Tensor) -> Int[Tensor, "batch captions length"]:
        device = near.device if isinstance(near, Tensor) else next(near.parameters()).device
        return self._encoded(batch).to(device)

    def _encoded(self, batch: Batch) -> Int[Tensor, "batch captions length"]:
        if "words" in batch.targets:
            return batch.targets["words"]
        if "caption" not in batch.targets:
            raise ValueError("the samples have no captions; choose data that has them, or another task")
        captions = batch.targets.get("captions") or [[caption] for caption in batch.targets["caption"]]
        words = self.tokenizer.encode_batch([caption for of_sample in captions for caption in of_sample])
        return rearrange(words, "(batch captions) length -> batch captions length", batch=len(batch))

    def merged(self, outputs: Float[Tensor, "rows length vocab"], batch: Batch) -> Float[Tensor, "texts length vocab"]:
        if not batch.views:
            return outputs
        views = sum(map(len, batch.views))
        logs = self._logits(outputs).float().log_softmax(dim=-1)
        by_view = rearrange(logs, "(views texts) ... -> views texts ...", views=views)
        return batch.log_mean_over_views(by_view).flatten(0, 1)

    def probabilities(self, outputs: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest ids"]:
        return self._logits(outputs).float().softmax(dim=-1)

    def loss(self, outputs: Float[Tensor, "texts length vocab"], batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(
            outputs.flatten(0, 1).float(),
            self._captions(batch, outputs)[..., 1:].flatten(),
            ignore_index=PAD,
            label_smoothing=self.label_smoothing,
        )

    def num_terms(self, batch: Batch) -> Tensor:
        return (self._encoded(batch)[..., 1:] != PAD).sum()

    def update(
        self, stage: Stage, outputs: Float[Tensor, "texts length vocab"], loss: Float[Tensor, ""], batch: Batch
    ) -> None:
        words = self._captions(batch, outputs)[..., 1:].flatten(0, 1)
        logits = outputs.detach().float()
        for name, metric in self.metrics(stage).items(keep_base=True):
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "perplexity":
                metric.update(logits, words)
            elif name == "token_accuracy":
                metric.update(logits.argmax(dim=-1), words)

    def examine(self, stage: Stage, model: nn.Module, batch: Batch) -> list[str]:
        texts = [self.tokenizer.decode(words) for words in self.write(model, batch, 1).words[:, 0].tolist()]
        references, groups = batch.targets["references"], batch.targets.get("group", [""] * len(batch))
        self.metrics(stage)["written"].update([*map(Record, texts, references, _judged(texts, batch), groups)])
        return texts

    def rows(self, outputs: Tensor, batch: Batch, texts: Sequence[str], class_names: Sequence[str]) -> list[TableRow]:
        references, judged = batch.targets["references"], _judged(texts, batch)
        groups = batch.targets.get("group")
        return [
            TableRow(
                {"id": id, "caption": text, "references": " | ".join(references[number])}
                | ({} if groups is None else {"group": groups[number]})
                | {"ROUGE-L": rouge_l([words_of(text)], [[words_of(one) for one in references[number]]])}
                | judged[number]
            )
            for number, (id, text) in enumerate(zip(batch.ids, texts, strict=True))
        ]

    def write(self, model: nn.Module, batch: Batch, num_texts: int) -> Texts:
        """Texts about each sample, by what the model says of its views together."""
        latents: Tensor = model.encode(batch.inputs, batch.masks)  # type: ignore[operator]
        return self.generation(
            lambda width: _Views(model, latents, batch, width, self.tokenizer.num_ids),
            batch_size=len(batch),
            num_texts=num_texts,
            max_length=self.tokenizer.max_length,
            device=latents.device,
        )

    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        texts = self.write(model, batch, top)
        return [
            [
                {"caption": self.tokenizer.decode(words), "log_probability": log_probability}
                for words, log_probability in zip(row, log_probabilities, strict=True)
                if math.isfinite(log_probability)
            ]
            for row, log_probabilities in zip(texts.words.tolist(), texts.log_probabilities.tolist(), strict=True)
        ]

    def answers(
        self,
        model: nn.Module,
        batch: Batch,
        class_names: Sequence[str],
        said: Sequence[dict[str, Any]] | None = None,
    ) -> list[list[Answer]]:
        """The words that the model writes of each row, or those of what it said already."""
        if said is None:
            words = self.write(model, batch, 1).words[:, 0]
        else:
            device = next(iter(batch.inputs.values())).device
            texts = [self.tokenizer.begin(one["caption"]) for one in said]  # what was cut off has no end
            words = pad_sequence(texts, batch_first=True, padding_value=PAD).to(device)
        model(batch.inputs, batch.masks, words)
        return [self._words(row, facts) for row, facts in zip(words.tolist(), _facts(batch), strict=True)]

    def _words(self, ids: Sequence[int], facts: Facts | None) -> list[Answer]:
        mentions = {} if facts is None else {one.word: one for one in facts.mentions(self.tokenizer.decode(ids))}
        answers = []
        for number, word in enumerate(self.tokenizer.words(ids)):
            queries = tuple(place - 1 for place in word.places)  # a word is said by the one before it
            answer = Answer(word.text, queries, ids=tuple(ids[place] for place in word.places))
            if known := mentions.get(number):
                answer = replace(answer, kind=known.kind, boxes=tuple(known.boxes))
            answers.append(answer)
        return answers


def _facts(batch: Batch) -> list[Facts | None]:
    return batch.targets.get("facts", [None] * len(batch))


def _judged(texts: Sequence[str], batch: Batch) -> list[dict[str, float]]:
    """The scores that each sample's facts give to the text about it; none without facts."""
    return [{} if facts is None else facts.judged(text) for text, facts in zip(texts, _facts(batch), strict=True)]


def _sample_of_row(batch: Batch, device: torch.device) -> Int[Tensor, " rows"]:
    """The number of the sample that each row is a view of."""
    views = batch.views or [("",)] * len(batch)
    return torch.tensor([number for number, names in enumerate(views) for _ in names], device=device)


class _Views(Writer):
    """Writes one text about all views of a sample: by the mean of the probabilities that they give to a word.

    Args:
        model: its decoder writes.
        latents: of each view.
        batch: whose views they are.
        width: texts a sample.
        num_ids: words that there are.
    """

    def __init__(
        self, model: nn.Module, latents: Float[Tensor, "views latents dim"], batch: Batch, width: int, num_ids: int
    ) -> None:
        self.batch = batch
        self.width = width
        self.num_ids = num_ids
        self.sample = _sample_of_row(batch, latents.device)
        self.writing = model.decoder.begin(latents.repeat_interleave(width, dim=0))  # type: ignore[operator, union-attr]

    def next(self, words: Int[Tensor, " rows"]) -> Float[Tensor, "rows ids"]:
        of_sample = rearrange(words, "(batch width) -> batch width", width=self.width)
        logits = self.writing.next(of_sample[self.sample].reshape(-1, 1))[:, : self.num_ids].float()
        by_view = rearrange(logits.log_softmax(dim=1), "(views width) ids -> views width ids", width=self.width)
        return self.batch.log_mean_over_views(by_view).flatten(0, 1)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        of_sample = rearrange(rows % self.width, "(batch width) -> batch width", width=self.width)
        first = torch.arange(len(self.sample), device=rows.device)[:, None] * self.width
        self.writing.select((first + of_sample[self.sample]).flatten())
