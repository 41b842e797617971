"""What one look at a batch gives: exact weights on the input's grid as arrays, and contact sheets of them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from perceiver.inspection.capture import Capture
from perceiver.inspection.pictures import Tile, contact_sheet, image_picture, overlay
from perceiver.inspection.rollout import Rollout, rollout
from perceiver.types import Batch, Span


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """The part of the weights that falls on one modality, in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def latent_ranking(captured: Capture) -> Int[Tensor, "batch latents"]:
    """Latents by how much the outputs read from them; without decoder attention by how sharply they look."""
    decoders = captured.named("decode")
    if decoders:
        score = captured.map(decoders[-1]).mean(dim=1)
    else:
        weights = captured.map(captured.named("cross")[-1])
        score = (weights * weights.clamp_min(1e-12).log()).sum(dim=-1)  # minus the entropy
    return score.argsort(dim=1, descending=True)


def contact_sheets(
    captured: Capture, inputs: Mapping[str, Tensor], *, num_latents: int, alpha: float = 0.5
) -> dict[str, list[Image.Image]]:
    """One sheet per sample for each cross-attend and modality with a two-dimensional grid.

    A sheet shows the input, the mean over latents over it and alone, the rollout from the outputs to the input, and the
    `num_latents` latents that the outputs read most, all on one colour scale.

    Returns:
        `<modality>/cross<k>` -> sheets.
    """
    ranking = latent_ranking(captured)[:, :num_latents]
    traced = rollout(captured, alpha=alpha)
    sheets: dict[str, list[Image.Image]] = {}
    for modality, span in captured.spans.items():
        if len(span.grid.shape) != 2:
            continue
        for layer in captured.named("cross"):
            maps = on_grid(captured.map(layer), span)
            sheets[f"{modality}/{layer}"] = [
                contact_sheet(_tiles(raw, maps[sample], ranking[sample], _from_outputs(traced, span, sample)))
                for sample, raw in enumerate(inputs[modality])
            ]
    return sheets


def _from_outputs(traced: Rollout, span: Span, sample: int) -> Float[np.ndarray, "rows columns"]:
    """Mean over the outputs of the rollout to one modality, as a share of what reaches any input."""
    share = traced.inputs[sample] / traced.inputs[sample].sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return on_grid(share.mean(dim=0), span)


def _tiles(
    raw: Tensor,
    maps: Float[np.ndarray, "latents rows columns"],
    latents: Int[Tensor, " shown"],
    from_outputs: Float[np.ndarray, "rows columns"],
) -> list[Tile]:
    mean = maps.mean(axis=0)
    tiles = [Tile("mean over latents", mean), Tile("rollout from output", from_outputs)]
    tiles += [Tile(f"latent {latent}", maps[latent]) for latent in latents.tolist()]
    if raw.ndim == 3:
        picture = image_picture(raw)
        tiles = [
            Tile("input", picture, is_map=False),
            Tile("mean over input", overlay(picture, mean), is_map=False),
            *tiles,
        ]
    return tiles


def event_arrays(captured: Capture, batch: Batch, *, max_megabytes: float) -> dict[str, np.ndarray]:
    """Everything one look gave, for `np.savez`: exact weights as float16, and what is needed to read them.

    Keys: `ids`, `input/<modality>`, `target/<name>`, `grid/<modality>`, `span/<modality>` (its place among the keys);
    per cross-attend `cross<k>/weights` [batch, heads, latents, keys] with `cross<k>/latents` [batch, latents], the
    latents' numbers: all of them, or as many as fit into `max_megabytes` per layer, those that the outputs read most;
    `decode<k>/weights` [batch, heads, queries, latents], whole; `rollout/inputs` and `rollout/residual`.
    """
    arrays: dict[str, np.ndarray] = {"ids": np.array(batch.ids)}
    for name, raw in batch.inputs.items():
        arrays[f"input/{name}"] = raw.cpu().numpy().astype(np.float16)
    for name, target in batch.targets.items():
        if isinstance(target, Tensor):
            arrays[f"target/{name}"] = target.cpu().numpy()
    for name, span in captured.spans.items():
        arrays[f"grid/{name}"] = np.array(span.grid.shape)
        arrays[f"span/{name}"] = np.array([span.start, span.stop])
    ranking = latent_ranking(captured)
    for name in captured.named("cross"):
        layer = captured.layers[name]
        bytes_per_latent = 2 * layer.q.shape[0] * layer.num_heads * layer.k.shape[2]
        fitting = max(int(max_megabytes * 2**20 / bytes_per_latent), 1)
        latents = ranking[:, :fitting].sort(dim=1).values
        arrays[f"{name}/latents"] = latents.cpu().numpy()
        rows = [layer.sample(sample).weights(chosen) for sample, chosen in enumerate(latents.tolist())]
        arrays[f"{name}/weights"] = _half(torch.cat(rows))
    for name in captured.named("decode"):
        arrays[f"{name}/weights"] = _half(captured.layers[name].weights())
    traced = rollout(captured)
    arrays["rollout/inputs"], arrays["rollout/residual"] = _half(traced.inputs), _half(traced.residual)
    return arrays


def _half(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.float16)
