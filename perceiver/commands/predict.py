"""Predictions of a finished run for a user's files, with contact sheets of their explanations."""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile
import torch
from einops import rearrange
from omegaconf import DictConfig
from PIL import Image
from rich.table import Table
from torch import Tensor

from perceiver.commands.finished_run import check_writable, load_named
from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.data.sources.folders import files_below
from perceiver.inspection.drawing.contact_sheet import input_image, timeline
from perceiver.inspection.maps.capture import input_pictures
from perceiver.inspection.writer import ExplanationWriter, media_versions
from perceiver.model import Perceiver
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.tasks.base import Task
from perceiver.training.build import Parts
from perceiver.types import IncrementalDecoder, Memory, Picture, Sample, utf8_safe

MAX_STEM = 100
"""Bytes of the name of a file in the names of its figures."""

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Predict with a run's checkpoint or a published model for files: a table, `predictions.json`, and figures.

    A long sound has predictions as a whole and for each window, with a timeline of the windows; its contact sheets show
    the window in which the best answer has its highest score.

    Raises:
        ConfigError: a setting is not valid.
        UnreadableError: some files could not be read; raised after all others.
    """
    paths = named(cfg.inputs)
    if not paths:
        raise ConfigError("inputs=[]: name at least one file")
    finished = load_named(cfg, cfg.overrides, augment=False)
    config, parts = finished.config, finished.parts
    prepare_torch(config)
    to_accelerator(parts)
    output = finished.output_dir / "predictions" if cfg.output is None else Path(cfg.output)
    check_writable(output)
    try:
        top = number_of_answers(parts.task, cfg.top)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    files = list(input_files(paths, parts.data.dataset.file_endings))
    answers: list[dict[str, Any]] = []
    errors: list[str] = []
    try:
        for number, path in enumerate(files):
            try:
                sample = parts.data.dataset.read(path)
            except UnreadableError as error:
                errors.append(str(error))
                continue
            stem = output / figure_stem(number, sample.id)
            answers.append(answer(parts, sample, top, stem, attention=config["attention"], problems=errors))
    finally:
        if answers:
            output.mkdir(parents=True, exist_ok=True)
            written = json.dumps(answers, indent=2, ensure_ascii=False) + "\n"
            (output / "predictions.json").write_text(written, encoding="utf-8", errors="backslashreplace")
    if answers:
        console.print(predictions_table(answers))
        console.print(f"written to {output}", soft_wrap=True)
    if errors:
        raise UnreadableError("; ".join(errors))
    return answers


def number_of_answers(task: Task, top: Any) -> int:
    """Return how many answers are given about a file: `top`, or if it is None as many as the task has by default.

    Raises:
        ValueError: it is no number, or more than there are classes.
    """
    if top is None:
        return task.num_answers
    if type(top) is not int or top < 1:
        raise ValueError(f"top={top}: must be a whole number, at least 1")
    if task.max_answers is not None and top > task.max_answers:
        raise ValueError(f"top={top}: the model has {task.max_answers} classes")
    return top


def named(inputs: Any) -> list[Path]:
    """Return the paths of one file or folder, or of several, named on the command line."""
    single = isinstance(inputs, str) or not isinstance(inputs, Iterable)  # a file may be named 5
    return [Path(str(path)) for path in ([inputs] if single else inputs)]


def input_files(paths: Sequence[Path], endings: Collection[str]) -> Iterator[Path]:
    """Yield the files among some paths, and in folders the files with one of the endings, if there are any.

    Raises:
        ConfigError: a folder contains no such file.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        files = [Path(name) for name in files_below(path)]
        others = [file for file in files if endings and file.suffix.lower() not in endings]
        if len(others) == len(files):
            expected = f"file with one of the endings {' '.join(sorted(endings))}" if endings else "file"
            raise ConfigError(f"inputs: {path}: contains no {expected}")
        if others:
            counts = Counter(file.suffix or file.name for file in others)
            kinds = ", ".join(f"{count} × {utf8_safe(suffix)}" for suffix, count in counts.most_common(5))
            log.warning("%s: ignored files that are not of the run's kind: %s", utf8_safe(str(path)), kinds)
        yield from (file for file in files if file not in set(others))


def figure_stem(number: int, id: str) -> str:
    """Return a unique prefix of limited length for the names of a file's figures."""
    return f"{number:03d}_{Path(id).stem.encode()[:MAX_STEM].decode(errors='ignore')}"


def to_accelerator(parts: Parts) -> None:
    """Move the model to the accelerator, if there is one, in evaluation mode."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.to(device).eval()


@torch.no_grad()
def answer(
    parts: Parts, sample: Sample, top: int, stem: Path, *, attention: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Return predictions for one file, and write its figures.

    Args:
        parts: of the run.
        sample: the file.
        top: number of predictions.
        stem: prefix of the paths of figures.
        attention: the run's settings of figures.
        problems: receives the error if figures cannot be drawn or written.
    """
    names = parts.description["class_names"]
    (predictions,) = predict_samples(parts, [sample], top)
    windows = sample.split()
    # All classes, for the timeline; one text.
    by_window = predict_samples(parts, windows, max(len(names), 1)) if sample.windows else [predictions]
    clearest = max(range(len(windows)), key=lambda place: answer_score(by_window[place], predictions[0]))
    result: dict[str, Any] = {"input": sample.id, "predictions": predictions, "attention": {}}
    if sample.windows:
        result["windows"] = [
            {"window": window, "predictions": row[:top]} for window, row in zip(sample.windows, by_window, strict=True)
        ]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        if pictures := draw_predictions(parts, sample, stem):
            result["pictures"] = pictures
        result["attention"] = draw_attention(parts, windows[clearest], by_window[clearest], stem, attention=attention)
        if sample.windows and "class" in predictions[0]:
            strips = {one["class"]: [answer_score(row, one) for row in by_window] for one in predictions}
            timeline(strips, sample.windows).save(f"{stem}_timeline.png")
            result["timeline"] = f"{stem}_timeline.png"
    except (OSError, RuntimeError, ValueError) as error:
        problems.append(f"{sample.id}: its figures cannot be drawn: {one_line(error)}")
    return result


