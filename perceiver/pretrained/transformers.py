"""Conversion of image classifiers of Hugging Face transformers, with the same weights and logits.

Source: transformers 5.23, `models/perceiver/modeling_perceiver.py`. Sizes, residuals and activations are taken from the
modules, since the config implies part of them by rules. The package is not imported: classes are recognized by name.

Where these models differ from DeepMind's, they are followed, so that logits are equal:
    the convolutional stem pads symmetrically, so that a 224 × 224 image makes 55 × 55 tokens and not 56 × 56;
    the decoder of the learned-position model has a query residual, DeepMind's has none;
    GELU is exact unless the config says otherwise, DeepMind's is the tanh approximation.

Deviation from transformers: learned positions are interpolated whenever an image does not have the trained size; there,
only with `interpolate_pos_encoding=True`.
"""

import re
from functools import partial
from math import isqrt
from typing import Any

import torch

from perceiver.attention import BlockSpec
from perceiver.decoders.queries import QueryDecoder
from perceiver.encoders.image import ImageEncoder
from perceiver.encoders.stems import ConvStem, PixelStem
from perceiver.latents import LatentArray, Schedule
from perceiver.model import Perceiver
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.queries.learned import Learned

LEARNED_POSITIONS = "encoders.image.positions.embedding"

RENAMES = (
    (r"^perceiver\.input_preprocessor\.convnet_1x1", "encoders.image.stem.projection"),
    (r"^perceiver\.input_preprocessor\.convnet\.conv", "encoders.image.stem.conv"),
    (r"^perceiver\.input_preprocessor\.convnet\.batchnorm", "encoders.image.stem.norm"),
    (r"^perceiver\.input_preprocessor\.position_embeddings\.position_embeddings", LEARNED_POSITIONS),
    (r"^perceiver\.input_preprocessor\.positions_projection", "encoders.image.positions.projection"),
    (r"^perceiver\.embeddings\.latents", "memory.array"),
    (r"^perceiver\.decoder\.decoder\.output_position_encodings\.position_embeddings", "decoder.queries.array"),
    (r"^perceiver\.decoder\.decoder\.final_layer", "decoder.head"),
    (r"^perceiver\.decoder\.decoder\.decoding_cross_attention", "decoder.cross_block"),
    (r"^perceiver\.encoder\.cross_attention", "memory.cross_blocks.0"),
    (r"^perceiver\.encoder\.self_attends\.(\d+)\.attention\.self\.layernorm1", r"memory.self_blocks.0.\1.norm"),
    (r"^perceiver\.encoder\.self_attends", "memory.self_blocks.0"),
    (r"\.attention\.self\.layernorm1", ".query_norm"),
    (r"\.attention\.self\.layernorm2", ".input_norm"),
    (r"\.attention\.self\.(query|key|value)", r".attention.\1"),
    (r"\.attention\.output\.dense", ".attention.out"),
    (r"\.layernorm\.", ".mlp_norm."),
    (r"\.mlp\.dense1", ".mlp.0"),
    (r"\.mlp\.intermediate_act_fn", ".mlp.1"),
    (r"\.mlp\.dense2", ".mlp.2"),
)
"""Patterns of their weights -> ours, applied in succession."""


