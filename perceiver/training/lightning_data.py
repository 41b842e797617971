"""The samples of a run for Lightning's trainer."""

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from perceiver.training.data_module import DataModule
from perceiver.types import Batch


class LightningData(LightningDataModule):
    """Gives a trainer the loaders of a `DataModule`, which it stores the position of.

    Args:
        data: learns from this which trainer it loads for.
    """

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.data = data

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer

    def train_dataloader(self) -> DataLoader[Any]:
        return self.data.train_dataloader()

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self.data.val_dataloader()

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self.data.test_dataloader()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.data.report_unreadable(batch)

    def state_dict(self) -> dict[str, Any]:
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.data.load_state_dict(state_dict)


def data_of(trainer: Trainer) -> DataModule:
    """Return the data that a trainer loads."""
    data: DataModule = trainer.datamodule.data  # type: ignore[attr-defined]
    return data
