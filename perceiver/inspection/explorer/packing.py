"""Packing of maps for a browser: pooled, as square roots in 8 bits, compressed.

A weight w of a map is stored as q = round(255 √(w / max)) and read as s (q / 255)², where s restores the mass of the
map. Linear 8 bits would lose up to 8 % of it, and all small weights.
"""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

LEVELS = 255


def packed(maps: Mapping[str, Float[np.ndarray, "*count rows columns"]], *, max_cells: int) -> dict[str, Any]:
    """Pack maps over the planes of one or several modalities, each pooled to at most `max_cells` cells.

    Returns:
        `count`: the leading dimensions; `cells`: for each modality its name, the `shape` after pooling, and the rows
        and columns that were `pooled` into one cell; `data`: base64 of the zlib-compressed levels, one map after the
        other, each with the cells of all modalities in order; `scales`: base64 of little-endian float32, one for each
        map and modality.
    """
    levels, scales, cells = [], [], []
    for modality, values in maps.items():
        factors = pooling(values.shape[-2], values.shape[-1], max_cells)
        kept = sum_pooled(np.asarray(values, dtype=np.float64), factors)
        cells.append({"modality": modality, "shape": list(kept.shape[-2:]), "pooled": list(factors)})
        flat = kept.reshape(-1, kept.shape[-2] * kept.shape[-1])
        quantized, scale = quantize(flat)
        levels.append(quantized)
        scales.append(scale)
        count = values.shape[:-2]
    return {
        "count": list(count),
        "cells": cells,
        "data": compressed(np.concatenate(levels, axis=1)),
        "scales": base64.b64encode(np.stack(scales, axis=1).astype("<f4").tobytes()).decode(),
    }


def compressed(values: np.ndarray) -> str:
    """Return base64 of the zlib-compressed bytes of an array."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def quantize(
    maps: Float[np.ndarray, "maps cells"],
) -> tuple[np.ndarray, Float[np.ndarray, " maps"]]:
    """Return the levels of each map in 8 bits, and the scales that restore its mass."""
    maxima = maps.max(axis=1, keepdims=True)
    levels = np.round(LEVELS * np.sqrt(maps / np.where(maxima > 0, maxima, 1))).astype(np.uint8)
    mass = ((levels / LEVELS) ** 2).sum(axis=1)
    return levels, maps.sum(axis=1) / np.where(mass > 0, mass, 1)


def pooling(rows: int, columns: int, max_cells: int) -> tuple[int, int]:
    """Return the rows and columns that are pooled into one cell, for at most `max_cells` cells."""
    factor = 1
    while -(-rows // min(factor, rows)) * -(-columns // factor) > max_cells:
        factor += 1
    return min(factor, rows), factor


def sum_pooled(
    values: Float[np.ndarray, "*count rows columns"], factors: tuple[int, int]
) -> Float[np.ndarray, "*count rows columns"]:
    """Sum over blocks of the given rows and columns; the last blocks may be smaller."""
    for axis, factor in zip((-2, -1), factors, strict=True):
        if factor > 1:
            values = np.add.reduceat(values, np.arange(0, values.shape[axis], factor), axis=axis)
    return values
