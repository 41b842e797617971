"""Several decoders on one memory, each of which gives what it gives alone."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.joint import JointDecoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.queries import QueryDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.mechanisms.base import Mechanism
from perceiver.queries.learned import Learned
from perceiver.queries.text import Text
from perceiver.types import Memory

BATCH, LENGTH, DIM, VOCAB = 3, 11, 13, 31
BLOCK = BlockSpec(num_heads=1, qk_dim=7)


def text(num_layers: int) -> TextDecoder:
    queries = Text(vocab_size=VOCAB, max_length=19, dim=17)
    blocks = {"self_attention": BLOCK, "cross_attention": BLOCK}
    return TextDecoder(dim=DIM, queries=queries, num_layers=num_layers, dropout=0.0, tied=True, **blocks)


@pytest.fixture
def parts():
    learned = QueryDecoder(dim=DIM, num_classes=5, queries=Learned(num_queries=1, dim=17), attention=BLOCK)
    return {"kind": PooledDecoder(dim=DIM, num_classes=2), "label": learned, "title": text(1), "story": text(2)}


@pytest.fixture
def memory():
    return Memory(torch.randn(BATCH, LENGTH, DIM), torch.rand(BATCH, LENGTH) < 0.7)


def test_outputs_are_those_of_its_decoders_by_their_names(parts, memory):
    joint = JointDecoder(decoders=parts).eval()
    assert joint.needs_queries == {"title/logits": "token_ids", "story/logits": "token_ids"}
    ids = {name: torch.randint(VOCAB, (BATCH * count, 7)) for name, count in (("title", 1), ("story", 2))}
    outputs = joint(memory, {f"{name}/logits": of_one for name, of_one in ids.items()})
    expected = {name: part(memory, {"logits": ids.get(name)})["logits"] for name, part in parts.items()}
    assert_close(outputs, {f"{name}/logits": values for name, values in expected.items()})


@pytest.mark.parametrize("name", ["title", "story"])
def test_a_text_is_generated_by_its_own_decoder(parts, memory, name):
    texts, expected = (
        JointDecoder(decoders=parts).eval().incremental_decoder(memory, f"{name}/logits"),
        parts[name].incremental_decoder(memory, "logits"),
    )
    for _ in range(3):
        ids = torch.randint(VOCAB, (BATCH,))
        assert_close(texts.next(ids), expected.next(ids))


@pytest.mark.parametrize("output", ["label/logits", "title/words", "poem/logits", "logits"])
def test_what_none_of_them_generates_is_named(parts, memory, output):
    with pytest.raises(
        ValueError, match=f"generates no output '{output.removeprefix('label/').removeprefix('title/')}'"
    ):
        JointDecoder(decoders=parts).incremental_decoder(memory, output)


def test_roles_say_to_which_decoder_they_belong(parts):
    roles = [part.role for part in JointDecoder(decoders=parts).modules() if isinstance(part, Mechanism)]
    assert [(role.decoder, role.name) for role in roles] == [
        ("label", "decode"),
        *[("title", "decode_self"), ("title", "decode")],
        *[("story", "decode_self"), ("story", "decode")] * 2,
    ]
    nested = JointDecoder(decoders={"a": JointDecoder(decoders={"b": text(1)})})
    assert {part.role.decoder for part in nested.modules() if isinstance(part, Mechanism)} == {"a/b"}
    alone = [part.role.decoder for part in text(1).modules() if isinstance(part, Mechanism)]
    assert alone == [None, None], "which the roles of others do not"


def test_none_at_all_are_refused():
    with pytest.raises(ValueError, match=r"decoders=\{\}"):
        JointDecoder(decoders={})
