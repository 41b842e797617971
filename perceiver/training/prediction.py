"""A finished run's answers about a user's own files, and the attention that led to them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from perceiver.data.base import UnreadableError
from perceiver.data.collate import collate
from perceiver.inspection.capture import capture, pictures_of
from perceiver.inspection.maps import class_answers, contact_sheets
from perceiver.inspection.timeline import timeline
from perceiver.training.build import Parts
from perceiver.training.errors import ConfigError
from perceiver.training.finished import load
from perceiver.training.run import prepare_torch
from perceiver.training.summary import console
from perceiver.types import Batch, Sample


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Answers of a run's checkpoint for files: a table, `predictions.json`, and pictures.

    A file that is looked at in several views (windows of a long sound) has an answer as a whole and one for each view,
    and a picture of them in a row; its attention is drawn for the view in which its best answer is best.

    Raises:
        UnreadableError: some files could not be read; raised after all others have been answered.
    """
    paths = [cfg.inputs] if isinstance(cfg.inputs, str) else list(cfg.inputs)
    if not paths:
        raise ConfigError("inputs=[]: name at least one file")
    if not isinstance(cfg.top, int) or cfg.top < 1:
        raise ConfigError(f"top={cfg.top}: must be a whole number from 1 on")
    config, parts = load(cfg.run, cfg.checkpoint, cfg.overrides)
    prepare_torch(config)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.module.to(device).eval()
    output = Path(cfg.output)
    answers, errors = [], []
    for number, path in enumerate(paths):
        try:
            sample = parts.data.dataset.read(Path(str(path)))
        except UnreadableError as error:
            errors.append(str(error))
            continue
        stem = output / f"{number:03d}_{Path(sample.id).stem}"
        answers.append(answer(parts, sample, cfg.top, stem, shown=config["attention"]))
    if answers:
        (output / "predictions.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
        console.print(predictions_table(answers))
        console.print(f"written to {output}", soft_wrap=True)
    if errors:
        raise UnreadableError("; ".join(errors))
    return answers


def answer(parts: Parts, sample: Sample, top: int, stem: Path, *, shown: dict[str, Any]) -> dict[str, Any]:
    """Predictions for one file, with pictures whose names begin with `stem`, drawn as the run drew its own."""
    task, names = parts.task, parts.module.description["class_names"]
    views = sample.split()
    outputs = outputs_of(parts, views)
    whole = task.merged(outputs, Batch(inputs={}, targets={}, ids=[sample.id], views=[sample.views or ("",)]))
    (predictions,) = task.predictions(whole, names, top)
    by_view = task.predictions(outputs, names, len(names))
    scores = [scores_of(row) for row in by_view]
    best = [of_view[predictions[0]["class"]] for of_view in scores]
    clearest = best.index(max(best))
    stem.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "input": sample.id,
        "predictions": predictions,
        "attention": draw_attention(parts, views[clearest], stem, shown=shown),
    }
    if sample.views:
        result["windows"] = [
            {"window": view, "predictions": row[:top]} for view, row in zip(sample.views, by_view, strict=True)
        ]
        chosen = [prediction["class"] for prediction in predictions]
        strips = {name: [of_view[name] for of_view in scores] for name in chosen}
        result["timeline"] = f"{stem}_timeline.png"
        timeline(strips, sample.views).save(result["timeline"])
    return result


def scores_of(predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Class -> its score or probability."""
    return {item["class"]: next(value for key, value in item.items() if key != "class") for item in predictions}


@torch.no_grad()
def outputs_of(parts: Parts, views: Sequence[Sample]) -> Float[Tensor, "views classes"]:
    """What the model says of each view, no more than a batch at once."""
    size = parts.data.batch_size
    batches = (collate(views[start : start + size]) for start in range(0, len(views), size))
    return torch.cat([parts.task.outputs(parts.model, batch.to(parts.module.device)) for batch in batches])


def draw_attention(parts: Parts, view: Sample, stem: Path, *, shown: dict[str, Any]) -> dict[str, str]:
    """Contact sheets of one view; `<modality>/cross<k>` -> file."""
    names = parts.module.description["class_names"]
    batch = collate([view]).to(parts.module.device)
    with capture(parts.model) as captured:
        outputs = parts.task.outputs(parts.model, batch)
    sheets = contact_sheets(
        captured,
        pictures_of(parts.model, batch.inputs),
        num_latents=shown["num_latents"],
        alpha=shown["rollout_alpha"],
        answers=class_answers(captured, parts.task.predictions(outputs, names, 3), names),
    )
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
