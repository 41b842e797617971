"""Products of attention weights and values, whatever the function and the order of axes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perceiver.inspection.watched.lineage import tensors_in


@dataclass(frozen=True)
class WeightedSum:
    """A product of attention weights and values, `out = used @ v` up to the order of axes.

    Attributes:
        used: the weights, after dropout.
        v: the values.
        axes: names of the axes of weights, values and result.
        batch: names of the axes that weights and result share besides the queries: rows, or rows and heads.
        query, key, dim: names of the axes of queries, keys, and the width of the values.
    """

    used: Tensor
    v: Tensor
    axes: tuple[str, str, str]
    batch: str
    query: str
    key: str
    dim: str

    @classmethod
    def of(cls, name: str, args: tuple[Any, ...], axis: int, used: Tensor, v: Tensor) -> "WeightedSum | None":
        """Return the weighted sum that a product computes; None if the product is not one.

        Args:
            name, args: of the function, one of `PRODUCTS`.
            axis: the axis along which the weights sum to one.
            used, v: the factors of the product.
        """
        if name == "einsum":
            axes = _einsum_axes(args, used, v)
        elif name == "baddbmm" or args[0] is not used or min(used.ndim, v.ndim) < 3:
            return None
        else:
            letters = "abcdefg"[: max(used.ndim, v.ndim) - 2]
            first, second = (letters[len(letters) + 2 - x.ndim :] for x in (used, v))
            axes = (f"{first}qk", f"{second}kv", f"{letters}qv")
        if axes is None:
            return None
        weights, values, out = axes
        key = weights[axis]
        dims = set(values) - set(weights)
        free = [one for one in weights if one in out and one not in values]
        if key in out or key not in values or len(dims) != 1 or not free:
            return None
        query, (dim,) = free[-1], dims
        batch = weights.replace(query, "").replace(key, "")
        is_sum = sorted(out) == sorted(f"{batch}{query}{dim}") and len(set(out)) == len(out)
        return cls(used, v, axes, batch, query, key, dim) if is_sum and len(batch) in (1, 2) else None

    @property
    def values(self) -> Tensor:
        """The values, [rows, (heads,) keys, dim]; axes of rows or heads that they do not have are of size 1."""
        own = "".join(one for one in self.batch if one in self.axes[1])
        v = _permuted(self.v, self.axes[1], f"{own}{self.key}{self.dim}")
        for place, one in enumerate(self.batch):
            v = v if one in own else v.unsqueeze(place)
        return v

    def by_query(self, weights: Tensor) -> Tensor:
        """Return weights, [rows, (heads,) queries, keys]."""
        return _permuted(weights, self.axes[0], f"{self.batch}{self.query}{self.key}")

    def by_query_of_out(self, out: Tensor) -> Tensor:
        """Return the result, [rows, (heads,) queries, dim]."""
        return _permuted(out, self.axes[2], f"{self.batch}{self.query}{self.dim}")

    def as_out(self, by_query: Tensor) -> Tensor:
        """Return the result in the order of its axes."""
        return _permuted(by_query, f"{self.batch}{self.query}{self.dim}", self.axes[2])


def _permuted(x: Tensor, axes: str, wanted: str) -> Tensor:
    return x if axes == wanted else x.permute([axes.index(one) for one in wanted])


def _einsum_axes(args: tuple[Any, ...], used: Tensor, v: Tensor) -> tuple[str, str, str] | None:
    """Return the axes of weights, values and result of `einsum`; None if they are implicit or others take part."""
    if not isinstance(args[0], str) or "->" not in args[0]:
        return None
    terms, _, out = "".join(args[0].split()).partition("->")
    factors, given = terms.split(","), list(tensors_in(args[1:]))
    if len(factors) != 2 or len(given) != 2:
        return None
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in args[0]]
    ellipsis = 0
    for place, one in enumerate(factors):
        if "..." in one:
            ellipsis = max(ellipsis, given[place].ndim - len(one) + 3)
            count = given[place].ndim - len(one) + 3
            factors[place] = one.replace("...", "".join(free[:count][::-1]))
    out = out.replace("...", "".join(free[:ellipsis][::-1]))
    first, second = factors if given[0] is used else factors[::-1]
    return first, second, out
