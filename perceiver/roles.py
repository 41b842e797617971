"""Roles of attention: the sequence that is updated, and the one that is read."""

from dataclasses import dataclass

TOKENS, LATENTS, MEMORY, OUTPUTS = "tokens", "latents", "memory", "outputs"
"""The sequences that attention connects. `memory` is what the decoder reads: the latents, or the tokens."""


@dataclass(frozen=True)
class Role:
    """The place of an attention in a model.

    Attributes:
        name: prefix of the layer names `cross0`, `cross1`, …
        queries: the sequence that is updated.
        keys: the sequence that is read.
        decoder: name of the decoder it belongs to, if there are several.
    """

    name: str
    queries: str
    keys: str
    decoder: str | None = None


CROSS = Role("cross", LATENTS, TOKENS)
SELF = Role("self", LATENTS, LATENTS)
ENCODE = Role("encode", TOKENS, TOKENS)
DECODE = Role("decode", OUTPUTS, MEMORY)
DECODE_SELF = Role("decode_self", OUTPUTS, OUTPUTS)
