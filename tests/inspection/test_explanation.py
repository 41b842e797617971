from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from perceiver.inspection.capture import capture
from perceiver.inspection.explanation import (
    Explainer,
    Explanation,
    answer_readers,
    from_output,
    in_parts,
    outputs_of,
    said,
)
from perceiver.inspection.faithfulness import faithfulness
from perceiver.inspection.figures import contact_sheets
from perceiver.inspection.localization import localization
from perceiver.inspection.rollout import rollout
from perceiver.tasks.base import Task
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.tokenizer import EOS
from perceiver.types import Batch, Box
from tests.inspection.explanations import CLASS_NAMES, explainer, labelled, seen
from tests.inspection.models import (
    EveryWord,
    captions,
    direct_text,
    perceiver,
    perceiver_io,
    perceiver_joint,
    perceiver_text,
    query_decoder,
    some_masks,
)
from tests.models import NUM_CLASSES, logits, small_inputs


def classified(masks: bool) -> tuple[Explainer, Batch]:
    return explainer(perceiver()), labelled(small_inputs(), some_masks() if masks else None)


def tagged(masks: bool) -> tuple[Explainer, Batch]:
    task = Tagging(num_classes=NUM_CLASSES, multi_label=True, loss=LossSpec(), mixup=0.0)
    batch = labelled(small_inputs(), some_masks() if masks else None, tags=torch.zeros(3, NUM_CLASSES))
    return Explainer(perceiver_io(), task, CLASS_NAMES, "norm"), batch


def captioned(masks: bool, make=perceiver_text) -> tuple[Explainer, Batch]:
    batch = captions(small_inputs())
    batch.masks = some_masks() if masks else {}
    model = make()
    model.decoder.head.bias.data[EOS] = -9.0  # untrained, it might have nothing to say
    return explainer(model, alpha=0.3), batch


def without_latents(masks: bool) -> tuple[Explainer, Batch]:
    return captioned(masks, direct_text)


TEXTS = ("a small red circle", "", "blue squares")


def joint(masks: bool, *names: str) -> tuple[Explainer, Batch]:
    """Classes, and words as many as in `TEXTS`."""
    found = explainer(perceiver_joint(*names), alpha=0.3)
    say_texts(found.task.tasks["caption"])
    box = Box(3, "image", {"y": (0.0, 5.0)})
    facts, boxes = [EveryWord(box)] * 3, [[box], None, [Box(5, "depth", {})]]
    return found, labelled(small_inputs(), some_masks() if masks else None, facts=facts, boxes=boxes)


def say_texts(task: Task) -> None:
    asked, predicted = task.answer_queries, [[{"caption": text}] for text in TEXTS]
    task.answer_queries = lambda model, batch, *_: asked(model, batch, predicted)


def joint_with_words_first(masks: bool) -> tuple[Explainer, Batch]:
    """A row's words stand where another row's classes do."""
    return joint(masks, "caption", "label")


KINDS = pytest.mark.parametrize(
    "make",
    [classified, tagged, captioned, without_latents, joint, joint_with_words_first],
    ids=lambda make: make.__name__,
)
MASKS = pytest.mark.parametrize("masks", [False, True], ids=["whole", "masked"])


@KINDS
@MASKS
def test_each_answer_has_its_rollout_relevance_and_probability(make, masks):
    explainer, batch = make(masks)
    look = explainer.explain(batch)
    widths, tokens = [len(row) for row in look.answers], look.record.tokens.values.shape[1]
    shape = (3, max(widths))
    assert max(widths) > 1
    assert look.rollout.inputs.shape == look.relevance.shape == (*shape, tokens)
    assert look.rollout.residual.shape == look.probability.shape == shape
    said_anything = torch.arange(max(widths)) < torch.tensor(widths)[:, None]
    total = look.rollout.inputs.sum(dim=-1) + look.rollout.residual
    torch.testing.assert_close(total, said_anything.float())
    assert (look.relevance[said_anything].sum(dim=-1) > 0).any()
    assert (look.relevance[~said_anything] == 0).all()
    model = explainer.model
    with torch.no_grad():
        probabilities = explainer.task.probabilities(model(batch.inputs, batch.masks, look.record.queries))
    for row, answers in enumerate(look.answers):
        for slot, answer in enumerate(answers):
            if answer.is_word:
                expected = probabilities[answer.output][row, list(answer.queries), list(answer.ids)].prod()
            else:
                expected = probabilities[answer.output][row, answer.label]
            torch.testing.assert_close(look.probability[row, slot], expected)
    assert look.alpha == explainer.alpha


@KINDS
def test_relevance_is_that_of_the_logits_of_each_answer(make):
    explainer, batch = make(True)
    look = explainer.explain(batch)
    with capture(explainer.model, gradients=True) as record:
        outputs = explainer.model(batch.inputs, batch.masks, look.record.queries)
        expected = {
            output: record.relevance(said(outputs, from_output(look.answers, output)))
            for output in outputs_of(look.answers)
        }
    assert_placed(look, look.relevance, expected)


