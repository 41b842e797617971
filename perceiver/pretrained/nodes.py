"""Parts as plain values: `{"_target_": class, keyword: value, …}`, as in the yaml files of `conf/`.

The description of a published model is such a node, so that it can be built here, without Hydra, and be a part of the
config of a run.
"""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

Node: TypeAlias = dict[str, Any]


def part(target: str, /, **values: Any) -> Node:
    """Return the node of a class of this package."""
    return {"_target_": f"perceiver.{target}", **values}


def build(node: Any) -> Any:
    """Build a node and the nodes in it; with `_partial_`, a function that takes the remaining keywords."""
    if isinstance(node, list):
        return [build(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: build(child) for key, child in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return values
    module, _, name = node["_target_"].rpartition(".")
    target = getattr(import_module(module), name)
    return partial(target, **values) if node.get("_partial_") else target(**values)
