"""A gallery of a split: its most extreme samples, mean maps by class, and the confusion matrix, from streamed batches.

Samples are sorted by what `Task.outcomes` says about them. Memory does not depend on the number of samples, apart from
what the task's own metrics of classes keep (`Task.class_metrics`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.media import Media, media_of
from perceiver.inspection.drawing.thumbnails import Thumbnail, thumbnail
from perceiver.inspection.explorer.extremes import Extremes
from perceiver.inspection.explorer.mean_maps import MeanMaps
from perceiver.inspection.maps.capture import undisturbed
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.types import Answer, Batch, Outcome, Span, Stage

Pieces = Callable[[str, Tensor], list[str] | None]
MapsOfSample = dict[str, Float[np.ndarray, " tokens"]]
"""Kind of map -> its values on all tokens; empty for a sample without answers."""
Kinds = Mapping[str, Float[np.ndarray, "batch answers tokens"]]
MAX_CLASSES = 1000
"""Of a confusion matrix."""


@dataclass(frozen=True)
class Item:
    """A sample that is shown.

    Attributes:
        id: its name.
        outcome: of its answer.
        thumbnails: modality -> its input with maps, of the modalities that it has.
        window: name of the window that is shown, of a sample with several; otherwise empty.
    """

    id: str
    outcome: Outcome
    thumbnails: dict[str, Thumbnail]
    window: str = ""


@dataclass
class OutputGallery:
    """The samples, sorted by their answers at one output of the model.

    Attributes:
        extremes: the numbers of the samples that are shown.
        items: number -> sample.
        confusion: number of samples by true (rows) and predicted class; None if a sample has several classes or none.
        means: modality -> mean maps, of all samples, and of each true or predicted class the map of that class.
    """

    extremes: Extremes
    items: dict[int, Item] = field(default_factory=dict)
    confusion: Int[Tensor, "classes classes"] | None = None
    means: dict[str, MeanMaps] = field(default_factory=dict)


@dataclass
class Gallery:
    """The samples, mean maps and metrics of a split that are shown.

    Attributes:
        top: samples that are shown in each order.
        class_names: by label; empty where answers are texts.
        start, step: the numbers of the samples that are added are start, start + step, …: those of one of several
            processes which share a split.
        num_samples: number of samples that were added.
        outputs: by name of the output.
        class_metrics: name of a metric -> its value for each class.
    """

    top: int
    class_names: Sequence[str]
    start: int = 0
    step: int = 1
    num_samples: int = 0
    outputs: dict[str, OutputGallery] = field(default_factory=dict)
    class_metrics: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.top) is not int or self.top < 1:
            raise ValueError(f"top={self.top}: must be a number of samples, at least 1")

    def add(
        self,
        outcomes: Mapping[str, Sequence[Outcome]],
        explanation: Explanation,
        media: Callable[[Sequence[int]], Media],
        windows: Sequence[str] = (),
    ) -> None:
        """Add the samples of a batch.

        Args:
            outcomes: output -> outcome of each sample, for outputs whose answers were explained.
            explanation: of the batch.
            media: returns the inputs of some of its rows.
            windows: of each sample the name of the window that was explained, where some have several.
        """
        ids, spans = explanation.batch.ids, explanation.record.spans
        real = _real(explanation)
        present = {name: of_rows.mean(axis=1) for name, of_rows in real.items()}
        numbers = [self.start + self.step * (self.num_samples + row) for row in range(len(ids))]
        self.num_samples += len(ids)
        new: dict[str, list[int]] = {}
        kinds, answers = _kinds(explanation), explanation.answers
        maps = {
            output: [_sample_maps(kinds, answers[row], row, output, one) for row, one in enumerate(of_samples)]
            for output, of_samples in outcomes.items()
        }
        for output, of_samples in outcomes.items():
            shown = self._output(output)
            self._count(shown, of_samples)
            kept = [row for row, one in enumerate(of_samples) if shown.extremes.add(numbers[row], one)]
            numbers_kept = shown.extremes.numbers
            shown.items = {number: item for number, item in shown.items.items() if number in numbers_kept}
            new[output] = [row for row in kept if numbers[row] in numbers_kept]
            for row, one in enumerate(of_samples):
                of_classes = {
                    label: _class_maps(kinds, answers[row], row, output, label) for label in {*one.true, *one.predicted}
                }
                shares = {name: float(of_rows[row]) for name, of_rows in present.items()}
                _add_means(shown.means, spans, shares, one, maps[output][row], of_classes)
        rows = sorted({row for of_output in new.values() for row in of_output})
        if not rows:
            return
        drawn = media(rows)
        frames = {name: Frame(span.grid, drawn.pictures.get(name)) for name, span in spans.items()}
        for output, of_output in new.items():
            for row in of_output:
                thumbnails = {
                    name: thumbnail(
                        frame, name, rows.index(row), drawn, _on(spans[name], maps[output][row]), real[name][row]
                    )
                    for name, frame in frames.items()
                    if present[name][row] > 0
                }
                item = Item(ids[row], outcomes[output][row], thumbnails, windows[row] if windows else "")
                self.outputs[output].items[numbers[row]] = item

    def _output(self, name: str) -> OutputGallery:
        return self.outputs.setdefault(name, OutputGallery(Extremes(self.top, len(self.class_names))))

    def _count(self, shown: OutputGallery, outcomes: Sequence[Outcome]) -> None:
        """Count the samples in the confusion matrix."""
        count = len(self.class_names)
        is_first = shown.extremes.counts["all",] == 0
        single = all(len(one.true) == len(one.predicted) == 1 for one in outcomes)
        if not single or not 0 < count <= MAX_CLASSES or (shown.confusion is None and not is_first):
            shown.confusion = None
            return
        true, predicted = (
            torch.tensor([labels[0] for labels in of_role])
            for of_role in ([one.true for one in outcomes], [one.predicted for one in outcomes])
        )
        found = multiclass_confusion_matrix(predicted, true, count)
        shown.confusion = found if shown.confusion is None else shown.confusion + found

    @classmethod
    def merged(cls, parts: Sequence["Gallery"]) -> "Gallery":
        """Return the gallery of the samples of several processes; the order of the parts does not matter."""
        first = parts[0]
        whole = cls(first.top, first.class_names, num_samples=sum(part.num_samples for part in parts))
        for name in dict.fromkeys(name for part in parts for name in part.outputs):
            own = [part.outputs[name] for part in parts if name in part.outputs]
            shown = whole._output(name)
            shown.extremes.merge(one.extremes for one in own)
            kept = shown.extremes.numbers
            shown.items = {number: item for one in own for number, item in sorted(one.items.items()) if number in kept}
            counts = [one.confusion for one in own]
            if all(count is not None for count in counts):
                shown.confusion = torch.stack([count for count in counts if count is not None]).sum(dim=0)
            for one in own:
                for modality, means in one.means.items():
                    shown.means.setdefault(modality, MeanMaps()).merge(means)
        return whole

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file of a gallery.

        Keys: `num_samples`; `class_names`; `class_metrics/<name>` [classes]; per output, after its name and a slash:
        of the samples that are shown `ids`, `sample` (their numbers), `loss`, `confidence`, `wrongness`, `answer` and
        `truth`; `confusion` [true, predicted]; `mean/<modality>/<kind>/<group>` [tokens] with the number of samples
        under the same key and `/count`, the group being `all`, `true/<label>` or `predicted/<label>`.
        """
        arrays = {
            "num_samples": np.array(self.num_samples),
            "class_names": np.array(list(self.class_names), dtype=str),
            **{f"class_metrics/{name}": np.array(values) for name, values in self.class_metrics.items()},
        }
        for output, shown in self.outputs.items():
            numbers = sorted(shown.items)
            items = [shown.items[number] for number in numbers]
            columns: dict[str, np.ndarray] = {
                "ids": np.array([item.id for item in items], dtype=str),
                "sample": np.array(numbers, dtype=int),
                **{
                    name: np.array([getattr(item.outcome, name) for item in items], dtype=float)
                    for name in ("loss", "confidence", "wrongness")
                },
                "answer": np.array([item.outcome.answer for item in items], dtype=str),
                "truth": np.array([item.outcome.truth for item in items], dtype=str),
            }
            if shown.confusion is not None:
                columns["confusion"] = shown.confusion.numpy()
            for modality, means in shown.means.items():
                for group, kind in means.sums:
                    key = f"mean/{modality}/{kind}/{'/'.join(map(str, group))}"
                    columns[key] = means.mean(group, kind)
                    columns[f"{key}/count"] = np.array(means.counts[group, kind])
            arrays |= {f"{output}/{name}": values for name, values in columns.items()}
        return arrays


