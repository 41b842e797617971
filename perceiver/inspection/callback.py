"""Every few epochs a look at the same samples: exact maps into the run directory, contact sheets to W&B."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from perceiver.inspection.arrays import event_arrays
from perceiver.inspection.capture import Capture, capture, pictures_of
from perceiver.inspection.maps import own_answers, panels
from perceiver.inspection.panels import log_look
from perceiver.inspection.truth import mean_scores, overlaps, truth_scores
from perceiver.model import Perceiver
from perceiver.tasks.base import Task
from perceiver.types import Answer, Batch

log = logging.getLogger(__name__)

MAX_FAILURES = 3
TOO_MUCH_ALIKE = 0.95
"""Overlap of the maps of different words from which on a warning says so."""


class AttentionCallback(Callback):
    """Looks at the attention on a fixed probe set at the end of epochs, at the step of their metrics.

    Where the data says where things truly are (`boxes`), a second probe set is scored for how well maps lie there.
    Failing three times switches it off with a warning; training goes on.

    Attributes:
        scores: of the last look, by the names under which they are logged; see `truth`.

    Args:
        every_n_epochs: epochs between two looks; the end of training is always looked at. 0 for never.
        num_samples: size of the probe set, spread evenly over the validation samples.
        num_scored_samples: size of the one that is scored, spread likewise; 0 for none.
        num_latents: latents shown in a contact sheet.
        rollout_alpha: share of attention against residual in the rollout.
        max_megabytes: of exact weights kept per event.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int,
        num_samples: int,
        num_scored_samples: int,
        num_latents: int,
        rollout_alpha: float,
        max_megabytes: float,
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("num_samples", num_samples, 1),
            ("num_scored_samples", num_scored_samples, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.num_scored_samples = num_scored_samples
        self.num_latents = num_latents
        self.rollout_alpha = rollout_alpha
        self.max_megabytes = max_megabytes
        self.failures = 0
        self.scores: dict[str, float] = {}
        self._last_step: int | None = None
        self._probes: dict[int, Batch] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._try_to_look(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and self._last_step != _last_step(trainer):  # however training came to its end
            self._try_to_look(trainer, pl_module, trainer.current_epoch - 1)
        overlap = self.scores.get("attention/word_overlap", 0.0)
        if overlap > TOO_MUCH_ALIKE:  # told once, since every training begins so
            log.warning("attention maps of different words are nearly the same: word_overlap %.3f", overlap)

    def _try_to_look(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        if self.failures >= MAX_FAILURES:
            return
        self._last_step = _last_step(trainer)
        try:
            with _validated_weights(trainer, module):
                self._look(trainer, module, self._last_step, epoch)
        except Exception as error:  # whatever breaks here, the training is worth more
            self.failures += 1
            off = "; attention maps are off now" if self.failures == MAX_FAILURES else ""
            log.warning("attention maps of epoch %d failed (%s: %s)%s", epoch, type(error).__name__, error, off)

    def _look(self, trainer: Trainer, module: LightningModule, step: int, epoch: int) -> None:
        self.scores = {}
        model, _, _ = _parts_of(module)
        batch = self._probe(trainer, self.num_samples).to(module.device)
        captured, answers = _looked_at(trainer, module, batch)
        boxes = batch.targets.get("boxes", [])
        words = any(answer.is_word for row in answers for answer in row)
        scores = self._score(trainer, module) if boxes or words else {}
        if not trainer.is_global_zero:
            return
        arrays = event_arrays(
            captured, batch, max_megabytes=self.max_megabytes, alpha=self.rollout_alpha, answers=answers
        )
        arrays |= {f"score/{name}": np.array(value) for name, value in scores.items()}
        arrays |= {"step": np.array(step), "epoch": np.array(epoch)}
        folder = Path(trainer.default_root_dir) / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        # Uncompressed: weights hardly shrink, and training would wait while zlib tries.
        np.savez(folder / f"step_{step:08d}.npz", **arrays)  # type: ignore[arg-type]
        sheets = panels(
            captured,
            pictures_of(model, batch.inputs),
            answers,
            num_latents=self.num_latents,
            alpha=self.rollout_alpha,
            boxes=boxes,
        )
        self.scores = {f"attention/{name}": value for name, value in scores.items()}
        named = {f"attention/{key}": of_samples for key, of_samples in sheets.items()}
        captions = [f"{id} · step {step} · epoch {epoch}" for id in batch.ids]
        log_look(trainer.loggers, self.scores, named, captions, step)

    def _score(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Scores of the second probe set, of which no more is held at once than of the first."""
        if not self.num_scored_samples:
            return {}
        probe = self._probe(trainer, self.num_scored_samples)
        _, _, class_names = _parts_of(module)
        cases = []
        for start in range(0, len(probe), self.num_samples):
            part = _part(probe, slice(start, start + self.num_samples)).to(module.device)
            captured, answers = _looked_at(trainer, module, part)
            boxes = part.targets.get("boxes", [None] * len(part))
            cases += [
                truth_scores(captured, boxes, answers, num_classes=len(class_names), alpha=self.rollout_alpha),
                overlaps(captured, answers, alpha=self.rollout_alpha),
            ]
        return mean_scores(cases)

    def _probe(self, trainer: Trainer, num_samples: int) -> Batch:
        """The fixed samples of one size of probe set, read once."""
        if num_samples not in self._probes:
            self._probes[num_samples] = trainer.datamodule.probe(num_samples)  # type: ignore[attr-defined]
        return self._probes[num_samples]


def _parts_of(module: LightningModule) -> tuple[Perceiver, Task, Sequence[str]]:
    """Model, task, and the names of the classes; none where there are no classes."""
    assert isinstance(module.model, Perceiver)
    assert isinstance(module.task, Task)
    description: Mapping[str, Any] = module.description  # type: ignore[assignment]
    return module.model, module.task, description["class_names"]


def _looked_at(trainer: Trainer, module: LightningModule, batch: Batch) -> tuple[Capture, list[list[Answer]]]:
    """The attention of a batch in the precision of the training, and what the model said with queries of their own."""
    model, task, class_names = _parts_of(module)
    batch = replace(batch, inputs=trainer.precision_plugin.convert_input(batch.inputs))
    with capture(model) as captured, trainer.precision_plugin.forward_context():
        answers = task.answers(model, batch, class_names)
    return captured, own_answers(captured, answers, len(class_names))


def _part(batch: Batch, samples: slice) -> Batch:
    """Some of the samples of a batch, none of which has several views."""
    return Batch(
        inputs={name: values[samples] for name, values in batch.inputs.items()},
        targets={name: values[samples] for name, values in batch.targets.items()},
        ids=batch.ids[samples],
        masks={name: values[samples] for name, values in batch.masks.items()},
    )


def _last_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what it measures at the end of an epoch, `val/loss` among it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


@contextmanager
def _validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, `module` has the weights that are validated, saved and tested: where weights are averaged, the mean."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