@KINDS
@MASKS
def test_rollouts_are_those_of_each_output(make, masks):
    explainer, batch = make(masks)
    look, expected = explainer.explain(batch), {}
    for output in outputs_of(look.answers):
        part = look.record.for_output(output)
        readers = answer_readers(part, from_output(look.answers, output), len(explainer.class_names))
        expected[output] = rollout(part, alpha=explainer.alpha, readers=readers).inputs
    assert_placed(look, look.rollout.inputs, expected)


def assert_placed(look: Explanation, found: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
    """What was found for all answers is what belongs to those of each output, in their order."""
    for row, answers in enumerate(look.answers):
        for output, values in expected.items():
            slots = [slot for slot, answer in enumerate(answers) if answer.output == output]
            torch.testing.assert_close(found[row, slots], values[row, : len(slots)])


@pytest.mark.parametrize("make", [joint, joint_with_words_first], ids=lambda make: make.__name__)
@MASKS
def test_a_joint_model_says_of_each_answer_what_its_part_alone_says(make, masks):
    joint, batch = make(masks)
    look = joint.explain(batch)
    assert look.own == look.answers
    assert [sum(answer.is_word for answer in row) for row in look.answers] == [4, 0, 2]
    truths = {}
    for name, kind in (("label", perceiver_io), ("caption", perceiver_text)):
        alone = kind()
        for same in ("encoders", "join", "memory"):
            getattr(alone, same).load_state_dict(getattr(joint.model, same).state_dict())
        alone.decoder.load_state_dict(joint.model.decoder.decoders[name].state_dict())
        part = explainer(alone, alpha=0.3)
        say_texts(part.task)
        expected = part.explain(batch)
        truths |= localization(expected)
        for row, answers in enumerate(look.answers):
            slots = [slot for slot, answer in enumerate(answers) if answer.output == f"{name}/logits"]
            assert [replace(answers[slot], output="logits") for slot in slots] == expected.answers[row]
            for values, others in (
                (look.probability, expected.probability),
                (look.rollout.inputs, expected.rollout.inputs),
                (look.rollout.residual, expected.rollout.residual),
                (look.rollout.latents["cross0"], expected.rollout.latents["cross0"]),
                (look.relevance, expected.relevance),
            ):
                torch.testing.assert_close(values[row, slots], others[row, : len(slots)])
    torch.testing.assert_close(localization(look), truths)
    assert {"relevance/energy_in_box", "relevance/energy_in_box_colour", "word_overlap"} < truths.keys()


@KINDS
@MASKS
def test_in_several_parts_it_is_what_it_is_at_once(monkeypatch, make, masks):
    explainer, batch = make(masks)
    whole = explainer.explain(batch)
    passes = []
    for tokens_at_once in (1, 2 * 55):
        monkeypatch.setattr("perceiver.inspection.explanation.TOKENS_AT_ONCE", tokens_at_once)
        hook = explainer.model.register_forward_hook(lambda *_: passes.append(1))
        parts = explainer.explain(batch)
        hook.remove()
        scale = whole.relevance.max()
        torch.testing.assert_close(parts.relevance / scale, whole.relevance / scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.rollout.inputs, whole.rollout.inputs)
        torch.testing.assert_close(parts.probability, whole.probability)
    assert len(passes) == (1 + 3) + (1 + 2)


def test_where_all_classes_are_asked_for_at_once_they_share_a_rollout_but_not_their_relevance():
    explainer, batch = classified(masks=False)
    look = explainer.explain(batch)
    assert look.own == [[], [], []]
    for slot in (1, 2):
        torch.testing.assert_close(look.rollout.inputs[:, slot], look.rollout.inputs[:, 0])
        assert ((look.relevance[:, slot] - look.relevance[:, 0]).abs().amax(dim=-1) > 0).all()


def test_where_each_class_asks_for_itself_it_has_its_own_rollout():
    explainer, batch = tagged(masks=False)
    look = explainer.explain(batch)
    assert look.own == look.answers
    assert all(len(row) == 3 for row in look.own)
    assert ((look.rollout.inputs[:, 1] - look.rollout.inputs[:, 0]).abs().amax(dim=-1) > 1e-4).all()
    best = logits(explainer.model, batch.inputs, batch.masks).topk(3).indices.tolist()
    assert [[answer.label for answer in row] for row in look.answers] == best


def test_words_have_their_own_rollouts_and_what_was_said_before_is_not_written_anew(monkeypatch):
    explainer, batch = captioned(masks=False)
    look = explainer.explain(batch, [[{"caption": text}] for text in TEXTS])
    assert [[answer.name for answer in row] for row in look.answers] == [
        ["a", "small", "red", "circle"],
        [],
        ["blue", "squares"],
    ]
    assert look.relevance.shape[:2] == look.probability.shape == (3, 4)
    said_anything = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    torch.testing.assert_close(look.rollout.inputs.sum(dim=-1) + look.rollout.residual, said_anything.float())
    monkeypatch.setattr("perceiver.inspection.explanation.TOKENS_AT_ONCE", 1)
    parts = explainer.explain(batch, [[{"caption": text}] for text in TEXTS])
    torch.testing.assert_close(parts.relevance, look.relevance)
    assert (look.relevance[~said_anything] == 0).all()


@KINDS
def test_a_model_that_says_nothing_has_no_maps(monkeypatch, make):
    explainer, batch = make(False)
    monkeypatch.setattr("perceiver.inspection.explanation.TOKENS_AT_ONCE", 2 * 55)
    answers = explainer.task.answers

    def silent(*args):
        return [[] for _ in answers(*args)]

    monkeypatch.setattr(explainer.task, "answers", silent)
    look = explainer.explain(batch)
    assert look.relevance.shape == (3, 0, 55)
    assert look.rollout.inputs.shape == (3, 0, 55)
    assert look.probability.shape == (3, 0)
    assert contact_sheets(look, {}, num_latents=1)
    assert faithfulness(explainer, look, seed=0).num_samples == 0


@KINDS
def test_the_mean_map_is_that_of_all_latents_and_cross_attends(make):
    explainer, batch = make(True)
    look = explainer.explain(batch)
    expected = torch.stack([look.record.map(name).mean(dim=1) for name in look.record.readers]).mean(dim=0)
    maps = look.maps
    assert list(maps) == ["relevance", "rollout", "mean_map"]
    assert len({found.shape for found in maps.values()}) == 1
    for slot in range(maps["mean_map"].shape[1]):
        torch.testing.assert_close(maps["mean_map"][:, slot], expected)


def test_inputs_are_converted_and_the_precision_is_that_of_the_context():
    explainer, batch = classified(masks=False)
    exact = explainer.explain(batch)
    other = Explainer(
        explainer.model,
        explainer.task,
        CLASS_NAMES,
        0.5,
        converted=lambda inputs: {name: values.float() for name, values in inputs.items()},
        forward_context=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    batch.inputs = {name: values.double() for name, values in batch.inputs.items()}
    look = other.explain(batch)
    assert look.record.layers["cross0"].q.dtype == torch.bfloat16
    assert look.relevance.dtype == look.rollout.inputs.dtype == torch.float32
    torch.testing.assert_close(look.rollout.inputs, exact.rollout.inputs, rtol=0, atol=0.02)


@pytest.mark.parametrize("make", [classified, tagged], ids=lambda make: make.__name__)
def test_classes_that_truly_apply_follow_the_likeliest_ones_as_if_they_were_among_them(make):
    explainer, batch = make(masks=False)
    plain = explainer.explain(batch)
    scores = logits(explainer.model, batch.inputs, batch.masks)
    ranking = scores.argsort(descending=True).tolist()
    best, unlikely, least = ranking[0][1], *sorted(ranking[0][-2:])
    boxes = [Box(label, "image", {"x": (0.0, 5.0 + at)}) for at, label in enumerate((least, best, unlikely, least))]
    batch.targets["boxes"] = [boxes, None, [Box(ranking[2][0], "depth", {})]]
    look = explainer.explain(batch)
    assert [[answer.label for answer in row] for row in look.answers] == [
        [*ranking[0][:3], unlikely, least],
        ranking[1][:3],
        ranking[2][:3],
    ]
    assert [list(answer.boxes) for answer in look.answers[0]] == [[], [boxes[1]], [], [boxes[2]], [boxes[0], boxes[3]]]
    assert [len(answer.boxes) for row in look.answers[1:] for answer in row] == [0, 0, 0, 1, 0, 0]
    assert [answer.name for answer in look.answers[0]] == [CLASS_NAMES[answer.label] for answer in look.answers[0]]
    for row, answers in enumerate(plain.answers):
        assert [replace(answer, boxes=()) for answer in look.answers[row]][: len(answers)] == answers
        for name in ("probability", "relevance"):
            torch.testing.assert_close(getattr(look, name)[row, :3], getattr(plain, name)[row])
        torch.testing.assert_close(look.rollout.inputs[row, :3], plain.rollout.inputs[row])


def test_one_query_for_all_classes_is_no_query_of_any():
    look = seen(perceiver_io(decoder=query_decoder(1)), small_inputs())
    assert look.own == [[], [], []]
    assert (look.rollout.inputs.sum(dim=-1) > 0.1).all()


def test_a_look_leaves_the_model_as_it_was():
    explainer, batch = captioned(masks=False)
    explainer.model.train()
    state, modes = torch.get_rng_state(), [module.training for module in explainer.model.modules()]
    faithfulness(explainer, explainer.explain(batch), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in explainer.model.modules()] == modes
    assert all(parameter.grad is None for parameter in explainer.model.parameters())


def test_parts_of_a_batch_are_all_of_it_in_order():
    batch = labelled(small_inputs(), some_masks())
    parts = list(in_parts(batch, 2))
    assert [rows for rows, _ in parts] == [slice(0, 2), slice(2, 4)]
    assert [part.ids for _, part in parts] == [["s/0", "s/1"], ["s/2"]]
    for name, values in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for _, part in parts]), values)
        assert torch.equal(torch.cat([part.masks[name] for _, part in parts]), batch.masks[name])
    assert F.one_hot(torch.cat([part.targets["label"] for _, part in parts]), 3).trace() == 3
