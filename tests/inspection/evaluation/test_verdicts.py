"""Verdicts on maps: intervals, the correction for several maps, and how often they are wrong."""

import json

import pytest
import torch

from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.inspection.evaluation.faithfulness import FRACTIONS, FaithfulnessCurves
from perceiver.inspection.evaluation.verdicts import LEVEL, MIN_SAMPLES, bootstrap_mean, holm, method_table, summarize
from tests.inspection.sums import measured, some_tokens


def test_p_values_are_corrected_for_their_number():
    """Sorted, they are multiplied by 4, 3, 2 and 1; the last is not below the one before."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_intervals_of_normal_values_are_those_of_student():
    values = torch.randn(41, generator=torch.Generator().manual_seed(2))
    values = 3 + 2 * (values - values.mean()) / values.std()
    half = 2.0211 * 2 / 41**0.5  # the 97.5 % quantile with 40 degrees of freedom
    found = bootstrap_mean(torch.cat([values, torch.tensor([torch.nan])]))
    assert found.mean == pytest.approx(3)
    assert found.low == pytest.approx(3 - half, abs=0.1 * half)
    assert found.high == pytest.approx(3 + half, abs=0.1 * half)
    for shift, expected in ((0.0, 0.5), (1.684 * 2 / 41**0.5, 0.05)):  # the 95 % quantile
        shifted = bootstrap_mean(values - 3 + shift)
        assert shifted.better == pytest.approx(expected, rel=0.2)
        assert shifted.worse == pytest.approx(1 - expected, rel=0.2)


def test_intervals_are_limited_and_few_or_equal_values_have_none_or_no_width():
    bounded = bootstrap_mean(torch.tensor([1.0] * 20 + [0.7]), upper=1.0)
    assert bounded.high == 1.0
    rare = bootstrap_mean(torch.tensor([1.0] + [0.0] * 14), lower=-1.0, upper=1.0)  # many resamples have equal values
    assert rare.low <= rare.mean < rare.high == 1.0
    few = bootstrap_mean(torch.rand(MIN_SAMPLES - 1))
    assert (few.low, few.high, few.better, few.worse) == (None, None, 1.0, 1.0)
    equal = bootstrap_mean(torch.full((11,), 0.3))
    assert equal.low == equal.high == pytest.approx(0.3)
    assert equal.better < 0.001 < 1.0 == equal.worse
    assert bootstrap_mean(torch.zeros(0)).summary == {"mean": None, "low": None, "high": None}


def test_invalid_settings_of_the_evaluator_are_refused():
    settings = {"num_samples": 3, "num_orders": 2, "rivals": False, "randomize": False}
    for name, value in (("num_samples", -1), ("num_orders", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Evaluator(**settings | {name: value})


def curves(**gains: float) -> FaithfulnessCurves:
    """Curves of maps with these mean areas over random tokens; those of all other nulls are random, too."""
    noise = torch.linspace(-0.1, 0.1, 61)[:, None]
    random = (0.5 + 0.0 * noise).expand(-1, len(FRACTIONS))
    found: dict[str, dict[str, torch.Tensor]] = {"deletion": {}, "insertion": {}}
    for score, sign in (("deletion", -1), ("insertion", 1)):
        found[score] = {"random": random, "center": random} | {f"other/{name}": random for name in gains}
        found[score] |= {name: random + sign * (gain + noise) for name, gain in gains.items()}
    return FaithfulnessCurves(**found)


def test_each_verdict_has_its_sign_and_its_reasons():
    made = curves(good=0.3, chance=0.0, bad=-0.3)
    made.insertion["half"], made.deletion["half"] = made.insertion["chance"], made.deletion["good"]
    for found in (made.deletion, made.insertion):
        found["copied"], found["other/half"] = found["good"], found["random"]
        found["other/copied"] = found["good"].flip(0)  # as good as another sample's
    summary = json.loads(json.dumps(summarize(made), allow_nan=False))
    maps = summary["maps"]
    assert {kind: one["mark"] for kind, one in maps.items()} == {
        **{"good": "✓", "chance": "≈", "bad": "✗"},
        **{"half": "≈", "copied": "≈"},
    }
    assert "another sample" in maps["copied"]["sentence"]
    assert "random tokens by insertion" in maps["half"]["sentence"]
    assert "61 samples" in maps["good"]["sentence"]
    assert all(("do not read" in one["sentence"]) == (one["mark"] == "≈") for one in maps.values())
    assert maps["good"]["scores"]["deletion"]["mean"] == pytest.approx(0.3)
    assert maps["copied"]["differences"]["other"]["insertion"]["mean"] == pytest.approx(0.0, abs=1e-6)
    few = {score: {name: one[:5] for name, one in getattr(made, score).items()} for score in ("deletion", "insertion")}
    few["deletion"]["other/good"] = few["insertion"]["other/good"] = torch.full((5, len(FRACTIONS)), torch.nan)
    of_few = json.loads(json.dumps(summarize(FaithfulnessCurves(**few)), allow_nan=False))
    assert {one["mark"] for one in of_few["maps"].values()} == {"?"}
    columns, rows = method_table(summary)
    assert [len(row) for row in rows] == [len(columns)] * len(maps)


def test_further_scores_have_intervals_and_their_chance():
    scores = {"pointing_game": {"good": torch.linspace(0.2, 0.8, 13), "chance": torch.full((13,), 0.1)}}
    stages = {"good": torch.stack([torch.full((13,), 0.6), torch.linspace(-0.1, 0.3, 13)])}
    found = summarize(curves(good=0.3), scores, stages)
    assert found["stages"]["good"] == pytest.approx([1.0, 0.6, 0.1])
    assert found["maps"]["good"]["scores"]["randomization"]["mean"] == pytest.approx(0.1)
    assert found["chance"] == pytest.approx({"pointing_game": 0.1})
    interval = found["maps"]["good"]["scores"]["pointing_game"]
    assert interval["mean"] == pytest.approx(0.5)
    assert interval["low"] < 0.5 < interval["high"]


@pytest.mark.slow
def test_uninformative_maps_pass_in_no_more_tries_than_the_level_allows_and_a_true_one_passes():
    """The tokens at the start matter more in all samples, so that another sample's map is far better than random."""
    tries, samples, num_tokens = 200, 40, 23
    tokens = some_tokens(tries * samples, num_tokens, 1) * torch.linspace(1.0, 0.05, num_tokens)[:, None] ** 3
    truth = (tokens / tokens.sum(dim=1, keepdim=True)).transpose(1, 2)
    maps = {"blind": torch.rand_like(truth), "foreign": truth.roll(7, dims=0), "true": truth}
    found, _ = measured(truth.transpose(1, 2), maps, num_orders=4)
    passed, above_random = (dict.fromkeys(maps, 0) for _ in range(2))
    for one in range(tries):
        rows = slice(one * samples, (one + 1) * samples)
        for kind in maps:  # each alone: the correction for several maps would let fewer pass
            names = (kind, f"other/{kind}", "random", "center")
            of_kind = [{name: part[name][rows] for name in names} for part in (found.deletion, found.insertion)]
            of_map = summarize(FaithfulnessCurves(*of_kind))["maps"][kind]
            passed[kind] += of_map["mark"] == "✓"
            above_random[kind] += all(score["low"] > 0 for score in of_map["differences"]["random"].values())
    assert above_random["foreign"] > 0.9 * tries
    assert passed["blind"] <= LEVEL * tries
    assert passed["foreign"] <= LEVEL * tries
    assert passed["true"] == tries
