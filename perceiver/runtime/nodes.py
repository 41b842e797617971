"""Nodes of a plain config: their values by key, the class that each builds, and the types of its keywords."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra.utils import get_object
from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All nodes at or below the node under a key, and all values in lists, as (key, value)."""
    yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from walk(child, f"{key}.{name}" if key else str(name))


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes that build something, at or below the node under a key, as (key, node)."""
    return ((name, found) for name, found in walk(node, key) if isinstance(found, dict) and "_target_" in found)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values at or below the node under a key, of which a list is one, as (key, value)."""
    if not isinstance(node, dict):
        yield key, node
        return
    for name, child in node.items():
        yield from leaves(child, f"{key}.{name}" if key else str(name))


def select(config: Any, key: str) -> Any:
    """The value under a key of a plain config; None without such a key."""
    for name in key.split("."):
        if isinstance(config, list) and name.isdecimal() and int(name) < len(config):
            config = config[int(name)]
        else:
            config = config.get(name) if isinstance(config, Mapping) else None
    return config


def import_target(node: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class or function that a node calls, and the types of its keywords as far as they are known.

    Raises:
        Exception: any that the import of its module raises.
    """
    target: Any = get_object(node["_target_"])
    try:
        return target, get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # torch annotates some with names that only type checkers import
        return target, {}


def keyword_type(config: Mapping[str, Any], key: str) -> Any:
    """The type of the value under a key, which is a keyword of what the node above it builds; None if unknown."""
    above, _, name = key.rpartition(".")
    node = select(config, above)
    try:
        return import_target(node)[1].get(name) if isinstance(node, dict) and "_target_" in node else None
    except Exception:  # the check of the whole config reports it
        return None


def type_adapter(hint: Any) -> TypeAdapter[Any] | None:
    """A validator of values of a type; None for types that pydantic does not know."""
    try:
        if isinstance(hint, type) and is_dataclass(hint):  # a node builds it
            return TypeAdapter(InstanceOf[hint])
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None


def is_valid(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; False if the type is None, i.e. unknown."""
    if hint is None or (adapter := type_adapter(hint)) is None:
        return False
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True
