"""Explanations of small models, and the content of their pages."""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.inspection.explorer.events import event_arrays, with_scores
from perceiver.inspection.maps.capture import Explainable
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Alpha
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


def explain(
    model: Explainable,
    inputs: dict[str, Tensor],
    masks: dict[str, Tensor] | None = None,
    *,
    alpha: Alpha = 0.5,
    **targets,
) -> Explanation:
    """Explain the answers of `model` for some inputs: words of a text decoder, classes of any other."""
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


def example_explanation(make=perceiver, *, alpha: Alpha = 0.5, **targets) -> Explanation:
    """Always the same explanation, of an image and a sound."""
    torch.manual_seed(5)
    return explain(
        make(encoders={"image": image_encoder(), "audio": audio_encoder()}), image_and_sound(), alpha=alpha, **targets
    )


def arrays_of(
    explanation: Explanation, step: int = 7, epoch: int = 2, *, max_megabytes: float = 7, **scores: float
) -> dict[str, np.ndarray]:
    """The arrays of an event."""
    arrays = event_arrays(explanation, max_megabytes=max_megabytes)
    arrays |= {"step": np.array(step), "epoch": np.array(epoch)}
    return with_scores(arrays, scores)


def contents_of(page: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a browser reads in a page: all but the maps, and these."""
    blocks = re.findall(r'<script type="application/json" (id="page"|class="maps"[^>]*)>(.*?)</script>', page, re.S)
    (whole,) = [json.loads(text) for kind, text in blocks if kind.startswith("id")]
    return whole, [json.loads(text) for kind, text in blocks if kind.startswith("class")]


def unpacked(content: dict[str, Any]) -> dict[str, np.ndarray]:
    """Packed maps as a browser reads them, by modality."""
    sizes = [cells["shape"][0] * cells["shape"][1] for cells in content["cells"]]
    levels = np.frombuffer(zlib.decompress(base64.b64decode(content["data"])), dtype=np.uint8).reshape(-1, sum(sizes))
    scales = np.frombuffer(base64.b64decode(content["scales"]), dtype="<f4").reshape(-1, len(sizes))
    parts = np.split((levels / 255) ** 2, np.cumsum(sizes)[:-1], axis=1)
    return {
        cells["modality"]: (part * scales[:, [number]]).reshape(*content["count"], *cells["shape"])
        for number, (cells, part) in enumerate(zip(content["cells"], parts, strict=True))
    }
