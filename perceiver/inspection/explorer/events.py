"""Events: explanations as arrays for `np.savez`, which can be read without this package."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.inspection.maps.record import Layer, Record
from perceiver.inspection.maps.rollout import mean_of_queries
from perceiver.roles import LATENTS, OUTPUTS

SCORE = "score/"
"""Prefix of the names of scores."""


def event_arrays(explanation: Explanation, *, max_megabytes: float) -> dict[str, np.ndarray]:
    """Return the exact weights as float16, and the arrays that are needed to interpret them.

    Keys: `ids`, `input/<modality>`, `target/<name>`, `grid/<modality>`, `span/<modality>` (its place among the keys),
    `axes/<modality>` (JSON: the fields of each `Axis` of the grid), `boxes` (JSON: for each sample the fields of each
    `Box`; absent without boxes);
    per layer that reads the tokens, such as a cross-attend, `cross<k>/weights` [batch, heads, latents, keys] with
    `cross<k>/latents` [batch, latents], the latents' numbers: all of them, or as many as fit into `max_megabytes`,
    which these layers share, those that the outputs read most; `cross<k>/reads` [batch, answers, all latents], the
    share of an answer that enters there through each latent; `cross<k>/query_kind`, "latent", or "query" where the
    outputs read the tokens themselves; where the mechanism has scores (`Mechanism.has_scores`), also
    `cross<k>/log_weight` [batch, heads, latents], the mean logarithm of the weights on the tokens that are not masked,
    and, if any is masked, `cross<k>/visible`, bits of [batch, heads, latents, keys] that say which are not
    (`np.packbits`); a weight that is zero in float32 counts as masked;
    per dense output the same keys with `<output>/places` in place of `cross<k>`, for the rollout from each of its
    places, as many as fit into `max_megabytes`, of kind "place", and `<output>/places/centers` [batch, all places,
    axes], see `cell_centers`;
    all of `decode<k>/weights` [batch, heads, queries, latents] and `decode_self<k>/weights` [batch, heads, queries,
    queries];
    `answers` (JSON: for each sample the fields of each `Answer`, whose `queries` are indices of `queries`) with
    `answers/probability` [batch, answers]; `rollout/inputs` [batch, answers, keys], `rollout/residual` [batch,
    answers], `rollout/alpha`; `relevance/inputs` [batch, answers, keys], whose rows sum to 1, since relevance has no
    unit, or to 0, or `relevance/none`, a sentence that says why it is not defined; `relevance/against` likewise for the
    evidence against each answer, and `relevance/balance` [batch, answers], the share of the evidence for it in both;
    with contrasts `contrast/inputs` [batch, answers, foils, keys], `contrast/against` and `contrast/balance` for each
    answer rather than each of its foils, and `contrast/foils` (JSON: for each sample and answer the name and the
    probability of each foil); and where the decoder attends to the tokens, `attention/inputs` [batch, answers, keys],
    its weights.
    """
    record, batch, found = explanation.record, explanation.batch, explanation.rollout
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
        arrays["boxes"] = np.array(json.dumps([[asdict(box) for box in row] for row in explanation.boxes]))
    arrays |= _weights(explanation, max_megabytes * 2**20 / torch.float16.itemsize)
    arrays |= _places(explanation, max_megabytes * 2**20 / torch.float16.itemsize)
    arrays["answers"] = np.array(json.dumps([[asdict(answer) for answer in row] for row in explanation.answers]))
    arrays["answers/probability"] = explanation.probability.cpu().numpy()
    arrays["rollout/inputs"], arrays["rollout/residual"] = _half(found.inputs), _half(found.residual)
    arrays["rollout/alpha"] = np.array(explanation.alpha)
    if explanation.no_relevance:
        arrays["relevance/none"] = np.array(explanation.no_relevance)
    else:
        arrays["relevance/inputs"] = _half(explanation.relevance_shares)
        if explanation.against is not None:
            arrays |= _against("relevance", explanation.relevance, explanation.against)
        arrays |= _contrasts(explanation)
    if explanation.decoder_attention is not None:
        arrays["attention/inputs"] = _half(explanation.decoder_attention)
    return arrays


def _contrasts(explanation: Explanation) -> dict[str, np.ndarray]:
    """Return the contrasts of all answers, if they were computed and there are any."""
    found = explanation.contrasts
    if found is None or not found.probability.numel():
        return {}
    names = [
        [
            [
                {"name": foil.name, "probability": float(found.probability[row, slot, number])}
                for number, foil in enumerate(own)
            ]
            for slot, own in enumerate(of_row)
        ]
        for row, of_row in enumerate(found.foils)
    ]
    arrays = {"contrast/foils": np.array(json.dumps(names)), "contrast/inputs": _half(normalized(found.relevance))}
    return arrays | _against("contrast", found.relevance, found.against)


def _against(
    kind: str, supporting: Float[Tensor, "*rest keys"], opposing: Float[Tensor, "*rest keys"]
) -> dict[str, np.ndarray]:
    """Return the evidence against answers, and the share of the evidence for them in both."""
    total = supporting.sum(dim=-1) + opposing.sum(dim=-1)
    balance = supporting.sum(dim=-1) / total.where(total > 0, 1.0)
    return {f"{kind}/against": _half(normalized(opposing)), f"{kind}/balance": _half(balance)}


def with_scores(arrays: Mapping[str, np.ndarray], scores: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the arrays with scores added as `score/<name>`."""
    return {**arrays, **{f"{SCORE}{name}": np.array(value) for name, value in scores.items()}}


