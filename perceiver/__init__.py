"""A multimodal Perceiver for research: `from perceiver import Perceiver` builds one from parts."""

from perceiver.model import Perceiver

__all__ = ["Perceiver"]
