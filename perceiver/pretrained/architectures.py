"""The six published Perceivers, as nodes: their sizes from the shapes of the weights, the rest from `config.json`.

Sources: DeepMind's code (deepmind-research/perceiver) and, of transformers 5.23, `modeling_perceiver.py`, whose classes
give the architectures their names. Where the two differ, there are two variants:

                                    transformers                        deepmind
    GELU                            exact, unless the config differs    tanh approximation
    convolutional stem              symmetric: 224 -> 55                same: 224 -> 56
    query of learned positions      with residual                       without

Inputs are those of transformers, with the same normalization; the modalities have DeepMind's names. Videos are
[batch, channels, frames, height, width], there [batch, frames, channels, height, width].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, TypeAlias

from torch import nn

from perceiver.pretrained.keys import CLASSIFIER, FLOW, MASKED_LM, MULTIMODAL, Table
from perceiver.pretrained.nodes import Node, part

Config: TypeAlias = Mapping[str, Any]
Variant: TypeAlias = Literal["transformers", "deepmind"]

DEFAULTS: dict[str, Any] = {
    "num_blocks": 1,
    "num_self_attends_per_block": 26,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.1,
    "use_query_residual": True,
    "train_size": [368, 496],
    "image_size": 56,
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "samples_per_patch": 16,
    "output_shape": [1, 16, 224, 224],
}
"""Values of `PerceiverConfig` that its `config.json` may omit."""

ACTIVATIONS: dict[str, Node] = {
    "gelu": {"_target_": "torch.nn.GELU", "approximate": "none"},
    "gelu_new": {"_target_": "torch.nn.GELU", "approximate": "tanh"},
    "gelu_pytorch_tanh": {"_target_": "torch.nn.GELU", "approximate": "tanh"},
    "leaky_relu": {"_target_": "torch.nn.LeakyReLU"},
    "mish": {"_target_": "torch.nn.Mish"},
    "prelu": {"_target_": "torch.nn.PReLU"},
    "relu": {"_target_": "torch.nn.ReLU"},
    "relu6": {"_target_": "torch.nn.ReLU6"},
    "sigmoid": {"_target_": "torch.nn.Sigmoid"},
    "silu": {"_target_": "torch.nn.SiLU"},
    "swish": {"_target_": "torch.nn.SiLU"},
    "tanh": {"_target_": "torch.nn.Tanh"},
}
"""Names of activations in transformers that are modules of torch."""

NUM_BANDS = 64
AUDIO_BANDS, VIDEO_BANDS = 192, 32
"""Frequencies of Fourier positions, which no config states."""
MULTIMODAL_RATE, MULTIMODAL_FPS = 48_000, 25.0
"""Of the sound and the video of the multimodal model, in Hz."""


class Values(dict[str, Any]):
    """The values of a config, of which those in `DEFAULTS` are checked as they are read: an architecture needs a few.

    Raises:
        ValueError: a value is not of the type of the default, or a size is not positive.
    """

    def __getitem__(self, key: str) -> Any:
        value, default = super().__getitem__(key), DEFAULTS.get(key)
        if default is None or (key == "hidden_act" and isinstance(value, nn.Module)):
            return value
        least = 0 if key == "num_self_attends_per_block" else 1
        if isinstance(default, list):
            is_valid = isinstance(value, list | tuple) and len(value) == len(default)
            is_valid = is_valid and all(type(one) is int and one >= 1 for one in value)
            wanted = f"{len(default)} whole numbers, at least 1"
        elif type(default) is int:
            is_valid, wanted = type(value) is int and value >= least, f"a whole number, at least {least}"
        elif isinstance(default, float):
            is_valid, wanted = type(value) in (int, float) and 0.0 <= value < 1.0, "a number in [0, 1)"
        else:
            is_valid, wanted = type(value) is type(default), f"a {type(default).__name__}"
        if not is_valid:
            raise ValueError(f"{key}={value!r} must be {wanted}")
        return value


class Shapes(dict[str, tuple[int, ...]]):
    """Name of a weight -> its shape: that of a matrix, or of the kernel of a convolution.

    Raises:
        ValueError: there is no such weight, or it has another number of axes.
    """

    def __getitem__(self, key: str) -> tuple[int, ...]:
        shape = super().__getitem__(key)
        if len(shape) not in (2, 4):
            raise ValueError(f"weight {key} of shape {list(shape)} must be a matrix, or the kernel of a convolution")
        return shape

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise ValueError(f"the weights lack {key}")


@dataclass(frozen=True)
class Sizes:
    """What the functions below read.

    Attributes:
        config: with all of `DEFAULTS`.
        shapes: of the weights.
        variant: whose code is followed.
    """

    config: Values
    shapes: Shapes
    variant: Variant

    @property
    def activation(self) -> Any:
        """The activation of the MLPs.

        Raises:
            ValueError: its name is not known.
        """
        name = "gelu_pytorch_tanh" if self.variant == "deepmind" else self.config["hidden_act"]
        if isinstance(name, nn.Module):
            return name
        if name not in ACTIVATIONS:
            raise ValueError(f"hidden_act={name!r} must be one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def block(self, layer: str, num_heads: int, *, query_residual: bool = True) -> Node:
        """Return the sizes of a `PerceiverLayer`."""
        hidden, dim = self.shapes[f"{layer}.mlp.dense1.weight"]
        return part(
            "attention.BlockSpec",
            num_heads=num_heads,
            qk_dim=self.shapes[f"{layer}.attention.self.query.weight"][0],
            v_dim=self.shapes[f"{layer}.attention.self.value.weight"][0],
            widening=hidden // dim,
            attention_dropout=self.config["attention_probs_dropout_prob"],
            query_residual=query_residual,
            activation=self.activation,
        )


def fourier(num_bands: int, *max_resolution: int) -> Node:
    """Return the node of Fourier positions."""
    return part("positions.FourierPositions", num_bands=num_bands, max_resolution=list(max_resolution))


def perceiver(sizes: Sizes, encoders: Node, decoder: Node, **options: Any) -> Node:
    """Return the node of a model with one cross-attend and blocks with shared weights."""
    config, (num_latents, dim) = sizes.config, sizes.shapes["perceiver.embeddings.latents"]
    cross, layers = "perceiver.encoder.cross_attention", config["num_self_attends_per_block"]
    # Without self-attention layers, any sizes will do.
    first = "perceiver.encoder.self_attends.0" if layers else cross
    memory = part(
        "latents.LatentArray",
        _partial_=True,
        num_latents=num_latents,
        dim=dim,
        cross_attention=sizes.block(
            cross, config["num_cross_attention_heads"], query_residual=config["use_query_residual"]
        ),
        self_attention=sizes.block(first, config["num_self_attention_heads"]),
        schedule=part(
            "latents.Schedule",
            num_cross_attends=1,
            num_blocks=config["num_blocks"],
            num_self_attends=layers,
            block_sharing="all",
        ),
    )
    return part("model.Perceiver", encoders=encoders, memory=memory, decoder={**decoder, "dim": dim}, **options)


def query_decoder(sizes: Sizes, *, query_residual: bool = True) -> Node:
    """Return the decoder of a classifier."""
    num_classes, width = sizes.shapes["perceiver.decoder.decoder.final_layer.weight"]
    attention = "perceiver.decoder.decoder.decoding_cross_attention"
    return part(
        "decoders.queries.QueryDecoder",
        num_classes=num_classes,
        queries=part("queries.learned.Learned", num_queries=1, dim=width),
        attention=sizes.block(attention, 1, query_residual=query_residual),
    )


def image_classifier(sizes: Sizes, stem: Node, positions: Node, **options: Any) -> Node:
    """Return the node of an image classifier; `options` are those of `query_decoder`."""
    encoder = part("encoders.image.ImageEncoder", stem=stem, positions=positions)
    return perceiver(sizes, {"image": encoder}, query_decoder(sizes, **options))


def fourier_classifier(sizes: Sizes) -> Node:
    """Return the node of the image classifier that reads pixels with Fourier positions."""
    # Features of both axes, and the channels of a pixel.
    width = sizes.shapes["perceiver.encoder.cross_attention.attention.self.key.weight"][1]
    stem = part("encoders.stems.PixelStem", channels=width - 2 * (2 * NUM_BANDS + 1))
    return image_classifier(sizes, stem, fourier(NUM_BANDS, 224, 224))


def learned_classifier(sizes: Sizes) -> Node:
    """Return the node of the image classifier with learned positions."""
    inputs = "perceiver.input_preprocessor"
    dim, channels, *_ = sizes.shapes[f"{inputs}.convnet_1x1.weight"]
    cells, width = sizes.shapes[f"{inputs}.position_embeddings.position_embeddings"]
    project_dim = sizes.shapes[f"{inputs}.positions_projection.weight"][0]
    return image_classifier(
        sizes,
        part("encoders.stems.PixelStem", channels=channels, dim=dim),
        part("positions.LearnedPositions", shape=2 * [isqrt(cells)], dim=width, project_dim=project_dim),
        query_residual=sizes.variant == "transformers",
    )


def conv_classifier(sizes: Sizes) -> Node:
    """Return the node of the image classifier with a convolutional stem."""
    dim, channels, *_ = sizes.shapes["perceiver.input_preprocessor.convnet.conv.weight"]
    padding = "symmetric" if sizes.variant == "transformers" else "same"
    stem = part("encoders.stems.ConvStem", channels=channels, dim=dim, padding=padding)
    return image_classifier(sizes, stem, fourier(NUM_BANDS, 56, 56))


def text_encoder(sizes: Sizes) -> Node:
    """Return the node of the encoder of token ids."""
    vocab_size, dim = sizes.shapes["perceiver.input_preprocessor.embeddings.weight"]
    max_length, _ = sizes.shapes["perceiver.input_preprocessor.position_embeddings.weight"]
    positions = part("positions.LearnedPositions", shape=[max_length], dim=dim, anchored=True)
    return part("encoders.text.TextEncoder", vocab_size=vocab_size, dim=dim, positions=positions, combine="add")


def sequence_classifier(sizes: Sizes) -> Node:
    """Return the node of the classifier of texts."""
    return perceiver(sizes, {"text": text_encoder(sizes)}, query_decoder(sizes))


def dense_decoder(sizes: Sizes, layer: str, num_heads: int, **values: Any) -> Node:
    """Return the node of a decoder without query residual, but for its width; `values` are further keywords."""
    return part(
        "decoders.dense.DenseDecoder",
        attention=sizes.block(layer, num_heads, query_residual=False),
        chunk_size=4096,
        **values,
    )


def masked_language_model(sizes: Sizes) -> Node:
    """Return the node of the language model, whose output layer has the embeddings as weights."""
    encoder = text_encoder(sizes)
    num_queries, dim = sizes.shapes["perceiver.decoder.output_position_encodings.position_embeddings"]
    decoder = dense_decoder(
        sizes,
        "perceiver.decoder.decoding_cross_attention",
        8,
        num_channels=encoder["vocab_size"],
        queries=part("queries.learned.Learned", num_queries=num_queries, dim=dim),
        head=part("decoders.dense.HeadSpec", norm=False),
    )
    return perceiver(
        sizes, {"text": encoder}, decoder, ties={"decoder.heads.logits.weight": "encoders.text.embedding.weight"}
    )


def optical_flow(sizes: Sizes) -> Node:
    """Return the node of the model of optical flow, whose queries are the input tokens."""
    dim, channels = sizes.shapes["perceiver.input_preprocessor.conv_after_patches.weight"]
    num_channels, width = sizes.shapes["perceiver.decoder.decoder.final_layer.weight"]
    encoder = part(
        "encoders.frames.FramesEncoder",
        stem=part("encoders.stems.PixelStem", _partial_=True, dim=dim),
        positions=fourier(NUM_BANDS, *sizes.config["train_size"]),
        channels=channels // (2 * 3**2),
        num_frames=2,
        neighborhood=3,
        mean=0.5,
        std=0.5,
    )
    decoder = dense_decoder(
        sizes,
        "perceiver.decoder.decoder.decoding_cross_attention",
        1,
        num_channels=num_channels,
        queries=part("queries.tokens.InputTokens", modality="video", dim=width),
        head=part("decoders.dense.HeadSpec", norm=False, scale=0.01),
    )
    return perceiver(sizes, {"video": encoder}, decoder)


def multimodal_autoencoder(sizes: Sizes) -> Node:
    """Return the node of the autoencoder of video with sound and class."""
    config, shapes = sizes.config, sizes.shapes
    num_samples = config["num_frames"] * config["audio_samples_per_frame"]
    patch_size = config["samples_per_patch"]
    if num_samples % patch_size:
        problem = f"must divide num_frames × audio_samples_per_frame={num_samples}"
        raise ValueError(f"samples_per_patch={patch_size} {problem}")
    audio_positions = fourier(AUDIO_BANDS, num_samples)
    video_positions = fourier(VIDEO_BANDS, config["num_frames"], config["image_size"], config["image_size"])
    output, head = "perceiver.output_postprocessor.modalities", "perceiver.decoder.decoder.final_layer.weight"
    encoders = {
        "audio": part(
            "encoders.audio.WaveformEncoder",
            sample_rate=MULTIMODAL_RATE,
            patch_size=patch_size,
            dim=None,
            positions=audio_positions,
            std=1.0,
            log_mel=part(
                "spectrogram.LogMel",
                sample_rate=MULTIMODAL_RATE,
                n_fft=1024,
                win_length=1024,
                hop_length=480,
                n_mels=64,
                f_min=50.0,
                f_max=16_000.0,
            ),
        ),
        "image": part(
            "encoders.video.VideoEncoder",
            stem=part("encoders.stems.PatchStem", _partial_=True, patch_size=4),
            positions=video_positions,
            channels=3,
            frames_per_second=MULTIMODAL_FPS,
            frames_per_token=1,
            mean=0.0,
            std=1.0,
            combine="concat",
        ),
        "label": part(
            "encoders.vector.VectorEncoder", channels=shapes[f"{output}.label.classifier.weight"][0], dim=None
        ),
    }
    label_query = shapes["perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings"]
    queries = {
        "audio": part(
            "queries.positions.Positions",
            axes=["time"],
            positions=audio_positions,
            dim=None,
            starts_of=[num_samples // patch_size],
        ),
        "image": part(
            "queries.positions.Positions",
            axes=["time", "y", "x"],
            positions=video_positions,
            dim=None,
            starts_of=list(config["output_shape"][1:]),
        ),
        "label": part("queries.learned.Learned", num_queries=1, dim=label_query[1]),
    }
    decoder = dense_decoder(
        sizes,
        "perceiver.decoder.decoder.decoding_cross_attention",
        1,
        num_channels={name: shapes[f"{output}.{name}.classifier.weight"][0] for name in queries},
        queries=part("queries.joined.Joined", queries=queries, min_embedding=2),
        head=part("decoders.dense.HeadSpec", norm=False, hidden_dim=shapes[head][0]),
    )
    return perceiver(sizes, encoders, decoder, token_masking={"audio": 0.0, "image": 0.0, "label": 1.0})


@dataclass(frozen=True)
class Architecture:
    """One of the published models.

    Attributes:
        node: of the model.
        table: names of its weights here and in transformers.
    """

    node: Callable[[Sizes], Node]
    table: Table


ARCHITECTURES = {
    "PerceiverForImageClassificationFourier": Architecture(fourier_classifier, CLASSIFIER),
    "PerceiverForImageClassificationLearned": Architecture(learned_classifier, CLASSIFIER),
    "PerceiverForImageClassificationConvProcessing": Architecture(conv_classifier, CLASSIFIER),
    "PerceiverForSequenceClassification": Architecture(sequence_classifier, CLASSIFIER),
    "PerceiverForMaskedLM": Architecture(masked_language_model, MASKED_LM),
    "PerceiverForOpticalFlow": Architecture(optical_flow, FLOW),
    "PerceiverForMultimodalAutoencoding": Architecture(multimodal_autoencoder, MULTIMODAL),
}
"""By the name of the class in transformers."""


def model_node(name: str, config: Config, shapes: Mapping[str, tuple[int, ...]], variant: Variant) -> Node:
    """Return the node of a published model.

    Args:
        name: of the architecture.
        config: the content of `config.json`.
        shapes: of its weights.
        variant: whose code is followed, see above.

    Raises:
        ValueError: the architecture or activation is not known, a value is not valid, or a weight is missing.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"{name} is none of the published Perceivers: {', '.join(ARCHITECTURES)}")
    if variant not in ("transformers", "deepmind"):
        raise ValueError(f"variant={variant!r} must be transformers or deepmind")
    return ARCHITECTURES[name].node(Sizes(Values({**DEFAULTS, **config}), Shapes(shapes), variant))
