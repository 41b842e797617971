"""A finished run: measure its checkpoint again, or ask it about a user's own files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from perceiver.data.base import UnreadableError
from perceiver.data.collate import collate
from perceiver.inspection.capture import capture
from perceiver.inspection.maps import contact_sheets
from perceiver.training.build import Parts, build, construct, load_weights, read_checkpoint
from perceiver.training.config import check_parts
from perceiver.training.errors import ConfigError
from perceiver.training.run import prepare_torch, test, write_metrics
from perceiver.training.summary import console, metrics_table
from perceiver.types import Batch


def load(run: str, checkpoint: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Parts]:
    """Rebuild a run from one of its checkpoints.

    Args:
        run: the run directory.
        checkpoint: `best` or `last`.
        overrides: changes to the run's config, as `key=value`.

    Raises:
        ConfigError: the run or checkpoint is not there or not readable, or an override names an unknown key.
    """
    run_dir = Path(run)
    if not run_dir.is_dir():
        raise ConfigError(f"run={run}: no such run directory")
    path = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    found = read_checkpoint(path)
    config = overridden(found.config, overrides)
    parts = build(config, found.class_names)
    load_weights(parts.module, found, path)
    return config, parts


def overridden(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with some values replaced; keys must exist, and values be of their types."""
    node = OmegaConf.create(config)
    OmegaConf.set_struct(node, True)
    merged = OmegaConf.to_container(OmegaConf.merge(node, OmegaConf.from_dotlist(list(overrides))))
    assert isinstance(merged, dict)
    replaced = {str(key): value for key, value in merged.items()}
    check_parts(replaced)
    return replaced


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test metrics of a run's checkpoint: printed, and written to `evaluation.json` in the run directory."""
    config, parts = load(cfg.run, cfg.checkpoint, cfg.overrides)
    prepare_torch(config)
    trainer: Trainer = construct(config, "trainer", logger=False, enable_checkpointing=False)
    metrics = test(trainer, parts, config)
    if not metrics:
        raise ConfigError(f"run={cfg.run}: its data set has no test samples")
    path = Path(cfg.run) / "evaluation.json"
    write_metrics(metrics, path)
    console.print(metrics_table(metrics, {"metrics": path}))
    return metrics


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Answers of a run's checkpoint for files: a table, `predictions.json`, and a picture of the attention for each.

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
    output = Path(cfg.output)
    samples, errors = [], []
    for path in paths:
        try:
            samples.append(parts.data.dataset.read(Path(str(path))))
        except UnreadableError as error:
            errors.append(str(error))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.module.to(device)
    answers = []
    for start in range(0, len(samples), parts.data.batch_size):
        batch = collate(samples[start : start + parts.data.batch_size])
        answers += answer(parts, batch, cfg.top, output, first=start, shown=config["attention"])
    if answers:
        output.mkdir(parents=True, exist_ok=True)
        (output / "predictions.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
        console.print(predictions_table(answers))
        console.print(f"written to {output}", soft_wrap=True)
    if errors:
        raise UnreadableError("; ".join(errors))
    return answers


def answer(
    parts: Parts, batch: Batch, top: int, output: Path, *, first: int, shown: dict[str, Any]
) -> list[dict[str, Any]]:
    """Predictions for one batch of files, their attention drawn into `output` as the run drew its own."""
    batch = batch.to(parts.module.device)
    with capture(parts.model) as captured:
        outputs = parts.task.outputs(parts.model, batch)
    predictions = parts.task.predictions(outputs, parts.module.description["class_names"], top)
    answers: list[dict[str, Any]] = [
        {"input": id, "predictions": prediction, "attention": {}}
        for id, prediction in zip(batch.ids, predictions, strict=True)
    ]
    all_sheets = contact_sheets(captured, batch.inputs, num_latents=shown["num_latents"], alpha=shown["rollout_alpha"])
    for key, sheets in all_sheets.items():
        for number, (id, sheet) in enumerate(zip(batch.ids, sheets, strict=True)):
            path = output / f"{first + number:03d}_{Path(id).stem}_{key.replace('/', '_')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
            answers[number]["attention"][key] = str(path)
    return answers


def predictions_table(answers: Sequence[dict[str, Any]]) -> Table:
    """One row per file and answer."""
    columns = list(answers[0]["predictions"][0])
    table = Table("input", *columns)
    for item in answers:
        for rank, prediction in enumerate(item["predictions"]):
            cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in prediction.values()]
            table.add_row("" if rank else item["input"], *cells)
        table.add_section()
    return table