def from_transformers(hf_model: Any) -> Perceiver:
    """Return a Perceiver with the weights of a Hugging Face image classifier; its one modality is called `image`.

    It takes the images that `hf_model` takes ([batch, channels, height, width], equally normalized) and returns its
    logits [batch, classes] as the output `logits`. Weights are copies, of the type and on the device of the originals;
    all are trainable.

    Args:
        hf_model: a `PerceiverForImageClassificationFourier`, `…Learned` or `…ConvProcessing`.

    Raises:
        TypeError: a model of another class.
        ValueError: sizes that `BlockSpec` or `Schedule` refuse, such as `num_blocks=0`.
        RuntimeError: a weight has no place in the Perceiver, does not fit its place, or is missing.
    """
    classes = {base.__name__ for base in type(hf_model).__mro__}
    build_encoder = next((build for name, build in ENCODERS.items() if name in classes), None)
    if build_encoder is None:
        raise TypeError(f"from_transformers takes {', '.join(ENCODERS)}, not {type(hf_model).__name__}")
    hf = hf_model.perceiver
    cross_layer, self_layers, decoder = hf.encoder.cross_attention, hf.encoder.self_attends, hf.decoder.decoder
    latents = hf.embeddings.latents
    num_latents, dim = latents.shape
    with torch.device(latents.device):
        model = Perceiver(
            encoders={"image": build_encoder(hf.input_preprocessor)},
            memory=partial(
                LatentArray,
                num_latents=num_latents,
                dim=dim,
                cross_attention=_block_spec(cross_layer),
                # Without self-attention layers, any sizes will do.
                self_attention=_block_spec(next(iter(self_layers), cross_layer)),
                schedule=Schedule(
                    num_cross_attends=1,
                    num_blocks=hf.encoder.config.num_blocks,
                    num_self_attends=len(self_layers),
                    block_sharing="all",
                ),
            ),
            decoder=QueryDecoder(
                dim=dim,
                num_classes=decoder.final_layer.out_features,
                queries=Learned(num_queries=1, dim=decoder.final_layer.in_features),
                attention=_block_spec(decoder.decoding_cross_attention),
            ),
        ).to(latents.dtype)
    weights = {_rename(key): value.clone() for key, value in hf_model.state_dict().items()}
    if LEARNED_POSITIONS in weights:
        side = isqrt(len(weights[LEARNED_POSITIONS]))
        weights[LEARNED_POSITIONS] = weights[LEARNED_POSITIONS].unflatten(0, (side, side))
    # Assigned and not copied into place, which would change the type of some: xIELU's are bfloat16 in any model.
    model.load_state_dict(weights, assign=True)
    return model.train(hf_model.training)


def _rename(key: str) -> str:
    for theirs, ours in RENAMES:
        key = re.sub(theirs, ours, key)
    return key


def _block_spec(layer: Any) -> BlockSpec:
    """Return the sizes of a `PerceiverLayer`."""
    attention, mlp = layer.attention.self, layer.mlp
    return BlockSpec(
        num_heads=attention.num_heads,
        qk_dim=attention.query.out_features,
        v_dim=attention.value.out_features,
        widening=mlp.dense1.out_features // mlp.dense1.in_features,
        attention_dropout=attention.dropout.p,
        query_residual=layer.attention.use_query_residual,
        activation=mlp.intermediate_act_fn,
    )


def _fourier_encoder(preprocessor: Any) -> ImageEncoder:
    return ImageEncoder(stem=PixelStem(channels=preprocessor.in_channels), positions=_fourier_positions(preprocessor))


def _learned_encoder(preprocessor: Any) -> ImageEncoder:
    conv, projection = preprocessor.convnet_1x1, preprocessor.positions_projection
    side = isqrt(len(preprocessor.position_embeddings.position_embeddings))
    return ImageEncoder(
        stem=PixelStem(channels=conv.in_channels, dim=conv.out_channels),
        positions=LearnedPositions(shape=(side, side), dim=projection.in_features, project_dim=projection.out_features),
    )


def _conv_encoder(preprocessor: Any) -> ImageEncoder:
    conv = preprocessor.convnet.conv
    stem = ConvStem(channels=conv.in_channels, dim=conv.out_channels, padding="symmetric")
    return ImageEncoder(stem=stem, positions=_fourier_positions(preprocessor))


def _fourier_positions(preprocessor: Any) -> FourierPositions:
    positions = preprocessor.position_embeddings
    return FourierPositions(num_bands=positions.num_bands, max_resolution=positions.max_resolution)


ENCODERS = {
    "PerceiverForImageClassificationFourier": _fourier_encoder,
    "PerceiverForImageClassificationLearned": _learned_encoder,
    "PerceiverForImageClassificationConvProcessing": _conv_encoder,
}
"""Class of the model -> function from its preprocessor to our encoder."""
