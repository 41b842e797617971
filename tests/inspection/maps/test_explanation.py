from dataclasses import replace
from functools import partial

import pytest
import torch

from perceiver.decoders.base import LOGITS
from perceiver.inspection.drawing.figures import contact_sheets
from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.inspection.evaluation.faithfulness import faithfulness
from perceiver.inspection.evaluation.localization import localization
from perceiver.inspection.maps.answers import answer_scores
from perceiver.inspection.maps.attribution import rival_maps
from perceiver.inspection.maps.capture import capture
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import mean_of_queries, rollout
from perceiver.tasks.base import Task
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.types import Batch, Box
from tests.inspection.explanations import CLASS_NAMES, explain, explainer, labelled
from tests.inspection.models import (
    EveryWord,
    captions,
    direct_text,
    of_class,
    perceiver,
    perceiver_io,
    perceiver_joint,
    perceiver_text,
    query_decoder,
    some_masks,
    without_end,
    word,
)
from tests.models import NUM_CLASSES, logits, small_inputs

TEXTS = ("a small red circle", "", "blue squares")


def classified(make=perceiver) -> tuple[Explainer, Batch]:
    return explainer(make()), labelled(small_inputs(), some_masks())


def tagged() -> tuple[Explainer, Batch]:
    task = Tagging(num_classes=NUM_CLASSES, multi_label=True, loss=LossSpec(), mixup=0.0)
    batch = labelled(small_inputs(), some_masks(), tags=torch.zeros(3, NUM_CLASSES))
    return Explainer(perceiver_io(), task, CLASS_NAMES, "norm"), batch


def captioned(make=perceiver_text) -> tuple[Explainer, Batch]:
    batch = captions(small_inputs())
    batch.masks = some_masks()
    return explainer(without_end(make()), alpha=0.3), batch


def joint(*names: str) -> tuple[Explainer, Batch]:
    """Classes, and words as many as in `TEXTS`."""
    found = explainer(perceiver_joint(*names), alpha=0.3)
    predict_texts(found.task.tasks["caption"])
    box = Box(3, "image", {"y": (0.0, 5.0)})
    facts, boxes = [EveryWord(box)] * 3, [[box], None, [Box(5, "depth", {})]]
    return found, labelled(small_inputs(), some_masks(), facts=facts, boxes=boxes)


def predict_texts(task: Task) -> None:
    queries, predicted = task.answer_queries, [[{"caption": text}] for text in TEXTS]
    task.answer_queries = lambda model, batch, *_: queries(model, batch, predicted)


KINDS = {
    "classified": classified,
    "one query": partial(classified, make=lambda: perceiver_io(decoder=query_decoder(1))),
    "tagged": tagged,
    "captioned": captioned,
    "without latents": partial(captioned, make=direct_text),
    "joint": joint,
    "words first": lambda: joint("caption", "label"),  # in the slots of another row's classes
}


def cases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [KINDS[name] for name in names], ids=names)


@cases(*KINDS)
def test_rollouts_and_relevance_are_those_of_each_output_alone(make):
    explainer, batch = make()
    found = explainer.explain(batch)
    with capture(explainer.model, gradients=True) as record:
        outputs = explainer.model(batch.inputs, batch.masks, found.record.queries)
        for output in outputs:
            own = [[answer for answer in row if answer.output == output] for row in found.answers]
            relevance = record.relevance(answer_scores(outputs, own))
            part = found.record.for_output(output)
            has_own = part.num_outputs > 1
            assert all(found.has_own_queries(answer) == has_own for row in own for answer in row)
            queries = [[one.queries if has_own else (0,) for one in row] for row in own]
            weights = mean_of_queries(queries, part.num_outputs)
            expected = rollout(part, alpha=explainer.alpha, query_weights=weights)
            for row, answers in enumerate(found.answers):
                slots = [slot for slot, answer in enumerate(answers) if answer.output == output]
                for values, others in (
                    (found.relevance, relevance),
                    (found.rollout.inputs, expected.inputs),
                    (found.rollout.residual, expected.residual),
                ):
                    torch.testing.assert_close(values[row, slots], others[row, : len(slots)])
    means = [found.record.map(name).mean(dim=1) for name in found.record.input_layers]
    expected = torch.stack(means).mean(dim=0)
    torch.testing.assert_close(found.maps["mean_map"], expected[:, None].expand_as(found.relevance))


