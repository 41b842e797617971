"""Weights from elsewhere: published models turned into ours, and ours into theirs."""

from perceiver.pretrained.export import to_transformers
from perceiver.pretrained.folder import from_pretrained
from perceiver.pretrained.transformers import from_transformers

__all__ = ["from_pretrained", "from_transformers", "to_transformers"]
