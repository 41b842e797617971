"""Choices: from the logits of a query to its weights."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.entmax import entmax
from perceiver.kernels import filled, masked_argmax, masked_softmax, zeroed
from perceiver.reinforce import Reinforce
from perceiver.types import Pairs, Pairwise


class Soft(nn.Module):
    """Softmax over keys (Bahdanau et al. 2015, eq. 6); and the base of all choices.

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
    """Softmax over queries, which compete for keys, over its sum over keys (Locatello et al. 2020, eq. 1 and 2)."""

    has_scores = False
    over_queries = True

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        return super().weights(logits - filled(logits, allowed).logsumexp(dim=2, keepdim=True), allowed)


class Sparse(Soft):
    """α-entmax (Peters et al. 2019, section 3): the larger `alpha`, the fewer keys have a weight; 2 is sparsemax."""

    has_scores = False

    def __init__(self, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        return zeroed(entmax(filled(logits, allowed), self.alpha), allowed)


class StraightThrough(Soft):
    """The likeliest key alone, with the gradients of softmax (Bengio et al. 2013)."""

    has_relevance = has_scores = False

    def weights(self, logits: Pairwise, allowed: Pairs | None) -> Pairwise:
        soft = super().weights(logits, allowed)
        return masked_argmax(soft, allowed) + (soft - soft.detach())


class Sampled(Soft):
    """In training a key drawn from softmax, learned by REINFORCE, then the likeliest one (Xu et al. 2015, section 4.1).

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
        return masked_argmax(logits, allowed)

    def draw(self, logits: Pairwise, allowed: Pairs | None) -> tuple[Tensor, ...]:
        soft, logs = super().weights(logits, allowed), filled(logits, allowed).log_softmax(dim=-1)
        noise = -torch.empty_like(logs).exponential_().log()  # Gumbel: the largest sum is a draw
        drawn = masked_argmax(logs.detach() + noise, allowed)
        is_soft = torch.rand_like(logs[..., :1]) < self.soft_share
        log_probability = torch.where(drawn.bool() & ~is_soft, logs, 0.0).sum(dim=-1)
        return torch.where(is_soft, soft, drawn), log_probability, torch.special.entr(soft).sum(dim=-1)

    def record(self, *values: Float[Tensor, "batch heads queries"]) -> None:
        self.estimator.record(*values)
