"""Numbers for how the attention of a model is, to be followed over training.

Each is a mean over samples, heads and queries (latents, in `cross` and `self` layers), of exact weights, whose matrices
are never held as a whole:

    entropy            of a row of weights, in nats; `entropy_chance` is what even weights over all real keys have.
                       Falling towards 0, a layer looks at single keys (Zhai et al. 2023 on its collapse).
    top1_mass          largest weight of a row.
    head_redundancy    cosine between rows of two heads of the same query: 1 means that one would do. Of several heads.
    latent_redundancy  the same between rows (mean over heads) of two queries. Of several queries.

and for layers that read the tokens, the cross-attends of a Perceiver

    coverage           share of the input that is looked at: exp(entropy of the mean of all rows) / number of real keys.
    share_<modality>   share of the weights that falls on it, where there are several.
    dead_latents       share of the latents with less than a tenth of the even part of what comes in there and reaches
                       the outputs (by rollout; mean over outputs and samples).

`drift` tells how far maps have moved from one look to the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Layer, Record
from perceiver.inspection.rollout import Alpha, mean_reader, rollout
from perceiver.mechanisms.base import LATENTS, OUTPUTS

DEAD = 0.1
"""Of the even part: a latent with less is called dead."""


def statistics(record: Record, *, alpha: Alpha = 0.5) -> dict[str, float]:
    """`<layer>/<name>` -> number, for every layer but those in which outputs read outputs.

    Samples without a real key are left out of a layer's means; a layer of which nothing is left has no numbers.
    """
    found: dict[str, float] = {}
    incoming = _incoming(record, alpha)
    for name, layer in record.layers.items():
        num_keys = layer.q.new_full((layer.num_rows,), layer.num_keys, dtype=torch.float32)
        if layer.mask is not None:
            num_keys = layer.mask.sum(dim=1).float()
        real = num_keys > 0
        if layer.role.queries == layer.role.keys == OUTPUTS or not real.any():
            continue
        rows = _rows_of(layer)
        values = {
            "entropy": rows.entropy,
            "entropy_chance": num_keys.log(),
            "top1_mass": rows.largest,
            "head_redundancy": rows.between_heads,
            "latent_redundancy": rows.between_queries,
        }
        if name in record.readers:
            values["coverage"] = torch.special.entr(rows.mean).sum(dim=1).exp() / num_keys
            spans = record.spans if len(record.spans) > 1 else {}
            for modality, span in spans.items():
                values[f"share_{modality}"] = rows.mean[:, span.start : span.stop].sum(dim=1)
            if layer.role.queries == LATENTS:
                parts = incoming[name][real]
                even = parts.sum(dim=1).mean() / layer.num_queries
                found[f"{name}/dead_latents"] = float((parts.mean(dim=0) < DEAD * even).float().mean())
        found |= {f"{name}/{key}": float(value[real].mean()) for key, value in values.items() if value is not None}
    return found


def _incoming(record: Record, alpha: Alpha) -> dict[str, Float[Tensor, "batch latents"]]:
    """For each layer that reads the tokens, the share that comes in by each latent; the mean over all outputs."""
    rollouts = [rollout(part, alpha=alpha, readers=mean_reader(part)).latents for part in record.parts]
    names = [name for name in record.readers if record.layers[name].role.queries == LATENTS]
    return {name: torch.stack([part[name][:, 0] for part in rollouts]).mean(dim=0) for name in names}


@dataclass(frozen=True)
class _Rows:
    """What the rows of weights of a layer are like, for each sample.

    Attributes:
        entropy, largest: mean over rows.
        mean: the mean row.
        between_heads, between_queries: mean cosine over pairs; None where there is no pair.
    """

    entropy: Float[Tensor, " batch"]
    largest: Float[Tensor, " batch"]
    mean: Float[Tensor, "batch keys"]
    between_heads: Float[Tensor, " batch"] | None
    between_queries: Float[Tensor, " batch"] | None


def _rows_of(layer: Layer) -> _Rows:
    """One pass over all weights of a layer, a chunk at a time."""
    entropy, largest, between_heads = layer.q.new_zeros(3, layer.num_rows, dtype=torch.float32)
    total, directions = layer.q.new_zeros(2, layer.num_rows, layer.num_keys, dtype=torch.float32)
    for chunk in layer.chunks():
        weights = layer.weights(chunk)
        of_queries = weights.mean(dim=1)
        entropy = entropy + torch.special.entr(weights).sum(dim=-1).mean(dim=1).sum(dim=1)
        largest = largest + weights.amax(dim=-1).mean(dim=1).sum(dim=1)
        if layer.num_heads > 1:
            between_heads = between_heads + _mean_cosine(_directions(weights).sum(dim=1), layer.num_heads).sum(dim=1)
        total += of_queries.sum(dim=1)
        directions += _directions(of_queries).sum(dim=1)
    count = layer.num_queries
    return _Rows(
        entropy=entropy / count,
        largest=largest / count,
        mean=total / count,
        between_heads=between_heads / count if layer.num_heads > 1 else None,
        between_queries=_mean_cosine(directions, count) if count > 1 else None,
    )


def _directions(rows: Float[Tensor, "*rest keys"]) -> Float[Tensor, "*rest keys"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _mean_cosine(total: Float[Tensor, "*rest keys"], count: int) -> Float[Tensor, "*rest"]:
    """The mean cosine over pairs of `count` vectors of length 1, of which only the sum is known."""
    return (total.square().sum(dim=-1) - count) / (count * (count - 1))


def drift(earlier: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far the maps of each layer that reads the tokens have moved between two looks at the same samples.

    `<layer>/drift` is the mean total variation distance between a latent's map (mean over heads) then and now: 0 where
    nothing moved, 1 where it looks at wholly other tokens. Of looks that kept only some latents, those that both have
    are compared.

    Args:
        earlier, now: arrays of two looks (`arrays.event_arrays`), or the files that hold them.
    """
    if list(earlier["ids"]) != list(now["ids"]):
        return {}
    found = {}
    for name in (key.removesuffix("/latents") for key in now if key.endswith("/latents")):
        key = f"{name}/weights"
        if key not in earlier or earlier[key].shape[-1] != now[key].shape[-1]:
            continue
        maps = [_by_latent(explanation[key], explanation[f"{name}/latents"]) for explanation in (earlier, now)]
        distances = [
            np.abs(then[latent] - after[latent]).sum() / 2
            for then, after in zip(*maps, strict=True)
            for latent in then.keys() & after.keys()
        ]
        if distances:
            found[f"{name}/drift"] = float(np.mean(distances))
    return found


def _by_latent(weights: np.ndarray, latents: np.ndarray) -> list[dict[int, np.ndarray]]:
    """For each sample the number of a latent -> its map, the mean over heads."""
    means = weights.mean(axis=1, dtype=np.float32)
    return [dict(zip(numbers.tolist(), rows, strict=True)) for numbers, rows in zip(latents, means, strict=True)]
