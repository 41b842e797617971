"""Explanations of the same samples every few epochs, in the run directory and for the loggers."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from PIL import Image

from perceiver.inspection.evaluation.evaluator import Evaluation, Evaluator
from perceiver.inspection.evaluation.verdicts import method_table
from perceiver.inspection.explorer.events import event_path, event_paths, scores_in, write_arrays
from perceiver.inspection.explorer.page import PAGE, Event, events_in, explorer_page, write_page
from perceiver.inspection.maps.capture import Explainable
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Alpha, check_alpha
from perceiver.inspection.maps.sinks import DEFAULT_CRITERION, SinkCriterion
from perceiver.inspection.writer import ExplanationWriter, add_evaluation, explain_in_parts
from perceiver.runtime.loggers.base import RunLogger, log_explanation
from perceiver.tasks.base import Task
from perceiver.training.lightning_data import data_of
from perceiver.types import Batch

log = logging.getLogger(__name__)

MAX_FAILURES = 3
HIGH_OVERLAP = 0.95
"""Overlap of the maps of different words above which a warning is logged."""


class AttentionCallback(Callback):
    """Explains a fixed set of validation samples at the end of epochs, at the step of their metrics.

    Each event has statistics of the attention (`statistics`) and, for data with boxes or texts, the localization of
    maps on a second set of samples (`localization`). At the end of training the faithfulness of maps is tested on it
    (`verdicts`). Three errors switch the callback off with a warning; training continues.

    Attributes:
        scores: localization and faithfulness of the last event, by the names under which they are logged.

    Args:
        every_n_epochs: epochs between two events; there is always one at the end of training. 0 for never.
        sheets_every_n_epochs: contact sheets, which take the most time, are drawn at multiples of it and at the end.
        num_samples: number of samples, evenly spread over the validation samples.
        evaluator: of localization and faithfulness on the second set, spread likewise.
        num_latents: latents in a contact sheet.
        rollout_alpha: share of attention as opposed to the residual in the rollout, or `norm`.
        max_megabytes: limit of the exact weights stored per event.
        max_seconds: an event that takes longer draws no contact sheets.
        sinks: when a token is an attention sink.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int,
        sheets_every_n_epochs: int,
        num_samples: int,
        evaluator: Evaluator,
        num_latents: int,
        rollout_alpha: Alpha,
        max_megabytes: float,
        max_seconds: float,
        sinks: SinkCriterion = DEFAULT_CRITERION,
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("sheets_every_n_epochs", sheets_every_n_epochs, 0 if every_n_epochs == 0 else 1),
            ("num_samples", num_samples, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        check_alpha(rollout_alpha)
        self.every_n_epochs = every_n_epochs
        self.sheets_every_n_epochs = sheets_every_n_epochs
        self.num_samples = num_samples
        self.evaluator = evaluator
        self.num_latents = num_latents
        self.rollout_alpha = rollout_alpha
        self.max_megabytes = max_megabytes
        self.max_seconds = max_seconds
        self.sinks = sinks
        self.failures = 0
        self.scores: dict[str, float] = {}
        self._is_slow = False
        self._last_step: int | None = None
        self._probes: dict[int, Batch] = {}
        self._samples: list[dict[str, Any]] = []
        self._events: dict[int, Event] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if self.every_n_epochs and epochs % self.every_n_epochs == 0:
            draw = epochs % self.sheets_every_n_epochs == 0 or epochs == trainer.max_epochs
            self._try_event(trainer, pl_module, trainer.current_epoch, draw=draw)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_n_epochs:
            return
        if self._last_step != last_step(trainer):  # training may end at any step
            self._try_event(trainer, pl_module, trainer.current_epoch - 1, draw=True)
        self._try(trainer, pl_module, "faithfulness test", lambda: self._test_faithfulness(trainer, pl_module))
        overlap = self.scores.get("attention/word_overlap", 0.0)
        if overlap > HIGH_OVERLAP:  # not earlier, since it is high at the start of every training
            log.warning("attention maps of different words are nearly the same: word_overlap %.3f", overlap)

    def _try_event(self, trainer: Trainer, module: LightningModule, epoch: int, *, draw: bool) -> None:
        self._last_step = last_step(trainer)
        name = f"attention maps of epoch {epoch}"
        self._try(trainer, module, name, lambda: self._explain(trainer, module, epoch, draw=draw))

    def _try(self, trainer: Trainer, module: LightningModule, name: str, function: Callable[[], None]) -> None:
        if self.failures >= MAX_FAILURES:
            return
        try:
            with validated_weights(trainer, module):
                function()
        except Exception as error:  # no error of inspection may end a training
            self.failures += 1
            off = "; attention maps are off now" if self.failures == MAX_FAILURES else ""
            log.warning("%s failed (%s: %s)%s", name, type(error).__name__, error, off)

    def _explain(self, trainer: Trainer, module: LightningModule, epoch: int, *, draw: bool) -> None:
        """Write and log one event."""
        started = time.monotonic()
        self.scores = {}
        explainer, step, folder = (
            training_explainer(trainer, module, self.rollout_alpha),
            last_step(trainer),
            events_folder(trainer),
        )
        batch = self._probe(trainer, self.num_samples).to(module.device)
        explanation = explainer.explain(batch)
        evaluation = Evaluation()
        if "boxes" in batch.targets or any(answer.is_word for row in explanation.answers for answer in row):
            scored = self._scored(trainer, module, explainer)
            evaluation = self.evaluator.evaluate(explainer, scored, with_localization=True, with_faithfulness=False)
        if not trainer.is_global_zero:
            return
        pieces = data_of(trainer).dataset.pieces
        writer = replace(ExplanationWriter.of_model(explainer, explanation, pieces), sink_criterion=self.sinks)
        arrays = writer.event(
            step=step,
            epoch=epoch,
            evaluation=evaluation,
            max_megabytes=self.max_megabytes,
            previous=next((path for one, path in reversed(event_paths(folder).items()) if one < step), None),
        )
        write_arrays(event_path(folder, step), arrays)
        self._events.pop(step, None)  # of an earlier run in the same directory
        if writer.media.versions or not self._samples:  # the page has the reconstructions of the last event
            self._samples = writer.page_samples()
        self._write_page(trainer)
        sheets: dict[str, list[Image.Image]] = {}
        predictions: dict[str, list[Image.Image]] = {}
        is_slow = time.monotonic() - started >= self.max_seconds
        if draw and not is_slow:
            sheets, predictions = writer.contact_sheets(self.num_latents), writer.predictions(explainer)
            writer.write_matrices(folder / "alignment")
        elif is_slow and not self._is_slow:
            self._is_slow = True
            log.warning(
                "attention: an event takes more than max_seconds=%g; contact sheets are not drawn. "
                "A smaller attention.num_samples or evaluator.num_samples makes it faster",
                self.max_seconds,
            )
        scores = {f"attention/{name}": value for name, value in scores_in(arrays).items()}
        named = {f"attention/{key}": of_samples for key, of_samples in sheets.items()}
        named |= {f"predictions/{key}": of_samples for key, of_samples in predictions.items()}
        captions = [f"{id} · step {step} · epoch {epoch}" for id in batch.ids]
        show = (lambda logger: logger.images(named, captions, step)) if named else None
        log_explanation(trainer.loggers, scores, step, show)
        self.scores = {name: value for name, value in scores.items() if not name.startswith("attention/stat/")}

    def _test_faithfulness(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the faithfulness of maps to the last event and to the page."""
        explainer, step = training_explainer(trainer, module, self.rollout_alpha), last_step(trainer)
        scored = self._scored(trainer, module, explainer)
        evaluation = self.evaluator.evaluate(explainer, scored, with_localization=False, with_faithfulness=True)
        if not trainer.is_global_zero or not self._samples:  # without any event there is no page
            return
        path = event_path(events_folder(trainer), step)
        if evaluation.faithfulness is not None and path.exists():  # the last event may have failed
            add_evaluation(path, evaluation)
            self._events.pop(step, None)
        scores = {f"attention/{name}": value for name, value in evaluation.scores.items()}
        self.scores |= scores
        page = self._write_page(trainer)

        def show(logger: RunLogger) -> None:
            logger.html("attention/explorer", page, step)
            if evaluation.faithfulness is not None and evaluation.faithfulness["maps"]:
                logger.table("attention/faithfulness", *method_table(evaluation.faithfulness), step)

        log_explanation(trainer.loggers, scores, step, show)

    def _probe(self, trainer: Trainer, num_samples: int) -> Batch:
        """Return the fixed samples of a set of this size, which are read once."""
        if num_samples not in self._probes:
            self._probes[num_samples] = data_of(trainer).probe(num_samples)
        return self._probes[num_samples]

    def _scored(self, trainer: Trainer, module: LightningModule, explainer: Explainer) -> Iterator[Explanation]:
        """Explain the second set in parts that need no more memory than training, which stores all activations."""
        if self.evaluator.num_samples:
            probe = self._probe(trainer, self.evaluator.num_samples).to(module.device)
            yield from explain_in_parts(explainer, probe, 2 * data_of(trainer).batch_size)

    def _write_page(self, trainer: Trainer) -> Path:
        """Write the explorer of all events so far."""
        folder = events_folder(trainer)
        events = events_in(folder, known=self._events)
        self._events = {event.step: event for event in events}
        name = "/".join(Path(trainer.default_root_dir).absolute().parts[-2:])
        return write_page(folder / PAGE, explorer_page(name, self._samples, {name: events}))


def training_explainer(trainer: Trainer, module: LightningModule, alpha: Alpha = 0.5) -> Explainer:
    """Return an explainer of the model in the precision of the training."""
    assert isinstance(module.model, Explainable)
    assert isinstance(module.task, Task)
    description: Mapping[str, Any] = module.description  # type: ignore[assignment]
    precision = trainer.precision_plugin
    return Explainer(
        model=module.model,
        task=module.task,
        class_names=description["class_names"],
        alpha=alpha,
        converted=precision.convert_input,
        forward_context=precision.forward_context,
    )


def events_folder(trainer: Trainer) -> Path:
    """Return the folder of events in the run directory."""
    folder = Path(trainer.default_root_dir) / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def last_step(trainer: Trainer) -> int:
    """Return the step under which Lightning logs the metrics at the end of an epoch, such as `val/loss`."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


@contextmanager
def validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Give `module` the weights that are validated, saved and tested: averaged and gathered, where they are."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        with module.full_parameters():  # type: ignore[operator]
            yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
