"""Batch norm of several processes is that of one with all their samples."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.testing import assert_close

from perceiver.encoders.norm import BatchNorm

CHANNELS = 3


def norm() -> BatchNorm:
    made = BatchNorm(CHANNELS)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([0.5, 2.0, 1.3]))
        made.bias.copy_(torch.tensor([0.1, -0.7, 0.0]))
    return made


def real(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The real cells of all rows, as rows of one cell each."""
    return values.movedim(1, -1)[mask][:, :, None, None]


def in_process(rank: int, number: int, folder: Path, rows: torch.Tensor, mask: torch.Tensor | None) -> None:
    """One of the processes: what it makes of its rows, and gradients of the sum of the squares of what is real."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=number)
    made, own = norm(), rows.clone().requires_grad_()
    out = made(own, mask)
    (out if mask is None else real(out, mask)).square().sum().backward()
    statistics = {name: value.clone() for name, value in made.named_buffers()}
    torch.save([out.detach(), own.grad, made.weight.grad, made.bias.grad, statistics], folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(5, 2), (7, 0), (2, 3, 1)], ids=str)
def test_outputs_gradients_and_statistics_are_those_of_one_process(tmp_path, sizes, masked):
    """With a mask, one sample has nothing real, and the one process gets the real cells alone."""
    torch.manual_seed(0)
    rows = 3.0 * torch.randn(sum(sizes), CHANNELS, 5, 7) + 2.0
    mask = torch.ones(len(rows), 5, 7, dtype=torch.bool)
    if masked:
        mask = torch.rand(mask.shape) < 0.7
        mask[-1] = False
    parts = rows.masked_fill(~mask[:, None], math.nan).split(sizes)
    masks = mask.split(sizes) if masked else [None] * len(sizes)
    children = []
    for rank, part in enumerate(parts):
        child = os.fork()
        if child == 0:
            try:
                in_process(rank, len(sizes), tmp_path, part, masks[rank])
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    whole, one = rows.clone().requires_grad_(), nn.BatchNorm2d(CHANNELS)
    one.load_state_dict(norm().state_dict())
    out = one(real(whole, mask))
    out.square().sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_close(real(torch.cat([part[0] for part in found]), mask), out.detach(), **close)
    assert_close(torch.cat([part[1] for part in found]), whole.grad, **close)
    assert_close(sum(part[2] for part in found), one.weight.grad, **close)
    assert_close(sum(part[3] for part in found), one.bias.grad, **close)
    for part in found:
        assert_close(part[4], dict(one.named_buffers()), **close)


def test_alone_it_is_torchs(tmp_path):
    rows, one = torch.randn(5, CHANNELS, 7, 2), nn.BatchNorm2d(CHANNELS)
    made = norm()
    one.load_state_dict(made.state_dict())
    for module in (made, one):
        module.train()
    assert torch.equal(made(rows), one(rows))
    assert torch.equal(made.eval()(rows), one.eval()(rows))


def test_where_nothing_is_real_statistics_stay_and_outputs_and_gradients_are_finite():
    made, rows = norm().train(), torch.full((5, CHANNELS, 7, 2), math.nan, requires_grad=True)
    before = {name: value.clone() for name, value in made.named_buffers()}
    out = made(rows, torch.zeros(5, 7, 2, dtype=torch.bool))
    out.sum().backward()
    assert out.isfinite().all()
    assert torch.equal(rows.grad, torch.zeros_like(rows))
    assert_close(dict(made.named_buffers()), before, atol=0, rtol=0)
