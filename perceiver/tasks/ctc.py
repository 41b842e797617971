"""Transcription by connectionist temporal classification, CTC (Graves et al. 2006).

Outputs in order of time give, each independently of the others, the probability of every token and of the blank. A
text's probability is the sum over its alignments: sequences of outputs that become the text once repetitions are
merged and blanks are dropped. The blank is PAD.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import forced_align

from perceiver.tasks.ctc_decoding import best_path, prefix_beam_search
from perceiver.tasks.generation import NEVER_GENERATED, Texts
from perceiver.tasks.texts import TextTask
from perceiver.tasks.transcription import TranscriptMetrics
from perceiver.tokenizer import BOS, EOS, PAD, Tokenizer
from perceiver.types import Answer, Batch, Model, QueryKind, Stage, UnsuitableError, cell_centers

BLANK = PAD


class CTC(TextTask):
    """Transcripts by CTC: a dense output at `num_outputs` places, from the start to the end of each recording.

    Metrics: those of `measure`, and `loss`, in nats for each token of the target.

    Args:
        tokenizer, measure, monitor, output: see `TextTask`.
        num_outputs: places in time that are queried; a text needs as many as it has tokens, and one more for each token
            that is repeated.
        num_beams: prefixes that are kept in decoding; with 1, the text of the likeliest alignment is taken.

    Raises:
        ValueError: a number is less than 1.
        UnsuitableError: `loss`, of a text that is too long.
    """

    answer_key = "transcript"
    averages_windows = False

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        measure: TranscriptMetrics,
        num_outputs: int,
        num_beams: int,
        monitor: str,
        output: str = "logits",
    ) -> None:
        for name, value in (("num_outputs", num_outputs), ("num_beams", num_beams)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        super().__init__(tokenizer=tokenizer, measure=measure, monitor=monitor, output=output)
        self.num_outputs = num_outputs
        self.num_beams = num_beams

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "places"}

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        raw = next(iter(batch.inputs.values()))
        return {self.output: cell_centers((self.num_outputs,), raw.device).expand(len(raw), -1, -1)}

    def _targets(self, batch: Batch) -> list[Int[Tensor, " length"]]:
        """Return the ids of each text without padding, BOS and EOS."""
        ids = self.token_ids(batch)[:, 0]
        return [row[(row != PAD) & (row != BOS) & (row != EOS)] for row in ids]

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        logits = self.get_output(outputs).float()
        targets = self._targets(batch)
        for id, target in zip(batch.ids, targets, strict=True):
            repeated = int((target[1:] == target[:-1]).sum())
            if (needed := len(target) + repeated) > logits.shape[1]:
                raise UnsuitableError(
                    f"{id}: its text of {len(target)} tokens, {repeated} of them repeated, needs {needed} outputs; "
                    f"there are {logits.shape[1]}: set num_outputs of the task to at least {needed}"
                )
        if logits.is_meta:  # torch's loss has no shape function
            return logits.sum()
        lengths = torch.tensor([len(target) for target in targets], device=logits.device)
        losses = F.ctc_loss(
            logits.log_softmax(dim=-1).transpose(0, 1),
            torch.cat(targets).to(logits.device),
            torch.full_like(lengths, logits.shape[1]),
            lengths,
            blank=BLANK,
            reduction="sum",
        )
        return losses / self.num_terms(batch).clamp_min(1).to(losses.device)

    def num_terms(self, batch: Batch) -> Tensor:
        return torch.tensor(sum(len(target) for target in self._targets(batch)))

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest ids"]]:
        return {self.output: self.get_output(outputs).float().softmax(dim=-1)}

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        self.metrics(stage)["loss"].update(loss.detach(), weight=self.num_terms(batch))

    def _generate(self, model: Model, batch: Batch, num_texts: int) -> Texts:
        """Decode texts from the outputs, with the log-probability of each over all its alignments."""
        return self._decode(self.get_output(self.outputs(model, batch)), num_texts)

    def num_predicted(self, ids: Int[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
        return ((ids != PAD) & (ids != BOS) & (ids != EOS)).sum(dim=1)

    @torch.no_grad()
    def _decode(self, logits: Float[Tensor, "batch outputs ids"], num_texts: int) -> Texts:
        logs = logits.detach().float().log_softmax(dim=-1).cpu()
        never = [id for id in (*NEVER_GENERATED, EOS) if id != BLANK]
        width = max(self.num_beams, num_texts)
        rows: list[list[list[int]]] = []
        for of_row in logs.index_fill(2, torch.tensor(never), -math.inf):
            rows.append([best_path(of_row)] if width == 1 else prefix_beam_search(of_row, width)[:num_texts])
        most = max(map(len, rows), default=0)
        flat = [torch.tensor([BOS, *ids, EOS]) for row in rows for ids in [*row, *[[]] * (most - len(row))]]
        padded_ids = pad_sequence(flat, batch_first=True, padding_value=PAD)
        texts = rearrange(padded_ids, "(batch texts) length -> batch texts length", texts=most)
        scores = [[_log_probability(of_row, ids) for ids in row] for of_row, row in zip(logs, rows, strict=True)]
        padded = torch.tensor([[*row, *[-math.inf] * (most - len(row))] for row in scores])
        return Texts(texts, padded)

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Tensor]:
        return self.queries(batch)

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the words of the text of each row, with the places that give them in its likeliest alignment."""
        logits = self.get_output(outputs)
        texts = self._decode(logits, 1).ids[:, 0].tolist()
        rows = []
        for row, ids in enumerate(texts):
            content = [id for id in ids if id not in (PAD, BOS, EOS)]
            places = token_places(logits[row].detach().float().log_softmax(dim=-1).cpu(), content)
            rows.append(self.words_of([BOS, *content], [(), *places], batch, row))
        return rows


def _log_probability(logs: Float[Tensor, "outputs ids"], ids: Sequence[int]) -> float:
    """Return the log-probability of a text over all its alignments."""
    lengths = torch.tensor([len(logs)]), torch.tensor([len(ids)])
    return -float(F.ctc_loss(logs[:, None], torch.tensor([list(ids)]).long(), *lengths, blank=BLANK, reduction="sum"))


def token_places(logs: Float[Tensor, "outputs ids"], ids: Sequence[int]) -> list[list[int]]:
    """Return the outputs that give each token of a text in its likeliest alignment."""
    places: list[list[int]] = [[] for _ in ids]
    if ids:
        path = forced_align(logs[None], torch.tensor([list(ids)], dtype=torch.int32), blank=BLANK)[0][0].tolist()
        number = -1
        for place, (id, before) in enumerate(zip(path, [BLANK, *path], strict=False)):
            number += id not in (BLANK, before)
            if id != BLANK:
                places[number].append(place)
    return places