@pytest.mark.parametrize(("make", "name"), [(perceiver_io, "cross0"), (perceiver, "cross2"), (direct_text, "decode1")])
def test_queries_are_ranked_by_what_the_outputs_read_and_otherwise_by_their_entropy(make, name):
    found = explain(make(), small_inputs(), some_masks())
    weights = found.record.map(name).double()
    score = (weights * weights.clamp_min(1e-30).log()).sum(dim=-1)
    if make is perceiver_io:
        score = found.record.map("decode0").sum(dim=1)
    assert (score.gather(1, found.query_rankings[name]).diff(dim=1) <= 1e-6).all()


@cases("joint", "words first")
def test_an_answer_of_a_joint_model_has_the_explanation_of_its_part_alone(make):
    joint, batch = make()
    found = joint.explain(batch)
    assert [sum(answer.is_word for answer in row) for row in found.answers] == [4, 0, 2]
    parts = []
    for name, kind in (("label", perceiver_io), ("caption", perceiver_text)):
        alone = kind()
        for same in ("encoders", "join", "memory"):
            getattr(alone, same).load_state_dict(getattr(joint.model, same).state_dict())
        alone.decoder.load_state_dict(joint.model.decoder.decoders[name].state_dict())
        part = explainer(alone, alpha=0.3)
        predict_texts(part.task)
        expected = part.explain(batch)
        parts.append(localization(expected))
        for row, answers in enumerate(found.answers):
            slots = [slot for slot, answer in enumerate(answers) if answer.output == f"{name}/logits"]
            assert all(found.has_own_queries(answers[slot]) for slot in slots)
            assert [replace(answers[slot], output="logits") for slot in slots] == expected.answers[row]
            for values, others in (
                (found.probability, expected.probability),
                (found.rollout.inputs, expected.rollout.inputs),
                (found.rollout.latents["cross0"], expected.rollout.latents["cross0"]),
                (found.relevance, expected.relevance),
            ):
                torch.testing.assert_close(values[row, slots], others[row, : len(slots)])
    scores = localization(found)
    for name, values in scores.items():
        expected = torch.cat([part[name] for part in parts if name in part])
        torch.testing.assert_close(values.sort().values, expected.sort().values)
    assert {"relevance/energy_in_box", "relevance/energy_in_box_colour", "word_overlap"} < scores.keys()


@cases("captioned", "joint")
def test_relevance_in_parts_is_that_of_the_whole_batch(monkeypatch, make):
    explainer, batch = make()
    whole, passes = explainer.explain(batch), []
    for tokens_at_once in (1, 2 * 55):
        monkeypatch.setattr("perceiver.inspection.maps.explainer.TOKENS_AT_ONCE", tokens_at_once)
        hook = explainer.model.register_forward_hook(lambda *_: passes.append(1))
        parts = explainer.explain(batch)
        hook.remove()
        scale = whole.relevance.max()
        torch.testing.assert_close(parts.relevance / scale, whole.relevance / scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.rollout.inputs, whole.rollout.inputs)
    assert len(passes) == (1 + 3) + (1 + 2)


@cases("classified", "words first")
def test_without_answers_there_are_no_maps(monkeypatch, make):
    explainer, batch = make()
    monkeypatch.setattr("perceiver.inspection.maps.explainer.TOKENS_AT_ONCE", 2 * 55)
    monkeypatch.setattr(explainer.task, "answers", lambda *args: [[], [], []])
    found = explainer.explain(batch)
    assert found.relevance.shape == found.rollout.inputs.shape == (3, 0, 55)
    assert found.probability.shape == (3, 0)
    assert contact_sheets(found, {}, num_latents=1)
    assert faithfulness(explainer, found, num_orders=1).num_samples == 0
    assert all(not maps.any() for maps in rival_maps(explainer, found).values())


