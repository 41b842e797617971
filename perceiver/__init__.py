"""A multimodal Perceiver for research: `Perceiver` is built from parts, `load` reads a trained or published one."""

from typing import Any

from perceiver.model import Perceiver

__all__ = ["Perceiver", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` on first use, as it needs Lightning and Hydra, which the library does not."""
    if name != "load":
        raise AttributeError(f"module 'perceiver' has no attribute {name!r}")
    from perceiver.commands.loaded import load

    return load
