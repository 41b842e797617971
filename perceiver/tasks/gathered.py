"""Metrics that keep a row of plain values for each sample: what is not a tensor cannot be gathered from processes."""

import json
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from perceiver.tasks.text_metrics import ScoredText, mean_scores


class RowMetric(Metric):
    """Base of metrics that are computed from one row of JSON for each sample."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    names: tuple[str, ...] = ()
    """Those of `compute` that are known before the first update."""
    later_ending: str = ""
    """Ending of the names of the others."""
    lines: list[UInt8[Tensor, " bytes"]]
    """Lines of JSON, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def add(self, rows: Iterable[Any]) -> None:
        """Append rows, each of values that JSON can express."""
        for row in rows:
            line = bytearray(f"{json.dumps(row)}\n", "ascii")
            self.lines.append(torch.frombuffer(line, dtype=torch.uint8).to(self.device))

    def rows(self) -> list[Any]:
        """Return all rows."""
        content = dim_zero_cat(self.lines).cpu().numpy().tobytes() if len(self.lines) > 0 else b""
        return [json.loads(line) for line in content.splitlines()]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # Without rows, the state would be gathered as floats, where that of the other processes is bytes.
        if len(self.lines) == 0:
            self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]
        super().sync(*args, **kwargs)


class GroupMeans(RowMetric):
    """The mean of a value over the samples of each group, as `<group>_<name>`; no metrics without groups.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.later_ending = f"_{name}"

    def update(self, values: Float[Tensor, " batch"], groups: Iterable[str]) -> None:
        """Add samples; those whose group is empty belong to none."""
        self.add((group, value) for group, value in zip(groups, values.tolist(), strict=True) if group)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        found: dict[str, list[float]] = {}
        for group, value in self.rows():
            found.setdefault(group, []).append(value)
        return {
            group + self.later_ending: torch.tensor(fmean(found[group]), device=self.device) for group in sorted(found)
        }


class TextMetrics(RowMetric):
    """Metrics of texts, and the mean of each score by facts over the texts for which it is defined.

    Metrics of a group are called `<group>_<name>`. Without texts there are no metrics.

    Args:
        measure: computes the metrics of some texts by name.
    """

    def __init__(self, measure: Callable[[Sequence[ScoredText]], dict[str, float]]) -> None:
        super().__init__()
        self.measure = measure

    def update(self, texts: Sequence[ScoredText]) -> None:
        self.add([one.text, list(one.references), dict(one.scores), one.group] for one in texts)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        groups: dict[str, list[ScoredText]] = {}
        for row in self.rows():
            text = ScoredText(*row)
            groups.setdefault(text.group, []).append(text)
        return {
            f"{group}_{name}" if group else name: torch.tensor(value, dtype=torch.float32, device=self.device)
            for group, texts in sorted(groups.items())
            for name, value in {**self.measure(texts), **mean_scores(texts)}.items()
        }
