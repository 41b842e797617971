"""From an output back to the inputs, through all layers: attention rollout (Abnar & Zuidema 2020), in reverse.

Each layer passes on (1 - α) of what flows through it by its residual and α by its attention. Followed backwards from
the outputs, `g` is how much of each latent an output rests on, in the beginning what its query reads of the latents
(the mean over the layers of a decoder that has several; a word's own reading, not that of the words before it):

    self-attention A:   g ← (1 - α) g + α g A
    cross-attention W:  inputs += α g W,   g ← (1 - α) g

so that any number of cross-attends costs memory for queries × tokens only. What is left in `g` at the end rests on the
initial latents, which are the same for every input; it is returned, not hidden.

α is a convention. A number holds for all layers (0.5 in the paper). `norm` takes for each latent, layer and input the
share that attention has of what goes on: ‖added‖ / (‖latent‖ + ‖added‖), the mixing ratio of Kobayashi et al. (2021)
but for what a latent reads of itself, which they count as kept. MLPs are left out in both. Either way the result says
where information could come from, not what the answer depends on; for that see `relevance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Layer, Record
from perceiver.mechanisms.base import OUTPUTS, TOKENS

Alpha: TypeAlias = float | Literal["norm"]


@dataclass(frozen=True)
class Rollout:
    """Where outputs get their information from; `inputs` sums with `residual` to one, to zero where there is neither.

    Attributes:
        inputs: share of each input token.
        residual: share of the initial latents, which know nothing of the input; zero without latents.
        latents: for each layer that reads the tokens, the share that each of its queries reads there: in a Perceiver
            for each cross-attend the share that came in by each latent.
    """

    inputs: Float[Tensor, "batch readers tokens"]
    residual: Float[Tensor, "batch readers"]
    latents: dict[str, Float[Tensor, "batch readers latents"]] = field(default_factory=dict)


def rollout(
    record: Record, *, alpha: Alpha = 0.5, readers: Float[Tensor, "batch readers queries"] | None = None
) -> Rollout:
    """Roll the attention of a forward pass back from the decoder's queries to the input tokens.

    A decoder without attention pools: there is one query, which reads all of the memory alike.

    Args:
        record: the forward pass.
        alpha: share of attention against residual.
        readers: what is rolled back: mixtures of the decoder's queries, by the share of each (`mean_reader`,
            `readers_of`); None for each query by itself.

    Raises:
        ValueError: alpha is neither in [0, 1] nor `norm`.
    """
    check_alpha(alpha)
    read_memory, parts = read_of_memory(record, readers)
    shares = {record.memory: read_memory}
    for name, layer in reversed(record.layers.items()):
        queries, keys = layer.role.queries, record.reads(layer)
        if queries == OUTPUTS or queries not in shares:
            continue
        passed = _passed(layer, alpha)
        by_attention = passed * shares[queries]
        shares[queries] = (1 - passed) * shares[queries]
        read = layer.through(by_attention)
        shares[keys] = shares[keys] + read if keys in shares else read
        if name in record.readers:
            parts[name] = by_attention
    inputs = shares.pop(TOKENS)
    residual = torch.stack([share.sum(dim=-1) for share in shares.values()]).sum(dim=0) if shares else None
    return Rollout(
        inputs=inputs,
        residual=inputs.new_zeros(inputs.shape[:2]) if residual is None else residual,
        latents={name: parts[name] for name in record.readers},
    )


def check_alpha(alpha: Alpha) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: it is neither in [0, 1] nor `norm`.
    """
    if not (alpha == "norm" or (isinstance(alpha, int | float) and 0.0 <= alpha <= 1.0)):
        raise ValueError(f"rollout_alpha={alpha} must be norm, or a number from 0 to 1")


def read_of_memory(
    record: Record, readers: Float[Tensor, "batch readers queries"] | None = None
) -> tuple[Float[Tensor, "batch readers memory"], dict[str, Float[Tensor, "batch readers queries"]]]:
    """What the decoder's queries, or mixtures of them, read of each element of the memory; pooling reads all alike.

    Returns:
        That, and by which queries of each layer it is read.
    """
    decoders = {name: record.layers[name] for name in record.decoders}
    if not decoders:
        num_readers = 1 if readers is None else readers.shape[1]
        return even_memory(record).expand(-1, num_readers, -1), {}
    last = next(reversed(decoders.values()))
    if readers is None:
        readers = torch.eye(last.num_queries, device=last.q.device).expand(last.num_rows, -1, -1)
    readers = readers.to(last.q.device)
    read = torch.stack([layer.through(readers) for layer in decoders.values()]).mean(dim=0)
    return read, {name: readers / len(decoders) for name in decoders}


def even_memory(record: Record) -> Float[Tensor, "batch 1 memory"]:
    """The share that a mean over the memory gives to each of its elements."""
    if record.memory != TOKENS:
        return even_share(next(one for one in reversed(record.layers.values()) if one.role.queries == record.memory))
    assert record.tokens is not None
    real = record.tokens.values.new_ones(record.tokens.values.shape[:2], dtype=torch.float32)
    real = real if record.tokens.mask is None else real * record.tokens.mask
    return (real / real.sum(dim=1, keepdim=True).clamp_min(1))[:, None]


def readers_of(
    queries: Sequence[Sequence[Sequence[int]]], num_queries: int
) -> Float[Tensor, "batch readers num_queries"]:
    """For each sample and reader the numbers of the queries it is the mean of -> shares; zeros fill up the samples."""
    shares = torch.zeros(len(queries), max(map(len, queries), default=0), num_queries)
    for sample, of_sample in enumerate(queries):
        for reader, chosen in enumerate(of_sample):
            shares[sample, reader, list(chosen)] = 1 / max(len(chosen), 1)
    return shares


def mean_reader(record: Record) -> Float[Tensor, "batch 1 queries"]:
    """The mean over all queries of the decoder."""
    return torch.full((record.num_rows, 1, record.num_outputs), 1 / record.num_outputs)


def even_share(layer: Layer) -> Float[Tensor, "batch 1 queries"]:
    """The share of each query of a layer where all have the same."""
    return layer.q.new_full((layer.num_rows, 1, layer.num_queries), 1 / layer.num_queries, dtype=torch.float32)


def _passed(layer: Layer, alpha: Alpha) -> Float[Tensor, "batch 1 queries"] | Float[Tensor, "batch 1 1"]:
    """What goes on by attention: all where there is no residual, nothing where a sample has no real key."""
    if alpha == "norm" and layer.added is not None:
        passed = layer.added[:, None]
    else:
        if alpha == "norm":
            raise ValueError("rollout_alpha=norm needs a `Residual` around each attention; choose a number from 0 to 1")
        passed = layer.q.new_full((layer.num_rows, 1, 1), alpha if layer.has_residual else 1.0, dtype=torch.float32)
    return passed if layer.mask is None else passed * layer.mask.any(dim=1)[:, None, None].float()
