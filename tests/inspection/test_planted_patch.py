"""In a model that has learned to find one bright cell in images of noise, maps must find it, too."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.pooled import PooledDecoder
from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.inspection.evaluation.randomization import NUM_STAGES, randomization, rank_correlation
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
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


def test_maps_are_better_than_the_nulls(explained):
    made, explanation, _ = explained
    part = made.explain(explanation.batch.part(slice(0, 31)))
    evaluator = Evaluator(num_samples=31, num_orders=1, rivals=True, randomize=False)
    found = evaluator.evaluate(made, [part], with_localization=False, with_faithfulness=True).faithfulness
    assert found["num_samples"] > 15
    assert {kind: one["mark"] for kind, one in found["maps"].items()} == dict.fromkeys(
        ("relevance", "rollout", "mean_map", "gradient_input", "integrated_gradients", "occlusion"), "✓"
    )


def test_maps_fall_apart_with_random_weights_unless_they_ignore_them(explained):
    made, explanation, _ = explained
    weights = {name: value.clone() for name, value in made.model.state_dict().items()}
    part = made.explain(explanation.batch.part(slice(0, 5)))

    def compute(explainer: Explainer, explanation: Explanation) -> dict[str, Tensor]:
        brightness = explanation.batch.inputs["image"].amax(dim=1)[:, 1::CELL, 1::CELL].flatten(1)
        return {"relevance": explanation.relevance, "brightness": brightness[:, None].expand(-1, len(COLORS), -1)}

    evaluator = Evaluator(num_samples=5, num_orders=1, rivals=False, randomize=True)
    scores = evaluator.evaluate(made, [part], with_localization=False, with_faithfulness=True).scores
    assert all(abs(scores[f"randomization/{kind}"]) < 0.4 for kind in ("relevance", "rollout", "mean_map"))
    found = randomization(made, part, compute(made, part), compute)
    assert_close(found["brightness"], torch.ones(NUM_STAGES, 5))
    assert found["relevance"][-1].mean() < 0.4
    assert all(torch.equal(value, weights[name]) for name, value in made.model.state_dict().items())


def test_rank_correlation_is_that_of_ranks():
    """Ranks 1, 2.5, 2.5, 4 and 4, 3, 2, 1: covariance -4.5 / 4, variances 4.5 / 4 and 5 / 4."""
    first, second = torch.tensor([[[0.1, 0.5, 0.5, 0.7, 9.0]]]), torch.tensor([[[8.0, 6.0, 4.0, 2.0, 9.0]]])
    real = torch.tensor([[True, True, True, True, False]])
    assert float(rank_correlation(first, second, real)) == pytest.approx(-4.5 / (4.5 * 5) ** 0.5)
    assert float(rank_correlation(first, torch.ones_like(first), real)) == 0.0