def answer_score(predictions: Sequence[dict[str, Any]], prediction: dict[str, Any]) -> float:
    """Return the score of the class of `prediction`; without classes, that of the best answer."""
    found = next((one for one in predictions if one.get("class") == prediction.get("class")), predictions[0])
    *_, score = found.values()
    return float(score)


def predict_samples(parts: Parts, samples: Sequence[Sample], top: int) -> list[list[dict[str, Any]]]:
    """Return the predictions for samples, with at most a batch of rows in each forward pass."""
    size, names = parts.data.batch_size, parts.description["class_names"]
    model = InParts(parts.model, size)
    batches = (collate(samples[start : start + size]) for start in range(0, len(samples), size))
    found = (parts.task.predictions(model, batch.to(parts.device), names, top) for batch in batches)
    return [of_sample for of_batch in found for of_sample in of_batch]


class InParts:
    """A `GenerativeModel` that processes a few rows at a time, since a sample may have thousands of windows.

    Args:
        model: the model.
        size: number of rows.
    """

    def __init__(self, model: Perceiver, size: int) -> None:
        self.model = model
        self.size = size

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        found = [self.model(*part) for part in self._parts(inputs, masks, queries, hidden)]
        return {name: torch.cat([outputs[name] for outputs in found]) for name in found[0]}

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> Memory:
        found = [self.model.encode(*part) for part in self._parts(inputs, masks, hidden)]
        kept = [memory.mask for memory in found if memory.mask is not None]
        mask = torch.cat(kept) if kept else None
        return replace(found[0], values=torch.cat([memory.values for memory in found]), mask=mask)

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        return self.model.incremental_decoder(memory, output)

    def _parts(self, inputs: Mapping[str, Tensor], *others: Mapping[str, Tensor] | None) -> Iterator[Any]:
        """Yield a few rows of all arguments at a time."""
        for start in range(0, len(next(iter(inputs.values()))), self.size):
            at = slice(start, start + self.size)
            yield [{name: rows[at] for name, rows in (given or {}).items()} for given in (inputs, *others)]


def draw_predictions(parts: Parts, sample: Sample, stem: Path) -> dict[str, str]:
    """Write the predictions for a sample as far as they can be seen or heard, and return the files by name.

    A reconstruction is written as PNG, each frame of a video as a PNG of its own, and a sound as WAV. Of a long sample
    that is its first window. A task may write files of its own (`Task.files`).
    """
    batch = collate([sample]).to(parts.device)
    model = InParts(parts.model, parts.data.batch_size)
    (pictures,) = parts.task.pictures(model, batch, input_pictures(parts.model, batch.inputs))
    files = {name: f"{stem}_{name}.png" for name in pictures}
    for name, picture in pictures.items():
        picture.save(files[name])
    for name, content in parts.task.files(model, batch)[0].items():
        files[name] = f"{stem}_{name}"
        Path(files[name]).write_bytes(content)
    for version, media in media_versions(parts.model, parts.task.reconstructions(model, batch)).items():
        for modality, shown in media.pictures.items():
            frames = images_of(shown)
            for number, image in enumerate(frames):
                name = f"{modality}_{version}{f'_{number:03d}' if len(frames) > 1 else ''}"
                files[name] = f"{stem}_{name}.png"
                image.save(files[name])
        for modality, sound in media.sounds.items():
            files[f"{modality}_{version}_sound"] = f"{stem}_{modality}_{version}.wav"
            wave = sound.values[0].float().clamp(-1.0, 1.0).cpu().numpy()
            soundfile.write(f"{stem}_{modality}_{version}.wav", wave, sound.sample_rate)
    return files


def images_of(picture: Picture) -> list[Image.Image]:
    """Return the images of the first row of a picture: one, or the frames of a video."""
    values = picture.values[0]
    frames = rearrange(values, "channels ... rows columns -> (...) channels rows columns")
    images = [input_image(frame, picture.unit) for frame in frames]
    upwards = picture.grid.axes[-2].unit == "Hz"
    return [Image.fromarray(image.pixels[::-1] if upwards else image.pixels) for image in images]


def draw_attention(
    parts: Parts, window: Sample, predicted: Sequence[dict[str, Any]], stem: Path, *, attention: dict[str, Any]
) -> dict[str, str]:
    """Draw the contact sheets of one window with its predictions, and return their files by name."""
    explainer = parts.explainer(attention["rollout_alpha"])
    explanation = explainer.explain(collate([window]).to(parts.device), [predicted])
    files = {}
    writer = ExplanationWriter.of_model(explainer, explanation, parts.data.dataset.pieces)
    for key, (sheet,) in writer.contact_sheets(attention["num_latents"]).items():
        files[key] = f"{stem}_{key.replace('/', '_')}.png"
        sheet.save(files[key])
    return files


def predictions_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row per file and answer, and one per window with its best answers."""
    columns = list(answers[0]["predictions"][0])
    table = Table("input", *columns)
    for item in answers:
        for rank, prediction in enumerate(item["predictions"]):
            table.add_row("" if rank else item["input"], *(_cell(value) for value in prediction.values()))
        for window in item.get("windows", []):
            by_key = {key: [_cell(one[key]) for one in window["predictions"]] for key in columns}
            table.add_row(f"  {window['window']}", *(" ".join(cells) for cells in by_key.values()))
        table.add_section()
    return table


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
