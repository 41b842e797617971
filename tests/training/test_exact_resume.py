"""A run that was stopped anywhere is resumed exactly: the same samples, the same steps, the same bits."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from perceiver.training.module import TrainingModule
from tests.runs import CAPTIONING, ROOT, SMALL, checkpoint, metrics, train, trained, weights_equal

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
        pytest.param("training_step", STEPS_PER_EPOCH - 1, id="before the last batch of an epoch", marks=slow),
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
        *(
            pytest.param(*case, marks=slow)
            for case in (
                ("trainer.max_steps=3", ["trainer.accumulate_grad_batches=2", "optimizer=lamb"]),
                ("trainer.max_epochs=2", ["trainer.check_val_every_n_epoch=3", "trainer.precision=bf16-mixed"]),
                ("trainer.max_steps=8", [*FULL_EPOCHS, "loader.drop_last=true", "loader.num_workers=1"]),
                ("trainer.max_epochs=2", [*CAPTIONING, "tokenizer=bytes", "callbacks=[ema]"]),
                (
                    "trainer.max_steps=5",
                    [
                        *CAPTIONING,
                        "model.decoder.dropout=0.3",
                        "generation@task.generation=sampling",
                        "callbacks=[ema]",
                    ],
                ),
            )
        ),
    ],
)
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


@slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_was_ended_by_a_signal(tmp_path, sent, code):
    run = tmp_path / "run"
    command = [sys.executable, "experiments/train.py", f"hydra.run.dir={run}", *SMALL, "trainer.max_epochs=100000"]
    # Background processes of a shell, and their children, ignore Ctrl-C.
    unignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes, **unignored)
    try:
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    last = Path(re.search(r"continue with run=(\S+)", out)[1]) / "checkpoints" / "last.ckpt"
    step = torch.load(last)["global_step"]
    end = [f"trainer.max_steps={step + 1}", "trainer.max_epochs=-1"]
    assert checkpoint(trained(tmp_path / "resumed", f"ckpt_path={last}", *end))["global_step"] == step + 1
