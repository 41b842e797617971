"""Explanations of answers by attention, of the models of this package and of others.

Each part imports only those above it:

    maps        what a model attends to, and how much each answer depends on each token
    evaluation  how faithful such maps are, and what is lost without a part of the model
    drawing     inputs and maps as pictures
    explorer    event files, and pages for a browser
    writer, report: from an explanation to its files, and to the terminal
    watched     models of other packages
"""

from perceiver.inspection.maps.capture import capture
from perceiver.inspection.watched.grids import Input
from perceiver.inspection.watched.watch import watch

__all__ = ["Input", "capture", "watch"]
