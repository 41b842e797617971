"""Alignment matrices: the words of an output text × the tokens of an input text, or × the time of a recording.

The figure is that of Bahdanau et al. (2015, figure 3), with the true links outlined where they are known.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

from perceiver.inspection.drawing.colormap import OUTLINE, colorize
from perceiver.inspection.evaluation.alignment import column_axis, column_sums, is_text, word_maps
from perceiver.inspection.evaluation.localization import box_coverage
from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.types import Grid

CELL, WIDEST = 26, 900
"""Width and height of a cell in pixels, and the width of a matrix above which its cells are narrower."""
FONT_SIZE, MARGIN = 13, 6
MAX_LABELS = 40
"""Most columns that have a label each; of more, a part has one."""
SHADES = "·░▒▓█"
MAX_COLUMNS, LONGEST_LABEL = 32, 12
"""Columns and letters of a column's label in the terminal."""
NEGLIGIBLE = 1e-6
"""Share below which a cell of a table is 0: the rounding errors of the others are as large."""


@dataclass(frozen=True)
class AlignmentMatrix:
    """One kind of map of the words of one text over one modality.

    Attributes:
        kind: of map.
        words: of the output.
        columns: labels of the tokens of the input.
        values: shares of the map of each word.
        links: True if the word is known to be aligned with the token.
    """

    kind: str
    words: Sequence[str]
    columns: Sequence[str]
    values: Float[np.ndarray, "words columns"]
    links: Bool[np.ndarray, "words columns"]


def alignment_matrices(
    explanation: Explanation, row: int, texts: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, list[AlignmentMatrix]]:
    """Return the matrices of a sample by modality, one for each kind of map; empty if its answers are not words.

    Args:
        explanation: of some samples.
        row: number of the sample.
        texts: modality -> the pieces of the input text of each sample (`media.texts_of`).
    """
    slots = [slot for slot, answer in enumerate(explanation.answers[row]) if answer.is_word]
    found: dict[str, list[AlignmentMatrix]] = {}
    for modality, span in explanation.record.spans.items():
        axis = column_axis(span.grid)
        if axis is None or not slots:
            continue
        boxes = [[box for box in explanation.answers[row][slot].boxes if box.modality == modality] for slot in slots]
        covered = box_coverage(boxes, span.grid) if any(boxes) else torch.zeros(len(slots), span.grid.num_tokens)
        links = (column_sums(covered, span.grid, axis) > 0).numpy()
        labels = _labels(span.grid, axis, texts[modality][row] if modality in texts else None)
        mask = explanation.record.token_mask
        count = len(labels)
        if mask is not None:
            real = mask[row, span.start : span.stop].int().cpu()
            count = int((column_sums(real, span.grid, axis) > 0).sum())
        for kind, maps in word_maps(explanation).items():
            values = normalized(maps[row, slots].float())[:, span.start : span.stop].cpu()
            found.setdefault(modality, []).append(
                AlignmentMatrix(
                    kind=kind,
                    words=[explanation.answers[row][slot].name for slot in slots],
                    columns=labels[:count],
                    values=column_sums(values, span.grid, axis).numpy()[:, :count],
                    links=links[:, :count],
                )
            )
    return found


