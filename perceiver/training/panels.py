"""Scores and pictures of one look -> loggers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

log = logging.getLogger(__name__)

MOST_PAGE_BYTES = 20 * 2**20
"""W&B advises to log no more than 25 MB in a call."""


def log_look(
    loggers: Iterable[Logger],
    scores: Mapping[str, float],
    panels: Mapping[str, Sequence[Image.Image]],
    captions: Sequence[str],
    step: int,
) -> None:
    """Log everything of one event in one call a logger, at the step that the event's metrics have.

    Args:
        loggers: those of the trainer; only W&B's take pictures.
        scores: fixed key -> number.
        panels: fixed key -> one picture a sample.
        captions: one a sample.
        step: as in `trainer/global_step`.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # Only 8-bit RGB arrives as it is: wandb casts float arrays to integers, which makes them black.
            media = {
                key: [
                    wandb.Image(picture, caption=caption)
                    for picture, caption in zip(of_one_size(pictures), captions, strict=True)
                ]
                for key, pictures in panels.items()
            }
            logger.log_metrics({**scores, **media}, step=step)  # type: ignore[dict-item]
        elif scores:
            logger.log_metrics(dict(scores), step=step)


def of_one_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures with white to the right and below, as far as others are larger: W&B shows all in one frame."""
    width, height = (max((picture.size[side] for picture in pictures), default=0) for side in (0, 1))
    padded = [Image.new("RGB", (width, height), "white") for _ in pictures]
    for page, picture in zip(padded, pictures, strict=True):
        page.paste(picture)
    return padded


def log_page(loggers: Iterable[Logger], scores: Mapping[str, float], page: Path, step: int) -> None:
    """Log the explorer and what was tested last; W&B takes pages up to `MOST_PAGE_BYTES`."""
    size = page.stat().st_size
    for logger in loggers:
        if isinstance(logger, WandbLogger) and size > MOST_PAGE_BYTES:
            log.warning(
                "%s is too large for W&B (%d MB); fewer attention.num_samples make it smaller", page, size >> 20
            )
        if isinstance(logger, WandbLogger) and size <= MOST_PAGE_BYTES:
            html = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
            logger.log_metrics({**scores, "attention/explorer": html}, step=step)  # type: ignore[dict-item]
        elif scores:
            logger.log_metrics(dict(scores), step=step)
