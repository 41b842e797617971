import pytest
import torch

from perceiver.inspection.capture import capture
from perceiver.inspection.explanation import Explainer
from perceiver.tasks.generation import Sampling
from tests.inspection.models import (
    NUM_WORDS,
    asked,
    beams,
    captioning,
    captions,
    forward_record,
    perceiver_text,
    some_words,
)
from tests.models import small_inputs


@pytest.mark.parametrize("name", ["decode_self0", "decode_self1"])
def test_words_see_themselves_and_what_comes_before_and_nothing_that_comes_later(name):
    captured = forward_record(perceiver_text())
    weights = captured.layers[name].weights()
    assert (weights.triu(diagonal=1) == 0).all()
    assert (weights > 0).all(dim=(0, 1)).equal(torch.ones(NUM_WORDS, NUM_WORDS).tril().bool())
    torch.testing.assert_close(captured.map(name, queries=[5, 2]), weights.mean(dim=1)[:, [5, 2]])


def test_every_layer_has_the_shape_of_what_it_reads_by_what_is_read():
    captured = forward_record(perceiver_text())
    shapes = {
        "cross": (3, 3, 11, 4 * 5 + 5 * 7),
        "self": (3, 2, 11, 11),
        "decode_self": (3, 2, NUM_WORDS, NUM_WORDS),
        "decode": (3, 5, NUM_WORDS, 11),
    }
    assert {layer.role.name for layer in captured.layers.values()} == shapes.keys()
    for layer in captured.layers.values():
        assert layer.weights().shape == shapes[layer.role.name]
    assert captured.num_outputs == NUM_WORDS


def test_words_that_come_later_change_no_map_of_those_before():
    model, inputs, words = perceiver_text(), small_inputs(), some_words()
    before = forward_record(model, inputs, words=words)
    words[:, 5:] = words[:, 5:].flip(0)
    after = forward_record(model, inputs, words=words)
    for name in ("decode_self1", "decode1"):
        torch.testing.assert_close(after.map(name)[:, :5], before.map(name)[:, :5])
        assert not torch.allclose(after.map(name)[:, 5:], before.map(name)[:, 5:])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_in_words_leave_the_forward_pass_over_what_was_written_and_nothing_else(num_beams):
    model, inputs = perceiver_text(), small_inputs()
    task = captioning(beams(num_beams))
    found = Explainer(model, task, [], 0.5).explain(captions(inputs))
    captured, answers = found.record, found.answers
    words = task.generate(model, captions(inputs), 1).ids[:, 0]
    alone = forward_record(model, inputs, words=words)
    assert list(captured.layers) == list(alone.layers)
    for name, layer in alone.layers.items():
        assert torch.equal(captured.layers[name].weights(), layer.weights())
    assert any(answers)
    assert {query for row in answers for answer in row for query in answer.queries} <= set(range(captured.num_outputs))


def test_what_is_written_word_by_word_is_not_held():
    model, inputs = perceiver_text(), small_inputs()
    with capture(model) as captured:
        captioning().generate(model, captions(inputs), 1)
        assert not captured.layers
        model(inputs, None, asked(model, some_words()))
    assert list(captured.layers) == list(forward_record(model, inputs).layers)


def test_writing_by_chance_in_a_capture_leaves_modes_and_random_state_as_they_were():
    model = perceiver_text().train()
    chance = Sampling(temperature=1.0, top_k=0, top_p=1.0, presence_penalty=0.0, no_repeat_ngram_size=0)
    model.encoders.eval()
    batch, modes = captions(small_inputs()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with capture(model):
        captioning(chance).answer_queries(model, batch)
        assert not torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
