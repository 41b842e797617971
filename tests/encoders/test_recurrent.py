"""Recurrent layers run over real tokens alone, in both directions, and a pyramid halves their number."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.recurrent import RecurrentEncoder, concatenate_pairs
from perceiver.encoders.text import TextEncoder
from perceiver.recurrent import RecurrentSpec, run_layers
from perceiver.types import Axis, Grid, Tokens

VOCAB, DIM, LENGTH = 17, 5, 11


def encoder(cell: str = "gru", *, pyramid: bool = False, num_layers: int = 3) -> RecurrentEncoder:
    return RecurrentEncoder(
        encoder=TextEncoder(vocab_size=VOCAB, dim=DIM, positions=None, init_std=1.0),
        recurrent=RecurrentSpec(cell=cell, hidden_dim=7, num_layers=num_layers, dropout=0.0),
        bidirectional=True,
        pyramid=pyramid,
    )


@pytest.mark.parametrize(("cell", "pyramid"), [*product(["gru", "lstm"], [False, True])])
def test_padding_changes_no_real_token_in_either_direction_and_gets_no_gradient(cell, pyramid):
    made, raw = encoder(cell, pyramid=pyramid), torch.randint(VOCAB, (3, 1, LENGTH))
    lengths = [LENGTH, 7, 0]
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    tokens = made(raw, mask)
    for row, length in enumerate(lengths[:2]):
        alone = made(raw[row : row + 1, :, :length])
        size = alone.values.shape[1]
        assert_close(tokens.values[row, :size], alone.values[0], atol=1e-6, rtol=0)
        assert tokens.mask[row].tolist() == [True] * size + [False] * (tokens.values.shape[1] - size)
    assert not tokens.values[~tokens.mask].any()
    masked = raw.masked_fill(~mask[:, None], 10**6)
    assert_close(made(masked, mask).values, tokens.values, atol=0, rtol=0)
    tokens.values.square().sum().backward()
    used = {int(id) for row, length in enumerate(lengths) for id in raw[row, 0, :length]}
    assert made.encoder.embedding.weight.grad[[id for id in range(VOCAB) if id not in used]].eq(0).all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_real_elements_anywhere_are_read_in_order_and_the_state_is_the_last_one(cell):
    spec = RecurrentSpec(cell=cell, hidden_dim=7, num_layers=2, dropout=0.0)
    layers, mask = spec.layers(DIM, 2), torch.tensor([[False, True, True, False, True]])
    x = torch.randn(1, 5, DIM).masked_fill(~mask[..., None], torch.nan)
    out, state = run_layers(layers, x, mask=mask)
    expected, expected_state = run_layers(layers, x[mask][None])
    assert_close(out[mask], expected[0])
    assert len(state) == spec.num_states
    assert_close(state, expected_state)


@pytest.mark.parametrize(("cell", "bidirectional"), [*product(["gru", "lstm"], [False, True])])
def test_the_steps_of_an_exported_graph_compute_the_same(monkeypatch, cell, bidirectional):
    layers = RecurrentSpec(cell=cell, hidden_dim=7, num_layers=2, dropout=0.0).layers(
        DIM, 2, bidirectional=bidirectional
    )
    x, mask = torch.randn(3, 11, DIM), torch.rand(3, 11) < 0.5
    mask[:, 4] = True
    state = run_layers(layers, x)[1]
    cases = [(None, None), (state, None), (None, mask), (state, mask)]
    expected = [run_layers(layers, x, before, real) for before, real in cases]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert_close([run_layers(layers, x, before, real) for before, real in cases], expected, atol=1e-6, rtol=0)


def test_a_pyramid_concatenates_pairs_which_cover_the_places_of_both():
    axis = Axis("time", "s", 0.5, 3.0)
    values = torch.arange(10.0).reshape(1, 5, 2)
    tokens = concatenate_pairs(Tokens(values, None, Grid((1, 5), (Axis("y", "Hz", 0.0, 1.0), axis))))
    assert tokens.values.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]]
    assert tokens.grid.shape == (1, 3)
    assert tokens.grid.axes[1] == Axis("time", "s", 0.5, 3.5)  # three cells of one second
    with pytest.raises(ValueError, match=r"pyramid=true .*\[2, 5\]"):
        concatenate_pairs(Tokens(torch.zeros(1, 10, 2), None, Grid((2, 5), (axis, axis))))
    assert encoder(pyramid=True)(torch.zeros(1, 1, LENGTH, dtype=torch.long)).grid.shape == (3,)


@pytest.mark.parametrize("wrong", [{"cell": "rnn"}, {"hidden_dim": 0}, {"num_layers": 0}, {"dropout": 1.0}])
def test_sizes_that_are_not_valid_are_refused(wrong):
    [(key, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        RecurrentSpec(**({"cell": "gru", "hidden_dim": 7, "num_layers": 2, "dropout": 0.0} | wrong))
