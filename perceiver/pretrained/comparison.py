"""Folders for Hugging Face transformers, and the outputs of transformers for inputs of ours, to compare the two."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copymode
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from perceiver.encoders.image import ImageEncoder
from perceiver.model import Perceiver
from perceiver.pretrained.export import architecture_of
from perceiver.pretrained.folder import CONFIG, PREPROCESSING
from perceiver.pretrained.preprocessing import image_settings
from perceiver.queries.tokens import cells_at


def write_transformers_folder(folder: Path, hf_model: Any, model: Perceiver, readers: Mapping[str, Any]) -> None:
    """Write the folder of a model: config and weights, and the normalization of images.

    Args:
        folder: is made.
        hf_model: from `to_transformers`.
        model: the same as ours.
        readers: the node of each modality's reader.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hf_model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        copymode(folder / CONFIG, weights)  # which safetensors creates for its user alone
    if "image" in model.encoders and isinstance(encoder := model.encoders["image"], ImageEncoder):
        settings = image_settings(encoder, readers["image"])
        (folder / PREPROCESSING).write_text(json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True)
class Given:
    """The arguments of `Perceiver.forward`."""

    inputs: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    queries: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    def at_queries(self, name: str, values: Shaped[Tensor, "batch cells channels"], *shape: int) -> Tensor:
        """Return the values of an output at the queried places of a grid; without queries, of all cells in order."""
        if name not in self.queries:
            return values
        cells = cells_at(self.queries[name], shape)
        return values.take_along_dim(cells[..., None], dim=1)


def check_hidden(hidden: Iterable[str]) -> None:
    """Check that transformers can hide cells of some inputs, given by name: those of a text alone.

    Raises:
        ValueError: it cannot.
    """
    if others := {*hidden} - {"text"}:
        raise ValueError(f"no class of transformers can hide parts of {min(others)}, as the task does")


@torch.no_grad()
def outputs_of_transformers(hf_model: Any, model: Perceiver, given: Given) -> dict[str, Tensor]:
    """Return the outputs of a model of transformers by our names and in our shapes.

    Args:
        hf_model: from `to_transformers`.
        model: the same as ours, whose encoders normalize inputs.
        given: what ours is called with. Hidden cells of a text are not read, as those that are masked.

    Raises:
        ValueError: cells of another input are hidden.
    """
    check_hidden(given.hidden)
    name = architecture_of(model).removeprefix("PerceiverFor")
    outputs = next(make for start, make in KINDS.items() if name.startswith(start))
    return outputs(hf_model, model, given)


def _image(hf_model: Any, model: Any, given: Given) -> dict[str, Tensor]:
    encoder = model.encoders["image"]
    return {"logits": hf_model((given.inputs["image"] - encoder.mean) / encoder.std).logits}


def _text(hf_model: Any, model: Any, given: Given) -> dict[str, Tensor]:
    ids = given.inputs["text"][:, 0]
    mask = torch.ones_like(ids, dtype=torch.bool)
    if "text" in given.masks:
        mask = given.masks["text"].reshape(len(ids), -1).expand_as(ids)
    if "text" in given.hidden:
        mask = mask & ~given.hidden["text"].reshape(len(ids), -1)
    if "logits" in given.queries:  # there are logits of as many places as the text is long
        missing = hf_model.config.max_position_embeddings - ids.shape[1]
        ids, mask = (F.pad(values, (0, missing)) for values in (ids, mask))
    logits = hf_model(ids, attention_mask=mask.long()).logits
    return {"logits": given.at_queries("logits", logits, logits.shape[1])}


def _flow(hf_model: Any, model: Any, given: Given) -> dict[str, Tensor]:
    encoder, video = model.encoders["video"], given.inputs["video"]
    patches = encoder.neighborhoods((video - encoder.mean) / encoder.std)
    logits = hf_model(patches.transpose(1, 2)).logits.flatten(1, 2)
    return {"logits": given.at_queries("logits", logits, *video.shape[-2:])}


def _autoencoder(hf_model: Any, model: Any, given: Given) -> dict[str, Tensor]:
    video, audio = given.inputs["image"], given.inputs["audio"]
    image_encoder, audio_encoder = model.encoders["image"], model.encoders["audio"]
    label = given.inputs.get("label", video.new_zeros(len(video), model.encoders["label"].channels))
    inputs = {
        "image": ((video - image_encoder.mean) / image_encoder.std).transpose(1, 2),
        "audio": (audio / audio_encoder.std).mT,
        "label": label,
    }
    shape = video.shape[2:]
    count = audio.shape[-1] // audio_encoder.patch_size
    points = {"image": torch.arange(shape.numel()), "audio": torch.arange(count), "label": None}
    logits = hf_model(inputs=inputs, subsampled_output_points=points).logits
    patches = rearrange(logits["audio"], "batch (patches samples) -> batch patches samples", patches=count)
    return {
        "audio": given.at_queries("audio", patches, count),
        "image": given.at_queries("image", logits["image"], *shape),
        "label": logits["label"],
    }


KINDS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "ImageClassification": _image,
    "SequenceClassification": _text,
    "MaskedLM": _text,
    "OpticalFlow": _flow,
    "MultimodalAutoencoding": _autoencoder,
}
"""What the names of architectures begin with -> function that computes the outputs."""
