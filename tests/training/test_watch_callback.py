"""Models of others are explained in their own training loops, which stay the same."""

import json
import logging
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from perceiver.inspection import watch
from perceiver.runtime.loggers.wandb import log_attention
from perceiver.training.watch_callback import WatchCallback
from tests.inspection.foreign import images, timm_vit
from tests.wandb_file import rows, run_folders


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vit = timm_vit()

    def training_step(self, batch):
        return F.cross_entropy(self.vit(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(folder: Path, callbacks: list, logger=False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    module = Module()
    loader = DataLoader(TensorDataset(images(24), torch.tensor([0, 3])), batch_size=1)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        default_root_dir=folder, max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=logger, **options
    )
    trainer.fit(module, loader, loader)
    return [*module.state_dict().values(), torch.rand(3)]


def offline(folder: Path, monkeypatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def check_logged(folder: Path, count: int) -> None:
    wandb.teardown()
    (run,) = run_folders(folder)
    logged = [row for row in rows(run) if "attention/stat/encode0/entropy" in row]
    assert len(logged) == count
    for row in logged:
        keys = {"attention/image/encode0", "attention/image/encode1", "attention/explorer"}
        assert keys <= {key.partition(".")[0] for key in row}, json.dumps(sorted(row))


@pytest.mark.slow  # W&B starts a process
def test_a_lightning_training_is_explained_in_wandb_and_stays_the_same(tmp_path: Path, monkeypatch) -> None:
    offline(tmp_path, monkeypatch)
    logger = WandbLogger(project="p", save_dir=tmp_path)
    found = fitted(tmp_path, [WatchCallback(inputs={"image": images(24)}, model="vit", labels=[0, 3])], logger)
    wandb.finish()
    check_logged(tmp_path, 2)
    assert all(torch.equal(*pair) for pair in zip(found, fitted(tmp_path / "plain", []), strict=True))


def test_without_wandb_the_page_has_each_epoch_and_an_error_does_not_stop(tmp_path: Path, caplog) -> None:
    callbacks = [WatchCallback(inputs={"image": images(24)}, model="vit")]
    found = fitted(tmp_path, callbacks)
    assert len(list((tmp_path / "attention").glob("*.npz"))) == 2
    assert (tmp_path / "attention" / "index.html").exists()
    with caplog.at_level(logging.WARNING):
        again = fitted(tmp_path / "other", [WatchCallback(inputs={"image": images(24)[:, :1]}, model="vit")])
    assert "attention is not explained any more" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


def test_a_part_that_the_module_lacks_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model='vitt'"):
        fitted(tmp_path, [WatchCallback(inputs={"image": images(24)}, model="vitt")])


@pytest.mark.slow  # W&B starts a process
def test_any_training_loop_logs_to_wandb(tmp_path: Path, monkeypatch) -> None:
    offline(tmp_path, monkeypatch)
    model, x = timm_vit().eval(), images(24)
    with wandb.init(project="p", dir=tmp_path) as run:
        with watch(model, inputs={"image": x}) as attention:
            model(x)
        log_attention(run, attention, attention.explain(), step=7, folder=tmp_path / "attention")
    check_logged(tmp_path, 1)