def _labels(grid: Grid, axis: int, pieces: Sequence[str] | None) -> list[str]:
    """Return the text of each token, or its middle in the unit of the axis."""
    count = grid.shape[axis]
    if pieces is not None and is_text(grid):  # several pieces of a token that covers them
        size = -(-len(pieces) // count)
        return [" ".join(pieces[start : start + size]) for start in range(0, count * size, size)]
    return [f"{grid.axes[axis].value((number + 0.5) / count):.3g}" for number in range(count)]


def matrix_image(matrices: Sequence[AlignmentMatrix]) -> Image.Image:
    """Draw matrices of the same words and tokens side by side, all on one color scale from 0."""
    first = matrices[0]
    rows, columns = first.values.shape
    font = ImageFont.load_default(size=FONT_SIZE)
    width = max(min(CELL, WIDEST // max(columns, 1)), 2)
    step = -(-columns // MAX_LABELS)
    left = round(max(font.getlength(word) for word in first.words)) + 2 * MARGIN
    above = round(max(font.getlength(label) for label in first.columns)) + 2 * MARGIN
    title_height = FONT_SIZE + 2 * MARGIN
    size = (left + columns * width + 2 * MARGIN, title_height + above + rows * CELL + MARGIN)
    figure = Image.new("RGB", (size[0] * len(matrices), size[1]), "white")
    draw = ImageDraw.Draw(figure)
    high = max(float(matrix.values.max()) for matrix in matrices)
    for number, matrix in enumerate(matrices):
        x, y = number * size[0] + left, title_height + above
        draw.text((x, MARGIN), f"{matrix.kind}, 0 to {high:.2g}", fill="black", font=font)
        for column in range(0, columns, step):
            label = Image.new("RGB", (above - MARGIN, FONT_SIZE + 4), "white")
            ImageDraw.Draw(label).text((0, 0), matrix.columns[column], fill="black", font=font)
            across = x + column * width + (width - label.height) // 2
            figure.paste(label.rotate(90, expand=True), (across, title_height))
        for row, word in enumerate(matrix.words):
            draw.text((x - MARGIN, y + (row + 0.5) * CELL), word, fill="black", font=font, anchor="rm")
        cells = Image.fromarray(colorize(matrix.values, 0.0, high))
        figure.paste(cells.resize((columns * width, rows * CELL), Image.Resampling.NEAREST), (x, y))
        for row, column in zip(*matrix.links.nonzero(), strict=True):
            corner = (x + int(column) * width, y + int(row) * CELL)
            opposite = (corner[0] + width - 1, corner[1] + CELL - 1)
            draw.rectangle((*corner, *opposite), outline="black", width=3)
            draw.rectangle((*corner, *opposite), outline=OUTLINE, width=2)
    return figure


def matrix_csv(matrices: Sequence[AlignmentMatrix], id: str) -> str:
    """Return a table with a row for each map and word of a sample.

    Its columns are `id`, `map`, `word`, `links` (tokens, from 0), and the share of each token, in [0, 1]; one below
    `NEGLIGIBLE` is 0.
    """
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(["id", "map", "word", "links", *matrices[0].columns])
    for matrix in matrices:
        for word, links, values in zip(matrix.words, matrix.links, matrix.values, strict=True):
            linked = " ".join(map(str, links.nonzero()[0]))
            shares = (f"{value:.6g}" if value >= NEGLIGIBLE else "0" for value in values)
            table.writerow([id, matrix.kind, word, linked, *shares])
    return content.getvalue()


def matrix_lines(matrix: AlignmentMatrix) -> Iterator[str]:
    """Yield the lines of a matrix for the terminal: darker for larger values, with true links in brackets."""
    columns = [label[:LONGEST_LABEL] for label in matrix.columns[:MAX_COLUMNS]]
    indent = max(map(len, matrix.words)) + 1
    height = max(map(len, columns))
    for line in range(height):
        letters = (label.rjust(height)[line] for label in columns)
        yield " " * indent + "".join(f" {letter} " for letter in letters)
    values = np.nan_to_num(matrix.values)  # of a model that has diverged
    high = max(float(values.max()), float(np.finfo(np.float32).tiny))
    levels = (values / high * (len(SHADES) - 1)).round().astype(int)
    for word, row, links in zip(matrix.words, levels, matrix.links, strict=True):
        cells = zip(row[: len(columns)], links[: len(columns)], strict=True)
        yield (
            word.rjust(indent - 1)
            + " "
            + "".join(f"[{SHADES[level]}]" if link else f" {SHADES[level]} " for level, link in cells)
        )
