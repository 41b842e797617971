"""Scores and pictures of one look -> loggers."""

from collections.abc import Iterable, Mapping, Sequence

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image


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
                    wandb.Image(picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True)
                ]
                for key, pictures in panels.items()
            }
            logger.log_metrics({**scores, **media}, step=step)  # type: ignore[dict-item]
        elif scores:
            logger.log_metrics(dict(scores), step=step)
