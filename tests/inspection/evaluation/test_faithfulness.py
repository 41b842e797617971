from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from perceiver.decoders.base import LOGITS
from perceiver.inspection.evaluation.faithfulness import (
    CENTER,
    FRACTIONS,
    RANDOM,
    FaithfulnessCurves,
    SampleMaps,
    deletion_ranks,
    faithfulness_curves,
    last_sample,
    random_order,
)
from perceiver.types import Answer
from tests.inspection.models import MODELS_AND_MASKS, forward_record, of_class
from tests.inspection.sums import measured, record_of, some_tokens
from tests.models import small_inputs

NUM_TOKENS, BATCH, NUM_CLASSES = 23, 5, 3


def tokens_of_sums() -> torch.Tensor:
    return some_tokens(BATCH, NUM_TOKENS, NUM_CLASSES)


def expected_curves(values: torch.Tensor, order: torch.Tensor) -> tuple[list[float], list[float]]:
    """The deletion and the insertion curve of one sample, whose tokens are masked or shown in an order."""
    counts = [round(share * len(order)) for share in FRACTIONS]
    deleted = [float(values[order[count:]].sum()) for count in counts]
    return deleted, [float(values[order[: len(order) - count]].sum()) for count in reversed(counts)]


def test_curves_are_those_of_masking_or_showing_the_tokens_with_the_highest_values_first():
    tokens, marks = tokens_of_sums(), torch.rand(BATCH, 1, NUM_TOKENS)
    found, _ = measured(tokens, {"some": marks})
    middle = (torch.arange(NUM_TOKENS) - NUM_TOKENS // 2).abs()
    symmetric = tokens + tokens.flip(1)
    centered, _ = measured(symmetric, {"some": marks})
    for row in range(BATCH):
        of_orders = [
            expected_curves(tokens[row, :, 0], ranks.argsort())[0]
            for ranks in random_order(torch.ones(NUM_TOKENS).bool(), str(row), 4)[1:]
        ]
        random = torch.tensor(of_orders).mean(dim=0)
        for name, curves, expected in (
            ("some", found, expected_curves(tokens[row, :, 0], marks[row, 0].argsort(descending=True))),
            # The first sample is compared with the last one.
            ("other/some", found, expected_curves(tokens[row, :, 0], marks[row - 1, 0].argsort(descending=True))),
            (CENTER, centered, expected_curves(symmetric[row, :, 0], middle.argsort())),
            (RANDOM, found, (random, random.flip(0))),
        ):
            assert_close(curves.deletion[name][row], torch.as_tensor(expected[0]), rtol=0, atol=1e-6)
            assert_close(curves.insertion[name][row], torch.as_tensor(expected[1]), rtol=0, atol=1e-6)
    assert found.kinds == ["some"]
    widths, gains = torch.tensor(FRACTIONS).diff(), found.gains("some", "other")
    for name, sign in (("deletion", -1), ("insertion", 1)):
        of_score = getattr(found, name)
        difference = sign * (of_score["some"] - of_score["other/some"])
        assert_close(gains[name], (difference[:, 1:] + difference[:, :-1]) @ widths / 2)


def test_masked_tokens_are_never_counted():
    tokens, mask = tokens_of_sums(), torch.rand(BATCH, NUM_TOKENS) < 0.6
    maps = tokens[:, None, :, 0]
    found, model = measured(tokens.masked_fill(~mask[..., None], 0.0), {"oracle": maps}, mask=mask)
    assert all(not (shown.reshape(-1, *mask.shape) & ~mask).any() for shown in model.shown)
    spoiled = maps.masked_fill(~mask[:, None], 99.0)
    again, _ = measured(tokens.masked_fill(~mask[..., None], 7.0), {"oracle": spoiled}, mask=mask)
    for name in (RANDOM, CENTER, "oracle"):
        assert torch.equal(again.deletion[name], found.deletion[name])
        assert torch.equal(again.insertion[name], found.insertion[name])


def test_another_sample_s_map_is_stretched_over_the_real_cells():
    real = torch.zeros(5, 7, dtype=torch.bool)
    real[:2, :3] = True
    maps = torch.arange(35.0).reshape(1, 35)
    other = SampleMaps({"map": maps}, real.flatten(), record_of(torch.zeros(1, 35, 1), None, 5, 7).spans)
    target = torch.zeros(5, 7, dtype=torch.bool)
    target[:4, :6] = True
    found = other.stretched(3, target.flatten()).reshape(5, 7)
    expected = maps.reshape(5, 7)[:2, :3].repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    assert torch.equal(found[:4, :6], expected)


def test_random_orders_depend_on_the_sample_alone_and_ties_are_random():
    tokens, even = tokens_of_sums(), torch.zeros(BATCH, 1, NUM_TOKENS)
    state = torch.get_rng_state()
    whole, other = (
        measured(tokens, {"even": even})[0],
        measured(tokens, {"even": even}, ids=["a", "b", "c", "d", "e"])[0],
    )
    assert torch.equal(torch.get_rng_state(), state)
    part, _ = measured(tokens[2:], {"even": even[2:]}, ids=["2", "3", "4"])
    for name in (RANDOM, "even"):
        assert_close(part.deletion[name], whole.deletion[name][2:])
        assert not torch.equal(other.deletion[name], whole.deletion[name])
    real = torch.rand(997, 7) < 0.7
    ties = torch.stack([random_order(row, str(number), 1)[0] for number, row in enumerate(real)])
    assert torch.equal(deletion_ranks(torch.full((997, 7), 0.3), real, ties).masked_fill(~real, 7), ties)
    every = torch.ones(997, 5).bool()
    ties = torch.stack([random_order(row, str(number), 1)[0] for number, row in enumerate(every)])
    ranks = deletion_ranks(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.5]).expand(997, 5), every, ties)
    assert (ranks[:, 3] == 0).all()
    assert (ranks[:, 0] == 4).all()
    assert (ranks[:, [1, 2, 4]].float().mean(dim=0) - 2).abs().max() < 0.15


