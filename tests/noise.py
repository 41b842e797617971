"""Short trainings on noise that are looked at."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from perceiver.attention import BlockSpec
from perceiver.data.dataset import Dataset
from perceiver.data.readers.array import ArrayReader
from perceiver.data.sources.base import Item, Source
from perceiver.decoders.queries import QueryDecoder
from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.queries.learned import Learned
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.data_module import DataModule
from perceiver.training.freezing import Freezing
from perceiver.training.lightning_data import LightningData
from perceiver.training.module import TrainingModule
from perceiver.training.optimization import build_optimizer, constant
from perceiver.types import Box
from tests.inspection.models import TEXT, EveryWord, captioning, perceiver_io, text_decoder
from tests.models import DIM, image_encoder

DROPPING = BlockSpec(num_heads=1, attention_dropout=0.3, residual_dropout=0.2)


class Noise(Source):
    """Thirteen images of noise a stage, those for training augmented by more noise, those for validation with boxes.

    With `texts` they have captions, and for validation facts, too, by which all words speak of what is in the boxes.
    """

    def __init__(self, stages: str, *, boxes: bool = False, texts: bool = False) -> None:
        super().__init__(num_classes=0 if texts else 3)
        self.stages = stages.split()
        self.boxes = boxes
        self.texts = texts

    @property
    def class_names(self) -> list[str]:
        return [] if self.texts else ["a", "b", "c"]

    def items(self, stage, roles):
        return NoiseItems(stage, boxes=self.boxes, texts=self.texts) if stage in self.stages else None


class NoiseItems:
    def __init__(self, stage: str, *, boxes: bool = False, texts: bool = False) -> None:
        self.stage = stage
        self.boxes = boxes
        self.texts = texts
        self.images = torch.rand(13, 3, 11, 13, generator=torch.Generator().manual_seed(len(stage)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        image = self.images[index]
        if self.stage == "train":
            image = (image + 0.1 * torch.rand_like(image)).clamp(0, 1)
        targets = {"caption": TEXT, "references": [TEXT]} if self.texts else {"label": index % 3}
        if self.boxes and self.stage == "val":
            targets["boxes"] = [
                Box(label, "image", {"y": (0.0, 2.0 + label), "x": (float(index % 5), 7.0)})
                for label in range(index % 4)
            ]
            if self.texts:
                targets["facts"] = EveryWord(*targets["boxes"])
        return Item({"image": image}, targets, f"{self.stage}/{index}")


def noise(stages: str, **options) -> Dataset:
    readers = {"image": ArrayReader(shape=[3, 11, 13])}
    return Dataset(source=Noise(stages, **options), readers=readers, on_error="raise")


def evaluator(num_samples: int) -> Evaluator:
    return Evaluator(num_samples=num_samples, num_orders=2, rivals=False, randomize=False)


def attention(every_n_epochs: int = 1, **options) -> AttentionCallback:
    defaults = {"num_samples": 3, "evaluator": evaluator(7), "num_latents": 2, "rollout_alpha": 0.5}
    defaults |= {"max_megabytes": 1.0, "max_seconds": 3600.0, "sheets_every_n_epochs": 1}
    return AttentionCallback(every_n_epochs=every_n_epochs, **(defaults | options))


def fit(
    folder: Path,
    *callbacks: Callback,
    stages: str = "train val",
    boxes: bool = False,
    texts: bool = False,
    num_queries: int = 1,
    ckpt_path: Path | None = None,
    seed: int = 0,
    **options,
) -> tuple[Trainer, TrainingModule]:
    """A short training: three steps an epoch."""
    torch.manual_seed(seed)
    dataset = noise(stages, boxes=boxes, texts=texts)
    if texts:
        decoder, task = text_decoder(), captioning()
    else:
        decoder = QueryDecoder(
            dim=DIM, num_classes=3, queries=Learned(num_queries=num_queries, dim=13), attention=BlockSpec(num_heads=1)
        )
        task = Classification(num_classes=3, loss=LossSpec(), mixup=0.0, cutmix=0.0)
    module = TrainingModule(
        model=perceiver_io(encoders={"image": image_encoder()}, decoder=decoder, self_attention=DROPPING).train(),
        task=task,
        optimizer=partial(build_optimizer, partial(torch.optim.AdamW, lr=0.03)),
        schedule=constant,
        description={"class_names": dataset.class_names},
        freezing=Freezing(),
        on_nonfinite="stop",
    )
    options_of_data = {"num_workers": 0, "timeout_seconds": 0, "drop_last": False, "pin_memory": False}
    options_of_data |= {"class_balanced": False, "seed": 0}
    data = DataModule(dataset=dataset, batch_size=5, **options_of_data)
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 5,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(callbacks=list(callbacks), default_root_dir=folder, **(defaults | options))
    trainer.fit(module, datamodule=LightningData(data), ckpt_path=ckpt_path)
    return trainer, module


def events(folder: Path) -> list[dict[str, np.ndarray]]:
    """All files that were written, in order."""
    return [dict(np.load(path)) for path in sorted((folder / "attention").glob("*.npz"))]
