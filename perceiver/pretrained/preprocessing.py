"""How files become inputs of the published models, as nodes of a data set, a task and a tokenizer.

Sources: of images `PerceiverImageProcessor`, of texts `PerceiverTokenizer` of transformers 5.23; of videos and sounds
DeepMind's notebooks, which keep them in [0, 1] and [-1, 1].
"""

from typing import Any

from perceiver.pretrained.architectures import Variant
from perceiver.pretrained.folder import Published
from perceiver.pretrained.nodes import Node, part

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of the colors of ImageNet."""
SIZE, CROP = 224, 256
"""Side of the images, which is that of a square of SIZE / CROP of the shorter side of the original."""


def run_nodes(published: Published, model: Node, variant: Variant) -> Node:
    """Return the nodes `model`, `data`, `task` and `tokenizer` with which files are predicted.

    Args:
        published: the model as it is stored.
        model: its node; that of an encoder of images is completed by the normalization.
        variant: whose code is followed.

    Raises:
        ValueError: files cannot be predicted with a model of this kind.
    """
    names, tokenizer = published.class_names, None
    encoders, decoder = model["encoders"], model["decoder"]
    if "image" in encoders and "num_classes" in decoder:
        encoder, settings = encoders["image"], published.preprocessing
        mean, std = settings.get("image_mean", MEAN), settings.get("image_std", STD)
        model = {**model, "encoders": {"image": {**encoder, "mean": mean, "std": std}}}
        readers = {"image": image_reader(settings, encoder)}
    elif "text" in encoders:
        encoder = encoders["text"]
        max_length = encoder["positions"]["shape"][0]
        tokenizer = part(
            "tokenizer.PerceiverTokenizer",
            vocab_size=encoder["vocab_size"],
            max_length=max_length,
            ends=variant == "transformers",
        )
        readers = {"text": part("data.readers.text.TextReader", tokenizer=tokenizer)}
    else:
        raise ValueError(f"{published.architecture}: files cannot be predicted with this model yet")
    if "num_classes" in decoder:
        num_classes = decoder["num_classes"]
        names = names if len(names) == num_classes else [f"class {label}" for label in range(num_classes)]
        task = classification(num_classes)
    else:
        names, task = [], part("tasks.fill_mask.FillMask", modality="text", tokenizer=tokenizer)
    source = part("data.sources.no_samples.NoSamples", names=names)
    data = part("data.dataset.Dataset", source=source, readers=readers, on_error="raise")
    return {"model": model, "data": data, "task": task, "tokenizer": tokenizer}


def image_reader(settings: dict[str, Any], encoder: Node) -> Node:
    """Return the node of a reader of images; `settings` are those of `preprocessor_config.json`."""
    trained = encoder["positions"].get("shape", [SIZE])[0]
    size, crop = (_side(settings.get(key), default) for key, default in (("size", trained), ("crop_size", None)))
    return part(
        "data.readers.center_crop.CenterCropReader",
        image_size=size,
        channels=encoder["stem"]["channels"],
        augment=None,
        max_value=None,
        eval_crop=SIZE / CROP if crop is None else min(size / crop, 1.0),
    )


def _side(value: Any, default: Any) -> Any:
    """Return the side of a square, which is stored as a number or by name."""
    if isinstance(value, dict):
        return value.get("height", value.get("shortest_edge", default))
    return default if value is None else value


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
