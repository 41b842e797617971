"""Alignment matrices have the shares of each word over the real tokens, and true links."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceiver.inspection.drawing.colormap import colorize
from perceiver.inspection.drawing.matrix import (
    CELL,
    AlignmentMatrix,
    alignment_matrices,
    matrix_csv,
    matrix_image,
    matrix_lines,
)
from perceiver.types import Axis, Grid, JoinedTokens, Span
from tests.inspection.evaluation.test_alignment import KEYS, aligned

PIECES = ["<bos>", "I", "do", "not", "sleep", "<eos>", "<pad>"]


def test_rows_are_words_and_columns_the_tokens_that_are_real():
    explanation = aligned([1, 3, 4], [[1], [2, 3], [4]])
    tokens = explanation.record.tokens
    explanation.record.tokens = replace(tokens, mask=torch.arange(KEYS)[None] < 6)
    by_kind = {one.kind: one for one in alignment_matrices(explanation, 0, {"text": [PIECES]})["text"]}
    assert by_kind.keys() == {"attention", "rollout", "relevance"}
    attention = by_kind["attention"]
    assert attention.columns == PIECES[:6]
    assert attention.values.argmax(axis=1).tolist() == [1, 3, 4]
    assert attention.values == pytest.approx(explanation.record.map("decode0")[0, :, :6].numpy())
    assert [links.nonzero()[0].tolist() for links in attention.links] == [[1], [2, 3], [4]]


def test_recordings_have_columns_of_time_and_pictures_no_matrix():
    explanation = aligned([1, 3], [[], []])
    time = Grid((1, KEYS), (Axis("frequency", "Hz", 50.0, 4000.0), Axis("time", "s", 0.0, 3.5)))
    image = Grid((1, KEYS), (Axis("y", "px", 0.0, 5.0), Axis("x", "px", 0.0, 35.0)))
    for grid, columns in ((time, ["0.25", "0.75", "1.25", "1.75", "2.25", "2.75", "3.25"]), (image, None)):
        explanation.record.tokens = JoinedTokens(torch.zeros(1, KEYS, 3), None, {"x": Span(0, KEYS, grid)})
        found = alignment_matrices(explanation, 0, {})
        assert (found["x"][0].columns if columns else found) == (columns or {})


def matrix(kind: str = "attention") -> AlignmentMatrix:
    values = np.array([[0.1, 0.9, 0.0], [0.5, 0.25, 0.25]], dtype=np.float32)
    links = np.array([[False, True, False], [True, False, True]])
    return AlignmentMatrix(kind, ["je", 't"aime'], ["I", "love", "you"], values, links)


def test_figure_table_and_lines_show_values_and_links():
    figure = np.asarray(matrix_image([matrix(), matrix("relevance")]))
    colors = colorize(matrix().values, 0.0, 0.9)
    cells = figure[-6 - 2 * CELL : -6][CELL // 2 :: CELL]  # above the margin
    for row, expected in zip(cells, colors, strict=True):
        for color in expected:
            assert (row == color).all(axis=-1).sum() >= 2 * (CELL - 6)
    head, *rows = csv.reader(matrix_csv([matrix(), matrix("relevance")], "phrase 7").splitlines())
    assert head == ["id", "map", "word", "links", "I", "love", "you"]
    assert rows[0] == ["phrase 7", "attention", "je", "1", "0.1", "0.9", "0"]
    assert rows[3] == ["phrase 7", "relevance", 't"aime', "0 2", "0.5", "0.25", "0.25"]
    noise = replace(matrix(), values=np.array([[7e-45, 1.0, 0.0], [1 / 3, 2e-6, 2 / 3]]))
    rows = [*csv.reader(matrix_csv([noise], "").splitlines())]
    assert [row[4:] for row in rows[1:]] == [["0", "1", "0"], ["0.333333", "2e-06", "0.666667"]]
    lines = list(matrix_lines(matrix()))
    assert lines[-2:] == ["    je  · [█] · ", 't"aime [▒] ░ [░]']
    assert len({len(line) for line in lines}) == 1
