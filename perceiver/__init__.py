"""A multimodal Perceiver for research: `Perceiver` is built from parts, `load` reads a trained or published one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceiver.commands.loaded import load
    from perceiver.model import Perceiver

__all__ = ["Perceiver", "load"]


def __getattr__(name: str) -> Any:
    """Import each on first use: `load` needs Hydra, and the command line not even torch."""
    if name == "Perceiver":
        from perceiver.model import Perceiver

        return Perceiver
    if name == "load":
        from perceiver.commands.loaded import load

        return load
    raise AttributeError(f"module 'perceiver' has no attribute {name!r}")
