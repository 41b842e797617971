"""Weights from elsewhere: foreign models turned into ours."""

from perceiver.pretrained.transformers import from_transformers

__all__ = ["from_transformers"]
