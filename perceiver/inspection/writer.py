"""The path from an explanation to its scores, event file, contact sheets and samples on the explorer's page."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from perceiver.inspection.drawing.figures import contact_sheets, reconstruction_sheets
from perceiver.inspection.drawing.matrix import AlignmentMatrix, alignment_matrices, matrix_csv, matrix_image
from perceiver.inspection.drawing.media import Media, page_samples, texts_of
from perceiver.inspection.evaluation.evaluator import Evaluation
from perceiver.inspection.evaluation.knockout import KnockOut, knock_out_arrays
from perceiver.inspection.explorer.events import event_arrays, event_path, event_paths, with_scores, write_arrays
from perceiver.inspection.explorer.page import PAGE, events_in, explorer_page, write_page
from perceiver.inspection.maps.capture import Explainable, input_pictures, input_sounds, undisturbed
from perceiver.inspection.maps.explainer import Explainer, in_parts
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.sinks import DEFAULT_CRITERION, SinkCriterion, find_sinks, sink_arrays
from perceiver.inspection.maps.statistics import drift
from perceiver.types import Batch


def explain_in_parts(
    explainer: Explainer, batch: Batch, size: int, *, known: Explanation | None = None
) -> Iterator[Explanation]:
    """Explain a batch in parts of `size` samples; a part with the samples of `known` is not explained again."""
    for _, part in in_parts(batch, size):
        yield known if known is not None and known.batch.ids == part.ids else explainer.explain(part)


@dataclass(frozen=True)
class ExplanationWriter:
    """Writes an explanation, of models of this package in training, `inspect` and `predict`, and of others.

    Attributes:
        explanation: of a batch.
        media: its inputs in visible and audible form.
        class_names: of the labels; may be empty.
        knock_outs: of the answers, if any were made.
        sink_criterion: when a token is an attention sink.
    """

    explanation: Explanation
    media: Media
    class_names: Sequence[str] = ()
    knock_outs: Sequence[KnockOut] = ()
    sink_criterion: SinkCriterion = DEFAULT_CRITERION

    @classmethod
    def of_model(
        cls, explainer: Explainer, explanation: Explanation, pieces: Callable[[str, Tensor], list[str] | None]
    ) -> "ExplanationWriter":
        """Return a writer with the inputs as the model's encoders draw and play them.

        Args:
            explainer: of the model.
            explanation: of a batch.
            pieces: splits the ids of a text of a modality into pieces (`Dataset.pieces`).
        """
        batch, model = explanation.batch, explainer.model
        with undisturbed(explainer.module), explainer.forward_context():
            reconstructions = explainer.task.reconstructions(model, _converted(explainer, batch))
        media = Media(
            input_pictures(model, batch.inputs),
            input_sounds(model, batch.inputs),
            texts_of(batch, pieces),
            media_versions(model, reconstructions),
        )
        return cls(explanation, media, explainer.class_names)

    def event(
        self,
        *,
        step: int,
        epoch: int,
        max_megabytes: float,
        evaluation: Evaluation | None = None,
        previous: Path | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the arrays of an event, with statistics and scores.

        Args:
            step, epoch: of the training.
            max_megabytes: limit of the exact weights, see `event_arrays`.
            evaluation: of the maps, if they were evaluated.
            previous: the file of the event before, from which the drift is computed.
        """
        evaluation = evaluation or Evaluation()
        sinks = find_sinks(self.explanation, self.sink_criterion)
        arrays = event_arrays(self.explanation, max_megabytes=max_megabytes) | knock_out_arrays(self.knock_outs)
        arrays |= sink_arrays(sinks)
        scores = {**self.explanation.statistics, **sinks.statistics, **evaluation.scores}
        if previous is not None:
            with np.load(previous) as before:
                scores |= {f"stat/{name}": value for name, value in drift(before, arrays).items()}
        arrays |= {"step": np.array(step), "epoch": np.array(epoch)} | _faithfulness_array(evaluation)
        return with_scores(arrays, scores)

    def write_page(self, folder: Path, *, step: int, epoch: int, evaluation: Evaluation, max_megabytes: float) -> Path:
        """Write the event of a step into a folder, and the page of all events in it; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [path for one, path in event_paths(folder).items() if one < step]
        event = self.event(
            step=step,
            epoch=epoch,
            max_megabytes=max_megabytes,
            evaluation=evaluation,
            previous=earlier[-1] if earlier else None,
        )
        write_arrays(event_path(folder, step), event)
        name = folder.absolute().name
        return write_page(folder / PAGE, explorer_page(name, self.page_samples(), {name: events_in(folder)}))

    def contact_sheets(self, num_latents: int) -> dict[str, list[Image.Image]]:
        """Draw the contact sheets of all samples, see `figures.contact_sheets`, and `alignment/<modality>`."""
        sheets = contact_sheets(self.explanation, self.media.pictures, num_latents=num_latents)
        by_sample = [matrices for _, matrices in self.matrices()]
        names = dict.fromkeys(name for matrices in by_sample for name in matrices)
        return sheets | {
            f"alignment/{name}": [
                matrix_image(matrices[name]) if name in matrices else Image.new("RGB", (1, 1)) for matrices in by_sample
            ]
            for name in names
        }

    def matrices(self) -> Iterator[tuple[str, dict[str, list[AlignmentMatrix]]]]:
        """Yield id and alignment matrices of each sample; see `alignment_matrices`."""
        for row, id in enumerate(self.explanation.batch.ids):
            yield id, alignment_matrices(self.explanation, row, self.media.texts)

    def write_matrices(self, folder: Path) -> list[Path]:
        """Write the alignment matrices of each sample as `<number>_<modality>.png` and `.csv`, and return the files."""
        written = []
        for row, (id, matrices) in enumerate(self.matrices()):
            for name, of_modality in matrices.items():
                folder.mkdir(parents=True, exist_ok=True)
                files = [folder / f"{row}_{name}.{ending}" for ending in ("png", "csv")]
                matrix_image(of_modality).save(files[0])
                files[1].write_text(matrix_csv(of_modality, id), encoding="utf-8")
                written += files
        return written

    def page_samples(self) -> list[dict[str, Any]]:
        """Return the inputs of the samples for the explorer's page."""
        explanation = self.explanation
        return page_samples(explanation.batch, explanation.record.spans, self.media, self.class_names)

    def predictions(self, explainer: Explainer) -> dict[str, list[Image.Image]]:
        """Draw the predictions for all samples, of a task that can (`Task.pictures`, `Task.reconstructions`)."""
        batch, pictures = _converted(explainer, self.explanation.batch), self.media.pictures
        with undisturbed(explainer.module), explainer.forward_context():
            rows = explainer.task.pictures(explainer.model, batch, pictures)
        versions = {name: media.pictures for name, media in self.media.versions.items()}
        sheets = reconstruction_sheets(self.explanation.record.spans, pictures, versions)
        return {name: [row[name] for row in rows] for name in next(iter(rows), {})} | sheets


def media_versions(model: Explainable, reconstructions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Media]:
    """Return what a model sees and predicts (`Task.reconstructions`) in visible and audible form, by name."""
    names = dict.fromkeys(name for versions in reconstructions.values() for name in versions)
    found = {}
    for name in names:
        inputs = {modality: versions[name] for modality, versions in reconstructions.items() if name in versions}
        found[name] = Media(input_pictures(model, inputs), input_sounds(model, inputs))
    return found


def _converted(explainer: Explainer, batch: Batch) -> Batch:
    return replace(batch, inputs=explainer.converted(batch.inputs))


def add_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Add scores and the results of faithfulness to an event file."""
    with np.load(path) as event:
        arrays = dict(event) | _faithfulness_array(evaluation)
    write_arrays(path, with_scores(arrays, evaluation.scores))


def _faithfulness_array(evaluation: Evaluation) -> dict[str, np.ndarray]:
    return {} if evaluation.faithfulness is None else {"faithfulness": np.array(json.dumps(evaluation.faithfulness))}
