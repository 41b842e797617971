"""A finished run's answers about a user's own files, and the attention that led to them."""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from perceiver.commands.finished_run import check_writable, load
from perceiver.commands.train import prepare_torch
from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.data.sources.folders import files_below
from perceiver.inspection.capture import pictures_of
from perceiver.inspection.contact_sheet import timeline
from perceiver.inspection.figures import contact_sheets
from perceiver.model import Perceiver
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.training.build import Parts
from perceiver.types import IncrementalDecoder, Memory, Sample, utf8_safe

MAX_STEM = 100
"""Bytes of the name of a file that are kept in the names of its pictures."""

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Answers of a run's checkpoint for files: a table, `predictions.json`, and pictures.

    A long sound is answered about as a whole and window by window, with a timeline of the windows; its attention is
    drawn for the window in which the best answer scores highest.

    Raises:
        UnreadableError: some files could not be read; raised after all others have been answered.
    """
    paths = named(cfg.inputs)
    if not paths:
        raise ConfigError("inputs=[]: name at least one file")
    if cfg.top is not None and (not isinstance(cfg.top, int) or cfg.top < 1):
        raise ConfigError(f"top={cfg.top}: must be a whole number from 1 on")
    finished = load(str(cfg.run), cfg.checkpoint, cfg.overrides, cfg.trusted)
    config, parts = finished.config, finished.parts
    prepare_torch(config)
    to_accelerator(parts)
    output = finished.output_dir / "predictions" if cfg.output is None else Path(cfg.output)
    check_writable(output)
    top = parts.task.num_answers if cfg.top is None else cfg.top
    files = list(files_among(paths, parts.data.dataset.file_endings))
    answers: list[dict[str, Any]] = []
    errors: list[str] = []
    try:
        for number, path in enumerate(files):
            try:
                sample = parts.data.dataset.read(path)
            except UnreadableError as error:
                errors.append(str(error))
                continue
            stem = output / stem_of(number, sample.id)
            answers.append(answer(parts, sample, top, stem, shown=config["attention"], problems=errors))
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


def named(inputs: Any) -> list[Path]:
    """One file or folder, or several, as they are named on the command line."""
    single = isinstance(inputs, str) or not isinstance(inputs, Iterable)  # 5 may be a file, too
    return [Path(str(path)) for path in ([inputs] if single else inputs)]


def files_among(paths: Sequence[Path], endings: Collection[str]) -> Iterator[Path]:
    """The files among some paths, and those with one of the endings (or any, if there are none) in folders of them.

    Raises:
        ConfigError: there is no such file in a folder.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        there = [Path(name) for name in files_below(path)]
        others = [file for file in there if endings and file.suffix.lower() not in endings]
        if len(others) == len(there):
            wanted = f"file with one of the endings {' '.join(sorted(endings))}" if endings else "file"
            raise ConfigError(f"inputs: {path}: there is no {wanted} in it")
        if others:
            counts = Counter(file.suffix or file.name for file in others)
            kinds = ", ".join(f"{count} × {utf8_safe(suffix)}" for suffix, count in counts.most_common(5))
            log.warning("%s: left out files that are not of the run's kind: %s", utf8_safe(str(path)), kinds)
        left_out = set(others)
        yield from (file for file in there if file not in left_out)


def stem_of(number: int, id: str) -> str:
    """What the names of a file's pictures begin with: not so long that nothing could follow, and each another."""
    return f"{number:03d}_{Path(id).stem.encode()[:MAX_STEM].decode(errors='ignore')}"


