"""A Perceiver of one of the published architectures, of any size, as a model of Hugging Face transformers."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from perceiver.attention import CrossBlock, SelfBlock
from perceiver.decoders.dense import DenseDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.encoders.stems import ConvStem
from perceiver.encoders.text import TextEncoder
from perceiver.latents import LatentArray
from perceiver.model import Perceiver
from perceiver.positions import LearnedPositions
from perceiver.pretrained.architectures import ACTIVATIONS, ARCHITECTURES, model_node
from perceiver.pretrained.nodes import build
from perceiver.pretrained.transformers import num_self_attends

FREE = (
    *("training", "mean", "std", "sample_rate", "frames_per_second"),
    *("activation_checkpointing", "chunk_size", "modality_dropout"),
)
"""Attributes of modules that do not change the outputs for normalized inputs in evaluation."""


def to_transformers(model: Perceiver, class_names: Sequence[str] = ()) -> Any:
    """Return a model of transformers with the same weights and outputs: the inverse of `from_transformers`.

    It takes inputs as the encoders normalize them. Weights are copies.

    Args:
        model: of one of the published architectures.
        class_names: names of the classes of a classifier, by label.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: no class of transformers has these parts.
    """
    import transformers  # only needed here

    name = architecture_of(model)
    try:
        config = {**sizes(model), **specific_sizes(name, model)}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{name} of transformers has other parts than this model") from error
    if class_names:
        config |= {"id2label": dict(enumerate(class_names)), "label2id": {c: n for n, c in enumerate(class_names)}}
    hf_model = getattr(transformers, name)(transformers.PerceiverConfig(**config))
    shapes = {key: tuple(value.shape) for key, value in hf_model.state_dict().items()}
    activation = model.memory.cross_blocks[0].mlp[1]  # type: ignore[index, union-attr]
    node = model_node(name, {**hf_model.config.to_dict(), "hidden_act": activation}, shapes, "transformers")
    with torch.device("meta"):
        expected = build(node)
    if difference := next(differences(model, expected), None):
        raise ValueError(f"{name} of transformers has other parts than this model: {difference}")
    weights: dict[str, Tensor] = {
        key: value.detach().clone() for key, value in model.state_dict().items() if key not in model.ties
    }
    found = ARCHITECTURES[name].table.to_theirs(weights, num_self_attends(model))
    hf_model.load_state_dict(found, assign=True)
    return hf_model.train(model.training)


def architecture_of(model: Perceiver) -> str:
    """Return the name of the published architecture that a model may be of.

    Raises:
        ValueError: there is none.
    """
    modalities, is_dense = sorted(model.encoders), isinstance(model.decoder, DenseDecoder)
    if modalities == ["image"] and not is_dense:
        encoder = model.encoders["image"]
        if isinstance(getattr(encoder, "positions", None), LearnedPositions):
            return "PerceiverForImageClassificationLearned"
        is_conv = isinstance(getattr(encoder, "stem", None), ConvStem)
        return f"PerceiverForImageClassification{'ConvProcessing' if is_conv else 'Fourier'}"
    reads_ids = isinstance(model.encoders[modalities[0]], TextEncoder)
    if modalities == ["text"] and reads_ids and isinstance(model.decoder, DenseDecoder | QueryDecoder):
        return "PerceiverForMaskedLM" if is_dense else "PerceiverForSequenceClassification"
    if modalities == ["video"] and is_dense:
        return "PerceiverForOpticalFlow"
    if modalities == ["audio", "image", "label"] and is_dense:
        return "PerceiverForMultimodalAutoencoding"
    kinds = ", ".join(f"{name} ({type(model.encoders[name]).__name__})" for name in modalities)
    raise ValueError(f"no class of transformers has encoders of {kinds} and a {type(model.decoder).__name__}")


def sizes(model: Perceiver) -> dict[str, Any]:
    """Return the values of `PerceiverConfig` that all architectures have.

    Raises:
        ValueError: it cannot express them.
    """
    memory = model.memory
    if not isinstance(memory, LatentArray):
        raise ValueError(f"no class of transformers has a {type(memory).__name__} as memory")
    cross, layers = memory.cross_blocks[0], list(memory.self_blocks[0].children())
    assert isinstance(cross, CrossBlock)
    layer = layers[0] if layers else None
    assert layer is None or isinstance(layer, SelfBlock)
    num_latents, dim = memory.array.shape
    return {
        "num_latents": num_latents,
        "d_latents": dim,
        "num_blocks": memory.schedule.num_blocks,
        "num_self_attends_per_block": len(layers),
        "num_cross_attention_heads": cross.attention.num_heads,
        "num_self_attention_heads": 1 if layer is None else layer.attention.num_heads,
        "cross_attention_widening_factor": widening(cross),
        "self_attention_widening_factor": 1 if layer is None else widening(layer),
        "hidden_act": activation_name(cross.mlp[1]),
        "attention_probs_dropout_prob": cross.attention.mechanism.dropout,
        "use_query_residual": cross.residual is not None,
        **widths(cross, layer, dim, model.decoder.cross_block),
    }


def widening(block: CrossBlock | SelfBlock) -> int:
    """Return the hidden width of the MLP of a block over its outer width."""
    linear = block.mlp[0]
    assert isinstance(linear, nn.Linear)
    return linear.out_features // linear.in_features


def widths(cross: CrossBlock, layer: SelfBlock | None, dim: int, decoder: Any) -> dict[str, Any]:
    """Return the values that imply the widths of queries, keys and values.

    Which of them the encoder leaves open is decided by the decoder's cross-attention, where it depends on them.

    Raises:
        ValueError: there are none.
    """
    inputs = cross.attention.key.in_features
    wanted = [cross.attention.query.out_features, cross.attention.value.out_features]
    if layer is not None:
        wanted += [layer.attention.query.out_features, layer.attention.value.out_features]
    read = decoder.attention
    shapes = [("kv", inputs, read.key.in_features), ("q", dim, read.query.in_features)]
    shapes.sort(key=lambda shape: shape[2] != read.key.out_features)
    for (shape, default, _), qk, v in product(shapes, (None, wanted[0]), (None, wanted[1])):
        cross_qk, self_qk = qk or default, qk or dim
        if wanted == [cross_qk, v or cross_qk, self_qk, v or self_qk][: len(wanted)]:
            return {"qk_channels": qk, "v_channels": v, "cross_attention_shape_for_attention": shape}
    names = f"qk_dim={wanted[::2]}, v_dim={wanted[1::2]} of cross- and self-attention"
    raise ValueError(f"no class of transformers has {names}, for latents of width {dim}")


def activation_name(activation: nn.Module) -> str:
    """Return the name of an activation in transformers.

    Raises:
        ValueError: it has none.
    """
    from transformers.activations import ACT2CLS

    for name, node in ACTIVATIONS.items():
        if repr(build(node)) == repr(activation):
            return name
    for name, kind in ACT2CLS.items():
        if type(activation) is (kind[0] if isinstance(kind, tuple) else kind):
            return str(name)
    raise ValueError(f"transformers has no name for the activation {activation}")


def specific_sizes(name: str, model: Any) -> dict[str, Any]:
    """Return the values of `PerceiverConfig` that depend on the architecture."""
    encoders, decoder = model.encoders, model.decoder
    found = {}
    if hasattr(decoder, "head"):
        found["num_labels"] = decoder.head.out_features
    if name == "PerceiverForImageClassificationLearned":
        found["image_size"] = encoders["image"].positions.shape[0]
    if name in ("PerceiverForSequenceClassification", "PerceiverForMaskedLM"):
        embedding = encoders["text"].embedding
        found |= {"vocab_size": embedding.num_embeddings, "d_model": embedding.embedding_dim}
        found["max_position_embeddings"] = encoders["text"].positions.shape[0]
    if name == "PerceiverForOpticalFlow":
        found["train_size"] = list(encoders["video"].positions.max_resolution)
    if name == "PerceiverForMultimodalAutoencoding":
        queries, (num_frames, *sides) = decoder.queries.by_output, encoders["image"].positions.max_resolution
        found |= {
            "num_labels": decoder.heads["label"].out_features,
            "num_frames": num_frames,
            "image_size": sides[0],
            "audio_samples_per_frame": encoders["audio"].positions.max_resolution[0] // num_frames,
            "samples_per_patch": encoders["audio"].patch_size,
            "output_shape": [1, *queries["image"].starts_of],
            "output_num_channels": decoder.shared_head.out_features,
            "_label_trainable_num_channels": queries["label"].dim,
        }
    return found


def differences(model: nn.Module, expected: nn.Module) -> Iterator[str]:
    """Yield how the parts of a model differ from the expected ones."""
    ours, theirs = (
        {name: module for name, module in one.named_modules() if ".log_mel" not in name} for one in (model, expected)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            yield f"{name}={type(ours[name]).__name__} has no place"
        elif name not in ours:
            yield f"{name}={type(theirs[name]).__name__} is missing"
        elif type(ours[name]) is not type(theirs[name]):
            yield f"{name}={type(ours[name]).__name__} must be {type(theirs[name]).__name__}"
        else:
            mine, wanted = plain_values(ours[name]), plain_values(theirs[name])
            for key in mine:
                if mine[key] != wanted.get(key):
                    yield f"{name}.{key}={mine[key]} must be {wanted.get(key)}"


def plain_values(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are plain values, and so part of what it computes."""
    plain = (bool, int, float, str, tuple, dict, type(None))
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, plain) and not key.startswith("_") and key not in FREE
    }