def collect(
    explainer: Explainer, batches: Iterable[Batch], pieces: Pieces, gallery: Gallery, *, stage: Stage = "val"
) -> Gallery:
    """Add the samples of batches to a gallery, and return it; `finish` completes it.

    As in an evaluation, the windows of a sample have one answer together; its first window is shown and explained, as
    in the events of a training.

    Args:
        explainer: of the model.
        batches: on the device of the model.
        pieces: splits the ids of a text of a modality into pieces (`Dataset.pieces`).
        gallery: which may contain samples.
        stage: the stage whose metrics the task uses for those of classes.
    """
    task = explainer.task
    task.reset(stage)
    for batch in batches:
        if not len(batch):
            continue
        with undisturbed(explainer.module), explainer.forward_context():
            prepared = task.prepare(replace(batch, inputs=explainer.converted(batch.inputs)), train=False)
            outputs = task.average_windows(task.outputs(explainer.model, prepared), prepared)
            task.update(stage, outputs, task.loss(outputs, prepared), prepared)
            texts = task.generated(explainer.model, prepared)
            task.update_generated(stage, texts)
            outcomes = task.outcomes(outputs, prepared, texts, explainer.class_names)
        shown = batch.first_windows()
        explanation = explainer.explain(shown, task.as_predictions(texts))

        def media(rows: Sequence[int], batch: Batch = shown) -> Media:
            return media_of(explainer, batch, rows, pieces)

        gallery.add(outcomes, explanation, media, [names[0] for names in batch.windows])
    return gallery


