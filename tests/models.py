"""Small parts for tests. Sizes are distinct primes wherever the model allows it, so that swapped axes fail."""

from functools import partial

import torch

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.base import LOGITS
from perceiver.decoders.pooled import PooledDecoder
from perceiver.direct import Direct
from perceiver.encoders.audio import LogMelEncoder, WaveformEncoder
from perceiver.encoders.image import ImageEncoder
from perceiver.encoders.stems import ConvStack, ConvStem, PatchStem, PixelStem, Stem
from perceiver.encoders.video import VideoEncoder
from perceiver.latents import LatentArray, Schedule
from perceiver.positions import FourierPositions, LearnedPositions, Positions
from perceiver.spectrogram import LogMel

DIM = 17
NUM_CLASSES = 19
CROSS = BlockSpec(num_heads=1, qk_dim=23, v_dim=29)
SELF = BlockSpec(num_heads=2, qk_dim=2 * 3, v_dim=2 * 13, widening=2)
PERCEIVER = {"num_cross_attends": 3, "num_blocks": 3, "cross_sharing": "all_but_first", "block_sharing": "all"}
PERCEIVER_IO = {"num_cross_attends": 1, "num_blocks": 3, "cross_sharing": "none", "block_sharing": "all"}

STEMS = {
    "pixels": lambda channels: PixelStem(channels=channels),
    "projected pixels": lambda channels: PixelStem(channels=channels, dim=7),
    "patches": lambda channels: PatchStem(channels=channels, patch_size=3),
    "oblong patches": lambda channels: PatchStem(channels=channels, patch_size=[5, 2]),
    "projected patches": lambda channels: PatchStem(channels=channels, patch_size=(2, 3), dim=7),
    "convolution": lambda channels: shaken(ConvStem(channels=channels, dim=7)),
    "symmetric convolution": lambda channels: shaken(ConvStem(channels=channels, dim=7, padding="symmetric")),
    "stack": lambda channels: shaken(ConvStack(channels=channels, dims=(3, 5, 7))),
}
"""Channels -> a stem of each kind."""


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Norms as after training: at first a zero comes out as zero, and padding cannot do any harm."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean):
                values.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return module


def image_encoder(stem: Stem | None = None, positions: Positions | None = None, **options) -> ImageEncoder:
    """Patches of 3×3 pixels of an image with 3 channels under Fourier positions, unless told otherwise."""
    return ImageEncoder(
        stem=stem or PatchStem(channels=3, patch_size=3),
        positions=positions or FourierPositions(num_bands=2, max_resolution=(5, 7)),
        **options,
    )


def log_mel(**overrides) -> LogMel:
    sizes = {"sample_rate": 4001, "n_fft": 251, "win_length": 127, "hop_length": 37, "n_mels": 13}
    return LogMel(**(sizes | {"f_min": 53.0, "f_max": 1999.0} | overrides))


def audio_encoder(stem: Stem | None = None, positions: Positions | None = None, **options) -> LogMelEncoder:
    """Patches of 5 bands × 3 frames of 13 bands under anchored Fourier positions, unless told otherwise."""
    return LogMelEncoder(
        stem=stem or PatchStem(channels=1, patch_size=(5, 3), dim=7),
        positions=positions or FourierPositions(num_bands=2, max_resolution=(3, 7), anchored=True),
        **({"log_mel": log_mel(), "mean": -61.0, "std": 23.0} | options),
    )


def waveform_encoder(**options) -> WaveformEncoder:
    """Patches of 43 samples under anchored Fourier positions, unless told otherwise."""
    positions = FourierPositions(num_bands=3, max_resolution=(19,), anchored=True)
    sizes = {"sample_rate": 4001, "patch_size": 43, "dim": None, "positions": positions, "std": 0.1}
    return WaveformEncoder(**(sizes | {"log_mel": log_mel()} | options))


def video_encoder(stem=None, *, positions=None, **options) -> VideoEncoder:
    """Space-time patches of 2 frames and 3×2 pixels under Fourier positions, unless told otherwise."""
    settings = {"channels": 3, "frames_per_second": 5.0, "frames_per_token": 2, "mean": 0.3, "std": 0.7}
    return VideoEncoder(
        stem=stem or partial(PatchStem, patch_size=(3, 2)),
        positions=positions or FourierPositions(num_bands=2, max_resolution=(3, 5, 7)),
        **{"combine": "concat"} | settings | options,
    )


def small_perceiver(**overrides) -> Perceiver:
    """Reads `image` (patches, Fourier) and `depth` (pixels, learned positions); `overrides` replace parts."""
    depth = image_encoder(PixelStem(channels=1), LearnedPositions(shape=(5, 7), dim=2, init_std=1.0))
    memory = latents(**{key: overrides.pop(key) for key in [*overrides] if key in LATENTS})
    defaults = {
        "encoders": {"image": image_encoder(), "depth": depth},
        "memory": memory,
        "decoder": PooledDecoder(dim=memory.keywords["dim"], num_classes=NUM_CLASSES),
    }
    return Perceiver(**(defaults | overrides)).eval()


LATENTS = {
    "num_latents": 11,
    "dim": DIM,
    "cross_attention": CROSS,
    "self_attention": SELF,
    "schedule": Schedule(num_self_attends=2, **PERCEIVER),
    "activation_checkpointing": False,
}


def latents(**overrides) -> partial[LatentArray]:
    """Builds a latent array as soon as the width of the tokens is known."""
    return partial(LatentArray, **(LATENTS | overrides))


def direct(**overrides) -> partial[Direct]:
    """Builds a memory without bottleneck."""
    return partial(Direct, **({"dim": DIM, "num_layers": 2, "self_attention": SELF} | overrides))


def logits(model, inputs, masks=None, ids=None) -> torch.Tensor:
    """The one output of a model; `ids` are the token ids that its decoder is given."""
    (output,) = model(inputs, masks, None if ids is None else {LOGITS: ids}).values()
    return output


def named(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits as a model gives them."""
    return {LOGITS: values}


def small_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """What `small_perceiver` reads: 4×5 patches (the last row and column cut) and 5×7 pixels."""
    return {"image": torch.rand(batch, 3, 11, 13), "depth": torch.rand(batch, 1, 5, 7)}
