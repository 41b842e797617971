"""Answers over the views of one input, such as the windows of a long sound."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from perceiver.inspection.axes import Tick
from perceiver.inspection.sheets import Tile, contact_sheet

SIZE = (512, 24)
MAX_TICKS = 5


def timeline(scores: Mapping[str, Sequence[float]], views: Sequence[str]) -> Image.Image:
    """One strip an answer, whose cells are the views in order, all on one colour scale.

    Args:
        scores: answer -> its score in each view.
        views: their names, some of which stand below the last strip.
    """
    shown = range(0, len(views), -(-len(views) // MAX_TICKS))
    ticks = [Tick((number + 0.5) / len(views), views[number]) for number in shown]
    tiles = [Tile(f"{name}, up to {max(values):.3f}", np.array([values]), SIZE) for name, values in scores.items()]
    return contact_sheet([*tiles[:-1], replace(tiles[-1], column_ticks=ticks)], max_columns=1, unit="score")
