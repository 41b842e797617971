"""A modality back from the memory, at each place or patch: autoencoding, or of hidden parts alone.

With a part of the tokens hidden from the model this is masked autoencoding (He et al. 2022, arXiv:2111.06377), of a
text masked language modeling (Devlin et al. 2019, arXiv:1810.04805); several modalities at once, as a joint task, are
the multimodal autoencoding of Perceiver IO (Jaegle et al. 2022, section 4.3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.tasks.base import LOWER_IS_BETTER, TableRow, Task, explained_grid
from perceiver.tasks.masking import Choice, Replacement, choose, draws
from perceiver.tasks.reconstruction_targets import ReconstructionTarget
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import Answer, Batch, Model, QueryKind, Stage, cell_centers

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

SHOWN_PLACES = 8
"""Most hidden places of a sample that are explained."""


@dataclass(frozen=True)
class Asked:
    """What is asked for in a batch.

    Attributes:
        shape: of the grid of cells.
        choice: the cells.
        values: their true values.
        scored: which of these count in losses and metrics.
    """

    shape: tuple[int, ...]
    choice: Choice
    values: Tensor
    scored: Bool[Tensor, "rows asked values"]

    def __getitem__(self, rows: slice) -> "Asked":
        """Return what is asked for in some rows; other tasks take a part of a batch with all of its targets."""
        return Asked(self.shape, self.choice[rows], self.values[rows], self.scored[rows])


class Reconstruction(Task):
    """The values of the cells of an input; the output must be dense (`DenseDecoder`).

    The loss of a sample is the mean over its values that are asked for, so that its weight in a joint task does not
    depend on their number; that of a batch is the mean over its samples. In training, at most `num_places` places of a
    sample are asked for, drawn at random. Which cells are hidden is drawn anew in each step of training, and is a
    function of the id of a sample in evaluation. Each window of a long sample is a sample of its own.

    Metrics: `loss`, and those of the target: `PSNR` or `SNR` in dB, each also of the mean, or `accuracy` and
    `perplexity`, each also of the best constant prediction.

    Args:
        modality: what is reconstructed.
        target: what its cells are.
        masked: share of the cells that are hidden in training. If it is more than 0, only hidden ones are asked for.
        masked_in_evaluation: the same in evaluation; None for the same share.
        replacement: of some of the hidden cells in training; None for none.
        num_places: most places of each sample in a training step.
        monitor: the metric of validation that determines the best checkpoint.
        output: the model's output, [batch, places, channels].

    Raises:
        ValueError: a number is out of range.
    """

    answer_key = "answer"

    def __init__(
        self,
        *,
        modality: str,
        target: ReconstructionTarget,
        masked: float,
        masked_in_evaluation: float | None,
        replacement: Replacement | None,
        num_places: int,
        monitor: str,
        output: str = "logits",
    ) -> None:
        super().__init__()
        for name, share in (("masked", masked), ("masked_in_evaluation", masked_in_evaluation)):
            if share is not None and not 0.0 <= share <= 1.0:
                raise ValueError(f"{name}={share} must be 0 to 1")
        if num_places < 1:
            raise ValueError(f"num_places={num_places} must be at least 1")
        self.modality = modality
        self.target = target
        self.masked = masked
        self.masked_in_evaluation = masked if masked_in_evaluation is None else masked_in_evaluation
        self.replacement = replacement
        self.num_places = num_places
        self.output = output
        self.set_monitor(monitor)

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "places"}

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),
            "fidelity": self.target.metric(),
        }
        return MetricCollection(metrics, compute_groups=False)

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        """Choose the cells, and replace some of them in the input."""
        asked = self._ask(batch, train=train)
        inputs = dict(batch.inputs)
        if (replaced := asked.choice.replaced) is not None:
            raw = inputs[self.modality]
            values = self.target.values(raw)
            inputs[self.modality] = self.target.restored(
                raw, torch.where(replaced[..., None], self.target.random(values), values)
            )
        return replace(batch, inputs=inputs, targets={**batch.targets, self._key: asked})

    @property
    def _key(self) -> str:
        return f"asked/{self.output}"

    def _asked(self, batch: Batch) -> Asked:
        """Return what is asked for: of a prepared batch what was chosen, otherwise that of evaluation."""
        return batch.targets[self._key] if self._key in batch.targets else self._ask(batch, train=False)

    def _ask(self, batch: Batch, *, train: bool) -> Asked:
        raw = batch.inputs.get(self.modality)
        some = next(iter(batch.inputs.values()))
        rows, device, shape = len(some), some.device, self._shape(batch)
        num_cells = math.prod(shape)
        if raw is None:
            values = torch.zeros(rows, num_cells, self.target.num_values, device=device)
            scorable = torch.zeros_like(values, dtype=torch.bool)
        else:
            values = self.target.values(raw)
            scorable = self.target.scorable(raw, self._real(batch))
        if train:
            numbers = torch.rand(rows, num_cells + 1, device=device)
            choice = choose(scorable.any(dim=-1), numbers, share=self.masked, replacement=self.replacement)
            cells, valid = choice.cells[:, : self.num_places], choice.valid[:, : self.num_places]
            choice = replace(choice, cells=cells, valid=valid)
        else:
            names = [f"{self.modality}/{id}/{window}" for id, window in _rows(batch)]
            numbers = draws(names, num_cells + 1).to(device)
            choice = choose(scorable.any(dim=-1), numbers, share=self.masked_in_evaluation)
        scored = _at(scorable, choice) & choice.valid[..., None]
        return Asked(shape, choice, _at(values, choice), scored)

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        try:
            return self.target.shape(batch.inputs.get(self.modality))
        except ValueError as error:
            raise ValueError(f"target of modality={self.modality!r}: {error}") from error

    def _real(self, batch: Batch) -> Bool[Tensor, "rows *shape"]:
        raw = batch.inputs[self.modality]
        mask = batch.masks.get(self.modality)
        if mask is None:
            mask = torch.ones(len(raw), dtype=torch.bool, device=raw.device)
        return mask.reshape(*mask.shape, *[1] * (raw.ndim - 1 - mask.ndim)).expand(-1, *raw.shape[2:])

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        asked = self._asked(batch)
        cells = asked.choice.cells
        return {self.output: self.target.places(cell_centers(asked.shape, cells.device), asked.shape)[cells]}

    def hidden(self, batch: Batch) -> dict[str, Bool[Tensor, "rows *shape"]]:
        asked = self._asked(batch)
        hidden = asked.choice.hidden
        return {} if hidden is None else {self.modality: hidden.reshape(-1, *asked.shape)}

    def get_output(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "rows places channels"]:
        values = super().get_output(outputs)
        if values.shape[-1] != (needed := self.target.num_channels):
            raise ValueError(f"num_channels={values.shape[-1]} of the output {self.output!r} must be {needed}")
        return values

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the outputs of all windows, each of which is scored on its own."""
        return {**outputs, self.output: self.get_output(outputs)}

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest channels"]]:
        return {self.output: self.target.probabilities(self.get_output(outputs))}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {self.output: self.target.names(class_names)}

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        losses, is_scored = self._row_losses(outputs, batch)
        return losses.sum() / is_scored.sum().clamp_min(1)

    def _row_losses(
        self, outputs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Return the mean loss over what is scored in each row, and whether anything is; 0 where nothing is."""
        asked = self._asked(batch)
        losses = self.target.losses(self.get_output(outputs), asked.values).masked_fill(~asked.scored, 0.0)
        counts = asked.scored.sum(dim=(1, 2))
        return losses.sum(dim=(1, 2)) / counts.clamp_min(1), counts > 0

    def sample_losses(
        self, outputs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return the mean loss over the windows of each sample of which anything is scored, and their number."""
        losses, is_scored = self._row_losses(outputs, batch)
        sizes = [len(names) for names in batch.windows] or [1] * len(batch)
        totals, terms = (
            torch.stack([rows.sum() for rows in torch.split(values, sizes)])
            for values in (losses, is_scored.to(losses))
        )
        return totals / terms.clamp_min(1), terms

    def num_terms(self, batch: Batch) -> Tensor:
        """Return the number of samples of which anything is scored."""
        return self._asked(batch).scored.flatten(1).any(dim=1).sum()

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        metrics, asked = self.metrics(stage), self._asked(batch)
        metrics["loss"].update(loss.detach(), weight=self.num_terms(batch))
        fidelity = self.metric_parts(stage)["fidelity"]
        self.target.update(fidelity, self.get_output(outputs).detach(), asked.values, asked.scored)

    def _scores(self, outputs: Mapping[str, Tensor], batch: Batch) -> list[dict[str, float]]:
        """Return the metrics of each row alone."""
        asked, output = self._asked(batch), self.get_output(outputs).detach()
        rows = []
        for row in range(len(output)):
            metric, one = self.target.metric(), slice(row, row + 1)
            metric.to(output.device)
            self.target.update(metric, output[one], asked.values[one], asked.scored[one])
            values = metric.compute()
            rows.append({name: float(values[name]) for name in metric.sample_names})
        return rows

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        """Return the metrics of each sample, the worst first, and those without scored values last."""
        rows = []
        for (id, window), scores in zip(_rows(batch), self._scores(outputs, batch), strict=True):
            name, value = next(iter(scores.items()))
            rank = math.inf if math.isnan(value) else -value if name.endswith(LOWER_IS_BETTER) else value
            rows.append(TableRow({"id": f"{id} {window}".strip(), **scores}, rank))
        return {"reconstructions": rows}

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return the most probable alternatives at the places that are asked for, or else the metrics.

        Of a long sample, they are those of its first window.
        """
        outputs = self.average_windows(self.outputs(model, batch), batch)
        num_windows = [len(names) for names in batch.windows] or [1] * len(batch)
        first = [sum(num_windows[:sample]) for sample in range(len(batch))]
        if not (names := self.target.names(class_names)):
            scores = self._scores(outputs, batch)
            return [[{"answer": name, "value": value} for name, value in scores[row].items()][:top] for row in first]
        probabilities = self.probabilities(outputs)[self.output][..., : len(names)]
        valid = self._asked(batch).choice.valid
        found = []
        for row in first:
            asked = probabilities[row] if not valid[row].any() else probabilities[row][valid[row]]
            best = asked.topk(min(max(top // max(len(asked), 1), 1), len(names)), dim=-1)
            order = best.values.flatten().argsort(descending=True, stable=True)[:top]
            pairs = zip(best.indices.flatten()[order].tolist(), best.values.flatten()[order].tolist(), strict=True)
            found.append([{"answer": names[id], "value": value} for id, value in pairs])
        return found

    def reconstructions(self, model: Model, batch: Batch) -> dict[str, dict[str, Tensor]]:
        if self.modality not in batch.inputs:
            return {}
        asked, raw = self._asked(batch), batch.inputs[self.modality]
        output = self.get_output(self.outputs(model, batch))
        values = self.target.values(raw)
        chosen = torch.zeros(values.shape[:2], dtype=torch.bool, device=raw.device)
        chosen = chosen.scatter(1, asked.choice.cells, asked.choice.valid)[..., None]
        predicted = torch.zeros_like(values).scatter(
            1, asked.choice.cells[..., None].expand_as(asked.values), self.target.predicted(output).to(values.dtype)
        )
        found = (
            {} if asked.choice.hidden is None else {"visible": torch.where(chosen, self.target.blank(values), values)}
        )
        found["reconstruction"] = torch.where(chosen, predicted, values)
        return {self.modality: {name: self.target.restored(raw, shown) for name, shown in found.items()}}

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Float[Tensor, "batch places axes"]]:
        """Return the places of a grid of at most `EXPLAINED_PLACES` cells."""
        some = next(iter(batch.inputs.values()))
        shape = self._shape(batch)
        centers = cell_centers(explained_grid(shape), some.device)
        return {self.output: self.target.places(centers, shape).expand(len(some), -1, -1)}

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the most probable alternative at hidden places, or at all if none is hidden; none for real values."""
        if not (names := self.target.names(class_names)):
            return super().answers(outputs, queries, batch, class_names)
        best = self.get_output(outputs)[..., : len(names)].argmax(dim=-1)
        hidden = self._asked(batch).choice.hidden
        rows = []
        for row, ids in enumerate(best.tolist()):
            places = list(range(len(ids)))
            if hidden is not None and hidden[row].any():
                cells = (torch.tensor(places) + 0.5) / len(ids) * hidden.shape[1]
                places = [place for place in places if hidden[row, int(cells[place])]]
            shown = places[:SHOWN_PLACES]
            rows.append([Answer(names[ids[place]], (place,), self.output, label=ids[place]) for place in shown])
        return rows


def _rows(batch: Batch) -> list[tuple[str, str]]:
    """Return the id and the window of each row of the inputs."""
    windows = batch.windows or [("",)] * len(batch)
    return [(id, name) for id, names in zip(batch.ids, windows, strict=True) for name in names]


def _at(values: Tensor, choice: Choice) -> Tensor:
    """Return the values of the chosen cells."""
    return values.gather(1, choice.cells[..., None].expand(-1, -1, values.shape[-1]))