def finish(explainer: Explainer, gallery: Gallery, *, stage: Stage = "val") -> Gallery:
    """Add the task's metrics of single classes over all processes, which must all call it, and return the gallery."""
    explainer.task.compute(stage)
    gallery.class_metrics = {name: of.tolist() for name, of in explainer.task.class_metrics(stage).items()}
    explainer.task.reset(stage)
    return gallery


def _add_means(
    means: dict[str, MeanMaps],
    spans: Mapping[str, Span],
    shares: Mapping[str, float],
    one: Outcome,
    of_sample: MapsOfSample,
    of_classes: Mapping[int, MapsOfSample],
) -> None:
    """Add the map of a sample to the mean of all, and those of its classes to the means of these."""
    for name, span in spans.items():
        of_modality = means.setdefault(name, MeanMaps())
        if not shares[name]:
            continue
        if shares[name] < 1:
            of_modality.exclude("the inputs have different lengths or sizes, so that their cells do not correspond")
            continue
        of_modality.add(span.grid, [("all",)], _on(span, of_sample))
        for role, labels in (("true", one.true), ("predicted", one.predicted)):
            for label in labels:
                of_modality.add(span.grid, [(role, label)], _on(span, of_classes[label]))


def _real(explanation: Explanation) -> dict[str, Bool[np.ndarray, "batch tokens"]]:
    """Return modality -> True for its real tokens."""
    real = explanation.record.real_tokens.cpu().numpy()
    return {name: real[:, span.start : span.stop] for name, span in explanation.record.spans.items()}


def _kinds(explanation: Explanation) -> Kinds:
    """Return kind of map -> share of each token in each answer."""
    found = {} if explanation.no_relevance else {"relevance": explanation.relevance_shares}
    found["rollout"] = normalized(explanation.rollout.inputs)
    return {kind: values.float().cpu().numpy() for kind, values in found.items()}


def _mean_of_answers(kinds: Kinds, row: int, slots: Sequence[int]) -> MapsOfSample:
    means = {kind: of[row, list(slots)].mean(axis=0) for kind, of in kinds.items() if slots}
    return {kind: mean / (mean.sum() or 1.0) for kind, mean in means.items()}


def _sample_maps(kinds: Kinds, answers: Sequence[Answer], row: int, output: str, one: Outcome) -> MapsOfSample:
    """Return the mean maps of the predicted classes, as far as they are explained, or else of all answers."""
    own = [slot for slot, answer in enumerate(answers) if answer.output == output]
    predicted = [slot for slot in own if answers[slot].label in one.predicted]
    return _mean_of_answers(kinds, row, predicted or own)


def _class_maps(kinds: Kinds, answers: Sequence[Answer], row: int, output: str, label: int) -> MapsOfSample:
    """Return the maps of a class; empty if it is not among the explained ones."""
    slots = [slot for slot, answer in enumerate(answers) if (answer.output, answer.label) == (output, label)]
    return _mean_of_answers(kinds, row, slots)


def _on(span: Span, maps: MapsOfSample) -> MapsOfSample:
    """Return the part of maps that is on one modality."""
    return {kind: values[span.start : span.stop] for kind, values in maps.items()}
