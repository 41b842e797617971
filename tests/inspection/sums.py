"""A model whose answers are sums over its tokens, so that curves and attributions have closed forms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceiver.decoders.base import LOGITS
from perceiver.inspection.evaluation.faithfulness import FaithfulnessCurves, SampleMaps, faithfulness_curves
from perceiver.inspection.maps.capture import Capture
from perceiver.types import Answer, Axis, Grid, JoinedTokens, Span
from tests.inspection.models import of_class


class SumOfTokens(nn.Module):
    """A model whose token `t` adds `tokens[t, k]` to the value of class k, and which stores what is visible."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.power = power
        self.shown: list[Tensor] = []

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return outputs

    def forward_tokens(self, tokens: JoinedTokens, queries) -> dict[str, Tensor]:
        assert (tokens.values[~tokens.mask] == 0).all(), "masked tokens are zero"
        self.shown.append(tokens.mask)
        return {LOGITS: tokens.values.sum(dim=1) ** self.power}


def record_of(tokens: Tensor, mask: Tensor | None = None, *shape: int) -> Capture:
    """The record of a forward pass with these tokens, on a grid; by default along one axis."""
    grid = Grid(shape or (tokens.shape[1],), tuple(Axis(name, "", 0.0, 1.0) for name in "yxt"[: len(shape) or 1]))
    record = Capture()
    record.tokens = JoinedTokens(tokens, mask, {"x": Span(0, tokens.shape[1], grid)})
    return record


def measured(
    tokens: Tensor,
    maps: dict[str, Tensor],
    answers: Sequence[Sequence[Answer]] | None = None,
    mask: Tensor | None = None,
    *,
    ids: Sequence[str] | None = None,
    num_orders: int = 3,
    before: SampleMaps | None = None,
) -> tuple[FaithfulnessCurves, SumOfTokens]:
    """The curves of maps [batch, answers, tokens] for a `SumOfTokens`, by default of its class 0."""
    model = SumOfTokens()
    found = faithfulness_curves(
        model,
        record_of(tokens, mask),
        maps,
        [[of_class(0)]] * len(tokens) if answers is None else answers,
        ids=[str(row) for row in range(len(tokens))] if ids is None else ids,
        num_orders=num_orders,
        before=before,
    )
    return found, model


def some_tokens(batch: int, num_tokens: int, num_classes: int) -> Tensor:
    """Parts of the probabilities of all classes, few tokens having most of them."""
    tokens = torch.rand(batch, num_tokens, num_classes) ** 5
    return tokens / tokens.sum(dim=(1, 2), keepdim=True)
