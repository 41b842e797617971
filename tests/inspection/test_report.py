"""A look in the terminal: tables, places in real units, maps in letters, and plain sentences."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from perceiver.inspection.explanation import Explanation
from perceiver.inspection.faithfulness import judged, verdict_of
from perceiver.inspection.report import (
    MOST_ANSWERS,
    MOST_CELLS,
    MOST_COLUMNS,
    SHADES,
    belief,
    brightest,
    clearest_maps,
    report,
    sample_table,
    shaded,
    statistics_table,
)
from perceiver.inspection.rollout import Rollout
from perceiver.types import Answer, Axis, Batch, Grid, Span
from tests.inspection.explanations import arrays_of, look_at
from tests.inspection.models import captured_with, grid, layer, perceiver_joint, perceiver_text

SOUND = Grid((3, 7), (Axis("frequency", "Hz", 100.0, 4000.0, "mel"), Axis("time", "s", 0.0, 1.4)))
IMAGE = grid(5, 11, cell=4)
TEXT = Grid((13,), (Axis("place", "", 0.0, 13.0),))
VIDEO = Grid((2, 3, 5), (Axis("time", "s", 0.0, 1.0), *grid(3, 5).axes))


def spans_of(**grids: Grid) -> dict[str, Span]:
    spans, start = {}, 0
    for name, one in grids.items():
        spans[name] = Span(start, start + one.num_tokens, one)
        start += one.num_tokens
    return spans


def planted(spans: dict[str, Span], name: str, *cell: int, value: float = 9.0) -> torch.Tensor:
    """A map with its brightest cell there, all others being alike."""
    tokens = torch.ones(max(span.stop for span in spans.values()))
    tokens[spans[name].start + int(np.ravel_multi_index(cell, spans[name].grid.shape))] = value
    return tokens


def seen_by_hand(
    spans: dict[str, Span],
    relevance: list[torch.Tensor],
    rollout: list[torch.Tensor],
    answers: list[Answer],
    probability: list[float],
) -> Explanation:
    """A look at one sample."""
    num_tokens = len(relevance[0])
    record = captured_with(spans, cross0=layer("cross", torch.full((1, 1, 2, num_tokens), 1 / num_tokens)))
    return Explanation(
        batch=Batch({}, {}, ["clips/17 [a].wav"]),
        record=record,
        answers=[answers],
        own=[answers],
        probability=torch.tensor([probability]),
        alpha=0.5,
        rollout=Rollout(torch.stack(rollout)[None], torch.zeros(1, len(answers))),
        relevance=torch.stack(relevance)[None],
    )


def classes(*names: str) -> list[Answer]:
    return [Answer(name, (0,), "logits", label=label) for label, name in enumerate(names)]


def words(*names: str) -> list[Answer]:
    return [Answer(name, (place,), "logits", ids=(place,)) for place, name in enumerate(names)]


def printed(*renderables: Any, width: int = 80) -> str:
    """As on a terminal of some width that is none, of which rich knows nothing more."""
    file = io.StringIO()
    Console(file=file, width=width, markup=False, emoji=False).print(*renderables, sep="\n")
    return file.getvalue()


def cells(table) -> list[list[str]]:
    """The rows of a table, before they are fitted into a width."""
    return [list(row) for row in zip(*(column._cells for column in table.columns), strict=True)]


def headers(table) -> list[str]:
    return [str(column.header).replace("\n", " ") for column in table.columns]


class TestStatistics:
    def test_there_is_a_row_a_layer_and_a_column_a_statistic(self):
        scores = {
            "stat/cross0/entropy": 1.2345,
            "stat/cross0/dead_latents": 0.25,
            "stat/cross0/share_image": 0.625,
            "stat/self0/entropy": 2.5,
            "stat/self0/entropy_chance": 3.466,
            "pointing_game": 0.5,
            "deletion/rollout": 0.75,
        }
        table = statistics_table("of a run", scores)
        assert headers(table) == ["layer", "entropy", "dead latents", "share image", "entropy chance"]
        assert cells(table) == [["cross0", "1.234", "0.250", "0.625", ""], ["self0", "2.500", "", "", "3.466"]]
        assert "of a run" in printed(table)

    @pytest.mark.parametrize("num_modalities", [1, 2])
    def test_no_number_and_no_header_is_cut_in_80_columns(self, num_modalities):
        names = ["dead_latents", "entropy", "entropy_chance", "top1_mass", "head_redundancy", "latent_redundancy"]
        names += ["coverage", *["share_image", "share_audio"][: 2 * (num_modalities - 1)]]
        values = {f"stat/{layer}/{name}": 1.111 * n for layer in ("cross0", "decode0") for n, name in enumerate(names)}
        text = printed(statistics_table("t", values))
        assert max(map(len, text.splitlines())) <= 80
        shown = [line.split() for line in text.splitlines() if line.startswith(("cross0", "decode0"))]
        assert shown == [[layer, *(f"{1.111 * n:.3f}" for n in range(len(names)))] for layer in ("cross0", "decode0")]
        assert {word for name in names for word in name.split("_")} <= set(text.split())
        assert "…" not in text


class TestPlaces:
    def test_the_brightest_cell_is_named_in_the_units_of_its_input(self):
        spans = spans_of(audio=SOUND)
        low, high = SOUND.axes[0].value(1 / 3), SOUND.axes[0].value(2 / 3)
        where, _ = brightest(planted(spans, "audio", 1, 4).numpy(), spans)
        assert where == f"{low:.4g}–{high:.4g} Hz,\n0.8–1 s"
        assert 100 < low < high < 4000
        spans = spans_of(image=IMAGE)
        assert brightest(planted(spans, "image", 3, 10).numpy(), spans)[0] == "y 12–16, x 40–44 px"
        spans = spans_of(text=TEXT)
        assert brightest(planted(spans, "text", 7).numpy(), spans)[0] == "place 7–8"
        wave = Grid((5,), (Axis("time", "s", 0.0, 2.5),))
        spans = spans_of(wave=wave)
        assert brightest(planted(spans, "wave", 3).numpy(), spans)[0] == "1.5–2 s"

    def test_of_several_modalities_it_says_which(self):
        spans = spans_of(image=IMAGE, text=TEXT)
        assert brightest(planted(spans, "image", 0, 2).numpy(), spans)[0] == "image: y 0–4, x 8–12 px"
        assert brightest(planted(spans, "text", 0).numpy(), spans)[0] == "text: place 0–1"

    def test_of_more_axes_than_two_each_is_named(self):
        spans = spans_of(text=TEXT, video=VIDEO)
        tokens = planted(spans, "video", 1, 2, 3)
        assert brightest(tokens.numpy(), spans)[0] == "video: 0.5–1 s,\ny 2–3, x 3–4 px"
        lines = shaded(tokens.numpy(), spans["video"]).splitlines()
        assert [line.count("█") for line in lines] == [0, 0, 2]
        assert lines[2].index("█") == 2 * (1 * 5 + 3), "frames lie side by side"

    def test_concentration_is_the_share_of_the_brightest_tenth(self):
        spans = spans_of(image=IMAGE)
        tokens = planted(spans, "image", 1, 1, value=51.0)  # and five others of 55 are among the brightest six
        assert brightest(tokens.numpy(), spans)[1] == f"{56 / 105:.0%}" == "53%"
        spans = spans_of(text=TEXT)
        assert brightest(planted(spans, "text", 1, value=4.0).numpy(), spans)[1] == "25%"

    def test_a_map_of_nothing_is_nowhere(self):
        spans = spans_of(image=IMAGE)
        assert brightest(np.zeros(55, dtype=np.float32), spans) == ("", "")


class TestSamples:
    SPANS = spans_of(image=IMAGE)

    def look(self, answers: list[Answer], probability: list[float]) -> Explanation:
        count = len(answers)
        relevance = [planted(self.SPANS, "image", 1, number % 11, value=3.0 + number) for number in range(count)]
        rollout = [planted(self.SPANS, "image", 2, number % 11) for number in range(count)]
        return seen_by_hand(self.SPANS, relevance, rollout, answers, probability)

    def test_each_answer_has_its_probability_and_places(self):
        table = sample_table(self.look(classes("cat", "dog [x]"), [0.75, 0.125]), 0)
        assert headers(table) == [
            *("answer", "how likely", "relevance brightest at", "in top 10%", "rollout brightest at", "in top 10%")
        ]
        assert cells(table) == [
            ["cat", "0.750", "y 4–8, x 0–4 px", "14%", "y 8–12, x 0–4 px", "22%"],
            ["dog [x]", "0.125", "y 4–8, x 4–8 px", "16%", "y 8–12, x 4–8 px", "22%"],
        ]
        text = printed(table)
        assert "clips/17 [a].wav" in text
        assert "dog [x]" in text

    def test_long_texts_are_cut_and_it_says_so(self):
        names = [f"w{number}" for number in range(MOST_ANSWERS + 5)]
        table = sample_table(self.look(words(*names), [0.5] * len(names)), 0)
        assert len(cells(table)) == MOST_ANSWERS
        assert "(and 5 more answers)" in str(table.title)
        assert "more" not in str(sample_table(self.look(words("a", "b"), [0.5, 0.5]), 0).title)

    def test_of_classes_the_maps_of_the_likeliest_are_drawn(self):
        lines = [str(one) for one in clearest_maps(self.look(classes("cat", "dog"), [0.75, 0.125]), 0)]
        assert lines[::2] == [f"{kind} of 'cat' over image: y 0–20, x 0–44 px" for kind in ("relevance", "rollout")]

    def test_of_words_the_maps_of_the_one_whose_relevance_is_clearest(self):
        lines = [str(one) for one in clearest_maps(self.look(words("a", "cat"), [0.75, 0.125]), 0)]
        assert [line.split(" over")[0] for line in lines[::2]] == ["relevance of 'cat'", "rollout of 'cat'"]
        rows = lines[1].splitlines()
        assert [line.count("█") for line in rows] == [0, 2, 0, 0, 0]
        assert rows[1].index("█") == 2

    def test_each_modality_has_its_map(self):
        spans = spans_of(image=IMAGE, video=VIDEO, audio=SOUND)
        tokens = planted(spans, "audio", 0, 3)
        lines = [str(one) for one in clearest_maps(seen_by_hand(spans, [tokens], [tokens], classes("x"), [0.5]), 0)]
        named = [line.partition(" over ")[2].partition(":")[0] for line in lines[::2]]
        assert named == ["image", "video", "audio"] * 2
        assert "0–1 s, y 0–3, x 0–5 px" in lines[2]
        assert "100–4000 Hz, 0–1.4 s" in lines[4]

    def test_who_says_nothing_has_an_empty_table_and_no_maps(self):
        look = self.look(words("a"), [0.5])
        silent = Explanation(
            **{**vars(look), "answers": [[]], "relevance": look.relevance[:, :0], "probability": torch.zeros(1, 0)}
        )
        assert cells(sample_table(silent, 0)) == []
        assert list(clearest_maps(silent, 0)) == []

    @pytest.mark.parametrize(
        ("spans", "cell"),
        [(spans_of(audio=SOUND), ("audio", 1, 4)), (spans_of(image=IMAGE, audio=SOUND), ("audio", 2, 6))],
        ids=["sound", "both"],
    )
    def test_no_number_is_cut_in_80_columns(self, spans, cell):
        tokens = planted(spans, *cell)
        look = seen_by_hand(spans, [tokens], [tokens], classes("noise_burst"), [0.625])
        text = printed(sample_table(look, 0))
        assert max(map(len, text.splitlines())) <= 80
        frequencies, _, seconds = brightest(tokens.numpy(), spans)[0].partition(",\n")
        for part in ("noise_burst", "0.625", *frequencies.split(": "), seconds):
            assert part in text


class TestLetters:
    def test_the_brightest_cell_is_full_and_its_place_is_kept(self):
        spans = spans_of(image=IMAGE, text=TEXT)
        lines = shaded(planted(spans, "image", 3, 7, value=1e4).numpy(), spans["image"]).splitlines()
        assert [len(line) for line in lines] == [22] * 5
        assert [line.count("█") for line in lines] == [0, 0, 0, 2, 0]
        assert lines[3].index("█") == 14
        assert set("".join(lines)) == {"█", SHADES[0]}

    def test_more_is_never_lighter(self):
        span = Span(0, 13, TEXT)
        line = shaded(np.linspace(0, 1, 13, dtype=np.float32), span)
        levels = [SHADES.index(letter) for letter in line]
        assert levels == sorted(levels)
        assert set(levels) == set(range(len(SHADES)))

    def test_high_frequencies_are_on_top_and_rows_of_images_are_not(self):
        spans = spans_of(audio=SOUND)
        lines = shaded(planted(spans, "audio", 2, 0, value=1e4).numpy(), spans["audio"]).splitlines()
        assert [line.count("█") for line in lines] == [2, 0, 0]
        spans = spans_of(image=IMAGE)
        lines = shaded(planted(spans, "image", 4, 0, value=1e4).numpy(), spans["image"]).splitlines()
        assert [line.count("█") for line in lines] == [0, 0, 0, 0, 2]

    @pytest.mark.parametrize("shape", [(1, 1), (7, 31), (7, 33), (7, 67), (101, 13), (113, 127), (3, 1009)], ids=str)
    def test_no_map_is_wider_than_64_letters(self, shape):
        whole = grid(*shape)
        lines = shaded(np.ones(whole.num_tokens, dtype=np.float32), Span(0, whole.num_tokens, whole)).splitlines()
        (width,) = {len(line) for line in lines}
        assert width <= MOST_COLUMNS
        assert 1 <= len(lines) <= shape[0]
        if whole.num_tokens <= MOST_CELLS and shape[1] <= MOST_COLUMNS:
            assert len(lines) == shape[0]
            assert width == shape[1] * (2 if 2 * shape[1] <= MOST_COLUMNS else 1)

    def test_pooled_maps_add_up_what_lies_together(self):
        """100 columns are shown as 50: of two faint cells side by side and one brighter alone, the two are more."""
        whole = grid(3, 100)
        tokens = np.zeros((3, 100), dtype=np.float32)
        tokens[1, 10:12], tokens[2, 60] = 0.4, 0.5
        lines = shaded(tokens.reshape(-1), Span(0, 300, whole)).splitlines()
        assert [len(line) for line in lines] == [50] * 3
        assert lines[1][5] == "█"
        assert lines[2][30] == SHADES[round(4 * (0.5 / 0.8) ** 0.5)] != "█"
        assert sum(letter != SHADES[0] for line in lines for letter in line) == 2

    def test_nothing_is_drawn_as_nothing(self):
        assert set(shaded(np.zeros(55, dtype=np.float32), Span(0, 55, IMAGE))) == {SHADES[0], "\n"}


def summary(mean: float, error: float | None) -> dict[str, Any]:
    return {"num_samples": 61, "areas": {"mean_map": judged("mean_map", mean, error, 61)}}


class TestBelief:
    @pytest.mark.parametrize(
        ("mean", "error", "said"),
        [
            (0.21, 0.1, "+0.21 ± 0.10: "),
            (-0.19, 0.1, "-0.19 ± 0.10: "),
            (0.0, 0.0, "+0.00 ± 0.00: "),
            (0.7, None, "+0.70: "),
            (0.7, float("nan"), "+0.70 ± nan: "),
        ],
    )
    def test_the_verdict_is_that_of_the_summary_after_the_area_and_its_error(self, mean, error, said):
        head, sentence = belief({}, summary(mean, error), 64)
        assert "61 samples" in head
        assert sentence == f"  mean map {said}{verdict_of('mean_map', mean, error, 61).brief}"
        assert max(len(head), len(sentence.replace("mean map", "relevance"))) <= 80

    def test_each_kind_of_map_has_its_own(self):
        areas = {name: judged(name, mean, 0.1, 7) for name, mean in (("relevance", 0.5), ("rollout", -0.5))}
        _, *sentences = belief({}, {"num_samples": 7, "areas": areas}, 64)
        assert [line.split()[0] for line in sentences] == ["relevance", "rollout"]
        assert [area["brief"] in line for area, line in zip(areas.values(), sentences, strict=True)] == [True] * 2
        assert areas["relevance"]["brief"] not in sentences[1]

    def test_what_was_not_tested_and_what_could_not_be_are_told_apart(self):
        (untested,), (without_cases,) = belief({}, None, 0), belief({}, None, 64)
        assert "not tested" in untested
        assert "nothing to test maps on" in without_cases

    def test_scores_stand_beside_their_chance_also_those_of_words_of_a_kind(self):
        scores = {
            "energy_in_box": 0.25,
            "energy_in_box_chance": 0.07,
            "relevance/energy_in_box": 0.5,
            "relevance/energy_in_box_chance": 0.08,
            "pointing_game_shape": 0.8,
            "pointing_game_chance_shape": 0.14,
            "relevance/pointing_game_shape": 0.9,
            "relevance/pointing_game_chance_shape": 0.15,
            "pointing_game_big_size": 0.5,
            "pointing_game_chance_big_size": 0.13,
            "pointing_game_colour": 0.99,  # of whose chance nothing is known
            "stat/cross0/entropy": 1.0,
            "stat/cross0/entropy_chance": 2.0,
            "word_overlap": 0.85,
        }
        *sentences, _ = belief(scores, None, 64)
        assert sentences == [
            "rollout, energy in box: 0.25, by chance 0.07",
            "relevance, energy in box: 0.50, by chance 0.08",
            "rollout, pointing game of shape words: 0.80, by chance 0.14",
            "relevance, pointing game of shape words: 0.90, by chance 0.15",
            "rollout, pointing game of big size words: 0.50, by chance 0.13",
            "rollouts of two words of a text have 0.85 of their mass in common",
        ]


@pytest.mark.parametrize("make", [None, perceiver_text, perceiver_joint], ids=["classes", "words", "both"])
def test_a_whole_report_fits_into_80_columns_and_shows_every_sample(make):
    look = look_at(make) if make else look_at()
    deletion = np.array(json.dumps(summary(0.5, 0.1)))
    scores = {f"stat/{name}": value for name, value in look.record.statistics().items()}
    arrays = arrays_of(look, step=1234, **scores) | {"deletion": deletion}
    text = printed(*report("family/run (best)", look, arrays, num_tested=64))
    assert max(map(len, text.splitlines())) <= 80
    assert "family/run (best), step 1234" in text
    for row, id in enumerate(look.batch.ids):
        assert id in text
        for slot, answer in enumerate(look.answers[row][:MOST_ANSWERS]):
            assert f"{answer.name}" in text
            assert f"{float(look.probability[row, slot]):.3f}" in text
    for name in look.record.layers:
        assert "decode_self" in name or all(f"\n{line} " in text for line in name.replace("/", "/ ").split())
    for value in scores.values():
        assert f"{value:.3f}" in text
    assert summary(0.5, 0.1)["areas"]["mean_map"]["brief"] in text
    assert text.count("relevance of") == 2 * len(look.batch), "one answer a sample, over image and sound"


def test_of_a_model_that_has_diverged_it_is_said():
    look = look_at()
    no_numbers = torch.full_like(look.relevance, torch.nan)
    diverged = replace(look, probability=look.probability * torch.nan, relevance=no_numbers)
    text = printed(*report("run", diverged, arrays_of(look), num_tested=0))
    assert "its training has diverged" in text
    assert "diverged" not in printed(*report("run", look, arrays_of(look), num_tested=0))
