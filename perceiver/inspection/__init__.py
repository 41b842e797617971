"""Explanations of answers by attention: of the models of this package, and of others (`watch`)."""

from perceiver.inspection.watched import watch

__all__ = ["watch"]
