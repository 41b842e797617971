"""Choices: from the logits of a query to its weights.

soft              softmax over keys (Bahdanau et al. 2015, eq. 6)
sparse            α-entmax (Peters et al. 2019, section 3): zero for unlikely keys; α = 2 is sparsemax
straight-through  the likeliest key alone, with the gradients of softmax (Bengio et al. 2013)
sampled           in training one key drawn from softmax, then the likeliest one (Xu et al. 2015, section 4.1)
over queries      softmax over queries, divided by the sum over keys (Locatello et al. 2020, eq. 1 and 2)
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.entmax import entmax
from perceiver.mechanisms.base import Pairs, Pairwise
from perceiver.reinforce import Reinforce


class Soft(nn.Module):
    """Softmax over keys; and the base of all choices: logits, and which keys are allowed -> weights.

    Attributes:
        has_relevance, has_scores: see `Mechanism`.
        over_queries: whether the weights of a query depend on the other queries.
    """

    has_relevance: bool = True
    has_scores: bool = True
    over_queries: bool = False

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        """Return the weights in evaluation; see `Mechanism.weights`."""
        return masked_softmax(logits, allowed)

    def draw(self, logits: Pairwise, allowed: Pairs | None) -> tuple[Tensor, ...]:
        """Return the weights in training, and the arguments of `record`, which get those of all queries."""
        return (self.weights(logits, allowed),)

    def record(self, *values: Float[Tensor, "batch heads queries"]) -> None: ...


class OverQueries(Soft):
    """Softmax over queries, which compete for keys, then the weighted mean: a softmax of logits less those of a key."""

    has_scores = False
    over_queries = True

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        return super().weights(logits - _filled(logits, allowed).logsumexp(dim=2, keepdim=True), allowed)


class Sparse(Soft):
    """Entmax with the parameter `alpha`: the larger, the fewer keys have a weight."""

    has_scores = False

    def __init__(self, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        return _zeroed(entmax(_filled(logits, allowed), self.alpha), allowed)


class StraightThrough(Soft):
    """The likeliest key, with the gradients of softmax."""

    has_relevance = has_scores = False

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        soft = super().weights(logits, allowed)
        return _likeliest(soft, allowed) + (soft - soft.detach())


class Sampled(Soft):
    """A key drawn from softmax in training, which is learned by REINFORCE.

    Deviation: it is each query, not each sample, that reads the expected value in a share of the cases.

    Args:
        soft_share: probability with which a query reads the mean over keys in training; 0.5 in the paper.
        estimator: builds the estimator of the gradient.
    """

    has_relevance = has_scores = False

    def __init__(self, *, soft_share: float, estimator: Callable[[], Reinforce]) -> None:
        super().__init__()
        if not 0.0 <= soft_share < 1.0:
            raise ValueError(f"soft_share={soft_share} must be at least 0 and less than 1")
        self.soft_share = soft_share
        self.estimator = estimator()

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        return _likeliest(logits, allowed)

    def draw(self, logits: Pairwise, allowed: Pairs | None) -> tuple[Tensor, ...]:
        soft, logs = super().weights(logits, allowed), _filled(logits, allowed).log_softmax(dim=-1)
        noise = -torch.empty_like(logs).exponential_().log()  # Gumbel: the largest sum is a draw
        drawn = _likeliest(logs.detach() + noise, allowed)
        is_soft = torch.rand_like(logs[..., :1]) < self.soft_share
        log_probability = torch.where(drawn.bool() & ~is_soft, logs, 0.0).sum(dim=-1)
        return torch.where(is_soft, soft, drawn), log_probability, torch.special.entr(soft).sum(dim=-1)

    def record(self, *values: Float[Tensor, "batch heads queries"]) -> None:
        self.estimator.record(*values)


def _likeliest(values: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return a weight of 1 for the allowed key with the largest value."""
    largest = _filled(values, allowed).argmax(dim=-1)
    return _zeroed(F.one_hot(largest, values.shape[-1]).to(values.dtype), allowed)


def masked_softmax(logits: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return the softmax over allowed keys; zeros for a query that may attend to no key."""
    return _zeroed(_filled(logits, allowed).softmax(dim=-1), allowed)


def _filled(logits: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return logits with the lowest number for other keys, which keeps rows without a key finite, unlike -inf."""
    return logits if allowed is None else logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)


def _zeroed(weights: Pairwise, allowed: Pairs | None) -> Pairwise:
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)
