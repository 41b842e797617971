import pytest
import torch

from perceiver.decoders.base import LOGITS
from perceiver.inspection.explanation import answer_readers, own_answers, said
from perceiver.types import Answer
from tests.inspection.models import NUM_WORDS, look, perceiver, perceiver_io, perceiver_text
from tests.models import NUM_CLASSES


def of_class(label: int) -> Answer:
    return Answer(f"class {label}", (label,), LOGITS, label=label)


def word(queries: tuple[int, ...], ids: tuple[int, ...]) -> Answer:
    return Answer("word", queries, LOGITS, ids=ids)


def test_of_a_class_it_is_its_own_value_and_zero_where_a_row_has_fewer():
    values = torch.randn(3, 5)
    found = said({LOGITS: values}, [[of_class(4), of_class(0)], [], [of_class(3)]])
    expected = torch.stack([values[0, [4, 0]], torch.zeros(2), torch.tensor([values[2, 3], 0.0])])
    assert torch.equal(found, expected)


def test_of_a_word_it_is_the_sum_over_its_ids_each_at_its_own_place():
    values = torch.randn(2, 7, 11)
    found = said({LOGITS: values}, [[word((1,), (10,))], [word((0, 3, 6), (2, 2, 5)), word((4,), (7,))]])
    expected = [
        [values[0, 1, 10], 0.0],
        [values[1, 0, 2] + values[1, 3, 2] + values[1, 6, 5], values[1, 4, 7]],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_what_no_query_said_is_zero():
    assert said({LOGITS: torch.randn(1, 7, 11)}, [[word((), ()), word((2,), (3,))]])[0, 0] == 0.0


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 11)])
def test_where_nothing_was_said_there_are_no_values(shape):
    assert said({LOGITS: torch.randn(shape)}, [[], []]).shape == (2, 0)


def test_it_can_be_differentiated():
    values = torch.randn(2, 7, 11, requires_grad=True)
    said({LOGITS: values}, [[], [word((0, 3), (2, 5))]]).sum().backward()
    assert values.grad.nonzero().tolist() == [[1, 0, 2], [1, 3, 5]]


@pytest.mark.parametrize(
    ("make", "num_classes"),
    [(perceiver, NUM_CLASSES), (perceiver_io, NUM_CLASSES + 2), (perceiver_io, NUM_CLASSES - 2)],
)
def test_classes_without_queries_of_their_own_are_read_by_all(make, num_classes):
    record, answers = look(make()), [[of_class(2), of_class(0)], [], [of_class(1)]]
    assert own_answers(record, answers, num_classes) == [[], [], []]
    count = record.num_outputs
    readers = answer_readers(record, answers, num_classes)
    torch.testing.assert_close(readers[0], torch.full((2, count), 1 / count))
    assert (readers[1] == 0).all()
    assert readers.shape == (3, 2, count)


def test_classes_that_ask_for_themselves_have_their_own_query():
    record, answers = look(perceiver_io()), [[of_class(2)], [of_class(18)], []]
    assert own_answers(record, answers, NUM_CLASSES) == answers
    readers = answer_readers(record, answers, NUM_CLASSES)
    assert readers.nonzero().tolist() == [[0, 0, 2], [1, 0, 18]]
    assert readers.sum(dim=-1).tolist() == [[1.0], [1.0], [0.0]]


def test_words_have_the_queries_that_said_them():
    record, answers = look(perceiver_text()), [[word((1, 4), (3, 5))], [], [word((6,), (3,)), word((), ())]]
    assert own_answers(record, answers, 0) == answers
    readers = answer_readers(record, answers, 0)
    assert readers.shape == (3, 2, NUM_WORDS)
    assert readers.nonzero().tolist() == [[0, 0, 1], [0, 0, 4], [2, 0, 6]]
    torch.testing.assert_close(readers[0, 0, [1, 4]], torch.tensor([0.5, 0.5]))
