"""Published Perceivers from and to the classes of Hugging Face transformers, with the same weights and outputs.

Deviation from transformers: learned positions are interpolated whenever an image does not have the trained size; there,
only with `interpolate_pos_encoding=True`.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from perceiver.model import Perceiver
from perceiver.pretrained.architectures import ARCHITECTURES, Config, Variant, model_node
from perceiver.pretrained.nodes import Node, build


def from_transformers(hf_model: Any, *, variant: Variant = "transformers") -> Perceiver:
    """Return a Perceiver with the weights of a Perceiver of transformers, and its outputs.

    It takes the inputs that `hf_model` takes, equally normalized, by modality: `image`; `text` [batch, 1, length];
    `video`, for optical flow, [batch, 3, 2, height, width] or, as neighborhoods, [batch, 27, 2, height, width]; or
    `audio` [batch, 1, length], `image` [batch, 3, frames, height, width] and `label` [batch, classes]. Classifiers and
    language model return their logits as the output `logits`, optical flow [batch, places, 2] in pixels / 20 likewise;
    the autoencoder returns `audio`, `image` and `label` at the queried places. Weights are copies, of the type and on
    the device of the originals; all are trainable.

    Args:
        hf_model: a `PerceiverFor…`.
        variant: whose code is followed where the two differ, see `perceiver.pretrained.architectures`.

    Raises:
        TypeError: a model of another class.
        ValueError: sizes that `BlockSpec` or `Schedule` refuse, such as `num_blocks=0`.
        RuntimeError: a weight has no place in the Perceiver, does not fit its place, or is missing.
    """
    name = next((base.__name__ for base in type(hf_model).__mro__ if base.__name__ in ARCHITECTURES), None)
    if name is None:
        raise TypeError(f"from_transformers takes {', '.join(ARCHITECTURES)}, not {type(hf_model).__name__}")
    config = hf_model.config.to_dict()
    # A module: transformers has more activations than torch, some with weights.
    config["hidden_act"] = deepcopy(hf_model.perceiver.encoder.cross_attention.mlp.intermediate_act_fn)
    weights = {key: value.clone() for key, value in hf_model.state_dict().items()}
    model, _ = load(name, config, weights, variant)
    return model.train(hf_model.training)


def load(name: str, config: Config, weights: Mapping[str, Tensor], variant: Variant) -> tuple[Perceiver, Node]:
    """Build a published model with its weights, which it keeps; return it and its node.

    Args:
        name: of the architecture.
        config: the content of `config.json`.
        weights: by their names in transformers.
        variant: whose code is followed.

    Raises:
        ValueError: see `model_node`.
        RuntimeError: a weight has no place in the model, does not fit its place, or is missing.
    """
    node = model_node(name, config, {key: tuple(value.shape) for key, value in weights.items()}, variant)
    latents = weights["perceiver.embeddings.latents"]
    with torch.device(latents.device):
        model: Perceiver = build(node).to(latents.dtype)
    return load_weights(model, name, weights), node


def load_weights(model: Perceiver, name: str, weights: Mapping[str, Tensor]) -> Perceiver:
    """Load weights of transformers into a model of the architecture `name`, which keeps them.

    Raises:
        RuntimeError: a weight has no place in the model, does not fit its place, or is missing.
    """
    ours = ARCHITECTURES[name].table.to_ours(weights, num_self_attends(model))
    ours |= {tied: ours[source] for tied, source in model.ties.items() if source in ours}
    for key, value in model.state_dict().items():
        if key in ours and ours[key].shape != value.shape and ours[key].numel() == value.numel():
            ours[key] = ours[key].reshape(value.shape)
    # Assigned and not copied into place, which would change the type of some: xIELU's are bfloat16 in any model.
    model.load_state_dict(ours, assign=True)
    model.tie()
    return model


def num_self_attends(model: Perceiver) -> int:
    """Return the number of self-attention layers of a block."""
    return len(list(model.memory.self_blocks[0].children()))  # type: ignore[index, union-attr]
