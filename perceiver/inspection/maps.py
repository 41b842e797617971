"""What one look at a batch gives: exact weights on the input's grid as arrays, and contact sheets of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from perceiver.inspection.capture import Capture, Layer
from perceiver.inspection.pictures import Tile, contact_sheet, image_picture, overlay
from perceiver.inspection.rollout import even_share, rollout
from perceiver.types import Batch, Grid, Span


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
        layer = captured.layers[captured.named("cross")[-1]]
        score = torch.cat([-_entropy(layer.weights(chunk)) for chunk in layer.chunks(range(layer.num_queries))], dim=1)
    return score.argsort(dim=1, descending=True, stable=True)


def _entropy(weights: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch queries"]:
    return torch.special.entr(weights.mean(dim=1)).sum(dim=-1)


def contact_sheets(
    captured: Capture, inputs: Mapping[str, Tensor], *, num_latents: int, alpha: float = 0.5
) -> dict[str, list[Image.Image]]:
    """One sheet per sample for each cross-attend and modality with a two-dimensional grid.

    A sheet shows the input, the mean over latents over it and alone, the rollout from the outputs to the input, and the
    `num_latents` latents that the outputs read most, all on one colour scale.

    Returns:
        `<modality>/cross<k>` -> sheets.
    """
    ranking = latent_ranking(captured)[:, :num_latents].tolist()
    from_outputs = _shares(rollout(captured, alpha=alpha, mean=True).inputs)
    spans = {modality: span for modality, span in captured.spans.items() if len(span.grid.shape) == 2}
    sheets: dict[str, list[Image.Image]] = {}
    for name in captured.named("cross"):
        layer = captured.layers[name]
        means = layer.through(even_share(layer))
        for sample, latents in enumerate(ranking):
            maps = {
                "mean over latents": means[sample, 0],
                "rollout from output": from_outputs[sample, 0],
                **{f"latent {latent}": layer.sample(sample).weights([latent]).mean(dim=1)[0, 0] for latent in latents},
            }
            for modality, span in spans.items():
                tiles = _tiles(inputs[modality][sample], maps, span)
                sheets.setdefault(f"{modality}/{name}", []).append(contact_sheet(tiles))
    return sheets


def _shares(values: Float[Tensor, "*rows keys"]) -> Float[Tensor, "*rows keys"]:
    """Rows that sum to one, or to zero where there is nothing to share."""
    return values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def _tiles(raw: Tensor, maps: Mapping[str, Float[Tensor, " keys"]], span: Span) -> list[Tile]:
    tiles = [Tile(title, on_grid(weights, span)) for title, weights in maps.items()]
    if raw.ndim != 3:
        return tiles
    picture = _as_far_as_the_grid(image_picture(raw), span.grid)
    over_input = overlay(picture, tiles[0].values)
    return [Tile("input", picture, is_map=False), Tile("mean over input", over_input, is_map=False), *tiles]


def _as_far_as_the_grid(
    picture: UInt8[np.ndarray, "height width 3"], grid: Grid
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A picture, cut or continued in black so that it ends where the grid does: stems pad, or leave a border out."""
    if any(axis.unit != "px" for axis in grid.axes):
        return picture
    height, width = (round(axis.stop) for axis in grid.axes)
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    part = picture[:height, :width]
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas


def event_arrays(captured: Capture, batch: Batch, *, max_megabytes: float, alpha: float = 0.5) -> dict[str, np.ndarray]:
    """Everything one look gave, for `np.savez`: exact weights as float16, and what is needed to read them.

    Keys: `ids`, `input/<modality>`, `target/<name>`, `grid/<modality>`, `span/<modality>` (its place among the keys);
    per cross-attend `cross<k>/weights` [batch, heads, latents, keys] with `cross<k>/latents` [batch, latents], the
    latents' numbers: all of them, or as many as fit into `max_megabytes`, shared by the cross-attends, those that the
    outputs read most; `decode<k>/weights` [batch, heads, queries, latents], whole; `rollout/inputs` [batch, queries,
    keys], `rollout/residual` and `rollout/alpha`; one query, the mean, if all do not fit into `max_megabytes`.
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
    budget = max_megabytes * 2**20 / torch.float16.itemsize
    ranking = latent_ranking(captured)
    crosses = captured.named("cross")
    for name in crosses:
        layer = captured.layers[name]
        fitting = max(int(budget / len(crosses) / (len(batch) * layer.num_heads * layer.num_keys)), 1)
        latents = ranking[:, :fitting].sort(dim=1).values
        arrays[f"{name}/latents"] = latents.cpu().numpy()
        arrays[f"{name}/weights"] = _exact_weights(layer, latents.tolist())
    for name in captured.named("decode"):
        arrays[f"{name}/weights"] = _half(captured.layers[name].weights())
    num_outputs = sum(captured.layers[name].num_queries for name in captured.named("decode")[-1:])
    num_values = len(batch) * num_outputs * captured.layers[crosses[0]].num_keys
    traced = rollout(captured, alpha=alpha, mean=num_values > budget)
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