def test_only_the_answers_that_depend_most_on_the_input_are_tested():
    tokens = torch.zeros(2, NUM_TOKENS, NUM_CLASSES)
    tokens[0, :2] = torch.tensor([0.1, 0.3, 0.2])
    tokens[1, :2] = torch.tensor([0.04, 0.04, 0.3])
    answers = [[of_class(0), of_class(1), of_class(2)], [of_class(0), of_class(2)]]
    marks = torch.rand(2, 3, NUM_TOKENS)
    marks[0, 1, :2], marks[0, 2, :2], marks[1, 1, :2] = 2.0, -2.0, torch.tensor([2.0, -2.0])
    found, _ = measured(tokens, {"map": marks}, answers)
    assert found.num_samples == 2
    # Of the first sample classes 1 (both tokens first) and 2 (both last), which count as one case.
    assert found.deletion["map"][:, 3].tolist() == pytest.approx([(0.0 + 0.4) / 2, 0.3])


@pytest.mark.parametrize("answers", [[[], [], [], [], []], [[of_class(0)]] * BATCH], ids=["no answers", "no loss"])
def test_without_testable_answers_there_are_no_samples(answers):
    maps = {"map": torch.rand(BATCH, 1, NUM_TOKENS)}
    found, _ = measured(torch.zeros(BATCH, NUM_TOKENS, NUM_CLASSES), maps, answers)
    assert found.num_samples == 0
    assert found.kinds == ["map"]
    assert found.gains("map", RANDOM)["insertion"].shape == (0,)
    other, _ = measured(tokens_of_sums(), maps)
    both = FaithfulnessCurves.concatenate([found, other, found])
    assert both.num_samples == BATCH
    assert all(torch.equal(both.insertion[name], curve) for name, curve in other.insertion.items())


def test_the_other_sample_is_the_one_before_also_over_batches():
    tokens, maps = tokens_of_sums(), {"map": torch.rand(BATCH, 1, NUM_TOKENS)}
    whole, _ = measured(tokens, maps)
    first = {"map": maps["map"][:2]}
    before = last_sample(record_of(tokens[:2]), first, [[of_class(0)], [of_class(0)]])
    part, _ = measured(tokens[2:], {"map": maps["map"][2:]}, ids=["2", "3", "4"], before=before)
    assert_close(part.deletion["other/map"], whole.deletion["other/map"][2:])
    alone, _ = measured(tokens[:1], {"map": maps["map"][:1]})
    assert alone.insertion["other/map"].isnan().all()


@MODELS_AND_MASKS
def test_of_a_perceiver_masking_all_is_having_no_input(monkeypatch, make, masks):
    monkeypatch.setattr("perceiver.inspection.evaluation.faithfulness.MIN_LOSS", -1.0)
    model, inputs = make(), small_inputs()
    model.decoder.head.weight.data *= 30
    record = forward_record(model, inputs, masks)
    best = record.outputs[LOGITS].argmax(dim=-1).tolist()
    if record.queries:
        answers = [[Answer("word", (2, 5), LOGITS, ids=(ids[2], ids[5]))] for ids in best]
    else:
        answers = [[of_class(label)] for label in best]
    with torch.no_grad():
        found = faithfulness_curves(
            SimpleNamespace(
                forward_tokens=model.forward_tokens,
                probabilities=lambda outputs: {LOGITS: outputs[LOGITS].softmax(dim=-1)},
            ),
            record,
            {"map": torch.rand(3, 1, 55)},
            answers,
            ids=["a", "b", "c"],
            num_orders=2,
        )
        nothing = {name: torch.zeros(3, dtype=torch.bool) for name in inputs}
        shown, hidden = (model(inputs, real, record.queries)[LOGITS].softmax(dim=-1) for real in (masks, nothing))
    for row, (answer,) in enumerate(answers):
        at = (row, list(answer.queries), list(answer.ids)) if answer.is_word else (row, answer.label)
        for curve, ends in ((found.deletion, (shown, hidden)), (found.insertion, (hidden, shown))):
            expected = torch.stack([values[at].prod() for values in ends])
            assert_close(curve["map"][row, [0, -1]], expected, rtol=1e-3, atol=1e-5)
    assert (found.deletion["map"][:, 0] - found.deletion["map"][:, -1]).abs().max() > 1e-3
