"""Random choice of the cells of an input that are hidden and asked for.

Masked autoencoding (He et al. 2022, arXiv:2111.06377) hides a share of the patches, masked language modeling (Devlin
et al. 2019, arXiv:1810.04805) of the tokens. Hidden tokens are not read, as in the former; there is no mask token,
since the query of a place does not depend on what the model reads.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What happens in training to some of the chosen cells in place of being hidden (BERT: 0.1 and 0.1).

    Attributes:
        random: probability that the content is replaced by another one.
        kept: probability that it stays.

    Raises:
        ValueError: they are no probabilities.
    """

    random: float
    kept: float

    def __post_init__(self) -> None:
        if min(self.random, self.kept) < 0.0 or self.random + self.kept > 1.0:
            raise ValueError(f"random={self.random} and kept={self.kept} must be probabilities whose sum is at most 1")


@dataclass(frozen=True)
class Choice:
    """Cells that are asked for.

    Attributes:
        cells: their numbers.
        valid: False for those that only fill up a row.
        hidden: which cells of the input are not read; None if all are.
        replaced: which cells have another content; None if none have.
    """

    cells: Int[Tensor, "rows asked"]
    valid: Bool[Tensor, "rows asked"]
    hidden: Bool[Tensor, "rows cells"] | None
    replaced: Bool[Tensor, "rows cells"] | None

    def __getitem__(self, rows: slice) -> "Choice":
        """Return the cells that are asked for in some rows."""
        hidden, replaced = (None if one is None else one[rows] for one in (self.hidden, self.replaced))
        return Choice(self.cells[rows], self.valid[rows], hidden, replaced)


def draws(names: Sequence[str], num_cells: int) -> Float[Tensor, "rows cells"]:
    """Return random numbers that depend on the name of a row alone."""
    rows = []
    for name in names:
        seed = hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=7).digest()
        rows.append(torch.rand(num_cells, generator=torch.Generator().manual_seed(int.from_bytes(seed))))
    return torch.stack(rows) if rows else torch.zeros(0, num_cells)


def choose(
    scorable: Bool[Tensor, "rows cells"],
    numbers: Float[Tensor, "rows one_more"],
    *,
    share: float,
    replacement: Replacement | None = None,
) -> Choice:
    """Choose a share of the cells of each row that may be chosen; all and none of them hidden if the share is 0.

    Args:
        scorable: which cells may be chosen.
        numbers: random numbers, one more than there are cells.
        share: of n cells, `share` · n are chosen, rounded up or down at random, so that it is the mean share. A larger
            input of the same random numbers has other cells.
        replacement: what happens to some of the chosen cells; drawn from torch's global generator.
    """
    num_cells = scorable.shape[1]
    counts = scorable.sum(dim=1)
    if share:
        # Rounded, since a share such as 0.15 has no exact representation.
        counts = ((share * counts.double()).mul(1e6).round().div(1e6) + numbers[:, -1]).floor().long()
    most = math.ceil(round(share * num_cells, 6)) if share else num_cells
    order = numbers[:, :num_cells].masked_fill(~scorable, torch.inf).argsort(dim=1, stable=True)
    cells = order[:, :most]
    valid = torch.arange(most, device=cells.device) < counts[:, None]
    if not share:
        return Choice(cells, valid, None, None)
    hidden = valid
    none = torch.zeros_like(scorable)
    if replacement is None:
        return Choice(cells, valid, none.scatter(1, cells, hidden), None)
    fate = torch.rand(cells.shape, device=cells.device)
    replaced = valid & (fate < replacement.random)
    hidden = valid & (fate >= replacement.random + replacement.kept)
    return Choice(cells, valid, none.scatter(1, cells, hidden), none.scatter(1, cells, replaced))
