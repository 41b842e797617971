"""The recurrent decoder gives token by token what it gives all at once, and its attention is explained."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.recurrent_text import RecurrentTextDecoder
from perceiver.direct import Direct
from perceiver.encoders.text import TextEncoder
from perceiver.inspection.maps.capture import capture
from perceiver.model import Perceiver
from perceiver.queries.text import Text
from perceiver.recurrent import RecurrentSpec
from perceiver.types import Memory

ROWS, KEYS, DIM, VOCAB, LENGTH = 5, 7, 13, 31, 11
CELLS, FEEDING = ["gru", "lstm"], [False, True]


def decoder(cell: str = "gru", **overrides) -> RecurrentTextDecoder:
    defaults = {
        "dim": DIM,
        "queries": Text(vocab_size=VOCAB, max_length=19, dim=17, positions=False, init_std=1.0),
        "recurrent": RecurrentSpec(cell=cell, hidden_dim=12, num_layers=2, dropout=0.0),
        "attention": BlockSpec(num_heads=2, qk_dim=22, v_dim=26),
        "input_feeding": False,
        "teacher_forcing": 1.0,
        "initial": "ends",
        "tied": True,
    }
    return RecurrentTextDecoder(**(defaults | overrides)).eval()


def inputs() -> tuple[Memory, torch.Tensor]:
    mask = torch.arange(KEYS) < torch.tensor([KEYS, 3, 5, 1, 0])[:, None]
    return Memory(torch.randn(ROWS, KEYS, DIM), mask), torch.randint(VOCAB, (ROWS, LENGTH))


def read(made: RecurrentTextDecoder, memory: Memory, ids: torch.Tensor) -> torch.Tensor:
    return made(memory, {"logits": ids})["logits"]


@pytest.mark.parametrize(
    ("cell", "feeding", "initial", "attention"),
    [
        *((cell, feeding, "ends", BlockSpec(num_heads=2, qk_dim=22)) for cell, feeding in product(CELLS, FEEDING)),
        ("gru", True, "mean", BlockSpec(num_heads=1)),
        ("lstm", False, "zeros", BlockSpec(num_heads=1)),
        ("gru", False, "mean", None),
    ],
)
def test_token_by_token_is_all_at_once_and_rows_are_selected(cell, feeding, initial, attention):
    made = decoder(cell, input_feeding=feeding, initial=initial, attention=attention)
    memory, ids = inputs()
    logits = read(made, memory, ids)
    rows = torch.tensor([3, 0, 0, 4, 1])
    texts = made.incremental_decoder(memory, "logits")
    for place in range(LENGTH):
        if place == 4:
            texts.select(rows)
            ids, logits = ids[rows], logits[rows]
        assert_close(texts.next(ids[:, place]), logits[:, place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("feeding", "initial"), [*product(FEEDING, ["mean", "ends"])])
def test_masked_elements_change_nothing_not_even_by_nan(feeding, initial):
    made, (memory, ids) = decoder(input_feeding=feeding, initial=initial), inputs()
    other = Memory(memory.values.masked_fill(~memory.mask[..., None], 97.0), memory.mask)
    assert_close(read(made, other, ids), read(made, memory, ids), atol=1e-6, rtol=0)
    alone = read(made, Memory(memory.values[1:2, :3]), ids[1:2])
    assert_close(read(made, memory, ids)[1:2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("attention", "initial"), [(None, "zeros"), (None, "ends"), (BlockSpec(num_heads=1), "zeros")])
def test_the_memory_is_read_by_attention_and_by_the_first_state_alone(attention, initial):
    made, (memory, ids) = decoder(attention=attention, initial=initial), inputs()
    other = memory.select(torch.arange(ROWS).roll(1))
    same = torch.allclose(read(made, memory, ids), read(made, other, ids), atol=1e-5)
    assert same == (attention is None and initial == "zeros")


@pytest.mark.parametrize("feeding", FEEDING)
def test_without_teacher_forcing_training_reads_its_own_likeliest_tokens(feeding):
    made, (memory, ids) = decoder(input_feeding=feeding, teacher_forcing=0.0), inputs()
    logits = read(made.train(), memory, ids)
    own = torch.cat([ids[:, :1], logits.argmax(dim=-1)[:, :-1]], dim=1)
    assert_close(read(made.eval(), memory, own), logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(read(made, memory, ids), logits)


def model(**overrides) -> Perceiver:
    def direct(*, input_dim: int) -> nn.Module:
        return Direct(dim=DIM, input_dim=input_dim, num_layers=0, self_attention=BlockSpec(num_heads=1))

    encoder = TextEncoder(vocab_size=VOCAB, dim=5, positions=None, init_std=1.0)
    return Perceiver(encoders={"text": encoder}, memory=direct, decoder=decoder(**overrides)).eval()


@pytest.mark.parametrize("feeding", FEEDING)
def test_its_attention_is_one_layer_with_a_query_for_each_token_also_with_gradients(feeding):
    made, ids = model(input_feeding=feeding), torch.randint(VOCAB, (2, LENGTH))
    texts = torch.randint(VOCAB, (2, 1, KEYS))
    with capture(made, gradients=True) as record:
        logits = made({"text": texts}, queries={"logits": ids})["logits"]
        layer = record.layers["decode0"]
        assert list(record.layers) == ["decode0"]
        assert_close(layer.weights() @ layer.v, torch.cat(layer.outs, dim=2), atol=1e-5, rtol=1e-5)
        assert layer.num_queries == LENGTH
        relevance = record.relevance(logits[:, [3, 0], [5, 2]])
    assert relevance.shape == (2, 2, KEYS)
    assert (relevance.sum(dim=-1) > 0).all()
    with capture(made) as record:
        made({"text": texts}, queries={"logits": ids})
        assert_close(record.rollout().inputs, record.map("decode0"))
        assert_close(record.map("decode0").sum(dim=-1), torch.ones(2, LENGTH))


@pytest.mark.parametrize("wrong", [{"teacher_forcing": 1.5}, {"initial": "last"}])
def test_settings_that_are_not_valid_are_refused(wrong):
    [(key, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        decoder(**wrong)
