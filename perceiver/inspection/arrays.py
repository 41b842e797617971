"""What one look at a batch gives, as arrays for `np.savez`, with everything that is needed to read them."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.capture import Capture, Layer
from perceiver.inspection.maps import latent_ranking
from perceiver.inspection.rollout import mean_reader, rollout
from perceiver.types import Answer, Batch


def event_arrays(
    captured: Capture,
    batch: Batch,
    *,
    max_megabytes: float,
    alpha: float = 0.5,
    answers: Sequence[Sequence[Answer]] = (),
) -> dict[str, np.ndarray]:
    """Exact weights as float16, and what they belong to.

    Keys: `ids`, `input/<modality>`, `target/<name>`, `grid/<modality>`, `span/<modality>` (its place among the keys),
    `axes/<modality>` (JSON: the fields of each `Axis` of the grid), `boxes` (JSON: for each sample the fields of each
    `Box`; absent where the data has none);
    per cross-attend `cross<k>/weights` [batch, heads, latents, keys] with `cross<k>/latents` [batch, latents], the
    latents' numbers: all of them, or as many as fit into `max_megabytes`, shared by the cross-attends, those that the
    outputs read most; `decode<k>/weights` [batch, heads, queries, latents] and `words<k>/weights` [batch, heads,
    queries, queries], whole; `rollout/inputs` [batch, queries, keys], `rollout/residual` and `rollout/alpha`; one
    query, the mean, if all do not fit into `max_megabytes`; `answers` (JSON: for each sample the fields of each
    `Answer`, whose `queries` are places along `queries`).
    """
    arrays: dict[str, np.ndarray] = {"ids": np.array(batch.ids)}
    for name, raw in batch.inputs.items():
        arrays[f"input/{name}"] = _half(raw)
    for name, target in batch.targets.items():
        if isinstance(target, Tensor):
            arrays[f"target/{name}"] = target.cpu().numpy()
    for name, span in captured.spans.items():
        arrays[f"grid/{name}"] = np.array(span.grid.shape)
        arrays[f"span/{name}"] = np.array([span.start, span.stop])
        arrays[f"axes/{name}"] = np.array(json.dumps([asdict(axis) for axis in span.grid.axes]))
    if "boxes" in batch.targets:
        of_samples = [[asdict(box) for box in boxes or ()] for boxes in batch.targets["boxes"]]
        arrays["boxes"] = np.array(json.dumps(of_samples))
    arrays["answers"] = np.array(json.dumps([[asdict(answer) for answer in of_sample] for of_sample in answers]))
    budget = max_megabytes * 2**20 / torch.float16.itemsize
    ranking = latent_ranking(captured)
    crosses = captured.named("cross")
    for name in crosses:
        layer = captured.layers[name]
        fitting = max(int(budget / len(crosses) / (len(ranking) * layer.num_heads * layer.num_keys)), 1)
        latents = ranking[:, :fitting].sort(dim=1).values
        arrays[f"{name}/latents"] = latents.cpu().numpy()
        arrays[f"{name}/weights"] = _exact_weights(layer, latents.tolist())
    for name in (*captured.named("decode"), *captured.named("words")):
        arrays[f"{name}/weights"] = _half(captured.layers[name].weights())
    num_values = len(ranking) * captured.num_outputs * captured.layers[crosses[0]].num_keys
    traced = rollout(captured, alpha=alpha, readers=mean_reader(captured) if num_values > budget else None)
    arrays["rollout/inputs"], arrays["rollout/residual"] = _half(traced.inputs), _half(traced.residual)
    arrays["rollout/alpha"] = np.array(alpha)
    return arrays


def _exact_weights(layer: Layer, latents: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch heads latents keys"]:
    """Weights of each sample's own latents, brought to the CPU part by part."""
    samples = [(layer.sample(number), chosen) for number, chosen in enumerate(latents)]
    parts = [[_half(one.weights(chunk)) for chunk in one.chunks(chosen)] for one, chosen in samples]
    return np.concatenate([np.concatenate(part, axis=2) for part in parts])


def _half(values: Tensor) -> np.ndarray:
    return values.detach().cpu().to(torch.float16).numpy()
