"""Modules of a model that need a loss of their own: what they get, and their share of a step."""

import pytest
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.decoders.pooled import PooledDecoder
from perceiver.runtime.config import resolved
from perceiver.training.build import build
from tests.processes import SHARDED, TWO, difference, trained_on
from tests.runs import CAPTIONING, JOINT, SMALL, checkpoint, composed, trained, weights_equal
from tests.training.test_uneven_batches import SHORT, change_digits

HARD = ["mechanism@model.memory.cross_attention.mechanism=hard", "schedule=constant"]
TASKS = {
    "balanced": ["task.loss.class_weights=balanced", "task.mixup=0.3"],
    "captions": [*CAPTIONING, "task.captions_per_sample=2"],
    "joint": [
        *JOINT,
        "model.decoder.decoders.label.attention.num_heads=2",
        "task.monitor=loss",
        "+task.weights.label=0.3",
    ],
}


@pytest.mark.parametrize("overrides", TASKS.values(), ids=TASKS)
def test_the_loss_is_the_mean_of_those_of_samples_weighted_by_their_terms(overrides):
    with composed(*SMALL, *overrides) as cfg:
        parts = build(resolved(cfg))
    batch = parts.task.prepare(collate([parts.data.train_samples[index] for index in range(5)]), train=True)
    outputs = parts.task.average_windows(parts.task.outputs(parts.model, batch), batch)
    losses, terms = parts.task.sample_losses(outputs, batch)
    assert losses.shape == terms.shape == (5,)
    assert_close(terms.sum(), torch.as_tensor(parts.task.num_terms(batch)), check_dtype=False)
    assert_close((losses * terms).sum() / terms.sum(), parts.task.loss(outputs, batch))


@pytest.mark.slow
def test_its_share_of_a_step_is_the_mean_over_all_terms_of_accumulated_and_distributed_batches(tmp_path, monkeypatch):
    def auxiliary_loss(self, losses, terms):
        return self.head.bias.sin().sum() * (losses.nan_to_num() * terms).sum()

    change_digits(monkeypatch, lambda index, sample: sample, train=61)
    without = trained(tmp_path / "without", *SHORT, "loader.batch_size=12")
    monkeypatch.setattr(PooledDecoder, "auxiliary_loss", auxiliary_loss, raising=False)
    whole = trained(tmp_path / "whole", *SHORT, "loader.batch_size=12")
    parts = trained_on(2, tmp_path / "parts", *SHORT, "loader.batch_size=3", "trainer.accumulate_grad_batches=2")
    assert difference(parts, whole) < 1e-5 < difference(without, whole)


@pytest.mark.slow
def test_a_run_with_draws_resumes_exactly_and_keeps_its_baseline(tmp_path):
    whole = trained(tmp_path / "whole", *HARD)
    trained(tmp_path / "parts", *HARD, "trainer.max_epochs=1")
    resumed = trained(tmp_path / "parts", *HARD, "ckpt_path=last")
    one, other = (checkpoint(run)["state_dict"] for run in (whole, resumed))
    assert weights_equal(one, other)
    baselines = [value for name, value in one.items() if name.endswith("estimator.baseline")]
    steps = {float(value) for name, value in one.items() if name.endswith("estimator.num_steps")}
    assert steps == {6.0}
    assert all(value > 0 for value in baselines)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [TWO, SHARDED], ids=["ddp", "fsdp"])
def test_draws_are_learned_on_several_processes_with_recomputed_blocks(tmp_path, monkeypatch, strategy):
    """The last step of an epoch has a single sample, and so one process has none."""
    change_digits(monkeypatch, lambda index, sample: sample, train=61)
    both = [*HARD, "mechanism@model.memory.self_attention.mechanism=hard", "model.memory.activation_checkpointing=true"]
    run = trained_on(2, tmp_path / "run", *SHORT, *strategy, *both, "loader.batch_size=6")
    weights = checkpoint(run)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())
    assert {float(value) for name, value in weights.items() if name.endswith("estimator.num_steps")} == {12.0}
