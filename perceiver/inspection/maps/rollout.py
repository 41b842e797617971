"""Attention rollout (Abnar & Zuidema 2020), computed backwards from an output to the input tokens.

Each layer passes on (1 - α) of its input by its residual and α by its attention. Backwards, `g` is the share of each
latent in an output; it starts as the attention of the output's query over the latents (the mean over the layers of a
decoder that has several, without the self-attention of the decoder):

    self-attention A:   g ← (1 - α) g + α g A
    cross-attention W:  inputs += α g W,   g ← (1 - α) g

so that any number of cross-attends needs memory for queries × tokens only. The rest of `g` at the end is the share of
the initial latents, which are the same for every input; it is returned as `residual`.

α is a convention. A number holds for all layers (0.5 in the paper). `norm` uses, for each latent, layer and input,
‖attention‖ / (‖latent‖ + ‖attention‖): the mixing ratio of Kobayashi et al. (2021), who count the attention of a latent
to itself as kept. MLPs are ignored in both. Rollout shows where information could come from, not what the
answer depends on; for that see `relevance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.maps.record import Layer, Record
from perceiver.roles import OUTPUTS, TOKENS

Alpha: TypeAlias = float | Literal["norm"]


@dataclass(frozen=True)
class Rollout:
    """The shares of tokens and initial latents in outputs.

    `inputs` and `residual` sum to one; both are zero for a row of query weights that is zero.

    Attributes:
        inputs: share of each input token.
        residual: share of the initial latents, which do not depend on the input; zero without latents.
        latents: for each layer that reads the tokens, the share that each of its queries reads there: in a Perceiver,
            the share that enters through each latent of a cross-attend.
    """

    inputs: Float[Tensor, "batch answers tokens"]
    residual: Float[Tensor, "batch answers"]
    latents: dict[str, Float[Tensor, "batch answers latents"]] = field(default_factory=dict)


def rollout(
    record: Record, *, alpha: Alpha = 0.5, query_weights: Float[Tensor, "batch answers queries"] | None = None
) -> Rollout:
    """Roll the attention of a forward pass back from the decoder's queries to the input tokens.

    A decoder without attention pools: it has one query, which reads all of the memory with equal weights.

    Args:
        record: the forward pass, with one decoder (`Record.for_output`).
        alpha: share of attention as opposed to the residual.
        query_weights: mixtures of queries to roll back (`mean_of_queries`); None: each query alone.

    Raises:
        ValueError: alpha is neither in [0, 1] nor `norm`.
    """
    check_alpha(alpha)
    memory, latents = decoder_attention(record, query_weights)
    shares = record.split_memory(memory)
    input_layers = record.input_layers
    for name, layer in reversed(record.layers.items()):
        queries = layer.role.queries
        if queries == OUTPUTS or queries not in shares:
            continue
        attention_share = _attention_share(layer, alpha)
        by_attention = attention_share * shares[queries]
        shares[queries] = (1 - attention_share) * shares[queries]
        record.add_read(shares, layer, layer.propagate(by_attention))
        if name in input_layers:
            latents[name] = by_attention
    inputs = record.take_tokens(shares)
    residual = torch.stack([share.sum(dim=-1) for share in shares.values()]).sum(dim=0) if shares else None
    return Rollout(
        inputs=inputs,
        residual=inputs.new_zeros(inputs.shape[:2]) if residual is None else residual,
        latents={name: latents[name] for name in input_layers},
    )


def output_rollout(record: Record, *, alpha: Alpha) -> Rollout:
    """Return the rollout of the mean of all outputs, each the mean of all queries of its decoder.

    Its `latents` are those of layers that belong to no decoder.
    """
    rollouts = [
        rollout(
            part,
            alpha=alpha,
            query_weights=mean_of_queries([[range(part.num_outputs)]] * part.num_rows, part.num_outputs),
        )
        for part in record.parts
    ]
    shared = [name for name in record.input_layers if all(name in found.latents for found in rollouts)]
    return Rollout(
        torch.stack([found.inputs for found in rollouts]).mean(dim=0),
        torch.stack([found.residual for found in rollouts]).mean(dim=0),
        {name: torch.stack([found.latents[name] for found in rollouts]).mean(dim=0) for name in shared},
    )


def check_alpha(alpha: Alpha) -> None:
    """Check the value of `attention.rollout_alpha`.

    Raises:
        ValueError: it is neither in [0, 1] nor `norm`.
    """
    if not (alpha == "norm" or (isinstance(alpha, int | float) and 0.0 <= alpha <= 1.0)):
        raise ValueError(f"rollout_alpha={alpha} must be norm, or a number from 0 to 1")


def decoder_attention(
    record: Record, query_weights: Float[Tensor, "batch answers queries"] | None
) -> tuple[Float[Tensor, "batch answers memory"], dict[str, Float[Tensor, "batch answers queries"]]]:
    """Return the attention of mixtures of the decoder's queries to the memory, averaged over the decoder's layers.

    Returns:
        The attention, and for each layer the share of each query in it.
    """
    decoders = {name: record.layers[name] for name in record.decode_layers}
    if not decoders and record.output_lengths:
        assert record.tokens is not None
        return _mixtures(query_weights, record.num_rows, record.num_outputs).to(record.tokens.values.device), {}
    if not decoders:
        num_answers = 1 if query_weights is None else query_weights.shape[1]
        return uniform_memory(record).expand(-1, num_answers, -1), {}
    last = next(reversed(decoders.values()))
    weights = _mixtures(query_weights, last.num_rows, last.num_queries).to(last.q.device)
    read = torch.stack([layer.propagate(weights) for layer in decoders.values()]).mean(dim=0)
    return read, {name: weights / len(decoders) for name in decoders}


def _mixtures(
    query_weights: Float[Tensor, "batch answers queries"] | None, num_rows: int, num_queries: int
) -> Float[Tensor, "batch answers queries"]:
    """Return the given mixtures of queries; None: each query alone."""
    return torch.eye(num_queries).expand(num_rows, -1, -1) if query_weights is None else query_weights


def uniform_memory(record: Record) -> Float[Tensor, "batch 1 memory"]:
    """Return the share of each element of the memory in the mean over the memory."""
    if record.memory != TOKENS:
        return next(one for one in reversed(record.layers.values()) if one.role.queries == record.memory).uniform
    assert record.tokens is not None
    real = record.tokens.values.new_ones(record.tokens.values.shape[:2], dtype=torch.float32)
    real = real if record.tokens.mask is None else real * record.tokens.mask
    return (real / real.sum(dim=1, keepdim=True).clamp_min(1))[:, None]


def mean_of_queries(
    queries: Sequence[Sequence[Sequence[int]]], num_queries: int
) -> Float[Tensor, "batch answers num_queries"]:
    """Return query weights: for each sample and answer the mean of the queries with the given numbers, zero-padded."""
    weights = torch.zeros(len(queries), max(map(len, queries), default=0), num_queries)
    for row, of_row in enumerate(queries):
        for slot, chosen in enumerate(of_row):
            weights[row, slot, list(chosen)] = 1 / max(len(chosen), 1)
    return weights


def _attention_share(layer: Layer, alpha: Alpha) -> Float[Tensor, "batch 1 queries"]:
    """Return the share of attention in the output of a layer: 1 without a residual, 0 without a real key."""
    share = layer.attention_share
    if alpha != "norm":
        share = torch.full_like(share, alpha if layer.has_residual else 1.0)
    return (share if layer.mask is None else share * layer.mask.any(dim=1, keepdim=True).float())[:, None]