def test_inputs_are_converted_and_the_precision_is_that_of_the_context():
    explainer, batch = classified()
    exact = explainer.explain(batch)
    other = replace(
        explainer,
        converted=lambda inputs: {name: values.float() for name, values in inputs.items()},
        forward_context=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    batch.inputs = {name: values.double() for name, values in batch.inputs.items()}
    found = other.explain(batch)
    assert found.record.layers["cross0"].q.dtype == torch.bfloat16
    assert found.relevance.dtype == found.rollout.inputs.dtype == torch.float32
    torch.testing.assert_close(found.rollout.inputs, exact.rollout.inputs, rtol=0, atol=0.02)


@pytest.mark.parametrize("make", [classified, tagged], ids=lambda make: make.__name__)
def test_classes_with_boxes_follow_the_most_probable_ones(make):
    explainer, batch = make()
    plain = explainer.explain(batch)
    ranking = logits(explainer.model, batch.inputs, batch.masks).argsort(descending=True).tolist()
    assert [[answer.label for answer in row] for row in plain.answers] == [row[:3] for row in ranking]
    best, unlikely, least = ranking[0][1], *sorted(ranking[0][-2:])
    boxes = [Box(label, "image", {"x": (0.0, 5.0 + at)}) for at, label in enumerate((least, best, unlikely, least))]
    batch.targets["boxes"] = [boxes, None, [Box(ranking[2][0], "depth", {})]]
    found = explainer.explain(batch)
    assert [[answer.label for answer in row] for row in found.answers] == [
        [*ranking[0][:3], unlikely, least],
        ranking[1][:3],
        ranking[2][:3],
    ]
    assert [list(answer.boxes) for answer in found.answers[0]] == [[], [boxes[1]], [], [boxes[2]], [boxes[0], boxes[3]]]
    assert [len(answer.boxes) for row in found.answers[1:] for answer in row] == [0, 0, 0, 1, 0, 0]
    assert all(answer.name == CLASS_NAMES[answer.label] for answer in found.answers[0])
    for name in ("probability", "relevance"):
        torch.testing.assert_close(getattr(found, name)[:, :3], getattr(plain, name))
    torch.testing.assert_close(found.rollout.inputs[:, :3], plain.rollout.inputs)


def test_known_predictions_are_explained_without_generation():
    explainer, batch = captioned()
    found = explainer.explain(batch, [[{"caption": text}] for text in TEXTS])
    assert [[answer.name for answer in row] for row in found.answers] == [text.split() for text in TEXTS]


def test_an_explanation_leaves_the_model_unchanged():
    explainer, batch = captioned()
    explainer.model.train()
    state, modes = torch.get_rng_state(), [module.training for module in explainer.model.modules()]
    evaluator = Evaluator(num_samples=3, num_orders=1, rivals=False, randomize=True)
    evaluator.evaluate(explainer, [explainer.explain(batch)], with_localization=True, with_faithfulness=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in explainer.model.modules()] == modes
    assert all(parameter.grad is None for parameter in explainer.model.parameters())


def test_scores_are_the_value_of_a_class_and_the_sum_over_the_ids_of_a_word():
    classes, words = torch.randn(3, 5), torch.randn(3, 7, 11, requires_grad=True)
    answers = [
        [word((1,), (10,)), word((), ())],
        [],
        [word((0, 3, 6), (2, 2, 5)), replace(of_class(4), output="label")],
    ]
    found = answer_scores({LOGITS: words, "label": classes}, answers)
    expected = [
        torch.stack([words[0, 1, 10], torch.tensor(0.0)]),
        torch.zeros(2),
        torch.stack([words[2, 0, 2] + words[2, 3, 2] + words[2, 6, 5], classes[2, 4]]),
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert words.grad.nonzero().tolist() == [[0, 1, 10], [2, 0, 2], [2, 3, 2], [2, 6, 5]]


def test_only_one_ranking_and_mean_map_is_computed(monkeypatch):
    found: Explanation = explain(perceiver(), small_inputs())
    first = found.query_rankings, found.mean_maps, found.statistics, found.relevance_shares
    monkeypatch.setattr("perceiver.inspection.maps.record.Layer.weights", None)
    assert all(
        one is other
        for one, other in zip(
            first, (found.query_rankings, found.mean_maps, found.statistics, found.relevance_shares), strict=True
        )
    )
