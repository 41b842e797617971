"""A trained or published model with all that it takes to predict and explain files, outside of Hydra."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from perceiver.commands.embed import Pool, embeddings
from perceiver.commands.finished_run import FinishedRun, is_published, load_published
from perceiver.commands.finished_run import load as load_run
from perceiver.commands.predict import number_of_answers, predict_samples, to_accelerator
from perceiver.data.collate import collate
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.writer import ExplanationWriter
from perceiver.model import Perceiver
from perceiver.pretrained.architectures import Variant
from perceiver.types import Sample

Files: TypeAlias = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Loaded:
    """A model on the accelerator, if there is one, in evaluation mode.

    Attributes:
        run: its parts: data set with readers, model and task, and the config that they were built from.
    """

    run: FinishedRun

    @property
    def model(self) -> Perceiver:
        return self.run.parts.model

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by label; empty if there are none."""
        return list(self.run.parts.description["class_names"])

    @property
    def explainer(self) -> Explainer:
        """Explains batches, see `perceiver.inspection.maps.explainer`."""
        return self.run.parts.explainer(self.run.config["attention"]["rollout_alpha"])

    @torch.no_grad()
    def predict(self, files: Files, top: int | None = None) -> list[list[dict[str, Any]]]:
        """Return at most `top` answers for each file, best first, as `predictions.json` has them.

        Raises:
            UnreadableError: a file is missing or not of a kind that the model reads.
            ValueError: `top` is not at least 1, or more than there are classes.
        """
        number = number_of_answers(self.run.parts.task, top)
        return predict_samples(self.run.parts, self._samples(files), number)

    def embed(self, files: Files, pool: Pool = "mean") -> Float[Tensor, "files *latents dim"]:
        """Return the mean of the latents of each file, or with `pool="none"` all of them.

        Raises:
            UnreadableError: a file is missing or not of a kind that the model reads.
            ValueError: there are no files.
        """
        samples, size = self._samples(files), self.run.parts.data.batch_size
        if not samples:
            raise ValueError("files=[]: name at least one")
        batches = (collate(samples[start : start + size]) for start in range(0, len(samples), size))
        return torch.cat([embeddings(self.run.parts, batch, pool) for batch in batches])

    def explain(self, files: Files) -> Explanation:
        """Return attention, rollout and relevance for the answers about files; of long recordings for each window.

        Raises:
            UnreadableError: a file is missing or not of a kind that the model reads.
        """
        windows = [window for sample in self._samples(files) for window in sample.split()]
        return self.explainer.explain(collate(windows).to(self.run.parts.device))

    def contact_sheets(self, explanation: Explanation, num_latents: int = 6) -> dict[str, list[Image.Image]]:
        """Return figures of an explanation: the name of a layer -> a picture for each of its samples."""
        pieces = self.run.parts.data.dataset.pieces
        return ExplanationWriter.of_model(self.explainer, explanation, pieces).contact_sheets(num_latents)

    def _samples(self, files: Files) -> list[Sample]:
        paths = [files] if isinstance(files, str | Path) else files
        return [self.run.parts.data.dataset.read(Path(path)) for path in paths]


def load(
    source: str | Path,
    checkpoint: str | None = None,
    *,
    overrides: Sequence[str] = (),
    trusted: str | Iterable[str] = (),
    variant: Variant = "transformers",
) -> Loaded:
    """Load a run, a checkpoint or a published model.

    Args:
        source: run directory, file of a checkpoint, folder of a published or exported model, or the name of its
            repository on the Hugging Face Hub.
        checkpoint, overrides, trusted: see `perceiver.commands.finished_run.load`.
        variant: of a published model, see `perceiver.pretrained.architectures`.

    Raises:
        ConfigError: it does not exist, is damaged, or builds classes that are not trusted.
    """
    if is_published(str(source)):
        run = load_published(str(source), variant, overrides, augment=False, trusted=trusted)
    else:
        run = load_run(str(source), checkpoint, overrides, trusted, augment=False)
    to_accelerator(run.parts)
    return Loaded(run)
