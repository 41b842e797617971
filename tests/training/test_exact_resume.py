"""A run that was stopped, wherever that was, goes on as if it never had been: same samples, same steps, same bits."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from perceiver.training.module import TrainingModule
from tests.runs import CAPTIONING, ROOT, SMALL, checkpoint, train, trained

slow = pytest.mark.slow
STEPS_PER_EPOCH = 6  # 1274 samples in batches of 213
WHOLE = ["loader.batch_size=213", "trainer.limit_train_batches=null", "trainer.max_epochs=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, and the samples it saw."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        batches = record(monkeypatch)
        return trained(tmp_path_factory.mktemp("whole") / "run", *WHOLE), batches


@pytest.fixture
def seen(monkeypatch):
    return record(monkeypatch)


def record(monkeypatch):
    """The ids of every training batch from now on."""
    batches = []
    original = TrainingModule.training_step

    def recording(self, batch, batch_idx):
        batches.append(tuple(batch.ids))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", recording)
    return batches


def interrupt(monkeypatch, method, count):
    """Ctrl-C instead of the call number `count` of a step."""
    original, calls = getattr(TrainingModule, method), iter(range(count + 1))

    def step(self, batch, batch_idx):
        if next(calls, None) == count:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, method, step)


def assert_same_end(stopped_and_continued, never_stopped):
    one, other = checkpoint(stopped_and_continued), checkpoint(never_stopped)
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "current_model_state"):
        for name, value in other.get(part, {}).items():
            assert torch.equal(one[part][name], value), name
    metrics, expected = (
        json.loads((run / "metrics.json").read_text()) for run in (stopped_and_continued, never_stopped)
    )
    # The best checkpoint may lie before the stop, in the other directory; the last validation does not.
    assert {n: v for n, v in metrics.items() if n.startswith("val/")} == {
        n: v for n, v in expected.items() if n.startswith("val/")
    }


@pytest.mark.parametrize(
    ("method", "count"),
    [
        pytest.param("training_step", 8, id="within an epoch"),
        pytest.param("training_step", STEPS_PER_EPOCH - 1, id="before the last batch of an epoch", marks=slow),
        pytest.param("training_step", STEPS_PER_EPOCH, id="before the first batch of an epoch", marks=slow),
        pytest.param("validation_step", 1, id="during the second validation"),
    ],
)
def test_a_run_that_was_interrupted_continues_as_if_it_had_not_been(tmp_path, whole, monkeypatch, seen, method, count):
    never_stopped, expected = whole
    assert len(expected) == 3 * STEPS_PER_EPOCH
    with monkeypatch.context() as during:
        interrupt(during, method, count)
        ended = train(tmp_path / "stopped", *WHOLE)
    assert ended.code == 130
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert f"continue with run={tmp_path}/stopped" in ended.out
    done = torch.load(last)["global_step"]
    assert seen[:done] == expected[:done]
    seen.clear()
    continued = trained(tmp_path / "continued", *WHOLE, f"ckpt_path={last}")
    assert seen == expected[done:]
    assert_same_end(continued, never_stopped)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ("trainer.max_epochs=2", []),
        pytest.param("trainer.max_steps=5", [], marks=slow),
        ("trainer.max_steps=5", ["task.mixup=0.4", "model.memory.cross_attention.residual_dropout=0.3"]),
        pytest.param("trainer.max_steps=5", [*CAPTIONING, "model.decoder.dropout=0.3"], marks=slow),
        pytest.param("trainer.max_steps=5", [*CAPTIONING, "generation@task.generation=sampling"], marks=slow),
        pytest.param("trainer.max_epochs=2", [*CAPTIONING, "tokenizer=bytes", "callbacks=[ema]"], marks=slow),
        pytest.param("trainer.max_steps=5", ["callbacks=[ema]", "callbacks.ema.decay=0.9"], marks=slow),
        pytest.param("trainer.max_steps=3", [], marks=slow),
        pytest.param("trainer.max_steps=5", ["optimizer=lamb", "trainer.precision=bf16-mixed"], marks=slow),
        pytest.param("trainer.max_steps=3", ["trainer.accumulate_grad_batches=2"], marks=slow),
        pytest.param("trainer.max_epochs=2", ["trainer.check_val_every_n_epoch=3"], marks=slow),
        pytest.param("trainer.max_epochs=2", [*WHOLE, "loader.drop_last=true", "loader.num_workers=1"], marks=slow),
        pytest.param("trainer.max_steps=8", [*WHOLE, "loader.drop_last=true", "loader.num_workers=1"], marks=slow),
    ],
)
def test_a_run_that_came_to_its_end_continues_to_a_later_one(tmp_path, seen, stop, options):
    setup = ["trainer.max_epochs=3", *options, "schedule=constant"]  # any other schedule knows where the end is
    never_stopped = trained(tmp_path / "whole", *setup)
    expected = seen.copy()
    seen.clear()
    stopped = trained(tmp_path / "stopped", *setup, stop)
    continued = trained(tmp_path / "continued", *setup, f"ckpt_path={stopped}/checkpoints/last.ckpt")
    assert seen == expected
    assert_same_end(continued, never_stopped)


def test_a_best_checkpoint_can_be_continued_with_early_stopping(tmp_path, seen):
    stopped = trained(tmp_path / "stopped", "callbacks=[early_stopping]", "trainer.max_epochs=1")
    seen.clear()
    trained(tmp_path / "continued", "callbacks=[early_stopping]", f"ckpt_path={stopped}/checkpoints/best.ckpt")
    assert len(seen) == 3


def test_a_run_of_another_model_is_not_continued(tmp_path):
    stopped = trained(tmp_path / "stopped", "trainer.max_epochs=1")
    ended = train(tmp_path / "run", "model.memory.dim=26", f"ckpt_path={stopped}/checkpoints/last.ckpt")
    assert ended.code == 1
    assert ended.err.startswith("error: ckpt_path=")
    assert "not those of this model" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_real_process_with_a_checkpoint_that_continues(tmp_path, sent, code):
    run = tmp_path / "run"
    command = [sys.executable, "experiments/train.py", f"hydra.run.dir={run}", *SMALL, "trainer.max_epochs=100000"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
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
    continued = trained(
        tmp_path / "continued", f"ckpt_path={last}", f"trainer.max_steps={step + 1}", "trainer.max_epochs=-1"
    )
    assert checkpoint(continued)["global_step"] == step + 1
