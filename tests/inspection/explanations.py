"""Looks at small models, and what the page makes of them."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.inspection.arrays import event_arrays, scored
from perceiver.inspection.capture import Explainable
from perceiver.inspection.explanation import Explainer, Explanation
from perceiver.inspection.rollout import Alpha
from perceiver.tasks.classification import Classification
from perceiver.tasks.joint import JointTask
from perceiver.tasks.losses import LossSpec
from perceiver.types import Batch
from tests.inspection.models import captioning, captions, perceiver
from tests.models import NUM_CLASSES, audio_encoder, image_encoder

CLASS_NAMES = [f"class {label}" for label in range(NUM_CLASSES)]


def labelled(inputs: dict[str, Tensor], masks: dict[str, Tensor] | None = None, **targets) -> Batch:
    """A batch for classification."""
    count = len(next(iter(inputs.values())))
    return Batch(
        inputs=inputs,
        targets={"label": torch.arange(count)} | targets,
        ids=[f"s/{number}" for number in range(count)],
        masks=masks or {},
    )


def classification(num_classes: int = NUM_CLASSES, **options) -> Classification:
    return Classification(num_classes=num_classes, loss=LossSpec(), mixup=0.0, cutmix=0.0, **options)


def explainer(model: Explainable, *, alpha: Alpha = 0.5, class_names: Sequence[str] = CLASS_NAMES) -> Explainer:
    decoder = getattr(model, "decoder", None)
    if isinstance(decoder, TextDecoder):
        return Explainer(model=model, task=captioning(), class_names=[], alpha=alpha)
    task = classification(len(class_names))
    if isinstance(decoder, JointDecoder):
        parts = {"label": classification(output="label/logits"), "caption": captioning(output="caption/logits")}
        task = JointTask(tasks={name: parts[name] for name in decoder.decoders}, monitor="loss")
    return Explainer(model=model, task=task, class_names=class_names, alpha=alpha)


def seen(
    model: Explainable,
    inputs: dict[str, Tensor],
    masks: dict[str, Tensor] | None = None,
    *,
    alpha: Alpha = 0.5,
    **targets,
) -> Explanation:
    """A look at what `model` says of some inputs: words of a text decoder, classes of any other."""
    if not isinstance(getattr(model, "decoder", None), TextDecoder):
        return explainer(model, alpha=alpha).explain(labelled(inputs, masks, **targets))
    batch = captions(inputs, **targets)
    batch.masks = masks or {}
    return explainer(model, alpha=alpha).explain(batch)


def image_and_sound() -> dict[str, torch.Tensor]:
    """4×5 cells of an image, and 3×37 of a sound."""
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 3, 11, 13, generator=generator)
    return {"image": image, "audio": 0.1 * torch.randn(3, 1, 4001, generator=generator)}


def look_at(make=perceiver, *, alpha: Alpha = 0.5, **targets) -> Explanation:
    """Always the same look at an image and a sound."""
    torch.manual_seed(5)
    return seen(
        make(encoders={"image": image_encoder(), "audio": audio_encoder()}), image_and_sound(), alpha=alpha, **targets
    )


def arrays_of(look: Explanation, step: int = 7, epoch: int = 2, **scores: float) -> dict[str, np.ndarray]:
    """The arrays of an event."""
    arrays = event_arrays(look, max_megabytes=7) | {"step": np.array(step), "epoch": np.array(epoch)}
    return scored(arrays, scores)


def contents_of(page: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a browser reads in a page: all but the maps, and these."""
    blocks = re.findall(r'<script type="application/json" (id="page"|class="maps"[^>]*)>(.*?)</script>', page, re.S)
    (whole,) = [json.loads(text) for kind, text in blocks if kind.startswith("id")]
    return whole, [json.loads(text) for kind, text in blocks if kind.startswith("class")]
