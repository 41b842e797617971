"""How files become inputs of the published models, as nodes of a data set, a task and a tokenizer.

Sources: of images `PerceiverImageProcessor`, of texts `PerceiverTokenizer` of transformers 5.23; of videos and sounds
DeepMind's notebooks, which keep them in [0, 1] and [-1, 1].
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from perceiver.encoders.image import ImageEncoder
from perceiver.pretrained.architectures import Variant
from perceiver.pretrained.folder import PREPROCESSING, Published
from perceiver.pretrained.nodes import Node, part

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of the colors of ImageNet."""
SIZE, CROP = 224, 256
"""Side of the images, which is that of a square of SIZE / CROP of the shorter side of the original."""

FLOW_FPS, FLOW_SCALE = 25.0, 20.0
"""Frames per second between which flow is predicted, and pixels for an output of 1, as in DeepMind's notebook."""


def run_nodes(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes `model`, `data`, `task` and `tokenizer` with which files are predicted.

    Args:
        published: the model as it is stored.
        model: its node; that of an encoder of images is completed by the normalization.
        variant: whose code is followed.

    Raises:
        ValueError: files cannot be predicted with a model of this kind, or not with these settings.
    """
    kind = next(make for name, make in KINDS.items() if published.architecture.removeprefix(PREFIX).startswith(name))
    nodes: Node = {"model": model, "tokenizer": None, "classes": 0}
    try:
        nodes |= kind(published, model, variant)
    except ValueError as error:
        raise ValueError(f"{published.path.parent}: {error}") from error
    names, num_classes = published.class_names, nodes.pop("classes")
    if len(names) != num_classes:
        names = [f"class {label}" for label in range(num_classes)]
    source = part("data.sources.no_samples.NoSamples", names=names)
    nodes["data"] = part("data.dataset.Dataset", source=source, readers=nodes.pop("readers"), on_error="raise")
    return nodes


def image_classifier(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes of a classifier of images, whose encoder normalizes them."""
    encoder, settings = model["encoders"]["image"], published.preprocessing
    num_classes, channels = model["decoder"]["num_classes"], encoder["stem"]["channels"]
    _check_steps(settings)
    mean, std = [0.0] * channels, [1.0] * channels
    if settings.get("do_normalize", True):
        mean, std = (_values(settings, key, default) for key, default in (("image_mean", MEAN), ("image_std", STD)))
    if not all(len(values) in (1, channels) for values in (mean, std)) or min(std) <= 0:
        problem = f"must have a number for each of {channels} channels, and image_std positive ones"
        raise ValueError(f"image_mean={mean}, image_std={std} of {PREPROCESSING} {problem}")
    return {
        "model": {**model, "encoders": {"image": {**encoder, "mean": mean, "std": std}}},
        "readers": {"image": image_reader(settings, encoder)},
        "task": class_task(published, num_classes),
        "classes": num_classes,
    }


def text_model(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes of a classifier of texts, or of the language model."""
    encoder = model["encoders"]["text"]
    tokenizer = part(
        "tokenizer.PerceiverTokenizer",
        vocab_size=encoder["vocab_size"],
        max_length=encoder["positions"]["shape"][0],
        ends=variant == "transformers",
    )
    num_classes = model["decoder"].get("num_classes", 0)
    fill_mask = part("tasks.fill_mask.FillMask", modality="text", tokenizer=tokenizer)
    return {
        "tokenizer": tokenizer,
        "readers": {"text": part("data.readers.text.TextReader", tokenizer=tokenizer)},
        "task": class_task(published, num_classes) if num_classes else fill_mask,
        "classes": num_classes,
    }


def multimodal_autoencoder(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes of the autoencoder, for videos with sound: their class, and how well they are reconstructed."""
    audio, video = model["encoders"]["audio"], model["encoders"]["image"]
    queries = model["decoder"]["queries"]["queries"]
    num_frames, height, width = queries["image"]["starts_of"]
    num_samples, patch_size = audio["positions"]["max_resolution"][0], audio["patch_size"]
    rate, seconds = audio["sample_rate"], num_frames / video["frames_per_second"]
    num_classes = model["decoder"]["num_channels"]["label"]
    return {
        "readers": {
            "image": part(
                "data.readers.video.VideoReader",
                image_size=[height, width],
                channels=video["channels"],
                frames_per_second=video["frames_per_second"],
                seconds=seconds,
                hop_seconds=seconds,
                flip=0.0,
            ),
            "audio": part(
                "data.readers.audio.AudioReader",
                sample_rate=rate,
                seconds=num_samples / rate,
                hop_seconds=num_samples / rate,
                augment=None,
                log_mel=None,
            ),
        },
        "task": part(
            "tasks.joint.JointTask",
            tasks={
                "label": classification(num_classes, output="label"),
                "image": reconstruction("image", [1, 1, 1], video["channels"], "PSNR", [num_frames, height, width]),
                "audio": reconstruction("audio", [patch_size], 1, "SNR", [num_samples]),
            },
            monitor="loss",
        ),
        "classes": num_classes,
    }


def optical_flow(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes of the model of optical flow, for pairs of frames, and videos: from each frame to the next."""
    encoder = model["encoders"]["video"]
    reader = part(
        "data.readers.frame_pair.FramePairReader",
        image_size=encoder["positions"]["max_resolution"],
        channels=encoder["channels"],
        frames_per_second=FLOW_FPS,
        seconds=encoder["num_frames"] / FLOW_FPS,
        hop_seconds=1 / FLOW_FPS,
        flip=0.0,
    )
    task = part("tasks.optical_flow.OpticalFlow", modality="video", scale=FLOW_SCALE, num_places=4096)
    return {"readers": {"video": reader}, "task": task}


PREFIX = "PerceiverFor"
KINDS: dict[str, Callable[[Published, Node, Variant], Node]] = {
    "ImageClassification": image_classifier,
    "SequenceClassification": text_model,
    "MaskedLM": text_model,
    "OpticalFlow": optical_flow,
    "MultimodalAutoencoding": multimodal_autoencoder,
}
"""What the names of architectures begin with -> function that makes the nodes."""


def image_reader(settings: dict[str, Any], encoder: Node) -> Node:
    """Return the node of a reader of images; `settings` are those of `preprocessor_config.json`."""
    trained = encoder["positions"].get("shape", 2 * [SIZE])
    size = _sides("size", settings.get("size")) or trained
    crop = _sides("crop_size", settings.get("crop_size"))
    if crop is not None and (len(set(crop)) > 1 or crop[0] < max(size)):
        problem = "must be a square, at least as large as size"
        raise ValueError(f"crop_size={settings['crop_size']} of {PREPROCESSING} {problem}={size}")
    return part(
        "data.readers.center_crop.CenterCropReader",
        image_size=size[0] if len(set(size)) == 1 else size,
        channels=encoder["stem"]["channels"],
        augment=None,
        max_value=None,
        eval_crop=SIZE / CROP if crop is None else max(size) / crop[0],
    )


def image_settings(encoder: ImageEncoder, reader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json` for an encoder and the node of its reader: see `image_reader`.

    The central square and its size are those of the reader; pixels may differ a little from those of an `ImageReader`,
    which resizes before it crops.
    """
    size = reader["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    channels = encoder.stem.channels
    mean, std = (values.flatten().expand(channels).tolist() for values in (encoder.mean, encoder.std))
    crop = round(max(height, width) / reader["eval_crop"])
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


STEPS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,  # bicubic
    "do_pad": False,
}
"""Steps of `PerceiverImageProcessor` that images are read with; of other values, None stands for these, too."""


def _check_steps(settings: Mapping[str, Any]) -> None:
    """Check that images are processed in the steps of the published models.

    Raises:
        ValueError: a setting has another value.
    """
    for key, value in STEPS.items():
        if (found := settings.get(key)) is not None and found != value:
            raise ValueError(f"{key}={found} of {PREPROCESSING} is not supported: it must be {value}")


def _values(settings: Mapping[str, Any], key: str, default: list[float]) -> list[float]:
    """Return numbers by channel.

    Raises:
        ValueError: they are none.
    """
    found = default if settings.get(key) is None else settings[key]
    values = found if isinstance(found, list) else [found]
    if not values or not all(type(value) in (int, float) and isfinite(value) for value in values):
        raise ValueError(f"{key}={found} of {PREPROCESSING} must be numbers")
    return [float(value) for value in values]


def _sides(key: str, value: Any) -> list[int] | None:
    """Return height and width, which are stored as a number or by name; None if they are not stored.

    Raises:
        ValueError: they are stored by other names, or are no whole numbers of at least 1.
    """
    if value is None:
        return None
    sides = 2 * [value]
    if isinstance(value, dict):
        named = {name: side for name, side in value.items() if side is not None}
        if named.keys() not in ({"height", "width"}, {"shortest_edge"}):
            raise ValueError(f"{key}={value} of {PREPROCESSING} must have height and width, or shortest_edge alone")
        sides = [named["height"], named["width"]] if "height" in named else 2 * [named["shortest_edge"]]
    if not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"{key}={value} of {PREPROCESSING} must be whole numbers, at least 1")
    return sides


def class_task(published: Published, num_classes: int) -> Node:
    """Return the node of the task of a classifier: one class per sample, or any number, each with a score.

    Raises:
        ValueError: its outputs are no classes.
    """
    kind = published.config.get("problem_type")
    if kind == "multi_label_classification":
        loss = part("tasks.losses.LossSpec")
        return part("tasks.tagging.Tagging", num_classes=num_classes, multi_label=True, loss=loss, mixup=0.0)
    if kind not in (None, "single_label_classification") or num_classes == 1:
        problem = f"problem_type={kind} with {num_classes} outputs is not supported"
        known = "single_label_classification or multi_label_classification, of 2 or more"
        raise ValueError(f"{problem}: it must be {known}")
    return classification(num_classes)


def classification(num_classes: int, output: str = "logits") -> Node:
    """Return the node of a task of one class per sample."""
    return part(
        "tasks.classification.Classification",
        num_classes=num_classes,
        loss=part("tasks.losses.LossSpec"),
        mixup=0.0,
        cutmix=0.0,
        output=output,
    )


def reconstruction(modality: str, patch_size: list[int], channels: int, measure: str, size: list[int]) -> Node:
    """Return the node of a task that reconstructs a modality, with the output of its name."""
    target = part(
        "tasks.reconstruction_targets.Patches",
        patch_size=patch_size,
        channels=channels,
        mean=0.0,
        std=1.0,
        loss="l1",
        measure=measure,
        size=size,
    )
    return part(
        "tasks.reconstruction.Reconstruction",
        modality=modality,
        target=target,
        masked=0.0,
        masked_in_evaluation=None,
        replacement=None,
        num_places=4096,
        monitor="loss",
        output=modality,
    )