def to_accelerator(parts: Parts) -> None:
    """Bring the model to where it runs fastest, ready to answer."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.module.to(device).eval()


@torch.no_grad()
def answer(
    parts: Parts, sample: Sample, top: int, stem: Path, *, shown: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Predictions for one file, with pictures whose names begin with `stem`, drawn as the run drew its own.

    Where these cannot be drawn or written, `problems` says why, and the predictions come without.
    """
    names = parts.module.description["class_names"]
    (predictions,) = predictions_of(parts, [sample], top)
    windows = sample.split()
    # Of classes all, so that each has its place in time; of texts one.
    by_window = predictions_of(parts, windows, max(len(names), 1)) if sample.windows else [predictions]
    clearest = max(range(len(windows)), key=lambda place: score_of(by_window[place], predictions[0]))
    result: dict[str, Any] = {"input": sample.id, "predictions": predictions, "attention": {}}
    if sample.windows:
        result["windows"] = [
            {"window": window, "predictions": row[:top]} for window, row in zip(sample.windows, by_window, strict=True)
        ]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        result["attention"] = draw_attention(parts, windows[clearest], by_window[clearest], stem, shown=shown)
        if sample.windows and "class" in predictions[0]:
            strips = {one["class"]: [score_of(row, one) for row in by_window] for one in predictions}
            timeline(strips, sample.windows).save(f"{stem}_timeline.png")
            result["timeline"] = f"{stem}_timeline.png"
    except (OSError, RuntimeError, ValueError) as error:
        problems.append(f"{sample.id}: no pictures of it: {one_line(error)}")
    return result


def score_of(predictions: Sequence[dict[str, Any]], wanted: dict[str, Any]) -> float:
    """The score of the same class as that of `wanted`; where there are no classes, that of the best answer."""
    found = next((one for one in predictions if one.get("class") == wanted.get("class")), predictions[0])
    *_, score = found.values()
    return float(score)


def predictions_of(parts: Parts, samples: Sequence[Sample], top: int) -> list[list[dict[str, Any]]]:
    """What the model says of some samples; it is shown no more than a batch at once."""
    size, names = parts.data.batch_size, parts.module.description["class_names"]
    model = InParts(parts.model, size)
    batches = (collate(samples[start : start + size]) for start in range(0, len(samples), size))
    found = (parts.task.predictions(model, batch.to(parts.module.device), names, top) for batch in batches)
    return [of_sample for of_batch in found for of_sample in of_batch]


class InParts:
    """A model that is shown a few rows at once, as one sample may have thousands of windows; a `GenerativeModel`.

    Args:
        model: the model.
        size: how many rows.
    """

    def __init__(self, model: Perceiver, size: int) -> None:
        self.model = model
        self.size = size

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        found = [
            self.model(*part, {name: ids[at] for name, ids in (queries or {}).items()})
            for at, part in self._parts(inputs, masks or {})
        ]
        return {name: torch.cat([outputs[name] for outputs in found]) for name in found[0]}

    def encode(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Memory:
        found = [self.model.encode(*part) for _, part in self._parts(inputs, masks or {})]
        kept = [memory.mask for memory in found if memory.mask is not None]
        mask = torch.cat(kept) if kept else None
        return replace(found[0], values=torch.cat([memory.values for memory in found]), mask=mask)

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        return self.model.incremental_decoder(memory, output)

    def _parts(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, list[dict[str, Tensor]]]]:
        """Where each part is, and its inputs and masks."""
        for start in range(0, len(next(iter(inputs.values()))), self.size):
            at = slice(start, start + self.size)
            yield at, [{name: rows[at] for name, rows in named.items()} for named in (inputs, masks)]


def draw_attention(
    parts: Parts, window: Sample, predicted: Sequence[dict[str, Any]], stem: Path, *, shown: dict[str, Any]
) -> dict[str, str]:
    """Sheets of one window, of which the model said something: what it shows -> file."""
    batch = collate([window]).to(parts.module.device)
    explanation = parts.explainer(shown["rollout_alpha"]).explain(batch, [predicted])
    sheets = contact_sheets(explanation, pictures_of(parts.model, batch.inputs), num_latents=shown["num_latents"])
    files = {}
    for key, (sheet,) in sheets.items():
        files[key] = f"{stem}_{key.replace('/', '_')}.png"
        sheet.save(files[key])
    return files


def predictions_table(answers: Sequence[dict[str, Any]]) -> Table:
    """One row per file and answer, and one per window with its best answers."""
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
