"""Every few epochs a look at the same samples: exact maps and the explorer into the run directory, sheets to W&B."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from PIL import Image

from perceiver.inspection.arrays import event_arrays, event_path, event_paths, scored, write_arrays
from perceiver.inspection.capture import Explainable, pictures_of, sounds_of
from perceiver.inspection.explanation import Explainer, in_parts
from perceiver.inspection.explorer.media import Media, samples_of, texts_of
from perceiver.inspection.explorer.page import PAGE, Event, events_in, page_of, write_page
from perceiver.inspection.faithfulness import faithfulness, together
from perceiver.inspection.figures import contact_sheets
from perceiver.inspection.localization import localization, mean_scores
from perceiver.inspection.rollout import Alpha, check_alpha
from perceiver.inspection.statistics import drift
from perceiver.runtime.loggers.base import log_explanation, log_explorer
from perceiver.tasks.base import Task
from perceiver.types import Batch

log = logging.getLogger(__name__)

MAX_FAILURES = 3
TOO_MUCH_ALIKE = 0.95
"""Overlap of the maps of different words from which on a warning says so."""


class AttentionCallback(Callback):
    """Looks at the attention on a fixed probe set at the end of epochs, at the step of their metrics.

    Each look measures how the attention is (`statistics`) and, where the data says where things truly are (`boxes`),
    on a second probe set how well maps lie there (`truth`). At the end of training it is tested how far maps may be
    believed (`deletion`). Failing three times switches all of it off with a warning; training goes on.

    Attributes:
        scores: how far the maps of the last look may be believed, by the names under which that is logged.

    Args:
        every_n_epochs: epochs between two looks; the end of training is always looked at. 0 for never.
        sheets_every_n_epochs: at multiples of it, and at the end, looks draw contact sheets, which take the most time.
        num_samples: size of the probe set, spread evenly over the validation samples.
        num_scored_samples: size of the second one, spread likewise, for truth and test; 0 for none.
        num_latents: latents shown in a contact sheet.
        rollout_alpha: share of attention against residual in the rollout, or `norm`.
        max_megabytes: of exact weights kept per event.
        max_seconds: an event that has taken so long draws no contact sheets.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int,
        sheets_every_n_epochs: int,
        num_samples: int,
        num_scored_samples: int,
        num_latents: int,
        rollout_alpha: Alpha,
        max_megabytes: float,
        max_seconds: float,
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("sheets_every_n_epochs", sheets_every_n_epochs, 0 if every_n_epochs == 0 else 1),
            ("num_samples", num_samples, 1),
            ("num_scored_samples", num_scored_samples, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        check_alpha(rollout_alpha)
        self.every_n_epochs = every_n_epochs
        self.sheets_every_n_epochs = sheets_every_n_epochs
        self.num_samples = num_samples
        self.num_scored_samples = num_scored_samples
        self.num_latents = num_latents
        self.rollout_alpha = rollout_alpha
        self.max_megabytes = max_megabytes
        self.max_seconds = max_seconds
        self.failures = 0
        self._late = False
        self.scores: dict[str, float] = {}
        self._last_step: int | None = None
        self._probes: dict[int, Batch] = {}
        self._samples: list[dict[str, Any]] = []
        self._events: dict[int, Event] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if self.every_n_epochs and done % self.every_n_epochs == 0:
            draws = done % self.sheets_every_n_epochs == 0 or done == trainer.max_epochs
            self._try_to_look(trainer, pl_module, trainer.current_epoch, draws=draws)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_n_epochs:
            return
        if self._last_step != _last_step(trainer):  # however training came to its end
            self._try_to_look(trainer, pl_module, trainer.current_epoch - 1, draws=True)
        self._try(trainer, pl_module, "deletion test", lambda: self._test(trainer, pl_module))
        overlap = self.scores.get("attention/word_overlap", 0.0)
        if overlap > TOO_MUCH_ALIKE:  # told once, since every training begins so
            log.warning("attention maps of different words are nearly the same: word_overlap %.3f", overlap)

    def _try_to_look(self, trainer: Trainer, module: LightningModule, epoch: int, *, draws: bool) -> None:
        self._last_step = _last_step(trainer)
        name = f"attention maps of epoch {epoch}"
        self._try(trainer, module, name, lambda: self._look(trainer, module, epoch, draws=draws))

    def _try(self, trainer: Trainer, module: LightningModule, what: str, do: Callable[[], None]) -> None:
        if self.failures >= MAX_FAILURES:
            return
        try:
            with _validated_weights(trainer, module):
                do()
        except Exception as error:  # whatever breaks here, the training is worth more
            self.failures += 1
            off = "; attention maps are off now" if self.failures == MAX_FAILURES else ""
            log.warning("%s failed (%s: %s)%s", what, type(error).__name__, error, off)

    def _look(self, trainer: Trainer, module: LightningModule, epoch: int, *, draws: bool) -> None:
        started = time.monotonic()
        self.scores = {}
        explainer, step = self._observer(trainer, module), _last_step(trainer)
        batch = self._probe(trainer, self.num_samples).to(module.device)
        explanation = explainer.explain(batch)
        scores = explanation.statistics
        if "boxes" in batch.targets or any(answer.is_word for row in explanation.answers for answer in row):
            scores |= mean_scores(localization(explainer.explain(part)) for part in self._scored(trainer, module))
        if not trainer.is_global_zero:
            return
        folder = _folder(trainer)
        arrays = event_arrays(explanation, max_megabytes=self.max_megabytes)
        if earlier := [path for before, path in event_paths(folder).items() if before < step]:
            with np.load(earlier[-1]) as before:
                scores |= {f"stat/{name}": value for name, value in drift(before, arrays).items()}
        arrays |= {"step": np.array(step), "epoch": np.array(epoch)}
        self._write_event(trainer, step, scored(arrays, scores))
        measured = {f"attention/{name}": value for name, value in scores.items()}
        pictures = pictures_of(explainer.model, batch.inputs) if draws or not self._samples else {}
        if not self._samples:
            pieces = trainer.datamodule.dataset.pieces  # type: ignore[attr-defined]
            media = Media(pictures, sounds_of(explainer.model, batch.inputs), texts_of(batch, pieces))
            self._samples = samples_of(batch, explanation.record.spans, media, explainer.class_names)
        self._write_page(trainer)
        sheets: dict[str, list[Image.Image]] = {}
        in_time = time.monotonic() - started < self.max_seconds
        if draws and in_time:
            sheets = contact_sheets(explanation, pictures, num_latents=self.num_latents)
        elif not in_time and not self._late:
            self._late = True
            log.warning(
                "attention: a look takes more than max_seconds=%g; contact sheets are left out. "
                "A smaller attention.num_samples or num_scored_samples makes it faster",
                self.max_seconds,
            )
        named = {f"attention/{key}": of_samples for key, of_samples in sheets.items()}
        captions = [f"{id} · step {step} · epoch {epoch}" for id in batch.ids]
        log_explanation(trainer.loggers, measured, named, captions, step)
        self.scores = {name: value for name, value in measured.items() if not name.startswith("attention/stat/")}

    def _test(self, trainer: Trainer, module: LightningModule) -> None:
        """The deletion test, and the page with it."""
        explainer, step = self._observer(trainer, module), _last_step(trainer)
        results = [faithfulness(explainer, explainer.explain(part), seed=0) for part in self._scored(trainer, module)]
        if not trainer.is_global_zero or not self._samples:  # without a look there is no page
            return
        scores: dict[str, float] = {}
        if results:
            result = together(results)
            scores = result.scores
            if (path := event_path(_folder(trainer), step)).exists():  # the last look may have failed
                with np.load(path) as event:
                    arrays = dict(event) | {"deletion": np.array(json.dumps(result.summary))}
                self._write_event(trainer, step, scored(arrays, scores))
        measured = {f"attention/{name}": value for name, value in scores.items()}
        self.scores |= measured
        log_explorer(trainer.loggers, measured, self._write_page(trainer), step)

    def _observer(self, trainer: Trainer, module: LightningModule) -> Explainer:
        """Looks at the model in the precision of the training."""
        assert isinstance(module.model, Explainable)
        assert isinstance(module.task, Task)
        description: Mapping[str, Any] = module.description  # type: ignore[assignment]
        precision = trainer.precision_plugin
        return Explainer(
            model=module.model,
            task=module.task,
            class_names=description["class_names"],
            alpha=self.rollout_alpha,
            converted=precision.convert_input,
            forward_context=precision.forward_context,
        )

    def _probe(self, trainer: Trainer, num_samples: int) -> Batch:
        """The fixed samples of one size of probe set, read once."""
        if num_samples not in self._probes:
            self._probes[num_samples] = trainer.datamodule.probe(num_samples)  # type: ignore[attr-defined]
        return self._probes[num_samples]

    def _scored(self, trainer: Trainer, module: LightningModule) -> Iterator[Batch]:
        """The second probe set, in parts that take no more memory than training does, which keeps all activations."""
        if self.num_scored_samples:
            probe = self._probe(trainer, self.num_scored_samples)
            for _, part in in_parts(probe, 2 * trainer.datamodule.batch_size):  # type: ignore[attr-defined]
                yield part.to(module.device)

    def _write_event(self, trainer: Trainer, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """An event in place of what is known of its step, be it of an earlier run in the same directory."""
        write_arrays(event_path(_folder(trainer), step), arrays)
        self._events.pop(step, None)

    def _write_page(self, trainer: Trainer) -> Path:
        """The explorer of all looks so far."""
        folder = _folder(trainer)
        events = events_in(folder, known=self._events)
        self._events = {event.step: event for event in events}
        name = "/".join(Path(trainer.default_root_dir).absolute().parts[-2:])
        return write_page(folder / PAGE, page_of(name, self._samples, {name: events}))


def _folder(trainer: Trainer) -> Path:
    """Where looks are kept in the run directory."""
    folder = Path(trainer.default_root_dir) / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what it measures at the end of an epoch, `val/loss` among it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


@contextmanager
def _validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, `module` has the weights that are validated, saved and tested: where weights are averaged, the mean.

    Each process has all of them, also where they are divided.
    """
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        with module.full_parameters():  # type: ignore[operator]
            yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
