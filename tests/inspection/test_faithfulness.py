import json

import pytest
import torch

from perceiver.decoders.base import LOGITS
from perceiver.inspection.capture import Capture
from perceiver.inspection.faithfulness import (
    ERRORS,
    FRACTIONS,
    RANDOM,
    DeletionCurves,
    area_summary,
    deletion_curves,
    deletion_ranks,
)
from perceiver.types import Answer, JoinedTokens
from tests.inspection.models import (
    MODELS_AND_MASKS,
    forward_record,
    of_class,
)
from tests.models import small_inputs

NUM_TOKENS, BATCH, NUM_CLASSES = 23, 5, 3


class SumOfTokens:
    """A model whose token `t` adds `tokens[t, k]` to the probability of class k, and which stores what is visible."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def forward_tokens(self, tokens, queries):
        assert (tokens.values[~tokens.mask] == 0).all(), "masked tokens are zero"
        self.shown.append(tokens.mask)
        return {LOGITS: tokens.values.sum(dim=1)}


def some_tokens() -> torch.Tensor:
    """Parts of the probabilities of all classes, few tokens having most of them."""
    tokens = torch.rand(BATCH, NUM_TOKENS, NUM_CLASSES) ** 5
    return tokens / tokens.sum(dim=(1, 2), keepdim=True)


def measured(tokens, maps, answers=None, mask=None, seed: int = 0) -> tuple[DeletionCurves, SumOfTokens]:
    """The deletion curves of maps [batch, answers, tokens] for a `SumOfTokens`."""
    model, record = SumOfTokens(), Capture()
    record.tokens = JoinedTokens(tokens, mask, {})
    answers = [[of_class(0)]] * len(tokens) if answers is None else answers
    return deletion_curves(model, record, maps, answers, lambda outputs: outputs, seed=seed), model


def test_what_is_left_is_what_was_not_hidden_the_most_marked_first():
    tokens, marked = some_tokens(), torch.rand(BATCH, 1, NUM_TOKENS)
    found, _ = measured(tokens, {"some": marked})
    order = marked[:, 0].argsort(dim=1, descending=True)
    for number, share in enumerate(FRACTIONS):
        hidden = round(share * NUM_TOKENS)
        left = torch.stack([row[chosen[hidden:]].sum() for row, chosen in zip(tokens[..., 0], order, strict=True)])
        torch.testing.assert_close(found.curves["some"][:, number], left / tokens[..., 0].sum(dim=1))
    assert found.num_samples == BATCH
    assert (FRACTIONS[0], FRACTIONS[-1]) == (0.0, 1.0)
    random, some = found.curves[RANDOM], found.curves["some"]
    assert random[:, 0].tolist() == pytest.approx([1.0] * BATCH)
    assert random[:, -1].tolist() == pytest.approx([0.0] * BATCH)
    widths = torch.tensor(FRACTIONS).diff()
    area = ((random - some)[:, 1:] + (random - some)[:, :-1]) @ widths / 2
    torch.testing.assert_close(found.areas, {"some": area})


def test_an_oracle_does_better_than_chance_its_opposite_worse_and_random_marks_as_well():
    tokens = some_tokens().repeat(13, 1, 1)
    oracle = tokens[:, None, :, 0]
    maps = {"oracle": oracle, "anti-oracle": -oracle, "blind": torch.rand_like(oracle), "even": torch.ones_like(oracle)}
    areas = measured(tokens, maps)[0].summary["areas"]
    assert areas["oracle"]["mean"] > 3 * areas["oracle"]["error"] > 0
    assert areas["anti-oracle"]["mean"] < -3 * areas["anti-oracle"]["error"] < 0
    for name in ("blind", "even"):
        assert abs(areas[name]["mean"]) < 3 * areas[name]["error"]


def test_masked_tokens_are_never_counted():
    tokens, mask = some_tokens(), torch.rand(BATCH, NUM_TOKENS) < 0.6
    maps = tokens[:, None, :, 0]
    found, model = measured(tokens.masked_fill(~mask[..., None], 0.0), {"oracle": maps}, mask=mask)
    assert all(not (shown & ~mask).any() for shown in model.shown)
    spoiled = maps.masked_fill(~mask[:, None], 99.0)
    again, _ = measured(tokens.masked_fill(~mask[..., None], 7.0), {"oracle": spoiled}, mask=mask)
    assert all(torch.equal(again.curves[name], curve) for name, curve in found.curves.items())
    hidden = {tuple((mask & ~shown).sum(dim=1).tolist()) for shown in model.shown}
    assert hidden == {tuple((share * mask.sum(dim=1)).round().long().tolist()) for share in FRACTIONS}


def test_it_is_a_function_of_the_seed():
    tokens, even = some_tokens(), torch.zeros(BATCH, 1, NUM_TOKENS)
    state = torch.get_rng_state()
    once, twice, other = (measured(tokens, {"even": even}, seed=seed)[0].curves for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name in (RANDOM, "even"):
        assert torch.equal(once[name], twice[name])
        assert not torch.equal(once[name], other[name])


def test_ties_are_ranked_at_random():
    real, generator = torch.rand(997, 7) < 0.7, torch.Generator().manual_seed(0)
    places = deletion_ranks(torch.full((997, 7), 0.3), real, generator)
    assert torch.equal(places.sort(dim=1).values, torch.arange(7).expand(997, 7))
    assert ((places < real.sum(dim=1, keepdim=True)) == real).all(), "what is not real comes last"
    marks = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.5]).expand(997, 5)
    places = deletion_ranks(marks, torch.ones(997, 5).bool(), generator)
    assert (places[:, 3] == 0).all()
    assert (places[:, 0] == 4).all()
    assert (places[:, [1, 2, 4]].float().mean(dim=0) - 2).abs().max() < 0.15


def test_only_the_answers_that_depend_most_on_the_input_are_tested():
    tokens = torch.zeros(2, NUM_TOKENS, NUM_CLASSES)
    tokens[0, :2] = torch.tensor([0.1, 0.3, 0.2])
    tokens[1, :2] = torch.tensor([0.04, 0.04, 0.3])
    answers = [[of_class(0), of_class(1), of_class(2)], [of_class(0), of_class(2)]]
    marks = torch.rand(2, 3, NUM_TOKENS)
    marks[0, 1, :2], marks[0, 2, :2], marks[1, 1, :2] = 2.0, -2.0, torch.tensor([2.0, -2.0])
    found, model = measured(tokens, {"map": marks}, answers)
    assert found.num_samples == 2
    # With three quarters of 23 tokens hidden, of the first sample first class 1 and then class 2 is asked about.
    # The two count as one, since they are of one sample.
    assert found.curves["map"][:, 3].tolist() == pytest.approx([(0.0 + 1.0) / 2, 0.5])
    assert {len(shown) for shown in model.shown} == {2, 3}


@pytest.mark.parametrize("answers", [[[], [], [], [], []], [[of_class(0)]] * BATCH], ids=["nothing said", "no loss"])
def test_without_testable_answers_there_are_no_samples(answers):
    found, _ = measured(torch.zeros(BATCH, NUM_TOKENS, NUM_CLASSES), {"map": torch.rand(BATCH, 1, NUM_TOKENS)}, answers)
    assert found.num_samples == 0
    assert list(found.curves) == [RANDOM, "map"]
    assert found.areas["map"].shape == (0,)
    assert found.scores == {}
    assert found.summary == {"num_samples": 0, "fractions": list(FRACTIONS), "curves": {}, "areas": {}}
    other, _ = measured(some_tokens(), {"map": torch.rand(BATCH, 1, NUM_TOKENS)})
    both = DeletionCurves.concatenate([found, other, found])
    assert both.num_samples == BATCH
    assert all(torch.equal(both.curves[name], curve) for name, curve in other.curves.items())


def test_several_batches_are_all_their_samples():
    tokens, marks = some_tokens(), torch.rand(BATCH, 1, NUM_TOKENS)
    parts = [measured(tokens[rows], {"map": marks[rows]})[0] for rows in (slice(0, 2), slice(2, 5))]
    whole = DeletionCurves.concatenate(parts)
    torch.testing.assert_close(whole.curves["map"], measured(tokens, {"map": marks})[0].curves["map"])
    means = [float(part.areas["map"].mean()) for part in parts]
    assert whole.scores == {"deletion/map": pytest.approx((2 * means[0] + 3 * means[1]) / 5)}


@pytest.mark.filterwarnings("error")
def test_the_summary_is_plain_and_has_means_with_their_errors_if_there_are_enough_samples(monkeypatch):
    monkeypatch.setattr("perceiver.inspection.faithfulness.LEAST_SAMPLES", BATCH)
    found, _ = measured(
        some_tokens(), {"one": torch.rand(BATCH, 1, NUM_TOKENS), "two": torch.rand(BATCH, 1, NUM_TOKENS)}
    )
    summary = json.loads(json.dumps(found.summary, allow_nan=False))
    assert summary["num_samples"] == BATCH
    assert summary["fractions"] == list(FRACTIONS)
    assert set(summary["curves"]) == {RANDOM, "one", "two"}
    assert summary["curves"]["two"] == pytest.approx(found.curves["two"].mean(dim=0).tolist())
    assert set(summary["areas"]) == {"one", "two"}
    values = found.areas["one"].tolist()
    mean = sum(values) / BATCH
    deviation = (sum((value - mean) ** 2 for value in values) / (BATCH - 1)) ** 0.5
    area = summary["areas"]["one"]
    assert {name: area[name] for name in ("mean", "error")} == pytest.approx(
        {"mean": mean, "error": deviation / BATCH**0.5}
    )
    assert area == area_summary("one", area["mean"], area["error"], BATCH)
    few, _ = measured(some_tokens()[:1], {"map": torch.rand(1, 1, NUM_TOKENS)})
    assert json.loads(json.dumps(few.summary, allow_nan=False))["areas"]["map"]["error"] is None
    assert found.scores == pytest.approx({f"deletion/{name}": area["mean"] for name, area in summary["areas"].items()})


BEYOND = 1 + 1e-9


@pytest.mark.parametrize(
    ("mean", "error", "mark"),
    [
        (ERRORS * 0.07 * BEYOND, 0.07, "✓"),
        (ERRORS * 0.07, 0.07, "≈"),
        (0.0, 0.0, "≈"),
        (-ERRORS * 0.07, 0.07, "≈"),
        (-ERRORS * 0.07 * BEYOND, 0.07, "✗"),
        (1e-9, 0.0, "✓"),
        (0.7, None, "?"),
        (0.7, float("nan"), "?"),
        (float("nan"), 0.07, "?"),
        (float("inf"), 0.07, "?"),
    ],
)
def test_a_map_must_be_further_from_chance_than_its_error_explains(mean, error, mark):
    found = area_summary("mean_map", mean, error, 61)
    assert found["mark"] == mark
    assert "mean attention" in found["sentence"]
    assert ("do not read" in found["sentence"]) == (mark in "?≈")
    others = {
        area_summary("rollout", *other, 61)["brief"] for other in ((1.0, 0.1), (0.0, 0.1), (-1.0, 0.1), (1.0, None))
    }
    assert found["brief"] in others
    assert len(others) == 4


@MODELS_AND_MASKS
def test_of_a_perceiver_hiding_all_is_masking_all(monkeypatch, make, masks):
    monkeypatch.setattr("perceiver.inspection.faithfulness.LEAST_LOSS", -1.0)
    model, inputs = make(), small_inputs()
    model.decoder.head.weight.data *= 30
    record = forward_record(model, inputs, masks)
    best = record.outputs[LOGITS].argmax(dim=-1).tolist()
    if record.queries:
        answers = [[Answer("word", (2, 5), LOGITS, ids=(ids[2], ids[5]))] for ids in best]
    else:
        answers = [[of_class(label)] for label in best]
    maps = {"map": torch.rand(3, 1, 55)}
    with torch.no_grad():
        found = deletion_curves(
            model, record, maps, answers, lambda outputs: {LOGITS: outputs[LOGITS].softmax(dim=-1)}, seed=0
        )
        nothing = {name: torch.zeros(3, dtype=torch.bool) for name in inputs}
        shown, hidden = (model(inputs, real, record.queries)[LOGITS].softmax(dim=-1) for real in (masks, nothing))
    for row, (answer,) in enumerate(answers):
        at = (row, list(answer.queries), list(answer.ids)) if answer.is_word else (row, answer.label)
        expected = hidden[at].prod() / shown[at].prod()
        torch.testing.assert_close(found.curves["map"][row, -1], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.curves["map"][:, 0], torch.ones(3))
    assert (found.curves["map"][:, -1] - 1).abs().max() > 1e-3
