"""Small parts for tests. Sizes are distinct primes wherever the model allows it, so that swapped axes fail."""

import torch

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.encoders.image import ImageEncoder, PatchStem, PixelStem, Stem
from perceiver.latents import Schedule
from perceiver.positions import FourierPositions, LearnedPositions, Positions

DIM = 17
NUM_CLASSES = 19
CROSS = BlockSpec(num_heads=1, qk_dim=23, v_dim=29)
SELF = BlockSpec(num_heads=2, qk_dim=2 * 3, v_dim=2 * 13, widening=2)
PERCEIVER = {"num_cross_attends": 3, "num_blocks": 3, "cross_sharing": "all_but_first", "block_sharing": "all"}
PERCEIVER_IO = {"num_cross_attends": 1, "num_blocks": 3, "cross_sharing": "none", "block_sharing": "all"}


def image_encoder(stem: Stem | None = None, positions: Positions | None = None, **options) -> ImageEncoder:
    """Patches of 3×3 pixels of an image with 3 channels under Fourier positions, unless told otherwise."""
    return ImageEncoder(
        stem=stem or PatchStem(channels=3, patch_size=3),
        positions=positions or FourierPositions(num_bands=2, max_resolution=(5, 7)),
        **options,
    )


def small_perceiver(**overrides) -> Perceiver:
    """Reads `image` (patches, Fourier) and `depth` (pixels, learned positions); `overrides` replace parts."""
    depth = image_encoder(PixelStem(channels=1), LearnedPositions(shape=(5, 7), dim=2, init_std=1.0))
    defaults = {
        "encoders": {"image": image_encoder(), "depth": depth},
        "num_latents": 11,
        "dim": DIM,
        "cross_attention": CROSS,
        "self_attention": SELF,
        "schedule": Schedule(num_self_attends=2, **PERCEIVER),
        "decoder": PooledDecoder(dim=overrides.get("dim", DIM), num_classes=NUM_CLASSES),
    }
    return Perceiver(**(defaults | overrides)).eval()


def small_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """What `small_perceiver` reads: 4×5 patches (the last row and column cut) and 5×7 pixels."""
    return {"image": torch.rand(batch, 3, 11, 13), "depth": torch.rand(batch, 1, 5, 7)}
