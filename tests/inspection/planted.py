"""Images of noise in which one bright cell decides the class, and a small model that has learned it."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.explanation import Explainer
from perceiver.latents import Schedule
from perceiver.types import Batch
from tests.inspection.explanations import explainer
from tests.models import image_encoder, latents, logits

ROWS, COLUMNS, CELL = 5, 7, 3
COLOURS = ["red", "green", "blue"]


def images_with_a_patch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, of which colour their bright cell is, and its number."""
    labels, places = torch.randint(len(COLOURS), (count,)), torch.randint(ROWS * COLUMNS, (count,))
    cells = 0.5 * torch.rand(count, ROWS * COLUMNS, 3)
    cells[torch.arange(count), places] = 0.7 + 0.3 * F.one_hot(labels, len(COLOURS))
    images = cells.transpose(1, 2).reshape(count, 3, ROWS, COLUMNS)
    return F.interpolate(images, scale_factor=CELL, mode="nearest"), labels, places


@cache
def trained() -> tuple[Explainer, Batch, Tensor]:
    """A model that tells the colour, images that it has not seen, and where their patch is."""
    torch.manual_seed(0)
    model = Perceiver(
        encoders={"image": image_encoder()},
        memory=latents(
            dim=16,
            cross_attention=BlockSpec(num_heads=1),
            self_attention=BlockSpec(num_heads=2),
            schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1),
        ),
        decoder=PooledDecoder(dim=16, num_classes=len(COLOURS)),
    )
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=500)
    for _ in range(500):
        images, labels, _ = images_with_a_patch(64)
        optimizer.zero_grad()
        F.cross_entropy(logits(model, {"image": images}), labels).backward()
        optimizer.step()
        schedule.step()
    images, labels, places = images_with_a_patch(101)
    batch = Batch({"image": images}, {"label": labels}, [str(number) for number in range(len(images))])
    return explainer(model.eval(), class_names=COLOURS), batch, places
