"""What one look at a batch gives, as arrays for `np.savez`, with everything that is needed to read them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.explanation import Explanation
from perceiver.inspection.figures import query_ranking
from perceiver.inspection.record import Layer
from perceiver.mechanisms.base import LATENTS, OUTPUTS

SCORE = "score/"
"""In front of the name of everything that was measured."""


def event_arrays(explanation: Explanation, *, max_megabytes: float) -> dict[str, np.ndarray]:
    """Exact weights as float16, and what they belong to.

    Keys: `ids`, `input/<modality>`, `target/<name>`, `grid/<modality>`, `span/<modality>` (its place among the keys),
    `axes/<modality>` (JSON: the fields of each `Axis` of the grid), `boxes` (JSON: for each sample the fields of each
    `Box`; absent where the data has none);
    per layer that reads the tokens, such as a cross-attend, `cross<k>/weights` [batch, heads, latents, keys] with
    `cross<k>/latents` [batch, latents], the latents' numbers: all of them, or as many as fit into `max_megabytes`,
    which these layers share, those that the outputs read most; `cross<k>/reads` [batch, answers, all latents], what
    comes in there by each latent on the way to an answer; `cross<k>/query_kind`, "latent", or "query" where the outputs
    read the tokens themselves;
    `decode<k>/weights` [batch, heads, queries, latents] and `decode_self<k>/weights` [batch, heads, queries, queries],
    whole;
    `answers` (JSON: for each sample the fields of each `Answer`, whose `queries` are places along `queries`) with
    `answers/probability` [batch, answers]; `rollout/inputs` [batch, answers, keys], `rollout/residual` [batch,
    answers], `rollout/alpha`; and `relevance/inputs` [batch, answers, keys], of which every row has a mass of 1, since
    relevance has no unit, or of 0.
    """
    record, batch = explanation.record, explanation.batch
    arrays: dict[str, np.ndarray] = {"ids": np.array(batch.ids)}
    for name, raw in batch.inputs.items():
        arrays[f"input/{name}"] = _half(raw) if raw.is_floating_point() else raw.cpu().numpy()
    for name, target in batch.targets.items():
        if isinstance(target, Tensor):
            arrays[f"target/{name}"] = target.cpu().numpy()
    for name, span in record.spans.items():
        arrays[f"grid/{name}"] = np.array(span.grid.shape)
        arrays[f"span/{name}"] = np.array([span.start, span.stop])
        arrays[f"axes/{name}"] = np.array(json.dumps([asdict(axis) for axis in span.grid.axes]))
    if "boxes" in batch.targets:
        of_samples = [[asdict(box) for box in boxes or ()] for boxes in batch.targets["boxes"]]
        arrays["boxes"] = np.array(json.dumps(of_samples))
    arrays |= _weights(explanation, max_megabytes * 2**20 / torch.float16.itemsize)
    arrays["answers"] = np.array(
        json.dumps([[asdict(answer) for answer in of_sample] for of_sample in explanation.answers])
    )
    arrays["answers/probability"] = explanation.probability.cpu().numpy()
    arrays["rollout/inputs"], arrays["rollout/residual"] = (
        _half(explanation.rollout.inputs),
        _half(explanation.rollout.residual),
    )
    arrays["rollout/alpha"] = np.array(explanation.alpha)
    arrays["relevance/inputs"] = _half(explanation.relevance_shares)
    return arrays


def scored(arrays: Mapping[str, np.ndarray], scores: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The arrays with what was measured, as `score/<name>`."""
    return {**arrays, **{f"{SCORE}{name}": np.array(value) for name, value in scores.items()}}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file of arrays as a whole. Uncompressed: weights hardly shrink, and training would wait for it."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def event_path(folder: Path, step: int) -> Path:
    """Where the event of a step is kept."""
    return folder / f"step_{step:08d}.npz"


def event_paths(folder: Path) -> dict[int, Path]:
    """Step -> file, of all events that are kept, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("step_*.npz"))}


def _weights(explanation: Explanation, budget: float) -> dict[str, np.ndarray]:
    """The exact weights; those of cross-attends of as many latents as `budget`, a number of weights, allows."""
    arrays: dict[str, np.ndarray] = {}
    record = explanation.record
    for name in record.readers:
        layer = record.layers[name]
        ranking = query_ranking(record, name)
        fitting = max(int(budget / len(record.readers) / (len(ranking) * layer.num_heads * layer.num_keys)), 1)
        latents = ranking[:, :fitting].sort(dim=1).values
        arrays[f"{name}/query_kind"] = np.array("latent" if layer.role.queries == LATENTS else "query")
        arrays[f"{name}/latents"] = latents.cpu().numpy()
        arrays[f"{name}/weights"] = _exact_weights(layer, latents.tolist())
        arrays[f"{name}/reads"] = _half(explanation.rollout.latents[name])
    for name, layer in record.layers.items():
        if layer.role.queries == OUTPUTS and name not in record.readers:
            arrays[f"{name}/weights"] = _half(layer.weights())
    return arrays


def _exact_weights(layer: Layer, latents: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch heads latents keys"]:
    """Weights of each sample's own latents, brought to the CPU part by part."""
    samples = [(layer.sample(number), chosen) for number, chosen in enumerate(latents)]
    parts = [[_half(one.weights(chunk)) for chunk in one.chunks(chosen)] for one, chosen in samples]
    return np.concatenate([np.concatenate(part, axis=2) for part in parts])


def _half(values: Tensor) -> np.ndarray:
    return values.detach().cpu().to(torch.float16).numpy()
