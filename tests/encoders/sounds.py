"""Encoders of sound of every kind, and sounds for them."""

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.types import Batch, Sample
from tests.models import STEMS, audio_encoder, small_perceiver, waveform_encoder

RATE, HOP, BANDS = 4001, 37, 13
LENGTHS = [11, 397, 1061, 1123]
"""In samples; no hop and no patch divides them, nor any stride their 1, 11, 29 and 31 frames."""
STEMS_OF_SOUND = {name: make for name, make in STEMS.items() if name != "symmetric convolution"}
LOG_MEL = {name: lambda make=make: audio_encoder(make(1)) for name, make in STEMS_OF_SOUND.items()}
WAVEFORM = {"bare waveform": waveform_encoder, "projected waveform": lambda: waveform_encoder(dim=7)}
every_encoder = pytest.mark.parametrize("make_encoder", [*LOG_MEL.values(), *WAVEFORM.values()], ids=LOG_MEL | WAVEFORM)
every_log_mel_encoder = pytest.mark.parametrize("make_encoder", LOG_MEL.values(), ids=LOG_MEL)


def sound(length: int) -> torch.Tensor:
    return 0.3 * torch.randn(1, length)


def together(*inputs: torch.Tensor) -> Batch:
    return collate([Sample({"audio": raw}, {}, "x") for raw in inputs])


def model_of(encoder, **overrides):
    return small_perceiver(encoders={"audio": encoder}, **overrides)
