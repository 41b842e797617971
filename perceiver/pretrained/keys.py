"""The names of the weights of published models, here and in transformers.

A table maps modules and parameters to theirs; a weight belongs to the longest of these names that it begins with. All
weights have the same values in the same order, and some another shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Names: TypeAlias = dict[str, str]

MLP: Names = {"mlp_norm": "layernorm", "mlp.0": "mlp.dense1", "mlp.1": "mlp.intermediate_act_fn", "mlp.2": "mlp.dense2"}
ATTENTION: Names = {
    **{f"attention.{name}": f"attention.self.{name}" for name in ("query", "key", "value")},
    "attention.out": "attention.output.dense",
}
CROSS_BLOCK: Names = {
    "query_norm": "attention.self.layernorm1",
    "input_norm": "attention.self.layernorm2",
    **ATTENTION,
    **MLP,
}
SELF_BLOCK: Names = {"norm": "attention.self.layernorm1", **ATTENTION, **MLP}

SHAPES = {
    "perceiver.input_preprocessor.position_embeddings.position_embeddings": (0, -2),
    "perceiver.input_preprocessor.conv_after_patches.weight": (1, -1),
}
"""Axes of our weight, from the first to the last, that are one in transformers."""
ROWS = ("perceiver.input_preprocessor.padding.", "perceiver.input_preprocessor.mask.", "perceiver.decoder.padding.")
"""Vectors that are matrices of one row in transformers."""


def inside(ours: str, theirs: str, names: Names) -> Names:
    """Return the names within two modules."""
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in names.items()}


@dataclass(frozen=True)
class Table:
    """The names of an architecture.

    Attributes:
        decoder: theirs of the module that has the cross-attention and the last layer.
        names: what is not common to all: our names -> theirs.
    """

    decoder: str
    names: Names

    def all_names(self, num_self_attends: int) -> Names:
        """Return our names -> theirs, of a model with a number of self-attention layers."""
        names = {
            "memory.array": "perceiver.embeddings.latents",
            **inside("memory.cross_blocks.0", "perceiver.encoder.cross_attention", CROSS_BLOCK),
            **inside("decoder.cross_block", f"{self.decoder}.decoding_cross_attention", CROSS_BLOCK),
            **self.names,
        }
        for layer in range(num_self_attends):
            names |= inside(f"memory.self_blocks.0.{layer}", f"perceiver.encoder.self_attends.{layer}", SELF_BLOCK)
        return names

    def to_ours(self, weights: Mapping[str, Tensor], num_self_attends: int) -> dict[str, Tensor]:
        """Return weights of transformers by our names; one without a place keeps its name."""
        names = {theirs: ours for ours, theirs in self.all_names(num_self_attends).items()}
        return {renamed(key, names): value for key, value in weights.items()}

    def to_theirs(self, weights: Mapping[str, Tensor], num_self_attends: int) -> dict[str, Tensor]:
        """Return our weights by the names of transformers, in their shapes; one without a place keeps its name."""
        names = self.all_names(num_self_attends)
        found = {}
        for ours, value in weights.items():
            key = renamed(ours, names)
            if key in SHAPES:
                value = value.flatten(*SHAPES[key])
            found[key] = value[None] if key.startswith(ROWS) else value
        return found


def renamed(key: str, names: Mapping[str, str]) -> str:
    """Return a name in which the longest known one that it begins with is replaced."""
    start = key
    while start and start not in names:
        start = start.rpartition(".")[0]
    return names[start] + key[len(start) :] if start else key


CLASSIFIER = Table(
    "perceiver.decoder.decoder",
    {
        "encoders.image.stem.projection": "perceiver.input_preprocessor.convnet_1x1",
        "encoders.image.stem.conv": "perceiver.input_preprocessor.convnet.conv",
        "encoders.image.stem.norm": "perceiver.input_preprocessor.convnet.batchnorm",
        "encoders.image.positions.embedding": "perceiver.input_preprocessor.position_embeddings.position_embeddings",
        "encoders.image.positions.projection": "perceiver.input_preprocessor.positions_projection",
        "encoders.text.embedding": "perceiver.input_preprocessor.embeddings",
        "encoders.text.positions.embedding": "perceiver.input_preprocessor.position_embeddings.weight",
        "decoder.queries.array": "perceiver.decoder.decoder.output_position_encodings.position_embeddings",
        "decoder.head": "perceiver.decoder.decoder.final_layer",
    },
)
MASKED_LM = Table(
    "perceiver.decoder",
    {
        "encoders.text.embedding": "perceiver.input_preprocessor.embeddings",
        "encoders.text.positions.embedding": "perceiver.input_preprocessor.position_embeddings.weight",
        "decoder.queries.queries.logits.array": "perceiver.decoder.output_position_encodings.position_embeddings",
        "decoder.heads.logits.bias": "embedding_decoder.bias",
    },
)
FLOW = Table(
    "perceiver.decoder.decoder",
    {
        "encoders.video.stem.projection": "perceiver.input_preprocessor.conv_after_patches",
        "decoder.heads.logits": "perceiver.decoder.decoder.final_layer",
    },
)
MULTIMODAL = Table(
    "perceiver.decoder.decoder",
    {
        "join.embeddings": "perceiver.input_preprocessor.padding",
        "join.mask_tokens": "perceiver.input_preprocessor.mask",
        "decoder.queries.embeddings": "perceiver.decoder.padding",
        "decoder.queries.queries.label.array": (
            "perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings"
        ),
        "decoder.shared_head": "perceiver.decoder.decoder.final_layer",
        **{
            f"decoder.heads.{name}": f"perceiver.output_postprocessor.modalities.{name}.classifier"
            for name in ("audio", "image", "label")
        },
    },
)
