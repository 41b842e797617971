"""Memory without bottleneck: the tokens themselves, with their mask and their places."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.direct import Direct
from perceiver.mechanisms.base import Mechanism
from perceiver.roles import ENCODE
from perceiver.types import Axis, Grid, JoinedTokens, Span
from tests.models import DIM, SELF, direct, logits, small_inputs, small_perceiver

BATCH, LENGTH, INPUT_DIM = 3, 11, 31
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SPANS = {"x": Span(0, LENGTH, Grid((LENGTH,), (Axis("t", "s", 0.0, 1.0),)))}
every_depth = pytest.mark.parametrize("num_layers", [0, 1, 3])


def memory_of(num_layers: int, **options) -> Direct:
    return direct(num_layers=num_layers, **options)(input_dim=INPUT_DIM).eval()


def tokens(masked: bool = False) -> JoinedTokens:
    """The last sample has nothing real where tokens are masked."""
    mask = torch.arange(LENGTH) < torch.tensor([7, 2, 0])[:, None] if masked else None
    return JoinedTokens(torch.randn(BATCH, LENGTH, INPUT_DIM), mask, SPANS)


@every_depth
@pytest.mark.parametrize("masked", [False, True])
def test_memory_has_an_element_for_each_token_and_knows_its_mask_and_place(num_layers, masked):
    given = tokens(masked)
    memory = memory_of(num_layers)(given)
    assert memory.values.shape == (BATCH, LENGTH, DIM)
    assert (memory.mask, memory.spans) == (given.mask, SPANS)


def test_without_layers_it_is_the_projection_of_the_tokens():
    part, given = memory_of(0), tokens()
    assert_close(part(given).values, given.values @ part.projection.weight.T + part.projection.bias)


@every_depth
@pytest.mark.parametrize("junk", [1e3, float("nan"), float("inf")])
def test_what_is_masked_changes_nothing_and_is_zero(num_layers, junk):
    part, given = memory_of(num_layers), tokens(masked=True)
    memory = part(given)
    spoilt = given.values.masked_fill(~given.mask[..., None], junk)
    assert_close(part(JoinedTokens(spoilt, given.mask, SPANS)).values, memory.values, atol=0, rtol=0)
    assert (memory.values[~given.mask] == 0).all()
    for row, count in enumerate((7, 2)):
        alone = part(JoinedTokens(given.values[row : row + 1, :count], None, SPANS))
        assert_close(memory.values[row, :count], alone.values[0], **CLOSE)


@every_depth
def test_permuting_the_tokens_permutes_the_memory(num_layers):
    part, given, order = memory_of(num_layers), tokens(masked=True), torch.randperm(LENGTH)
    shuffled = part(JoinedTokens(given.values[:, order], given.mask[:, order], SPANS))
    assert_close(shuffled.values, part(given).values[:, order], **CLOSE)


def test_with_layers_each_element_depends_on_every_token():
    given, part = tokens(), memory_of(1)
    given.values.requires_grad_()
    (gradient,) = torch.autograd.grad(part(given).values[0, 3].sum(), given.values)
    assert (gradient[0] != 0).any(dim=1).all()
    assert (gradient[1:] == 0).all()


@every_depth
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_gradients_are_finite_and_reach_every_weight_and_every_real_token(num_layers, activation_checkpointing):
    part, given = memory_of(num_layers, activation_checkpointing=activation_checkpointing).train(), tokens(masked=True)
    given.values.requires_grad_()
    part(given).values.square().sum().backward()
    assert ((given.values.grad != 0).any(dim=2) == given.mask).all()
    for name, parameter in part.named_parameters():
        assert parameter.grad.isfinite().all()
        # A key bias shifts all logits of a query alike, which the softmax does not see.
        assert name.endswith("key.bias") or (parameter.grad != 0).any(), name


def test_its_attention_is_of_tokens_to_tokens():
    roles = [part.role for part in memory_of(3).modules() if isinstance(part, Mechanism)]
    assert roles == [ENCODE] * 3


def test_a_model_reads_several_modalities_and_samples_that_lack_some():
    model, inputs = small_perceiver(memory=direct(self_attention=SELF)), small_inputs()
    masks = {"image": torch.tensor([True, False, True]), "depth": torch.rand(3, 5, 7) < 0.7}
    out = logits(model, inputs, masks)
    alone = logits(model, {"depth": inputs["depth"][1:2]}, {"depth": masks["depth"][1:2]})
    assert_close(out[1:2], alone, **CLOSE)
    assert [*model.encode(inputs, masks).spans] == ["image", "depth"]


def test_a_number_of_layers_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="num_layers=-1 must be at least 0"):
        memory_of(-1)
