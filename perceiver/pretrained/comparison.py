"""Folders for Hugging Face transformers, and the outputs of transformers for inputs of ours, to compare the two."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from perceiver.encoders.image import ImageEncoder
from perceiver.model import Perceiver
from perceiver.pretrained.export import architecture_of
from perceiver.pretrained.folder import PREPROCESSING
from perceiver.pretrained.preprocessing import image_settings


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
    if "image" in model.encoders and isinstance(encoder := model.encoders["image"], ImageEncoder):
        settings = image_settings(encoder, readers["image"])
        (folder / PREPROCESSING).write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def outputs_of_transformers(
    hf_model: Any,
    model: Perceiver,
    inputs: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the outputs of a model of transformers by our names and in our shapes.

    Args:
        hf_model: from `to_transformers`.
        model: the same as ours, whose encoders normalize inputs.
        inputs, masks: see `Perceiver`. Dense outputs are those of all places, in order.
    """
    name = architecture_of(model).removeprefix("PerceiverFor")
    outputs = next(make for start, make in KINDS.items() if name.startswith(start))
    return outputs(hf_model, model, inputs, masks)


def _image(hf_model: Any, model: Any, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder = model.encoders["image"]
    return {"logits": hf_model((inputs["image"] - encoder.mean) / encoder.std).logits}


def _text(hf_model: Any, model: Any, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ids = inputs["text"][:, 0]
    mask = masks.get("text", torch.ones_like(ids)).reshape(len(ids), -1).expand_as(ids)
    return {"logits": hf_model(ids, attention_mask=mask.long()).logits}


def _flow(hf_model: Any, model: Any, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder = model.encoders["video"]
    patches = encoder.neighborhoods((inputs["video"] - encoder.mean) / encoder.std)
    return {"logits": hf_model(patches.transpose(1, 2)).logits.flatten(1, 2)}


def _autoencoder(
    hf_model: Any, model: Any, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    video, audio = inputs["image"], inputs["audio"]
    image_encoder, audio_encoder = model.encoders["image"], model.encoders["audio"]
    label = inputs.get("label", video.new_zeros(len(video), model.encoders["label"].channels))
    given = {
        "image": ((video - image_encoder.mean) / image_encoder.std).transpose(1, 2),
        "audio": (audio / audio_encoder.std).mT,
        "label": label,
    }
    pixels = video.shape[2] * video.shape[3] * video.shape[4]
    count = audio.shape[-1] // audio_encoder.patch_size
    points = {"image": torch.arange(pixels), "audio": torch.arange(count), "label": None}
    logits = hf_model(inputs=given, subsampled_output_points=points).logits
    patches = rearrange(logits["audio"], "batch (patches samples) -> batch patches samples", patches=count)
    return {"audio": patches, "image": logits["image"], "label": logits["label"]}


KINDS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "ImageClassification": _image,
    "SequenceClassification": _text,
    "MaskedLM": _text,
    "OpticalFlow": _flow,
    "MultimodalAutoencoding": _autoencoder,
}
"""What the names of architectures begin with -> function that computes the outputs."""