def scores_in(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the scores among the arrays of an event by name."""
    return {key.removeprefix(SCORE): float(arrays[key]) for key in arrays if key.startswith(SCORE)}


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file atomically, so that no reader sees a part of it, and an error leaves the earlier one."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        write(file)
    part.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a file of arrays. It is not compressed: weights hardly shrink, and training would wait."""
    replace_file(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def event_path(folder: Path, step: int) -> Path:
    """Return the file of the event of a step."""
    return folder / f"step_{step:08d}.npz"


def event_paths(folder: Path) -> dict[int, Path]:
    """Return step -> file of all events in a folder, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("step_*.npz"))}


def _weights(explanation: Explanation, budget: float) -> dict[str, np.ndarray]:
    """Return the exact weights; in layers that read the tokens, of as many latents as `budget` weights allow."""
    arrays: dict[str, np.ndarray] = {}
    record = explanation.record
    for name, ranking in explanation.query_rankings.items():
        layer = record.layers[name]
        num_kept = max(int(budget / len(record.input_layers) / (len(ranking) * layer.num_heads * layer.num_keys)), 1)
        latents = ranking[:, :num_kept].sort(dim=1).values
        arrays[f"{name}/query_kind"] = np.array("latent" if layer.role.queries == LATENTS else "query")
        arrays[f"{name}/latents"] = latents.cpu().numpy()
        arrays |= {f"{name}/{key}": values for key, values in _exact_weights(record, layer, latents.tolist()).items()}
        arrays[f"{name}/reads"] = _half(explanation.rollout.latents[name])
    for name, layer in record.layers.items():
        if layer.role.queries == OUTPUTS and name not in record.input_layers:
            arrays[f"{name}/weights"] = _half(layer.weights())
    return arrays


def _places(explanation: Explanation, budget: float) -> dict[str, np.ndarray]:
    """Return the rollouts from places of dense outputs in the form of a layer: all, or evenly spaced ones that fit."""
    arrays: dict[str, np.ndarray] = {}
    for output in explanation.dense_outputs:
        name, record = f"{output}/places", explanation.record
        total, num_values = record.outputs[output].shape[1], math.prod(explanation.relevance.shape[::2])
        num_kept = max(min(total, int(budget / num_values)), 1)
        kept = np.linspace(0, total - 1, num_kept).round().astype(int)
        queries = [[one.queries if one.output == output else () for one in row] for row in explanation.answers]
        arrays[f"{name}/query_kind"] = np.array("place")
        arrays[f"{name}/latents"] = np.tile(kept, (record.num_rows, 1))
        arrays[f"{name}/weights"] = _half(explanation.place_rollout(output, kept.tolist())[:, None])
        arrays[f"{name}/reads"] = _half(mean_of_queries(queries, total))
        arrays[f"{name}/centers"] = record.queries[output].cpu().numpy()
    return arrays


def _exact_weights(record: Record, layer: Layer, latents: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Compute the weights of each sample's latents on the tokens, and what their scores need, in chunks for the CPU."""
    samples = [(layer.sample(row), chosen) for row, chosen in enumerate(latents)]
    parts = [
        [_described(layer, record.on_tokens(one, one.weights(chunk))) for chunk in one.chunks(chosen)]
        for one, chosen in samples
    ]
    found = {
        key: np.concatenate([np.concatenate([one[key] for one in part], axis=2) for part in parts])
        for key in parts[0][0]
    }
    if "visible" in found and found["visible"].all():
        del found["visible"]
    elif "visible" in found:
        found["visible"] = np.packbits(found["visible"], axis=-1)
    return found


def _described(layer: Layer, weights: Float[Tensor, "1 heads latents tokens"]) -> dict[str, np.ndarray]:
    """Return weights; if the mechanism has scores, also their mean logarithm and the tokens that are not masked."""
    arrays = {"weights": _half(weights)}
    if layer.has_scores:
        visible = weights > 0
        logs = weights.where(visible, 1.0).log().sum(dim=-1) / visible.sum(dim=-1).clamp_min(1)
        arrays |= {"log_weight": logs.cpu().numpy(), "visible": visible.cpu().numpy()}
    return arrays


def _half(values: Tensor) -> np.ndarray:
    return values.detach().cpu().to(torch.float16).numpy()
