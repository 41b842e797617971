"""α-entmax (Peters et al. 2019, section 3): sparse distributions from softmax (α → 1) to sparsemax (α = 2)."""

import torch
from jaxtyping import Float
from torch import Tensor


def entmax(logits: Float[Tensor, "*batch classes"], alpha: float) -> Float[Tensor, "*batch classes"]:
    """Return ((α - 1) z - τ)₊ to the power of 1 / (α - 1) of logits z, where τ is such that each row sums to one.

    τ is found by bisection, to full precision. Gradients are those of proposition 1: diag(s) - s sᵀ / Σ s,
    where s is the result to the power of 2 - α where that is positive, and else 0.

    Raises:
        ValueError: alpha is not in (1, 2].
    """
    if not 1.0 < alpha <= 2.0:
        raise ValueError(f"alpha={alpha} of entmax must be more than 1 and at most 2")
    with torch.no_grad():
        z = (alpha - 1) * (logits - logits.amax(dim=-1, keepdim=True))
        threshold = torch.full_like(z[..., :1], -1.0)  # too low; 0 is too high
        for step in range(1, 53 if z.dtype == torch.float64 else 26):
            total = (z - threshold - 0.5**step).clamp_min(0.0).pow(1 / (alpha - 1)).sum(dim=-1, keepdim=True)
            threshold += (total >= 1.0) * 0.5**step
        weights = (z - threshold).clamp_min(0.0).pow(1 / (alpha - 1))
        weights = weights / weights.sum(dim=-1, keepdim=True)
        slopes = torch.where(weights > 0, weights.pow(2 - alpha), 0.0)
        shares = slopes / slopes.sum(dim=-1, keepdim=True)
    support = logits.masked_fill(weights == 0, 0.0)
    change = slopes * (support - (shares * support).sum(dim=-1, keepdim=True))
    return weights + (change - change.detach())
