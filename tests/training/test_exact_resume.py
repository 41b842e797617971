"""A run that was stopped anywhere is resumed exactly: the same samples, the same steps, the same bits."""

import pytest
import torch

from perceiver.training.module import TrainingModule
from tests.runs import CAPTIONING, checkpoint, metrics, train, trained, weights_equal

slow = pytest.mark.slow
STEPS_PER_EPOCH = 6  # 1274 samples in batches of 213
SAMPLING = ["model.decoder.dropout=0.3", "generation@task.generation=sampling"]
FULL_EPOCHS = ["loader.batch_size=213", "trainer.limit_train_batches=null", "trainer.max_epochs=3"]


@pytest.fixture
def seen(monkeypatch):
    """The ids of every training batch from now on."""
    batches, original = [], TrainingModule.training_step

    def step(self, batch, batch_idx):
        batches.append(tuple(batch.ids))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    return batches


def interrupt(monkeypatch, method, count):
    """Raise KeyboardInterrupt instead of call number `count` of a step."""
    original, calls = getattr(TrainingModule, method), iter(range(count + 1))

    def step(self, batch, batch_idx):
        if next(calls, None) == count:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, method, step)


def assert_same_end(resumed, uninterrupted):
    one, other = checkpoint(resumed), checkpoint(uninterrupted)
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "current_model_state"):
        assert weights_equal(one.get(part, {}), other.get(part, {}))
    # The best checkpoint may be one of the stopped run; the last validation is not.
    validations = [{n: v for n, v in metrics(run).items() if n.startswith("val/")} for run in (resumed, uninterrupted)]
    assert validations[0] == validations[1]


@pytest.mark.parametrize(
    ("method", "count"),
    [
        pytest.param("training_step", 8, id="within an epoch"),
        pytest.param("training_step", STEPS_PER_EPOCH, id="before the first batch of an epoch", marks=slow),
        pytest.param("validation_step", 1, id="during the second validation", marks=slow),
    ],
)
def test_an_interrupted_run(tmp_path, monkeypatch, seen, method, count):
    uninterrupted = trained(tmp_path / "whole", *FULL_EPOCHS)
    expected = seen.copy()
    assert len(expected) == 3 * STEPS_PER_EPOCH
    seen.clear()
    with monkeypatch.context() as during:
        interrupt(during, method, count)
        ended = train(tmp_path / "stopped", *FULL_EPOCHS)
    assert ended.code == 130
    assert f"continue with run={tmp_path}/stopped" in ended.out
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    done = torch.load(last)["global_step"]
    assert seen[:done] == expected[:done]
    seen.clear()
    assert_same_end(trained(tmp_path / "resumed", *FULL_EPOCHS, f"ckpt_path={last}"), uninterrupted)
    assert seen == expected[done:]


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ("trainer.max_steps=5", ["task.mixup=0.4", "model.memory.cross_attention.residual_dropout=0.3"]),
        ("trainer.max_steps=3", ["trainer.accumulate_grad_batches=2", "optimizer=lamb"]),
        ("trainer.max_epochs=2", ["trainer.check_val_every_n_epoch=3", "trainer.precision=bf16-mixed"]),
        ("trainer.max_steps=8", [*FULL_EPOCHS, "loader.drop_last=true", "loader.num_workers=1"]),
        ("trainer.max_epochs=2", [*CAPTIONING, "tokenizer=bytes", "callbacks=[ema]"]),
        ("trainer.max_steps=5", [*CAPTIONING, *SAMPLING, "callbacks=[ema]"]),
    ],
)
@slow
def test_a_finished_run_with_a_later_end(tmp_path, seen, stop, options):
    setup = ["trainer.max_epochs=3", *options, "schedule=constant"]  # other schedules depend on the end
    uninterrupted = trained(tmp_path / "whole", *setup)
    expected = seen.copy()
    seen.clear()
    stopped = trained(tmp_path / "stopped", *setup, stop)
    assert_same_end(trained(tmp_path / "resumed", *setup, f"ckpt_path={stopped}/checkpoints/last.ckpt"), uninterrupted)
    assert seen == expected


@slow
def test_the_best_checkpoint_of_a_run_with_early_stopping(tmp_path, seen):
    stopped = trained(tmp_path / "stopped", "callbacks=[early_stopping]", "trainer.max_epochs=1")
    seen.clear()
    trained(tmp_path / "resumed", "callbacks=[early_stopping]", f"ckpt_path={stopped}/checkpoints/best.ckpt")
    assert len(seen) == 3
