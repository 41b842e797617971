"""In a model that has learned to find one bright cell in images of noise, maps must find it, too."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.explanation import Explainer, Explanation
from perceiver.inspection.faithfulness import faithfulness
from perceiver.latents import Schedule
from perceiver.types import Batch
from tests.inspection.explanations import explainer
from tests.models import image_encoder, latents, logits

ROWS, COLUMNS, CELL = 5, 7, 3
STEPS = 300
COLORS = ["red", "green", "blue"]


def images_with_a_patch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, of which color their bright cell is, and its number."""
    labels, places = torch.randint(len(COLORS), (count,)), torch.randint(ROWS * COLUMNS, (count,))
    cells = 0.5 * torch.rand(count, ROWS * COLUMNS, 3)
    cells[torch.arange(count), places] = 0.7 + 0.3 * F.one_hot(labels, len(COLORS))
    images = cells.transpose(1, 2).reshape(count, 3, ROWS, COLUMNS)
    return F.interpolate(images, scale_factor=CELL, mode="nearest"), labels, places


@pytest.fixture(scope="module")
def explained() -> tuple[Explainer, Explanation, Tensor]:
    """A model that has learned the color, its explanation of other images, and where their bright cell is."""
    torch.manual_seed(0)
    model = Perceiver(
        encoders={"image": image_encoder()},
        memory=latents(
            dim=16,
            cross_attention=BlockSpec(num_heads=1),
            self_attention=BlockSpec(num_heads=2),
            schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1),
        ),
        decoder=PooledDecoder(dim=16, num_classes=len(COLORS)),
    )
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        images, labels, _ = images_with_a_patch(64)
        optimizer.zero_grad()
        F.cross_entropy(logits(model, {"image": images}), labels).backward()
        optimizer.step()
        schedule.step()
    images, labels, places = images_with_a_patch(101)
    batch = Batch({"image": images}, {"label": labels}, [str(number) for number in range(len(images))])
    made = explainer(model.eval(), class_names=COLORS)
    return made, made.explain(batch), places


def pointing_game(maps: Tensor, places: Tensor) -> float:
    return float((maps.argmax(dim=-1) == places).float().mean())


def test_the_brightest_cell_is_the_patch_of_its_image(explained):
    _, explanation, places = explained
    best = torch.tensor([row[0].label for row in explanation.answers])
    assert (best == explanation.batch.targets["label"]).float().mean() > 0.95, "the model has learned it"
    for method in ("rollout", "relevance"):
        maps = explanation.maps[method][:, 0]
        assert pointing_game(maps, places) > 0.8
        assert pointing_game(maps.roll(1, dims=0), places) < 0.15


def test_the_patch_is_most_relevant_for_its_own_class(explained):
    _, explanation, places = explained
    at_patch = explanation.relevance.gather(2, places[:, None, None].expand(-1, len(COLORS), 1))[..., 0]
    most = [row[slot].label for row, slot in zip(explanation.answers, at_patch.argmax(dim=1).tolist(), strict=True)]
    assert (torch.tensor(most) == explanation.batch.targets["label"]).float().mean() > 0.8


def test_masking_what_maps_mark_lowers_the_answer_more_than_chance(explained):
    explainer, explanation, _ = explained
    found = faithfulness(explainer, explanation, seed=0).summary
    for method in ("rollout", "relevance"):
        assert found["areas"][method]["mean"] > 3 * found["areas"][method]["error"] > 0
    assert found["num_samples"] >= len(explanation.batch) / 2
