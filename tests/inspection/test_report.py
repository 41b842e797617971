"""Reports in the terminal: tables, places in units, heat maps of characters, and scores."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from perceiver.inspection.evaluation.knockout import KnockOut
from perceiver.inspection.maps.contrast import Contrasts
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Rollout
from perceiver.inspection.report import (
    MAX_ANSWERS,
    MAX_CELLS,
    MAX_COLUMNS,
    SHADES,
    answer_heat_maps,
    contrast_table,
    evaluation_parts,
    heat_map,
    knock_out_table,
    maximum,
    report,
    sample_table,
    statistics_table,
)
from perceiver.types import Answer, Axis, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.explanations import arrays_of, example_explanation
from tests.inspection.models import (
    captured_with,
    grid,
    layer,
    of_class,
    perceiver,
    perceiver_joint,
    perceiver_text,
    word,
)
from tests.inspection.pages import faithfulness

GRIDS = {
    "audio": Grid((3, 7), (Axis("frequency", "Hz", 100.0, 4000.0, "mel"), Axis("time", "s", 0.0, 1.4))),
    "image": grid(5, 11, cell=4),
    "text": Grid((13,), (Axis("place", "", 0.0, 13.0),)),
    "wave": Grid((5,), (Axis("time", "s", 0.0, 2.5),)),
    "video": Grid((2, 3, 5), (Axis("time", "s", 0.0, 1.0), *grid(3, 5).axes)),
}


def spans_of(*names: str) -> dict[str, Span]:
    ends = np.cumsum([GRIDS[name].num_tokens for name in names]).tolist()
    return {name: Span(end - GRIDS[name].num_tokens, end, GRIDS[name]) for name, end in zip(names, ends, strict=True)}


def planted(spans: dict[str, Span], name: str, *cell: int, value: float = 9.0) -> torch.Tensor:
    """A map with its maximum in one cell, and equal values elsewhere."""
    tokens = torch.ones(max(span.stop for span in spans.values()))
    tokens[spans[name].start + int(np.ravel_multi_index(cell, spans[name].grid.shape))] = value
    return tokens


def explanation_with(
    spans: dict[str, Span],
    relevance: list[torch.Tensor],
    rollout: list[torch.Tensor],
    answers: list[Answer],
    *probability: float,
) -> Explanation:
    """The explanation of one sample."""
    num_tokens = max(span.stop for span in spans.values())
    record = captured_with(spans, cross0=layer("cross", torch.full((1, 1, 2, num_tokens), 1 / num_tokens)))
    maps = [torch.cat([*of_kind, torch.empty(0)]).reshape(1, -1, num_tokens) for of_kind in (relevance, rollout)]
    found = Rollout(maps[1], torch.zeros(1, len(answers)))
    chosen = {"answers": [answers], "probability": torch.tensor([probability]), "relevance": maps[0], "rollout": found}
    return replace(explanation_of(record), **chosen)


def on_image(answers: list[Answer], *probability: float) -> Explanation:
    spans, count = spans_of("image"), range(len(answers))
    relevance = [planted(spans, "image", 1, number % 11, value=3.0 + number) for number in count]
    rollout = [planted(spans, "image", 2, number % 11) for number in count]
    return explanation_with(spans, relevance, rollout, answers, *probability)


def classes(*names: str) -> list[Answer]:
    return [of_class(label, name=name) for label, name in enumerate(names)]


def words(*names: str) -> list[Answer]:
    return [word((place,), (place,), name) for place, name in enumerate(names)]


def printed(*renderables: Any) -> str:
    """The text on a terminal of 80 columns, which no line exceeds."""
    file = io.StringIO()
    Console(file=file, width=80, markup=False, emoji=False).print(*renderables, sep="\n")
    assert max(map(len, file.getvalue().splitlines())) <= 80
    return file.getvalue()


def cells(table) -> list[list[str]]:
    """The rows of a table, before they are fitted into a width."""
    return [list(row) for row in zip(*(column._cells for column in table.columns), strict=True)]


def headers(table) -> list[str]:
    return [str(column.header).replace("\n", " ") for column in table.columns]


def test_contrasts_and_knock_outs_have_a_table_each():
    explanation = on_image(classes("cat", "dog"), 0.7, 0.2)
    foils = [[[of_class(1, name="dog")], [of_class(0, name="cat")]]]
    maps = [explanation.rollout.inputs[:, :, None], explanation.relevance[:, :, None]]
    contrasts = Contrasts(foils, torch.tensor([[[0.2], [0.7]]]), *maps)
    found = cells(contrast_table(replace(explanation, contrasts=contrasts), 0))
    assert [row[:3] for row in found] == [["cat", "dog", "0.200"], ["dog", "cat", "0.700"]]
    assert found[1][3] == maximum(maps[0][0, 1, 0].numpy(), explanation.record.spans)[0]
    assert found[1][5] == maximum(maps[1][0, 1, 0].numpy(), explanation.record.spans)[0]
    text = printed(*answer_heat_maps(replace(explanation, contrasts=contrasts), 0))
    assert "relevance of 'cat' rather than 'dog'" in text
    heads = KnockOut("heads", ["cross0/0", "cross0/1"], torch.tensor([[[-0.1, -0.5], [0.2, 0.3]]]))
    table = knock_out_table([heads], 1)
    assert cells(table) == [["heads (2)", "cross0/1", "0.400", "-0.100"], ["", "cross0/0", "0.150", "+0.050"]]
    assert "knock-out" in printed(table)


def test_statistics_have_a_row_per_layer_and_a_column_per_statistic():
    scores = {"stat/cross0/entropy": 1.2345, "stat/cross0/dead_latents": 0.25, "stat/self0/entropy": 2.5}
    table = statistics_table("of a run", scores | {"stat/self0/entropy_chance": 3.466, "pointing_game": 0.5})
    assert headers(table) == ["layer", "entropy", "dead latents", "entropy chance"]
    assert cells(table) == [["cross0", "1.234", "0.250", ""], ["self0", "2.500", "", "3.466"]]
    assert "of a run" in printed(table)


@pytest.mark.parametrize("modalities", [[], ["share_image", "share_audio"]], ids=len)
def test_no_number_and_no_header_of_statistics_is_cut(modalities):
    names = ["dead_latents", "entropy", "entropy_chance", "top1_mass", "head_redundancy", "latent_redundancy"]
    names += ["coverage", *modalities]
    values = {f"stat/{layer}/{name}": 1.111 * n for layer in ("cross0", "decode0") for n, name in enumerate(names)}
    text = printed(statistics_table("t", values))
    rows = [line.split() for line in text.splitlines() if line.startswith(("cross0", "decode0"))]
    assert rows == [[layer, *(f"{1.111 * n:.3f}" for n in range(len(names)))] for layer in ("cross0", "decode0")]
    assert {word for name in names for word in name.split("_")} <= set(text.split())


LOW, HIGH = (GRIDS["audio"].axes[0].value(place / 3) for place in (1, 2))


@pytest.mark.parametrize(
    ("names", "name", "cell", "expected"),
    [
        (["audio"], "audio", (1, 4), f"{LOW:.4g}–{HIGH:.4g} Hz,\n0.8–1 s"),
        (["image"], "image", (3, 10), "y 12–16, x 40–44 px"),
        (["text"], "text", (7,), "place 7–8"),
        (["wave"], "wave", (3,), "1.5–2 s"),
        (["image", "text", "video"], "image", (0, 2), "image: y 0–4, x 8–12 px"),
        (["image", "text", "video"], "video", (1, 2, 3), "video: 0.5–1 s,\ny 2–3, x 3–4 px"),
    ],
)
def test_the_maximum_is_named_in_the_units_of_its_input(names, name, cell, expected):
    spans = spans_of(*names)
    assert maximum(planted(spans, name, *cell).numpy(), spans)[0] == expected
    tokens = planted(spans, name, *cell, value=51.0).numpy()
    top = np.sort(tokens)[-max(round(len(tokens) / 10), 1) :]
    assert maximum(tokens, spans)[1] == f"{top.sum() / tokens.sum():.0%}"
    assert maximum(0 * tokens, spans) == ("", "")


class TestSamples:
    def test_each_answer_has_its_probability_and_places(self):
        table = sample_table(on_image(classes("cat", "dog [x]"), 0.75, 0.125), 0)
        assert headers(table) == [
            *("answer", "proba- bility", "relevance maximum at", "in top 10%", "rollout maximum at", "in top 10%")
        ]
        assert cells(table) == [
            ["cat", "0.750", "y 4–8, x 0–4 px", "14%", "y 8–12, x 0–4 px", "22%"],
            ["dog [x]", "0.125", "y 4–8, x 4–8 px", "16%", "y 8–12, x 4–8 px", "22%"],
        ]
        text = printed(table)
        assert "s/0" in text
        assert "dog [x]" in text

    def test_long_texts_are_cut_and_empty_ones_have_neither_rows_nor_maps(self):
        names = [f"w{number}" for number in range(MAX_ANSWERS + 5)]
        for count, left_out in ((MAX_ANSWERS + 5, "5 more"), (MAX_ANSWERS, None), (0, None)):
            explanation = on_image(words(*names[:count]), *[0.5] * count)
            table = sample_table(explanation, 0)
            assert len(cells(table)) == min(count, MAX_ANSWERS)
            assert (left_out or "s/0") in str(table.title)
            assert ("more" in str(table.title)) == (left_out is not None)
            assert bool(list(answer_heat_maps(explanation, 0))) == (count > 0)

    @pytest.mark.parametrize(("answers", "drawn"), [(classes("cat", "dog"), "cat"), (words("a", "the"), "the")])
    def test_the_most_probable_class_or_the_word_with_the_sharpest_relevance_is_drawn(self, answers, drawn):
        lines = [str(one) for one in answer_heat_maps(on_image(answers, 0.75, 0.125), 0)]
        assert lines[::2] == [f"{kind} of {drawn!r} over image: y 0–20, x 0–44 px" for kind in ("relevance", "rollout")]
        rows = lines[1].splitlines()
        assert [line.count("█") for line in rows] == [0, 2, 0, 0, 0]
        assert rows[1].index("█") == 2 * (drawn == "the")

    def test_each_modality_has_its_map(self):
        spans = spans_of("image", "video", "audio")
        tokens = planted(spans, "audio", 0, 3)
        explanation = explanation_with(spans, [tokens], [tokens], classes("x"), 0.5)
        lines = [str(one) for one in answer_heat_maps(explanation, 0)]
        shown = [line.partition(" over ")[2] for line in lines[::2]]
        assert shown == ["image: y 0–20, x 0–44 px", "video: 0–1 s, y 0–3, x 0–5 px", "audio: 100–4000 Hz, 0–1.4 s"] * 2


class TestHeatMaps:
    @pytest.mark.parametrize(
        ("name", "cell", "row", "column"),
        [
            ("image", (3, 7), 3, 7),
            ("audio", (2, 0), 0, 0),  # high frequencies are on top
            ("video", (1, 2, 3), 2, 5 + 3),  # frames lie side by side
        ],
    )
    def test_the_maximum_is_full_and_at_its_place(self, name, cell, row, column):
        spans = spans_of("text", name)
        lines = heat_map(planted(spans, name, *cell, value=1e4).numpy(), spans[name]).splitlines()
        assert [(number, line.index("█"), line.count("█")) for number, line in enumerate(lines) if "█" in line] == [
            (row, 2 * column, 2)
        ]
        assert set("".join(lines)) == {"█", SHADES[0]}

    def test_larger_values_are_never_lighter(self):
        line = heat_map(np.linspace(0, 1, 13, dtype=np.float32), Span(0, 13, GRIDS["text"]))
        levels = [SHADES.index(letter) for letter in line]
        assert levels == sorted(levels)
        assert set(levels) == set(range(len(SHADES)))
        assert set(heat_map(np.zeros(55, dtype=np.float32), Span(0, 55, GRIDS["image"]))) == {SHADES[0], "\n"}

    @pytest.mark.parametrize("shape", [(1, 1), (7, 31), (7, 33), (7, 67), (113, 127), (3, 1009)], ids=str)
    def test_no_map_is_wider_than_64_characters(self, shape):
        whole = grid(*shape)
        lines = heat_map(np.ones(whole.num_tokens, dtype=np.float32), Span(0, whole.num_tokens, whole)).splitlines()
        (width,) = {len(line) for line in lines}
        assert width <= MAX_COLUMNS
        assert 1 <= len(lines) <= shape[0]
        if whole.num_tokens <= MAX_CELLS and shape[1] <= MAX_COLUMNS:
            assert len(lines) == shape[0]
            assert width == shape[1] * (2 if 2 * shape[1] <= MAX_COLUMNS else 1)

    def test_pooled_cells_are_sums(self):
        """100 columns become 50: two small values side by side are more than a larger one alone."""
        tokens = np.zeros((3, 100), dtype=np.float32)
        tokens[1, 10:12], tokens[2, 60] = 0.4, 0.5
        lines = heat_map(tokens.reshape(-1), Span(0, 300, grid(3, 100))).splitlines()
        assert [len(line) for line in lines] == [50] * 3
        assert lines[1][5] == "█"
        assert lines[2][30] == SHADES[round(4 * (0.5 / 0.8) ** 0.5)] != "█"
        assert sum(letter != SHADES[0] for line in lines for letter in line) == 2


def test_faithfulness_has_its_intervals_and_verdicts():
    summary = faithfulness()
    text = " ".join(printed(*evaluation_parts({}, summary, 64)).split())
    assert "61 samples" in text
    for one in summary["maps"].values():
        assert f"{one['mark']} {one['sentence']}" in text
        for score in one["scores"].values():
            assert f"{score['mean']:.2f}" in text
            assert f"[{score['low']:.2f}, {score['high']:.2f}]" in text
    (untested,), (without_cases,) = evaluation_parts({}, None, 0), evaluation_parts({}, None, 64)
    assert "scored_samples=0" in untested != without_cases


def test_scores_have_their_chance_level():
    scores = {
        "energy_in_box": 0.25,
        "energy_in_box_chance": 0.07,
        "relevance/pointing_game_shape": 0.9,
        "relevance/pointing_game_chance_shape": 0.15,
        "pointing_game_big_size": 0.5,
        "pointing_game_chance_big_size": 0.13,
        "pointing_game_color": 0.99,  # without a chance level
        "stat/cross0/entropy": 1.0,
        "stat/cross0/entropy_chance": 2.0,
        "word_overlap": 0.85,
    }
    *lines, overlap, _ = evaluation_parts(scores, None, 64)
    assert lines == [
        "rollout, energy in box: 0.25, by chance 0.07",
        "relevance, pointing game of shape words: 0.90, by chance 0.15",
        "rollout, pointing game of big size words: 0.50, by chance 0.13",
    ]
    assert "0.85" in overlap


@pytest.mark.parametrize("make", [perceiver, perceiver_text, perceiver_joint])
def test_a_report_has_every_sample_and_nothing_is_cut(make):
    explanation = example_explanation(make)
    tested = faithfulness()
    arrays = arrays_of(explanation, step=1234, **explanation.statistics)
    arrays["faithfulness"] = np.array(json.dumps(tested))
    text = printed(*report("family/run (best)", explanation, arrays, num_tested=64, texts={}))
    assert "family/run (best), step 1234" in text
    for row, id in enumerate(explanation.batch.ids):
        assert id in text
        for slot, answer in enumerate(explanation.answers[row][:MAX_ANSWERS]):
            where, share = maximum(explanation.relevance[row, slot].numpy(), explanation.record.spans)
            for part in (answer.name, f"{float(explanation.probability[row, slot]):.3f}", share, *where.split()):
                assert part in text
    for name in explanation.record.layers:
        assert "decode_self" in name or all(f"\n{line} " in text for line in name.replace("/", "/ ").split())
    for value in explanation.statistics.values():
        assert f"{value:.3f}" in text
    assert all(one["sentence"] in " ".join(text.split()) for one in tested["maps"].values())
    assert text.count("relevance of '") == 2 * len(explanation.batch), "one answer per sample, over image and sound"
    nan = torch.full_like(explanation.relevance, torch.nan)
    diverged = replace(explanation, probability=explanation.probability * torch.nan, relevance=nan)
    assert "diverged" in printed(*report("run", diverged, arrays, num_tested=0, texts={}))
    assert "diverged" not in text
