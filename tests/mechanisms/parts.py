"""Every mechanism of conf, with small windows, and random inputs."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate

from perceiver.mechanisms.base import Mechanism, MechanismFactory

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "mechanism").glob("*.yaml"))
BATCH, HEADS, QUERIES, KEYS, QK_DIM, V_DIM = 3, 2, 5, 11, 7, 13
OVER_QUERIES = "slots"
SEQUENTIAL = [name for name in NAMES if name != OVER_QUERIES]
"""Mechanisms whose queries do not depend on each other."""


def node(name: str) -> dict[str, Any]:
    """The node of a mechanism, with its defaults."""
    found = yaml.safe_load((CONF / "mechanism" / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {}
    for entry in found.pop("defaults", []):
        if isinstance(entry, dict):
            ((key, choice),) = entry.items()
            group = key.rpartition("@")[2]
            merged[group] = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
        elif entry != "_self_":
            merged |= node(entry)
    merged |= found
    if "width" in merged.get("reach", {}):
        merged["reach"]["width"] = 2.0
    return merged


@cache
def factory(name: str) -> MechanismFactory:
    return instantiate(node(name), _convert_="all")


def build(name: str, *, heads: int = HEADS, dim: int = QK_DIM, **options: Any) -> Mechanism:
    """A mechanism in evaluation, with the same weights each time."""
    torch.manual_seed(3)
    return factory(name)(num_heads=heads, dim=dim, dropout=0.0, role=None, **options).eval()


def qkv(num_queries: int = QUERIES, num_keys: int = KEYS, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    sizes = [(num_queries, QK_DIM), (num_keys, QK_DIM), (num_keys, V_DIM)]
    return [torch.randn(BATCH, HEADS, *size, dtype=dtype) for size in sizes]


def key_mask(num_keys: int = KEYS) -> torch.Tensor:
    """Random with a real key, except in the last sample, which has none."""
    mask = torch.rand(BATCH, num_keys) < 0.6
    mask[:, :2] = torch.tensor([False, True])
    mask[-1] = False
    return mask
