"""Statistics of the attention of a model, to be followed during training.

Each is a mean over samples, heads and queries (latents, in `cross` and `self` layers) of exact weights, which are
computed in chunks:

    entropy            of a row of weights, in nats; `entropy_chance` is that of uniform weights over all real keys. It
                       falls towards 0 as a layer attends to single keys (Zhai et al. 2023 on entropy collapse).
    top1_mass          largest weight of a row.
    head_redundancy    cosine between the rows of two heads of the same query; for several heads.
    latent_redundancy  cosine between the rows (mean over heads) of two queries; for several queries.

and for layers that read the tokens, the cross-attends of a Perceiver

    coverage           effective share of the input: exp(entropy of the mean of all rows) / number of real keys.
    share_<modality>   share of the weights on one of several modalities.
    dead_latents       share of the latents with less than `DEAD` of the mean share by which information enters through
                       a latent and reaches the outputs (by rollout; mean over outputs and samples).

`drift` measures how far maps move between two events.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.maps.record import Layer, Record
from perceiver.inspection.maps.rollout import Alpha, output_rollout
from perceiver.roles import LATENTS, OUTPUTS

DEAD = 0.1
"""A latent with less than this part of the mean share is dead."""


def statistics(record: Record, *, alpha: Alpha = 0.5) -> dict[str, float]:
    """Return `<layer>/<name>` -> number for every layer, except those in which outputs read outputs.

    Samples without a real key are excluded from a layer's means; a layer without any sample has no statistics.
    """
    found: dict[str, float] = {}
    latents = output_rollout(record, alpha=alpha).latents
    for name, layer in record.layers.items():
        num_keys = layer.q.new_full((layer.num_rows,), layer.num_keys, dtype=torch.float32)
        if layer.mask is not None:
            num_keys = layer.mask.sum(dim=1).float()
        real = num_keys > 0
        if layer.role.queries == layer.role.keys == OUTPUTS or not real.any():
            continue
        rows = _row_statistics(layer)
        values = {
            "entropy": rows.entropy,
            "entropy_chance": num_keys.log(),
            "top1_mass": rows.largest,
            "head_redundancy": rows.head_cosine,
            "latent_redundancy": rows.query_cosine,
        }
        if name in record.input_layers:
            values["coverage"] = torch.special.entr(rows.mean).sum(dim=1).exp() / num_keys
            spans = record.spans if len(record.spans) > 1 else {}
            for modality, span in spans.items():
                on_tokens = record.on_tokens(layer, rows.mean)
                values[f"share_{modality}"] = on_tokens[:, span.start : span.stop].sum(dim=1)
            if layer.role.queries == LATENTS:
                shares = latents[name][real, 0]
                mean = shares.sum(dim=1).mean() / layer.num_queries
                found[f"{name}/dead_latents"] = float((shares.mean(dim=0) < DEAD * mean).float().mean())
        found |= {f"{name}/{key}": float(value[real].mean()) for key, value in values.items() if value is not None}
    return found


@dataclass(frozen=True)
class _RowStatistics:
    """Statistics of the rows of weights of a layer, by sample.

    Attributes:
        entropy, largest: mean over rows.
        mean: the mean row.
        head_cosine, query_cosine: mean over pairs; None without pairs.
    """

    entropy: Float[Tensor, " batch"]
    largest: Float[Tensor, " batch"]
    mean: Float[Tensor, "batch keys"]
    head_cosine: Float[Tensor, " batch"] | None
    query_cosine: Float[Tensor, " batch"] | None


def _row_statistics(layer: Layer) -> _RowStatistics:
    """Compute all statistics in one pass over the weights of a layer, in chunks."""
    entropy, largest, head_cosine = layer.q.new_zeros(3, layer.num_rows, dtype=torch.float32)
    total, directions = layer.q.new_zeros(2, layer.num_rows, layer.num_keys, dtype=torch.float32)
    for chunk in layer.chunks():
        weights = layer.weights(chunk)
        means = weights.mean(dim=1)
        entropy = entropy + torch.special.entr(weights).sum(dim=-1).mean(dim=1).sum(dim=1)
        largest = largest + weights.amax(dim=-1).mean(dim=1).sum(dim=1)
        if layer.num_heads > 1:
            head_cosine = head_cosine + _mean_cosine(_directions(weights).sum(dim=1), layer.num_heads).sum(dim=1)
        total += means.sum(dim=1)
        directions += _directions(means).sum(dim=1)
    count = layer.num_queries
    return _RowStatistics(
        entropy=entropy / count,
        largest=largest / count,
        mean=total / count,
        head_cosine=head_cosine / count if layer.num_heads > 1 else None,
        query_cosine=_mean_cosine(directions, count) if count > 1 else None,
    )


def _directions(rows: Float[Tensor, "*rest keys"]) -> Float[Tensor, "*rest keys"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _mean_cosine(total: Float[Tensor, "*rest keys"], count: int) -> Float[Tensor, "*rest"]:
    """Return the mean cosine over pairs of `count` vectors of length 1, from their sum."""
    return (total.square().sum(dim=-1) - count) / (count * (count - 1))


def drift(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return `<layer>/drift`, the distance between the maps of two events, for each layer that reads the tokens.

    It is the mean total variation distance between the maps of a latent (mean over heads): 0 for equal maps, 1 for maps
    on disjoint tokens. Only latents that both events contain are compared; events of different samples have no drift.

    Args:
        before, after: the arrays of two events (`events.event_arrays`), or their files.
    """
    if list(before["ids"]) != list(after["ids"]):
        return {}
    found = {}
    for name in (key.removesuffix("/latents") for key in after if key.endswith("/latents")):
        key = f"{name}/weights"
        if key not in before or before[key].shape[-1] != after[key].shape[-1]:
            continue
        maps = [_latent_maps(event[key], event[f"{name}/latents"]) for event in (before, after)]
        distances = [
            np.abs(old[latent] - new[latent]).sum() / 2
            for old, new in zip(*maps, strict=True)
            for latent in old.keys() & new.keys()
        ]
        if distances:
            found[f"{name}/drift"] = float(np.mean(distances))
    return found


def _latent_maps(weights: np.ndarray, latents: np.ndarray) -> list[dict[int, np.ndarray]]:
    """Return number of a latent -> its map (mean over heads), for each sample."""
    means = weights.mean(axis=1, dtype=np.float32)
    return [dict(zip(numbers.tolist(), rows, strict=True)) for numbers, rows in zip(latents, means, strict=True)]
